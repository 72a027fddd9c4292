"""What clients send to have documents ranked: vLLM's fields, and what Jina's and Cohere's clients add."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sgl_engine import Fraction
from sgl_engine.server.fields import Body, PassFields

PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
"""Names under which vLLM's clients send queries, and what they are compared with."""
Some = Annotated[list[Any], Field(min_length=1)]


class RankFields(PassFields):
    """Settings of a list.

    Attributes:
        prompt: What the models are asked about each document; "{query}" stands for the query.
        positive: The answer that speaks for a document; None: all but ``negative`` do.
        negative: The answer that speaks against it.
        max_rescored: At most so many documents of a list go to the large model, the best ones.
        min_score: Documents that score less are left out.
        unreadable: "refuse" fails the request where a document cannot be used; "drop" leaves it out, and
            says why in ``sgl``.
    """

    prompt: str | None = None
    positive: str | None = None
    negative: str | None = None
    max_rescored: Annotated[int, Field(ge=0)] | None = None
    min_score: Fraction | None = None
    unreadable: Literal["refuse", "drop"] = "refuse"


class ListBody(Body):
    """What ranking and scoring have in common.

    Attributes:
        use_activation: vLLM's; scores are probabilities, and can be had as nothing else.
        cache_salt: As of a chat.
    """

    use_activation: Literal[True] = True
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    sgl: RankFields = RankFields()


class RerankBody(ListBody):
    """``POST /rerank``.

    Attributes:
        query: What documents are to answer: a text.
        documents: Texts and pictures (``ranking.documents``).
        top_n: At most so many are returned; 0 is all of them.
        return_documents: Whether each result repeats its document. Not said, texts are repeated, and
            pictures are not.
    """

    query: Any
    documents: Some
    top_n: Annotated[int, Field(ge=0)] = 0
    return_documents: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        return _listed(given, "documents")


class ScoreBody(ListBody):
    """``POST /score``: one query and some documents, or as many of either. Read under any names of ``PAIRS``.

    Attributes:
        queries: Texts.
        documents: Texts and pictures.
    """

    queries: Some
    documents: Some

    @model_validator(mode="before")
    @classmethod
    def _under_any_name(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for queries, documents in PAIRS:
            if queries in given and documents in given:
                rest = {key: value for key, value in given.items() if key not in (queries, documents)}
                given = {**rest, "queries": given[queries], "documents": given[documents]}
                break
        return _listed(_listed(given, "queries"), "documents")


def _listed(given: Any, name: str) -> Any:
    """A body in which what stands alone under a name is a list of one."""
    alone = isinstance(given, dict) and isinstance(given.get(name), str | dict)
    return {**given, name: [given[name]]} if alone else given

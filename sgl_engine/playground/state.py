"""What the page can be set to: what it sends with a question, and what a link brings back. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError, model_validator

from sgl_engine.demo import PICTURES
from sgl_engine.playground.figures import AloneRun

Unit: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
CoveredBox: TypeAlias = tuple[Unit, Unit, Unit, Unit]
Part: TypeAlias = Literal["small", "large", "ranker", "pair", "tokens"]

MAX_COVERS: Final = 32
_THOUSANDTHS: Final = 1000
_OVERRULED: Final[str] = json.loads((PICTURES / "demo.json").read_text(encoding="utf-8"))[1]["question"]


class _Sent(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    pass


class PageState(_Sent):
    """All that a link restores.

    Attributes:
        picture: Name in the gallery; empty is the visitor's own, which no link can hold.
        q: The question.
        keep: Fraction of the visual tokens that the large model keeps.
        k: Decoder layer from which on it keeps only those.
        t: Score from which on the small answer is kept.
        ranker: What chooses tokens for the comparison; empty compares nothing.
        cover: Parts of the picture that are painted over.
        small_hour: Price of an hour of the small model's machine.
        large_hour: Price of an hour of the large model's machine.
        heat: Whether the heat map is shown.
        kept: Whether the kept tokens are.
    """

    picture: str = "page"
    q: Annotated[str, Field(max_length=2000)] = _OVERRULED
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    k: Annotated[int, Field(ge=0)] = 0
    t: Unit = 0.8
    ranker: str = ""
    cover: Annotated[tuple[CoveredBox, ...], Field(max_length=MAX_COVERS)] = ()
    small_hour: Annotated[float, Field(ge=0.0)] = 1.0
    large_hour: Annotated[float, Field(ge=0.0)] = 1.0
    heat: bool = True
    kept: bool = True

    @model_validator(mode="after")
    def _boxes_have_area(self) -> PageState:
        for x0, y0, x1, y1 in self.cover:
            if x0 >= x1 or y0 >= y1:
                raise ValueError(f"a covered part from {x0:g}, {y0:g} to {x1:g}, {y1:g} is empty")
        return self


class AskBody(_Sent):
    """A question from the page.

    Attributes:
        state: What the page is set to.
        data: The visitor's own picture as a ``data:`` URL; empty with one of the gallery.
        parts: What is wanted of it; the rest has not changed.
        salt: Questions of one salt share what is known of the picture; with nobody else's.
        alone: What the large model alone has done with this question before; None measures it.
    """

    state: PageState
    data: str = ""
    parts: tuple[Part, ...]
    salt: Annotated[str, Field(min_length=8, max_length=64)]
    alone: AloneRun | None = None


def read_state(
    query: Mapping[str, str], default: PageState, known: Mapping[str, tuple[str, ...]]
) -> tuple[PageState, list[str]]:
    """The state of a link. What cannot be read stays as it is by default, and is told.

    Args:
        query: The link's parameters: fields of ``PageState``; others are ignored.
        default: What counts where the link says nothing.
        known: "picture" and "ranker": names that there are.

    Returns:
        The state, and a sentence for each parameter that does not count.
    """
    state, problems = default, []
    for name, text in query.items():
        if name not in PageState.model_fields:
            continue
        try:
            value = _covers(text) if name == "cover" else _named(text, known.get(name))
            state = PageState.model_validate({**state.model_dump(), name: value})
        except ValueError as error:
            problems.append(f"The link's {name}={text:.40} does not count: {_reason(error)}.")
    return state, problems


def _named(text: str, known: tuple[str, ...] | None) -> str:
    if known is not None and text not in known:
        raise ValueError(f"use one of {', '.join(filter(None, known))}")
    return text


def _covers(text: str) -> list[list[float]]:
    """Reads "x0,y0,x1,y1;..." in thousandths of the picture."""
    return [[int(edge) / _THOUSANDTHS for edge in box.split(",")] for box in text.split(";") if box]


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first: Any = error.errors()[0]
    return str(first["msg"]).removeprefix("Value error, ")

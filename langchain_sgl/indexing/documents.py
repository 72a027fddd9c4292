"""What a Document holds: the answer as text; where it comes from, and how it came about, as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from langchain_core.documents import Document

from langchain_sgl.indexing.manifest import DeliveredDocument, StoredAnswer

Report: TypeAlias = Literal["flat", "none", "full"]

_STABLE = ("route", "visual_tokens", "kept_visual_tokens", "keep_ratio")
"""Fields of a run report that are numbers or text, and the same whenever a picture is asked about.

Left out are times, what was known from other requests, and scores: these hang on what else was in a batch, in
their last digits, and a document whose metadata change is embedded anew.
"""


def make_document(
    delivered: DeliveredDocument, answer: StoredAnswer, given: Mapping[str, Any], report: Report
) -> Document:
    """Builds the document of an answer.

    Args:
        delivered: Its id, and metadata that are the picture's.
        answer: Its text, and metadata that are the answer's.
        given: Metadata that came with the picture.
        report: How much of the run report goes in; ``SGLImageIndexer`` describes it.
    """
    about = {**answer.metadata}
    run_report = about.pop("sgl", None)
    metadata = {**delivered.about, **about, **_of_report(run_report, report)}
    # Some stores refuse a value that is None, and none of them finds anything by it.
    known = {name: value for name, value in metadata.items() if value is not None}
    return Document(answer.text, id=delivered.id, metadata={**given, **known})


def _of_report(run_report: Mapping[str, Any] | None, report: Report) -> dict[str, Any]:
    if run_report is None or report == "none":
        return {}
    if report == "full":
        return {"sgl": run_report}
    return {f"sgl_{name}": run_report.get(name) for name in _STABLE}

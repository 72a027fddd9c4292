"""What an agent's model is told about a run, in one line: models do not see response metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_sgl.pictures import shorten

if TYPE_CHECKING:
    from sgl_engine.types import Box


def describe_run(answer: str, metadata: Mapping[str, Any], *, box: Box | None = None) -> str:
    """The answer, then a line on whose it is, how sure the small model was, the cost, and where it looked.

    Args:
        answer: The model's.
        metadata: The message's ``response_metadata``, with the report.
        box: Where the small model looked, in fractions of the whole picture.
    """
    report = metadata["sgl"]
    parts = [_route(report), _cost(report)]
    if metadata.get("finish_reason") == "length":
        parts.append("cut off at the token limit")
    if box is not None:
        x0, y0, x1, y1 = box
        parts.append(f"looked at x {x0:.2f}-{x1:.2f}, y {y0:.2f}-{y1:.2f}")
    return f"{answer or '(no answer)'}\n[{'; '.join(parts)}]"


def _route(report: Mapping[str, Any]) -> str:
    score, threshold = report["score"], report["threshold"]
    if not report["escalated"]:
        if report["forced"] and score < threshold:
            unsure = f"answered by the small model alone, score {_compare(score, threshold)}"
            return f"{unsure}, as the large model may not be asked"
        return f"answered by the small model, score {_compare(score, threshold)}"
    if report["large_agreed"]:
        small = "the small one gave the same answer"
    else:
        small = f"the small one answered {shorten(report['small_answer'] or '')!r}"
    at = f"with score {score:.2f}" if report["forced"] else f"with score {_compare(score, threshold)}"
    return f"answered by the large model{', as asked' if report['forced'] else ''}; {small} {at}"


def _compare(score: float, threshold: float) -> str:
    """The comparison, with as many digits as it takes to be true: ``0.92 >= 0.80``."""
    sign = ">=" if score >= threshold else "<"
    for digits in (2, 3, 4, 6):
        left, right = f"{score:.{digits}f}", f"{threshold:.{digits}f}"
        if left != right:
            break
    return f"{left} {sign} {right}"


def _cost(report: Mapping[str, Any]) -> str:
    saved = round(100 * report["saved_fraction"])
    compute = (
        f"{saved} % of the large model's compute saved"
        if saved >= 0
        else f"{-saved} % more compute than the large model alone"
    )
    return f"{compute}, {report['stage_ms']['total']:.0f} ms"

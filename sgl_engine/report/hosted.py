"""What a report says of a hosted model: what it was sent of the pictures, what it took, why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from sgl_engine.hosted.picture_tokens import count_picture_tokens

if TYPE_CHECKING:
    from sgl_engine.config import SendConfig
    from sgl_engine.hosted.evidence import Evidence
    from sgl_engine.hosted.model import HostedAnswer
    from sgl_engine.prompt.encoded import Box
    from sgl_engine.request import Request


class PictureReport(BaseModel):
    """What a hosted model was sent of one picture.

    Attributes:
        mode: All of it, crops after a small picture of the whole, or all of it with the rest masked.
        reason: Why.
        boxes: What the small model looked at: (x0, y0, x1, y1) in fractions of the picture; none in full.
        full_size: Width and height of the picture.
        sent_sizes: Those of each picture that was sent in its place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["full", "crop", "mask"]
    reason: str
    boxes: list[tuple[float, float, float, float]]
    full_size: tuple[int, int]
    sent_sizes: list[tuple[int, int]]


class SentReport(BaseModel):
    """What a hosted model was sent of the pictures.

    Attributes:
        pictures: Of each picture, in order.
        sent_pixels: Pixels of all pictures that were sent.
        full_pixels: Those of the request's pictures.
        saved_pixels: The difference; negative never.
        sent_bytes: Of the encoded pictures that were sent.
        sent_tokens: What the provider's rule makes of the pictures that were sent; None without a rule
            (``SendConfig.picture_tokens``).
        full_tokens: The same of the request's pictures.
        saved_tokens: The difference; rules that charge each picture a base may make it negative.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: list[PictureReport]
    sent_pixels: int
    full_pixels: int
    saved_pixels: int
    sent_bytes: int
    sent_tokens: int | None = None
    full_tokens: int | None = None
    saved_tokens: int | None = None


def _rounded(box: Box) -> Box:
    x0, y0, x1, y1 = (round(edge, 4) for edge in box)
    return x0, y0, x1, y1


@dataclass(frozen=True, eq=False)
class HostedCost:
    """What became of a hosted model's turn, or would have.

    Attributes:
        answer: What it answered; None where it was not asked, or failed.
        evidence: What was sent; None where it was not asked.
        failure: Why there is no answer.
        request: The request, its pictures loaded.
        config: How pictures are counted.
    """

    answer: HostedAnswer | None
    evidence: Evidence | None
    failure: str | None
    request: Request
    config: SendConfig

    @property
    def full_tokens(self) -> int | None:
        """Tokens of all pictures in full, by the provider's rule; None without one."""
        sizes = [getattr(part.source, "size", (0, 0)) for part in self.request.images]
        return 0 if not sizes else self._tokens(sizes)

    def _tokens(self, sizes: Sequence[tuple[int, int]]) -> int | None:
        rule = self.config.picture_tokens
        return None if rule is None else sum(count_picture_tokens(rule, *size) for size in sizes)

    def sent(self) -> SentReport | None:
        """What was sent; None where nothing was."""
        if self.evidence is None:
            return None
        sent = self.evidence.sent
        sizes = [size for picture in sent for size in picture.sizes]
        pixels = sum(width * height for width, height in sizes)
        full = sum(width * height for width, height in (picture.full_size for picture in sent))
        tokens, full_tokens = self._tokens(sizes), self.full_tokens
        return SentReport(
            pictures=[
                PictureReport(
                    mode=picture.mode,
                    reason=picture.reason,
                    boxes=[_rounded(box) for box in picture.boxes],
                    full_size=picture.full_size,
                    sent_sizes=list(picture.sizes),
                )
                for picture in sent
            ],
            sent_pixels=pixels,
            full_pixels=full,
            saved_pixels=full - pixels,
            sent_bytes=self.evidence.bytes,
            sent_tokens=tokens,
            full_tokens=None if tokens is None else full_tokens,
            saved_tokens=None if tokens is None or full_tokens is None else full_tokens - tokens,
        )

    def fields(self) -> dict[str, Any]:
        """The report's fields that are a hosted model's own, and what it says of its tokens."""
        usage = None if self.answer is None else self.answer.usage
        fields: dict[str, Any] = {"large_hosted": True, "large_error": self.failure, "sent": self.sent()}
        if self.answer is not None:
            fields["large_answered_as"] = self.answer.model
        if usage is None:
            return fields
        return fields | {
            "large_input_tokens": usage.input_tokens,
            "large_output_tokens": usage.output_tokens,
            "large_reasoning_tokens": usage.reasoning_tokens,
            "large_known_tokens": usage.cached_tokens,
        }

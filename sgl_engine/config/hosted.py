"""What leaves the machine when the large model is a hosted one."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
OnLargeError: TypeAlias = Literal["raise", "keep"]
SendMode: TypeAlias = Literal["full", "crop", "mask", "auto"]


class PatchTokens(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How many tokens a picture is to a provider who counts square patches.

    Attributes:
        side: Pixels of a patch's side; of models that merge patches, of what they are merged to.
        most: The picture is scaled down to so many patches; None never.
        per_patch: Tokens of a patch.
        base: Tokens of a picture beside its patches.
    """

    side: Annotated[int, Field(ge=1)]
    most: Annotated[int, Field(ge=1)] | None = None
    per_patch: Annotated[float, Field(gt=0.0)] = 1.0
    base: Annotated[int, Field(ge=0)] = 0


PictureTokens: TypeAlias = Literal["openai-tiles", "openai-patches", "anthropic", "gemini"] | PatchTokens


class SendConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Which part of the pictures a hosted model is sent; texts and everything else go as they are.

    Attributes:
        mode: "full", the default, sends every picture as it is: a model may read crops less well than pages,
            as the bundled one does (docs/hosted.md). "crop" sends what the small model looked at, at native
            resolution, after a small picture of the whole. "mask" sends the picture at its own size, with
            everything else blurred or blanked. "auto" crops where the small model looked at little, and where
            that saves something, and sends the rest in full.
        share: How much of the small model's attention above the ordinary the boxes hold, in (0, 1].
        margin: Added around each box, in fractions of the picture's sides.
        max_boxes: Boxes of one picture at most; those nearest to each other are joined.
        overview_pixels: The small picture of the whole has at most so many pixels; 0 sends none.
        least_saved: "auto" sends a picture in full where crops would save less than this fraction of its
            pixels.
        most_area: "auto" sends a picture in full whose boxes cover more than this fraction of it.
        least_mass: "auto" sends it in full where less than this fraction of all attention is above the
            ordinary, as the map is flat then.
        whole_words: "auto" sends everything where the last message has one of these words, in any case: such
            a question is about all of a picture, whatever was looked at.
        mask: What becomes of the rest in "mask": "blur" leaves colours and coarse shapes, "blank" nothing.
        image_format: How pictures are encoded; PNG loses nothing, JPEG is smaller for photographs. No other
            data of a file, such as the place where a photograph was taken, is sent.
        quality: Of JPEG and WEBP, from 1 to 100.
        picture_tokens: How the provider counts a picture in tokens: one of the big providers' formulas, or
            patches of one's own; None leaves these numbers out of the report.
    """

    mode: SendMode = "full"
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    margin: Fraction = 0.04
    max_boxes: Annotated[int, Field(ge=1)] = 3
    overview_pixels: Annotated[int, Field(ge=0)] = 40_000
    least_saved: Fraction = 0.3
    most_area: Fraction = 0.5
    least_mass: Fraction = 0.2
    whole_words: tuple[str, ...] = (
        *("transcribe", "transcription", "read out", "all text", "whole text", "everything"),
        *("how many", "count", "number of", "total number", "compare", "difference between", "summarize"),
        *("summarise", "describe", "list all", "caption"),
    )
    mask: Literal["blur", "blank"] = "blur"
    image_format: Literal["PNG", "JPEG", "WEBP"] = "PNG"
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    picture_tokens: PictureTokens | None = None

"""Where the small model looked, as plain JSON that travels in a message, and what can be made of it later.

``ChatSGL(evidence=True)`` puts it into ``response_metadata["sgl_evidence"]``; a box, a crop and a drawing
need neither the engine nor its weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sgl_engine import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.messages import BaseMessage
    from PIL.Image import Image

    from sgl_engine import ImageSource
    from sgl_engine.attention import ImportanceMap
    from sgl_engine.prompt import Box

EVIDENCE_KEY = "sgl_evidence"
"""Where it stands in ``response_metadata``."""
SCHEMA_VERSION: Literal["1"] = "1"


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0


def _six_decimals(value: float) -> float:
    return round(value, 6)


_Mass: TypeAlias = Annotated[float, AfterValidator(_four_digits)]
_Edge: TypeAlias = Annotated[float, AfterValidator(_six_decimals)]


class EvidenceSpan(BaseModel):
    """The visual tokens of one picture, or of one tile of it.

    Attributes:
        image: Index of the picture in the request, from 0.
        box: What the tokens see: (x0, y0, x1, y1), fractions of the picture; None where that is unknown.
        grid: (rows, cols) of tokens.
        mass: Attention per token, row by row; 4 significant digits; higher = more important.
    """

    model_config = ConfigDict(frozen=True)

    image: int = Field(ge=0)
    box: tuple[_Edge, _Edge, _Edge, _Edge] | None
    grid: tuple[int, int]
    mass: tuple[_Mass, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rows, cols = self.grid
        if rows < 1 or cols < 1 or len(self.mass) != rows * cols:
            raise ValueError(f"a grid of {rows} x {cols} tokens with {len(self.mass)} masses")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"a box without area: {self.box}")
        return self


class Evidence(BaseModel):
    """An importance map without tensors; ``sgl_engine.attention.importance.ImportanceMap``.

    The schema is versioned: a field is never renamed or given another meaning under the same
    ``schema_version``; new fields may appear, and are ignored here.

    Attributes:
        schema_version: Version of this schema.
        num_queries: Query rows that were summed.
        spans: The prompt's visual spans, in order.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal["1"] = SCHEMA_VERSION
    num_queries: int
    spans: tuple[EvidenceSpan, ...]

    @classmethod
    def from_importance(cls, importance: ImportanceMap) -> Evidence:
        """Copies an importance map; numbers that are not finite, which JSON cannot hold, become 0."""
        spans = [
            EvidenceSpan(
                image=span.image,
                box=span.box,
                grid=span.grid,
                mass=tuple(grid.flatten().tolist()),
            )
            for span, grid in zip(importance.spans, importance.grids(), strict=True)
        ]
        return cls(num_queries=importance.num_queries, spans=tuple(spans))

    @classmethod
    def from_json(cls, data: object) -> Evidence:
        """Reads what ``to_json`` wrote, also after a round trip through JSON text.

        Raises:
            InvalidRequestError: It is something else, or of another schema version.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise InvalidRequestError(
                f"This is not evidence of schema version {SCHEMA_VERSION}: at {place}, {first['msg']}.",
                remedy=f"Pass response_metadata[{EVIDENCE_KEY!r}] as it came.",
            ) from error

    @classmethod
    def from_message(cls, message: BaseMessage) -> Evidence:
        """Reads the evidence of an answer of ``ChatSGL``.

        Raises:
            InvalidRequestError: The message carries none.
        """
        data = message.response_metadata.get(EVIDENCE_KEY)
        if data is None:
            raise InvalidRequestError(
                "The message carries no evidence.",
                remedy="Ask about a picture, with ChatSGL(evidence=True) or chat.bind(evidence=True).",
            )
        return cls.from_json(data)

    def to_json(self) -> dict[str, Any]:
        """Writes plain JSON: dicts, lists, numbers and strings."""
        return self.model_dump(mode="json")

    def importance(self) -> ImportanceMap:
        """Builds the engine's map. Prompt positions are lost: spans follow each other from 0."""
        import torch

        from sgl_engine.attention import ImportanceMap
        from sgl_engine.prompt import VisualSpan

        spans, start = [], 0
        for span in self.spans:
            stop = start + len(span.mass)
            spans.append(VisualSpan(span.image, start, stop, span.grid, span.box))
            start = stop
        mass = torch.tensor([mass for span in self.spans for mass in span.mass], dtype=torch.float32)
        return ImportanceMap(mass=mass, spans=tuple(spans), num_queries=self.num_queries)

    def box(self, image: int = 0, *, share: float = 0.5, margin: float = 0.05) -> Box:
        """Finds the smallest box that holds ``share`` of what stands out (``sgl_engine.explain.heatmap``).

        For 237 held-out questions that the bundled small model answers right, the box with the default margin
        is 19 % of the picture and holds 63 % of what the answer is read from, on average; without a margin it
        is 12 % and holds 51 %.

        Args:
            image: Index of the picture in the request, from 0.
            share: Of the attention above the median token's, in (0, 1]; more gives a larger box.
            margin: Added on each side, in fractions of the picture.

        Returns:
            (x0, y0, x1, y1), fractions of the picture; the whole picture where no token stands out.
        """
        from sgl_engine.explain import focus_box

        return focus_box(self.importance(), image=image, share=share, margin=margin)

    def crop(
        self, picture: ImageSource, image: int = 0, *, share: float = 0.5, margin: float = 0.05
    ) -> Image:
        """Cuts what lies in ``box`` from the picture: RGB, upright, at least one pixel.

        Args:
            picture: The picture that was asked about, in any form that the engine takes.
            image: Its index in the request, from 0.
            share: As in ``box``.
            margin: As in ``box``.

        Raises:
            ImageError: The picture cannot be used.
            InvalidRequestError: As in ``box``.
        """
        return crop_box(_load(picture), self.box(image, share=share, margin=margin))

    def draw(
        self,
        pictures: ImageSource | list[ImageSource] | tuple[ImageSource, ...],
        *,
        question: str = "",
        answer: str = "",
    ) -> Image:
        """Draws the heat map over the pictures, with legend and caption (``sgl_engine.explain.heatmap``).

        Args:
            pictures: All pictures of the request, in order.
            question: For the caption.
            answer: For the caption.

        Raises:
            ImageError: A picture cannot be used.
            InvalidRequestError: A picture is missing, or it is unknown where its tokens lie.
        """
        from sgl_engine.explain import draw_importance

        given: Sequence[ImageSource] = pictures if isinstance(pictures, list | tuple) else [pictures]
        loaded = [_load(picture) for picture in given]
        return draw_importance(loaded, self.importance(), question=question, answer=answer)

    def within(self, region: Box) -> Evidence:
        """Moves the evidence to a larger picture, of which the one that was asked about is ``region``."""
        spans = [
            span.model_copy(update={"box": None if span.box is None else place_in(region, span.box)})
            for span in self.spans
        ]
        return self.model_copy(update={"spans": tuple(spans)})


def place_in(region: Box, box: Box) -> Box:
    """Turns a box of a crop into a box of the picture of which the crop shows ``region``."""
    x0, y0, x1, y1 = region
    width, height = x1 - x0, y1 - y0
    return (x0 + width * box[0], y0 + height * box[1], x0 + width * box[2], y0 + height * box[3])


def crop_box(picture: Image, box: Box) -> Image:
    """Cuts ``box``, fractions of the picture, out of it; a pixel that is partly inside counts as inside."""
    width, height = picture.size
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(math.ceil(box[2] * width), left + 1), max(math.ceil(box[3] * height), top + 1)
    return picture.crop((left, top, min(right, width), min(bottom, height)))


def _load(picture: ImageSource) -> Image:
    from sgl_engine import LimitsConfig
    from sgl_engine.prompt import load_image

    # Whoever answered about it has checked it, by limits that may have been raised.
    any_size = LimitsConfig(
        max_image_bytes=2**62, max_image_pixels=2**62, max_image_side=2**31, pages="first"
    )
    return load_image(picture, any_size)

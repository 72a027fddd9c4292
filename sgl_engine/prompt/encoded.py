"""What a model takes: one prompt, several side by side, and digests of the pictures in them. Pure.

Digests are cryptographic: whoever sends pictures must not be able to make one that is taken for another's.
Prompts side by side are left-padded, so that their last tokens stand in one column. Column c of a row is
prompt position c - padding; the tokens after the prompts stand in columns S, S + 1, ... So columns of a row
are as far apart as its positions are, and causal masks and windows are right for columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Box: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1), fractions in [0, 1] of the source image's width and height."""


@dataclass(frozen=True)
class VisualSpan:
    """The visual tokens of one image, or of one tile of an image.

    Attributes:
        image: Index of the image in the request, from 0.
        start: First prompt position.
        stop: One past the last prompt position.
        grid: (rows, cols) of tokens after merging, row-major.
        box: The part of the source image that the tokens see; None where it is unknown (a tiled prompt built
            from raw inputs, without the image sizes).
        row_gap: Prompt tokens between two rows that are no visual tokens (row separators); they are text.
    """

    image: int
    start: int
    stop: int
    grid: tuple[int, int]
    box: Box | None
    row_gap: int = 0

    def __len__(self) -> int:
        """Number of visual tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Prompt positions of the visual tokens, ascending."""
        rows, cols = self.grid
        starts = range(self.start, self.start + rows * (cols + self.row_gap), cols + self.row_gap)
        return tuple(chain.from_iterable(range(start, start + cols) for start in starts))


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """What a model takes.

    Attributes:
        inputs: The model's keyword arguments (input_ids, attention_mask, pixel_values, ...).
        input_ids: int64 (B, S).
        spans: The visual tokens, in prompt order; image-token positions only, never the text between images.
        positions: int64 (axes, B, S), positions for rotary embeddings that see an image in two dimensions;
            one axis where tokens are left out; None where they are simply numbered.
        picture_axes: Where each picture lies in the inputs (``PictureAxes``); None where pictures cannot
            be told apart there.
        cut: Tells in which tiles the vision tower sees the pictures (``tiles``).
        part: Where the tokens of some tiles are left out (``leave_out``): of which prompt, and what is left.
            Then ``inputs`` are those of the text alone.
        cache_salt: Prompts of other salts are none of its business (``Request.cache_salt``).
    """

    inputs: Mapping[str, Tensor]
    input_ids: Tensor
    spans: tuple[VisualSpan, ...]
    positions: Tensor | None = None
    picture_axes: PictureAxes | None = None
    cut: Callable[[], PromptTiles | None] = lambda: None
    part: PromptPart | None = None
    cache_salt: str | None = None

    def __len__(self) -> int:
        """S, the number of prompt tokens."""
        return int(self.input_ids.shape[1])

    @property
    def num_visual_tokens(self) -> int:
        """V."""
        return sum(len(span) for span in self.spans)

    @cached_property
    def visual_positions(self) -> tuple[int, ...]:
        """The V prompt positions of visual tokens, ascending; computed when first asked for."""
        return tuple(chain.from_iterable(span.positions for span in self.spans))

    @cached_property
    def tiles(self) -> PromptTiles | None:
        """What the vision tower sees apart; None where that is not known. Computed when first asked for."""
        return self.cut()

    @cached_property
    def picture_digests(self) -> tuple[bytes, ...]:
        """Of each picture as the model is given it, or of all together; computed when first asked for."""
        if self.part is not None:
            return self.part.whole.picture_digests  # which of its tiles are there, positions tell
        digests = picture_digests(self.inputs, self.picture_axes)
        return tuple(salted(digest, self.cache_salt) for digest in digests)


@dataclass(frozen=True, eq=False)
class PromptTiles:
    """The pieces in which the vision tower sees a prompt's pictures, in the order in which it takes them.

    Attributes:
        pictures: Of which picture each is, from 0 (T,).
        tokens: bool (T, V), on the CPU: which visual tokens are made of each. A token that is interpolated
            where tiles meet is made of several; a tile that shows nothing but padding becomes none.
    """

    pictures: tuple[int, ...]
    tokens: Tensor

    def __len__(self) -> int:
        """T."""
        return len(self.pictures)

    @classmethod
    def of(cls, spans: Sequence[VisualSpan]) -> PromptTiles:
        """A tile for each span."""
        sizes = torch.tensor([len(span) for span in spans])
        tile = torch.arange(len(spans)).repeat_interleave(sizes)
        return cls(tuple(span.image for span in spans), tile == torch.arange(len(spans))[:, None])

    def made_of(self, chosen: Sequence[int]) -> Tensor:
        """Which visual tokens are made of these tiles alone, bool (V,)."""
        others = sorted(set(range(len(self))) - set(chosen))
        return ~self.tokens[others].any(dim=0)

    def by_picture(self, pictures: int) -> list[list[int]]:
        """Numbers of the tiles of each picture; of all together, where pictures cannot be told apart."""
        of_tiles = self.pictures if pictures > 1 else (0,) * len(self)
        return [[tile for tile, of in enumerate(of_tiles) if of == own] for own in range(pictures)]


@dataclass(frozen=True, eq=False)
class PromptPart:
    """What is left of a prompt.

    Attributes:
        whole: The prompt.
        columns: int64 (S',), on the CPU, ascending: the prompt positions that are left.
        tiles: All of its tiles.
        chosen: Numbers of those that are left, ascending.
    """

    whole: EncodedPrompt
    columns: Tensor
    tiles: PromptTiles
    chosen: tuple[int, ...]


def leave_out(part: PromptPart) -> EncodedPrompt:
    """A prompt without what a part does not have; what is left keeps its rotary positions."""
    whole, columns = part.whole, part.columns.to(part.whole.input_ids.device)
    positions = whole.positions
    return EncodedPrompt(
        inputs={name: value[:, columns] for name, value in whole.inputs.items() if name in TOKEN_INPUTS},
        input_ids=whole.input_ids[:, columns],
        spans=_spans_of(part),
        positions=columns[None, None] if positions is None else positions[..., columns],
        part=part,
        cache_salt=whole.cache_salt,
    )


def _spans_of(part: PromptPart) -> tuple[VisualSpan, ...]:
    """The visual tokens of a part; where a span is not left as a whole, each stretch of it becomes one."""
    column = {position: column for column, position in enumerate(part.columns.tolist())}
    spans: list[VisualSpan] = []
    for span in part.whole.spans:
        left = [column[position] for position in span.positions if position in column]
        if len(left) == len(span):
            spans.append(replace(span, start=left[0], stop=left[0] + span.stop - span.start))
            continue
        starts = [at for at, before in zip(left, [-2, *left], strict=False) if at != before + 1]
        for start, after in pairwise([*starts, len(column)]):
            count = sum(start <= at < after for at in left)
            spans.append(VisualSpan(span.image, start, start + count, (1, count), None))
    return tuple(spans)


def numbered(positions: Tensor | None, tokens: int, device: torch.device) -> Tensor:
    """Rotary positions of a prompt, (axes, 1, S): those that it has, or 0, 1, 2, ... on one axis."""
    return torch.arange(tokens, device=device)[None, None] if positions is None else positions


TOKEN_INPUTS = frozenset(
    {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"}
)
"""Inputs that belong to the text; all others are what the processor made of the pictures."""

PictureAxes = Mapping[str, tuple[int, Sequence[int]]]
"""Name of a vision input -> the axis along which the pictures lie, and how many entries each of them has."""


def picture_digests(inputs: Mapping[str, Tensor], axes: PictureAxes | None) -> tuple[bytes, ...]:
    """One digest per picture, of all that the vision side is given of it.

    Args:
        inputs: What the processor returned.
        axes: Where each picture lies in it; None gives one digest for all pictures together.
    """
    return tuple(_digest(part) for part in split_pictures(inputs, axes))


def salted(digest: bytes, salt: str | None) -> bytes:
    """A digest of 32 bytes as prompts of one salt have it; without a salt, the digest itself."""
    return digest if salt is None else hashlib.sha256(digest + salt.encode()).digest()


def split_pictures(inputs: Mapping[str, Tensor], axes: PictureAxes | None) -> list[dict[str, Tensor]]:
    """Each picture's own vision inputs (views); those of all pictures where they cannot be told apart."""
    if axes is None:
        vision = {name: value for name, value in inputs.items() if name not in TOKEN_INPUTS}
        return [vision] if vision else []
    pieces = {name: inputs[name].split(list(counts), dim=axis) for name, (axis, counts) in axes.items()}
    pictures = max(len(parts) for parts in pieces.values())
    return [{name: parts[picture] for name, parts in pieces.items()} for picture in range(pictures)]


def join_pictures(parts: Sequence[Mapping[str, Tensor]], axes: PictureAxes) -> dict[str, Tensor]:
    """The vision inputs of a prompt that holds just these pictures."""
    return {name: torch.cat([part[name] for part in parts], dim=axis) for name, (axis, _) in axes.items()}


def _digest(inputs: Mapping[str, Tensor]) -> bytes:
    found = hashlib.sha256()
    for name in sorted(inputs):
        value = inputs[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts that run together.

    Attributes:
        prompts: One per row, B of them.
        tokens: S, columns that the prompts take; that of the longest prompt when the batch was made.
        pad_token: What stands in columns without a token; no image token.
    """

    prompts: tuple[EncodedPrompt, ...]
    tokens: int
    pad_token: int = 0

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt], pad_token: int = 0) -> PromptBatch:
        """Pads to the longest; one prompt alone is not padded."""
        return cls(tuple(prompts), max(map(len, prompts)), pad_token)

    def __len__(self) -> int:
        """B."""
        return len(self.prompts)

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """Some of the rows, in the same columns."""
        return replace(self, prompts=tuple(self.prompts[row] for row in rows))

    @property
    def padding(self) -> tuple[int, ...]:
        """Columns before the first token of each row."""
        return tuple(self.tokens - len(prompt) for prompt in self.prompts)

    @property
    def is_padded(self) -> bool:
        """Whether any row has such columns."""
        return any(self.padding)

    @cached_property
    def inputs(self) -> Mapping[str, Tensor]:
        """What masks are made of: all of one prompt's own, else "input_ids", "attention_mask" (B, S)."""
        if len(self) == 1 and not self.is_padded:
            return self.prompts[0].inputs
        ids = [
            F.pad(prompt.input_ids, (padding, 0), value=self.pad_token)
            for prompt, padding in zip(self.prompts, self.padding, strict=True)
        ]
        return {"input_ids": torch.cat(ids), "attention_mask": self.attention_mask(self.tokens)}

    def attention_mask(self, columns: int) -> Tensor:
        """Which of the first columns hold a token, int64 (B, columns); those after the prompts all do."""
        padding = torch.tensor(self.padding, device=self._device)[:, None]
        return (torch.arange(columns, device=self._device) >= padding).long()

    def join(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Embeddings of each prompt, (1, S_b, width), as one: (B, S, widest)."""
        width = max(part.shape[-1] for part in embeddings)
        padded = [
            F.pad(part, (0, width - part.shape[-1], padding, 0))
            for part, padding in zip(embeddings, self.padding, strict=True)
        ]
        return torch.cat(padded)

    def positions(self, first: int, count: int) -> Tensor:
        """Rotary positions of ``count`` columns from ``first`` on: (B, N), or (axes, B, N).

        Tokens after a prompt go on by one from the largest position in it, on every axis. Padding has 0.
        """
        known = self._prompt_positions[..., first : first + count]
        after = torch.arange(first, first + count, device=self._device)[known.shape[-1] :] - self.tokens
        following = self._next_positions[:, None] + after
        return torch.cat((known, following.expand(*known.shape[:-1], -1)), dim=-1)

    @cached_property
    def _prompt_positions(self) -> Tensor:
        """(B, S), or (axes, B, S) where any prompt has several axes."""
        own = [numbered(prompt.positions, len(prompt), self._device) for prompt in self.prompts]
        axes = max(map(len, own))
        rows = [
            F.pad(each.expand(axes, 1, -1), (padding, 0))
            for each, padding in zip(own, self.padding, strict=True)
        ]
        positions = torch.cat(rows, dim=-2)
        return positions[0] if axes == 1 else positions

    @cached_property
    def _next_positions(self) -> Tensor:
        """(B,)."""
        largest = self._prompt_positions.amax(dim=-1)
        return (largest.amax(dim=0) if largest.ndim == 2 else largest) + 1

    @property
    def _device(self) -> torch.device:
        return self.prompts[0].input_ids.device


MAX_ROWS = 32  # prompts side by side; more hold more memory and gain little
_MAX_MASK_VALUES = 2**27  # a mask of padded prompts has one value for each row, query and key


def most_rows(longest: int, max_rows: int = MAX_ROWS) -> int:
    """Rows that may run together, the longest of ``longest`` tokens; at least one."""
    return max(1, min(max_rows, _MAX_MASK_VALUES // longest**2))

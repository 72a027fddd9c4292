"""Rows, entries and sizes of inputs: what several families compute in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.prompt.encoded import PictureAxes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from sgl_engine.config import PictureConfig


def entries(value: Tensor, chosen: Sequence[int], axis: int = 0) -> Tensor:
    """Some entries of an input."""
    import torch

    return value.index_select(axis, torch.tensor(chosen, device=value.device))


def axes_of_pictures(inputs: Mapping[str, Tensor], names: Sequence[str]) -> PictureAxes | None:
    """Each picture has one entry; None where the inputs disagree on how many there are."""
    counts = {len(inputs[name]) for name in names if name in inputs}
    if len(counts) != 1:
        return None
    return {name: (0, [1] * len(inputs[name])) for name in names if name in inputs}


def runs(input_ids: Tensor, token: int) -> list[int]:
    """Lengths of the stretches of ``token`` in (S,), in order."""
    from itertools import groupby

    return [len(list(group)) for same, group in groupby((input_ids == token).tolist()) if same]


def flat(features: Any) -> Tensor:
    """Features per image, in whatever nesting, as (V, hidden)."""
    import torch

    rows: Tensor = features if isinstance(features, torch.Tensor) else torch.cat(tuple(features), dim=0)
    return rows.reshape(-1, rows.shape[-1])


def size_of(config: PreTrainedConfig, name: str) -> int:
    """A size in a configuration; 0 where it has none, or another in each layer."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:
        return 0
    return value if isinstance(value, int) else 0


def most_area(wanted: PictureConfig, per_token: int) -> int | None:
    """The smaller of two limits, in pixels; None where there is none."""
    tokens = wanted.max_visual_tokens
    limits = [limit for limit in (wanted.max_pixels, tokens and tokens * per_token) if limit]
    return min(limits, default=None)


def side(size: Any) -> int:
    """A square's side that is written as a number, or as two equal ones."""
    return int(size[0] if isinstance(size, (list, tuple)) else size)

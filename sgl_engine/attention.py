"""Reads the attention that visual tokens receive, while the model runs as always.

The text model's attention function is switched, for the time of the context, to one that calls the original
function for the output and then computes probabilities for the few query rows that count: those from the
last visual token to the end of the prompt (A^P), and one per generated token that is fed back (A^D). An S x S
map is never built. (SGL, section 3.2; rows as in its public code.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_engine.importance import AttentionSums
from sgl_engine.types import EncodedPrompt

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM

_ROWS_AT_ONCE = 64  # bounds the probabilities in memory to heads x 64 x keys
_PREFIX = "sgl_capture_"
_RECORDER: ContextVar[AttentionRecorder | None] = ContextVar("sgl_attention_recorder", default=None)


class AttentionRecorder:
    """Adds attention rows up, in float32, per layer.

    Args:
        layers: L.
        prompt: Where the visual tokens are.
        first_row: First prompt row that counts.
        cached_tokens: Positions that were run before the recording began.
    """

    def __init__(self, layers: int, prompt: EncodedPrompt, first_row: int, cached_tokens: int = 0) -> None:
        self._prompt_tokens = len(prompt)
        self._first_row = first_row
        self._visual = torch.tensor(
            prompt.visual_positions, dtype=torch.int64, device=prompt.input_ids.device
        )
        self._decode_rows = [0] * layers
        self._seen = [cached_tokens] * layers
        # Sums stay on the device that computed them: copying each one would wait for each layer.
        self._prefill: list[Tensor | float] = [0.0] * layers
        self._decode: list[Tensor | float] = [0.0] * layers

    def sums(self) -> AttentionSums:
        """What was recorded so far."""
        return AttentionSums(
            prefill=self._stack(self._prefill),
            decode=self._stack(self._decode),
            prefill_queries=self._prompt_tokens - self._first_row,
            decode_queries=max(self._decode_rows),
        )

    def record(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Adds one call of one layer.

        Args:
            layer: Decoder layer.
            query: (1, H, Q, D), after rotation.
            key: (1, H_kv, N, D), after rotation, what the cache holds included.
            mask: Boolean (True = visible) or additive, (1, 1, Q, N); None is causal.
            scaling: Factor on the products.
        """
        if len(self._visual) == 0:
            return
        rows, keys = query.shape[2], key.shape[2]
        # A sliding window's cache holds the last keys only, so the keys' own number says nothing.
        before = max(self._seen[layer], keys - rows)
        self._seen[layer] = before + rows
        dropped = before + rows - keys
        prefill = before < self._prompt_tokens
        start = max(0, self._first_row - before) if prefill else 0
        self._visual = self._visual.to(query.device)
        columns = self._visual if dropped == 0 else self._visual[self._visual >= dropped] - dropped
        received = torch.zeros(len(columns), device=query.device)
        for first in range(start, rows, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, rows)
            probabilities = _attention_rows(query, key, mask, scaling, first, last)
            received += probabilities[:, columns].sum(dim=0)
        kept = self._prefill if prefill else self._decode
        # Visual tokens ascend, so those that the window has left behind come first.
        kept[layer] = kept[layer] + F.pad(received, (len(self._visual) - len(columns), 0))
        if not prefill:
            self._decode_rows[layer] += rows

    def _stack(self, per_layer: list[Tensor | float]) -> Tensor:
        nothing = torch.zeros(len(self._visual))
        return torch.stack([nothing + (row.cpu() if isinstance(row, Tensor) else row) for row in per_layer])


def _attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, first: int, last: int
) -> Tensor:
    """Probabilities of query rows [first, last), float32 (H * rows, N), heads outermost."""
    heads, keys = query.shape[1], key.shape[2]
    groups = heads // key.shape[1]
    # Query heads of one group share a key head, so the keys need not be repeated.
    rows = query[0, :, first:last].float().reshape(key.shape[1], groups * (last - first), -1)
    scores = (rows @ key[0].float().transpose(1, 2) * scaling).reshape(heads, last - first, keys)
    if mask is None:
        offset = keys - query.shape[2]
        position = torch.arange(first, last, device=query.device)[:, None] + offset
        visible = torch.arange(keys, device=query.device)[None] <= position
        scores = scores.masked_fill(~visible, float("-inf"))
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[0, :, first:last], float("-inf"))
    else:
        scores = scores + mask[0, :, first:last].float()
    return scores.softmax(dim=-1).reshape(-1, keys)


@contextmanager
def capture_attention(
    vlm: VLM, prompt: EncodedPrompt, *, first_row: int | None = None, cached_tokens: int = 0
) -> Iterator[AttentionRecorder]:
    """Records attention to visual tokens while ``vlm`` runs ``prompt`` and decodes, unpruned.

    Works for SDPA and eager attention, and leaves outputs as they are, bit for bit. On leaving, also by an
    exception, the model's attention setting is what it was.

    Args:
        vlm: The model that will run inside the context.
        prompt: The prompt that it will run.
        first_row: First prompt row that counts; None is the last visual token, as in the paper. For studies.
        cached_tokens: Positions that are in the cache already: len(prompt), to record what comes after it.
    """
    if first_row is None:
        first_row = max(prompt.visual_positions, default=len(prompt) - 1)
    recorder = AttentionRecorder(vlm.num_layers, prompt, first_row, cached_tokens)
    config = vlm.text_model.config
    original = config._attn_implementation  # noqa: SLF001  # transformers has no public setter for one config
    token = _RECORDER.set(recorder)
    try:
        config._attn_implementation = _register(original.removeprefix(_PREFIX))  # noqa: SLF001
        yield recorder
    finally:
        config._attn_implementation = original  # noqa: SLF001
        _RECORDER.reset(token)


def _register(implementation: str) -> str:
    """Makes the capturing twin of an attention implementation known to transformers: once, inert by itself.

    Its mask function is registered too: for an unknown name, transformers builds no mask at all, silently.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
        AttentionInterface.register(name, _CapturingAttention(implementation))
    return name


class _CapturingAttention:
    """An attention function that calls the original one, then shows queries and keys to the recorder."""

    def __init__(self, implementation: str) -> None:
        self._implementation = implementation

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        attend = self._original(module)
        output: tuple[Tensor, Tensor | None] = attend(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
        recorder = _RECORDER.get()
        if recorder is not None:
            recorder.record(module.layer_idx, query, key, attention_mask, scaling)
        return output

    def _original(self, module: Any) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        # Eager attention is not registered anywhere: every modelling file brings its own.
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get(self._implementation, eager)


@contextmanager
def reference_attention(
    vlm: VLM, *, layer: int = 0, hidden: Sequence[int] = (), first_row: int = 0
) -> Iterator[dict[int, Tensor]]:
    """The slow, obvious way, to hold the fast ones against: whole probabilities, eager masks, no cache.

    Within the context the text model runs softmax attention of plain matrix products, in which the layers
    from ``layer`` on do not see the positions ``hidden``. Rows of these are computed too; nobody reads them.

    Args:
        vlm: The model; it must be run on whole sequences.
        layer: First layer that does not see ``hidden``.
        hidden: Positions.
        first_row: First row whose attention is added up.

    Yields:
        Per layer that has run: attention that each position received, summed over heads and rows, (N,).
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    received: dict[int, Tensor] = {}
    columns = list(hidden)

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query.float() @ key.float().transpose(2, 3) * scaling + mask
        if columns and module.layer_idx >= layer:
            own = scores.diagonal(dim1=-2, dim2=-1).clone()
            scores[..., columns] = torch.finfo(scores.dtype).min
            scores.diagonal(dim1=-2, dim2=-1).copy_(own)  # hidden rows need something to look at
        probabilities = scores.softmax(dim=-1)
        received[module.layer_idx] = probabilities[0, :, first_row:].sum(dim=(0, 1))
        return (probabilities.to(value.dtype) @ value).transpose(1, 2).contiguous(), probabilities

    config = vlm.text_model.config
    original = config._attn_implementation  # noqa: SLF001  # transformers has no public setter for one config
    AttentionMaskInterface.register("sgl_reference", eager_mask)
    AttentionInterface.register("sgl_reference", attend)
    config._attn_implementation = "sgl_reference"  # noqa: SLF001
    try:
        yield received
    finally:
        config._attn_implementation = original  # noqa: SLF001
        AttentionInterface.register("sgl_reference", _left_behind)


def _left_behind(*_: Any, **__: Any) -> Any:
    """Keeps the reference's name from holding on to a finished one."""
    raise RuntimeError("reference_attention has ended")

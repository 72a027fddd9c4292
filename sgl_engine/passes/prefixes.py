"""The prefix of a prompt, up to its last picture, as a model's layers have computed it before.

No token sees a later one, so keys and values of a prompt's prefix are the same whatever is asked after it.
It ends before the last visual token, whose row is the first that the importance map counts (SGL, section
3.2): all rows that count are computed anew, on the very keys that a first run has left. A first run computes
prefix and rest apart as well, so that a later one repeats its rest bit for bit.

A model that is pruned from layer K on reuses what the layers below K have computed: their keys and values,
and what they handed to layer K.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from sgl_engine.config import ReuseConfig
from sgl_engine.prompt.batch import PromptBatch
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.layer_inputs import LayerInputs
from sgl_engine.pruning.patch import run_lower_layers
from sgl_engine.pruning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class KnownPrefix:
    """Where the first forward of a batch begins, and what it begins on.

    Attributes:
        cache: Keys and values of the columns before; the caller's own.
        tokens: How many columns that are; the first forward is given the embeddings from there on.
        lower: What enters layer K of them, for ``prune_visual_tokens``; None where layers from K on have
            keys and values of them too, or where there are none.
        known: Of each row, prompt tokens that need not be computed now.
    """

    cache: DynamicCache
    tokens: int
    lower: LayerInputs | None
    known: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """An entry of the store.

    Attributes:
        input_ids: int64 (P,), on the CPU.
        positions: int64 (axes, P), on the CPU; None where tokens are simply numbered.
        pictures: Digests of the prompt's pictures; they all begin before P.
        layers: The cache's layers, K of them, or all.
        lower: What enters layer K; None where these are all layers.
    """

    input_ids: Tensor
    positions: Tensor | None
    pictures: tuple[bytes, ...]
    layers: tuple[Any, ...]
    lower: LayerInputs | None

    def __len__(self) -> int:
        """P."""
        return len(self.input_ids)

    def common_tokens(self, prompt: EncodedPrompt, limit: int) -> int:
        """How many of the first ``limit`` tokens of a prompt can be taken from here."""
        count = min(len(self), limit)
        same = self.input_ids[:count] == prompt.input_ids[0, :count].cpu()
        if (self.positions is None) != (prompt.positions is None):
            return 0
        if self.positions is not None and prompt.positions is not None:
            same &= (self.positions[:, :count] == prompt.positions[:, 0, :count].cpu()).all(dim=0)
        common = count if bool(same.all()) else int(same.int().argmin())
        starts = _picture_starts(prompt)
        for start, ours, theirs in zip(starts, self.pictures, prompt.picture_digests, strict=False):
            if ours != theirs:
                common = min(common, start)
        # A window that has moved on, or a recurrent state, cannot be taken back.
        return common if common == len(self) or _can_be_cut(self.layers) else 0

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        for part in (*self.layers, *(() if self.lower is None else (self.lower,))):
            for value in vars(part).values():
                found = value.values() if isinstance(value, dict) else (value,)
                yield from (each for each in found if isinstance(each, Tensor))


def find_prefixes(
    vlm: VLM,
    batch: PromptBatch,
    embeddings: Sequence[Tensor],
    plans: Sequence[PruningPlan] | None,
    reuse: ReuseConfig,
) -> KnownPrefix:
    """Looks up what is known of prompts, and computes what is worth keeping of them.

    Prompts side by side begin together: where the one with most after its prefix does. Those that are not
    ``shares_prefix`` side by side run whole, and leave nothing.

    Args:
        vlm: The model.
        batch: The prompts.
        embeddings: Of each, (1, S_b, width).
        plans: How they will be pruned, all from the same layer on; None is not at all.
        reuse: What may be kept.
    """
    layers = _layers(vlm, None if plans is None else plans[0])
    alone = len(batch) == 1
    worth = (
        [bool(_end(vlm, batch.prompts[0], layers, reuse))]
        if alone
        else shares_prefix(vlm, batch.prompts, plans, reuse)
    )
    if not all(worth):
        return KnownPrefix(vlm.new_cache(), 0, None, (0,) * len(batch))
    found: dict[Hashable, _Prefix] = {}
    rows, known = [], []
    with vlm.exclusive():
        for prompt, embedded in zip(batch.prompts, embeddings, strict=True):
            end = _end(vlm, prompt, layers, reuse)
            key = _key(vlm, prompt, layers, end)
            before = end
            if key not in found:
                found[key], before = _find_or_compute(vlm, prompt, embedded, key, end, reuse)
            rows.append(found[key])
            known.append(before)
        if not alone:
            return _side_by_side(vlm, batch, rows, known)
        return KnownPrefix(_cache(vlm, rows[0].layers), len(rows[0]), rows[0].lower, tuple(known))


def shares_prefix(
    vlm: VLM, prompts: Sequence[EncodedPrompt], plans: Sequence[PruningPlan] | None, reuse: ReuseConfig
) -> list[bool]:
    """Of prompts that may run side by side, those whose prefix is known, or the prefix of another too.

    None where a layer's cache cannot be cut to length (sliding windows, recurrent layers).

    Args:
        vlm: The model.
        prompts: Encoded by it.
        plans: One per prompt; None prunes none of them.
        reuse: What may be kept.
    """
    if not reuse.keeps_prefixes or not _can_be_cut(vlm.new_cache().layers):
        return [False] * len(prompts)
    keys: list[Hashable | None] = []
    for row, prompt in enumerate(prompts):
        layers = _layers(vlm, None if plans is None else plans[row])
        end = _end(vlm, prompt, layers, reuse)
        keys.append(_key(vlm, prompt, layers, end) if end else None)
    counts = Counter(keys)
    return [key is not None and (counts[key] > 1 or vlm.store.holds("prefix", key)) for key in keys]


def _layers(vlm: VLM, plan: PruningPlan | None) -> int:
    """How many layers see a prompt's whole prefix."""
    return plan.layer if plan is not None and plan.prunes else vlm.num_layers


def _end(vlm: VLM, prompt: EncodedPrompt, layers: int, reuse: ReuseConfig) -> int:
    """P, where a prompt's prefix ends; 0 where it is not to be kept."""
    family = vlm.family
    if not reuse.keeps_prefixes or not prompt.spans or not family.looks_back_only:
        return 0
    if layers < vlm.num_layers and layers < max(1, family.first_plain_layer(vlm.config)):
        return 0
    end = max(prompt.visual_positions)
    return end if end >= reuse.min_prefix_tokens else 0


def _key(vlm: VLM, prompt: EncodedPrompt, layers: int, end: int) -> Hashable:
    """What the prefix of a prompt is found by, if it is found whole."""
    found = hashlib.sha256(b"".join(prompt.picture_digests))
    found.update(prompt.input_ids[0, :end].cpu().numpy().tobytes())
    if prompt.positions is not None:
        found.update(prompt.positions[:, 0, :end].cpu().numpy().tobytes())
    return layers, vlm.model.dtype, vlm.device, found.digest()


def _find_or_compute(
    vlm: VLM, prompt: EncodedPrompt, embeddings: Tensor, key: Hashable, end: int, reuse: ReuseConfig
) -> tuple[_Prefix, int]:
    """A prompt's prefix, and how much of it was known."""
    assert isinstance(key, tuple)
    layers = key[0]
    best, common = None, 0
    for other, entry in vlm.store.items("prefix"):
        if isinstance(other, tuple) and other[:3] == key[:3]:
            tokens = entry.common_tokens(prompt, end)
            if tokens > common and tokens >= reuse.min_prefix_tokens:
                best, common = other, tokens
    prefix: _Prefix | None = None if best is None else vlm.store.get("prefix", best)
    common = 0 if prefix is None else common
    vlm.store.count("prefix", hits=int(common > 0), misses=int(common == 0))
    if prefix is not None and common == len(prefix) == end:
        return prefix, common
    prefix = _compute(vlm, prompt, embeddings[:, common:end], layers, prefix, common)
    vlm.store.put("prefix", key, prefix, prefix.tensors(), max_bytes=reuse.max_bytes)
    return prefix, common


def _compute(
    vlm: VLM, prompt: EncodedPrompt, embeddings: Tensor, layers: int, known: _Prefix | None, first: int
) -> _Prefix:
    """Runs ``embeddings``, which stand in the prompt from ``first`` on, after what is known before them."""
    cache = vlm.new_cache() if known is None else _cache(vlm, known.layers, first)
    lower = None
    if layers == vlm.num_layers:
        vlm.forward(embeddings, prompt=prompt, first_position=first, cache=cache, logit_rows=0)
    else:
        lower = run_lower_layers(
            vlm, embeddings, prompt=prompt, first_position=first, cache=cache, layer=layers
        )
        if known is not None and known.lower is not None:
            lower = known.lower.cut(first).followed_by(lower)
    end = first + embeddings.shape[1]
    return _Prefix(
        input_ids=prompt.input_ids[0, :end].cpu(),
        positions=None if prompt.positions is None else prompt.positions[:, 0, :end].cpu(),
        pictures=prompt.picture_digests,
        layers=tuple(cache.layers[:layers]),
        lower=lower,
    )


def _cache(vlm: VLM, layers: Sequence[Any], tokens: int | None = None) -> DynamicCache:
    """A cache that begins with copies of layers, the first ``tokens`` of them where they are to be cut."""
    cache = vlm.new_cache()
    for index, layer in enumerate(layers):
        # Keys and values are never written to, so they are shared; a recurrent state is updated in place.
        own = copy.deepcopy(layer) if cache.is_linear[index] else copy.copy(layer)
        if tokens is not None and type(own) is DynamicLayer:
            own.keys, own.values = (part[:, :, :tokens] for part in (layer.keys, layer.values))
        cache.layers[index] = own
    return cache


def _side_by_side(
    vlm: VLM, batch: PromptBatch, prefixes: Sequence[_Prefix], known: Sequence[int]
) -> KnownPrefix:
    """Prefixes as a padded batch has them: columns before a prompt hold nothing, and nobody sees them."""
    columns = min(padding + len(prefix) for padding, prefix in zip(batch.padding, prefixes, strict=True))
    taken = [max(0, columns - padding) for padding in batch.padding]

    def join(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [
                F.pad(part[:, :, :count], (0, 0, columns - count, 0))
                for part, count in zip(parts, taken, strict=True)
            ]
        )

    cache = vlm.new_cache()
    for index in range(len(prefixes[0].layers)):
        of_rows = [prefix.layers[index] for prefix in prefixes]
        keys, values = (join([getattr(layer, name) for layer in of_rows]) for name in ("keys", "values"))
        cache.update(keys, values, index)
    lower = [
        prefix.lower.cut(count).padded(columns)
        for prefix, count in zip(prefixes, taken, strict=True)
        if prefix.lower is not None
    ]
    return KnownPrefix(
        cache,
        columns,
        LayerInputs.join(lower) if lower else None,
        tuple(min(before, count) for before, count in zip(known, taken, strict=True)),
    )


def _can_be_cut(layers: Sequence[Any]) -> bool:
    return all(type(layer) is DynamicLayer for layer in layers)


def _picture_starts(prompt: EncodedPrompt) -> list[int]:
    """Where each picture's first visual token stands; where the first one does, if they are one."""
    starts = {span.image: span.start for span in reversed(prompt.spans)}
    return sorted(starts.values())

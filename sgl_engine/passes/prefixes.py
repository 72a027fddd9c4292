"""Keeps what a model has computed of a prompt's prefix, up to its last picture, for other prompts.

No token sees a later one, so keys and values of a prompt's prefix are the same whatever is asked after it.
The prefix ends before the last visual token, whose row is the first that the importance map counts (SGL,
section 3.2). So all rows that count are computed anew, on the very keys that a first run has left. A first
run computes prefix and rest apart as well, so that a later one repeats its rest bit for bit.

A model that is pruned from layer K on reuses what the layers below K have computed: their keys and values,
and what they handed to layer K.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from sgl_engine.config import ReuseConfig
from sgl_engine.prompt.encoded import EncodedPrompt, PromptBatch, numbered
from sgl_engine.pruning.layer_inputs import LayerInputs
from sgl_engine.pruning.patch import run_lower_layers
from sgl_engine.pruning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM

_Key: TypeAlias = tuple[int, torch.dtype, torch.device, str | None, bytes]
"""Layers that see the whole prefix, how and where they compute, for which salt, and a digest of pictures and
tokens."""


@dataclass(frozen=True, eq=False)
class KnownPrefix:
    """The columns of a batch that need not be run any more, so that the first forward begins after them.

    Attributes:
        cache: Keys and values of these columns. The caller may write to it.
        tokens: How many columns they are; the first forward is given the embeddings of all others.
        lower: What enters layer K of them, for ``prune_visual_tokens``. None where the cache holds keys and
            values for all layers, or where nothing is known.
        known: Of each row, how many of its prompt tokens were not computed for this batch.
    """

    cache: DynamicCache
    tokens: int
    lower: LayerInputs | None
    known: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Prefix:
    """A prefix of P tokens, as the store keeps it.

    Attributes:
        input_ids: int64 (P,), on the CPU.
        positions: int64 (axes, P), on the CPU.
        pictures: Digests of the prompt's pictures; they all begin before P.
        layers: The cache's layers: the first K, or all.
        lower: What enters layer K; None where ``layers`` are all.
    """

    input_ids: Tensor
    positions: Tensor
    pictures: tuple[bytes, ...]
    layers: tuple[Any, ...]
    lower: LayerInputs | None

    def __len__(self) -> int:
        """P."""
        return len(self.input_ids)

    def common_tokens(self, prompt: EncodedPrompt, limit: int) -> int:
        """Counts how many of the first ``limit`` tokens of a prompt can be taken from here."""
        count = min(len(self), limit)
        # Tokens are the same where both their ids and their rotary positions are.
        same = self.input_ids[:count] == prompt.input_ids[0, :count].cpu()
        positions = _positions(prompt, count)
        if len(positions) != len(self.positions):
            return 0
        same &= (self.positions[:, :count] == positions).all(dim=0)
        common = count if bool(same.all()) else int(same.int().argmin())
        # All image tokens have one id, so pictures are compared by their digests.
        starts = _picture_starts(prompt)
        for start, ours, theirs in zip(starts, self.pictures, prompt.picture_digests, strict=False):
            if ours != theirs:
                common = min(common, start)
        # A window that has moved on, or a recurrent state, cannot be taken back: all of it fits, or nothing.
        return common if common == len(self) or _can_be_cut(self.layers) else 0

    def cut(self, vlm: VLM, tokens: int) -> _Prefix:
        """Returns the first ``tokens`` tokens of it, views of the same tensors."""
        return _Prefix(
            input_ids=self.input_ids[:tokens],
            positions=self.positions[:, :tokens],
            pictures=self.pictures,
            layers=tuple(_cache(vlm, self.layers, tokens).layers[: len(self.layers)]),
            lower=None if self.lower is None else self.lower.cut(tokens),
        )

    def tensors(self) -> Iterator[Tensor]:
        """Yields all tensors that the entry holds, for the store to count their bytes."""
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

    Prompts side by side have one first column to run: that of the prompt with most tokens after its prefix.
    A prompt alone always leaves its prefix for others; several do only if ``shares_prefix`` holds for each.

    Args:
        vlm: The model.
        batch: The prompts.
        embeddings: One per prompt, (1, S_b, width).
        plans: How they will be pruned, all from the same layer on; None prunes none of them.
        reuse: What may be kept.
    """
    layers = _layers(vlm, None if plans is None else plans[0])
    alone = len(batch) == 1
    if alone:
        is_worth_it = _end(vlm, batch.prompts[0], layers, reuse) > 0
    else:
        is_worth_it = all(shares_prefix(vlm, batch.prompts, plans, reuse))
    if not is_worth_it:
        return KnownPrefix(vlm.new_cache(), 0, None, (0,) * len(batch))
    found: dict[_Key, _Prefix] = {}
    rows, known = [], []
    with vlm.exclusive():
        for prompt, embedded in zip(batch.prompts, embeddings, strict=True):
            end = _end(vlm, prompt, layers, reuse)
            key = prefix_key(vlm, prompt, layers, end)
            before = end  # known in full where a prompt of this very batch has just computed it
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
    """Tells which prompts are worth running on their prefixes side by side.

    These are prompts whose prefix is known already, or is that of another of them as well.

    Args:
        vlm: The model.
        prompts: Encoded by it.
        plans: One per prompt; None prunes none of them.
        reuse: What may be kept.
    """
    # Prefixes of different lengths are cut to one length, which windows and recurrent states cannot be.
    if not reuse.keeps_prefixes or not _can_be_cut(vlm.new_cache().layers):
        return [False] * len(prompts)
    keys: list[_Key | None] = []
    for row, prompt in enumerate(prompts):
        layers = _layers(vlm, None if plans is None else plans[row])
        end = _end(vlm, prompt, layers, reuse)
        keys.append(prefix_key(vlm, prompt, layers, end) if end else None)
    counts = Counter(keys)
    return [key is not None and (counts[key] > 1 or vlm.store.holds("prefix", key)) for key in keys]


def _layers(vlm: VLM, plan: PruningPlan | None) -> int:
    """Counts the layers that see a prompt's whole prefix."""
    return plan.layer if plan is not None and plan.prunes else vlm.num_layers


def _end(vlm: VLM, prompt: EncodedPrompt, layers: int, reuse: ReuseConfig) -> int:
    """Returns P, where a prompt's prefix ends; 0 where the prefix is not to be kept."""
    family = vlm.family
    if not reuse.keeps_prefixes or not prompt.spans or not family.looks_back_only:
        return 0  # switched off; nothing worth keeping; or image tokens see what comes after them
    if layers < vlm.num_layers and layers < max(1, family.first_plain_layer(vlm.config)):
        # Pruned so early that no layer would be spared, or one that is given visual features once more.
        return 0
    end = max(prompt.visual_positions)  # the last visual token's row is computed anew
    return end if end >= reuse.min_prefix_tokens else 0


def prefix_key(vlm: VLM, prompt: EncodedPrompt, layers: int, end: int) -> _Key:
    """Makes the key of a prompt's first ``end`` tokens; parts of them may be found under other digests."""
    found = hashlib.sha256(b"".join(prompt.picture_digests))
    found.update(prompt.input_ids[0, :end].cpu().numpy().tobytes())
    if prompt.positions is not None:
        found.update(prompt.positions[:, 0, :end].cpu().numpy().tobytes())
    return layers, vlm.model.dtype, vlm.device, prompt.cache_salt, found.digest()


def _find_or_compute(
    vlm: VLM, prompt: EncodedPrompt, embeddings: Tensor, key: _Key, end: int, reuse: ReuseConfig
) -> tuple[_Prefix, int]:
    """Finds a prompt's prefix of ``end`` tokens, or computes what is missing of it.

    Returns:
        The prefix, and how many of its tokens were known.
    """
    best, common = None, 0
    # Every entry is tried, not only the one under this key: prompts may share a beginning, as those of one
    # conversation do, and differ after that.
    for other, entry in vlm.store.items("prefix"):
        # Only of the same layers, dtype and device; else the same tokens have other keys and values. And only
        # of the same salt, for text that stands before the first picture.
        if isinstance(other, tuple) and other[:4] == key[:4]:
            tokens = entry.common_tokens(prompt, end)
            # The longest; what is too short is not worth the copy.
            if tokens > common and tokens >= reuse.min_prefix_tokens:
                best, common = other, tokens
    # `get` marks the entry as used just now; looking at all of them does not.
    prefix: _Prefix | None = None if best is None else vlm.store.get("prefix", best)
    common = 0 if prefix is None else common
    vlm.store.count("prefix", hits=int(common > 0), misses=int(common == 0))
    if prefix is not None and common == len(prefix) == end:
        return prefix, common  # exactly this prefix: nothing to compute, nothing new to keep
    if prefix is not None and common == end:
        return prefix.cut(vlm, end), common  # all of it is the beginning of what is kept
    # Begin where the known tokens end; a longer entry is cut there. The result is an entry of its own.
    prefix = _compute(vlm, prompt, embeddings[:, common:end], key[0], prefix, common)
    vlm.store.put("prefix", key, prefix, prefix.tensors(), max_bytes=reuse.max_bytes)
    return prefix, common


def _compute(
    vlm: VLM, prompt: EncodedPrompt, embeddings: Tensor, layers: int, known: _Prefix | None, first: int
) -> _Prefix:
    """Runs the layers on ``embeddings``, which stand in the prompt from ``first`` on, after ``known``."""
    cache = vlm.new_cache() if known is None else _cache(vlm, known.layers, first)
    lower = None
    if layers == vlm.num_layers:
        # Nothing is pruned: all layers run, for their keys and values alone.
        vlm.forward(embeddings, prompt=prompt, first_position=first, cache=cache, logit_rows=0)
    else:
        lower = run_lower_layers(
            vlm, embeddings, prompt=prompt, first_position=first, cache=cache, layer=layers
        )
        if known is not None and known.lower is not None:
            # Layer K is given the whole prompt later, so what enters it is kept of the known part, too.
            lower = known.lower.cut(first).followed_by(lower)
    end = first + embeddings.shape[1]
    return _Prefix(
        input_ids=prompt.input_ids[0, :end].cpu(),
        positions=_positions(prompt, end),
        pictures=prompt.picture_digests,
        layers=tuple(cache.layers[:layers]),
        lower=lower,
    )


def _cache(vlm: VLM, layers: Sequence[Any], tokens: int | None = None) -> DynamicCache:
    """Makes a cache that begins with copies of ``layers``, cut to ``tokens``; None cuts nothing."""
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
    """Joins prefixes to that of a padded batch; columns before a prompt hold zeros, which no token sees."""
    # In a left-padded batch a prefix ends in column padding + P. All rows run from the first such end on, so
    # rows whose prefix goes further compute some of it again.
    columns = min(padding + len(prefix) for padding, prefix in zip(batch.padding, prefixes, strict=True))
    # Of each prefix; 0 of a prompt that begins later.
    taken = [max(0, columns - padding) for padding in batch.padding]

    def join(parts: Sequence[Tensor]) -> Tensor:
        """Joins keys or values (1, H_kv, P, D) to (B, H_kv, columns, D)."""
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


def _positions(prompt: EncodedPrompt, count: int) -> Tensor:
    """Returns the rotary positions of a prompt's first tokens, int64 (axes, count), on the CPU."""
    return numbered(prompt.positions, len(prompt), torch.device("cpu"))[:, 0, :count].cpu()


def _can_be_cut(layers: Sequence[Any]) -> bool:
    """Tells whether caches of all layers can be cut to fewer tokens: no windows, no recurrent states."""
    return all(type(layer) is DynamicLayer for layer in layers)


def _picture_starts(prompt: EncodedPrompt) -> list[int]:
    """Lists where each picture's first visual token stands, ascending."""
    starts = {span.image: span.start for span in reversed(prompt.spans)}
    return sorted(starts.values())

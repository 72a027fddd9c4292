"""Runs texts that may follow a prompt in one forward: a tree of tokens, each of which sees its own past.

Texts that begin alike share their first tokens (a trie). All tokens stand in one row after the prompt; the
mask shows each the prompt and the tokens before it in its own text, and its position is that in its own text.
So every text is read as if it stood there alone. The idea is that of tree attention (SpecInfer, 2305.09781).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgl_engine.prompt.encoded import EncodedPrompt, PromptBatch

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM

MAX_NODES = 256
"""Tokens of one forward at most, unless a single text has more: each has a row of logits."""


class TokenTrie:
    """Token sequences that share their beginnings; a node's number is greater than its parent's.

    Attributes:
        tokens: The token of each node.
        parents: The node before it in its sequences; -1 at the beginning of one.
        depths: How many tokens stand before it in these.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def missing(self, sequence: Sequence[int]) -> int:
        """How many nodes ``add`` would make."""
        node, known = -1, 0
        for token in sequence:
            following = self._children.get((node, token))
            if following is None:
                break
            node, known = following, known + 1
        return len(sequence) - known

    def add(self, sequence: Sequence[int]) -> list[int]:
        """Adds a sequence; returns its nodes."""
        node, path = -1, []
        for depth, token in enumerate(sequence):
            key = (node, token)
            if key not in self._children:
                self._children[key] = len(self)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            node = self._children[key]
            path.append(node)
        return path

    def visible(self) -> Tensor:
        """Which nodes each node sees: itself and those before it in its sequences; bool (N, N)."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):  # ascending, so a parent's row is complete
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def in_tries(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[TokenTrie, dict[int, list[int]]]]:
    """Packs sequences into tries of at most ``MAX_NODES``; yields each with the paths by sequence number."""
    # Sorted, sequences that begin alike come together; neighbours stay what they are otherwise.
    order = sorted(range(len(sequences)), key=lambda number: tuple(sequences[number]))
    trie, paths = TokenTrie(), dict[int, list[int]]()
    for number in order:
        if paths and len(trie) + trie.missing(sequences[number]) > MAX_NODES:
            yield trie, paths
            trie, paths = TokenTrie(), {}
        paths[number] = trie.add(sequences[number])
    if paths:
        yield trie, paths


@torch.inference_mode()
def run_trie(
    vlm: VLM,
    trie: TokenTrie,
    *,
    prompt: EncodedPrompt,
    first_position: int,
    cache: DynamicCache,
    additive: bool,
) -> Tensor:
    """Runs all nodes on a prompt's cache, which stays as it was.

    Args:
        vlm: One that ``can_branch`` (``passes.prefill``); where it is pruned, under ``prune_visual_tokens``
            with ``among``.
        trie: At least one node.
        prompt: The prompt that the sequences follow, or follow a part of.
        first_position: Where in it, or after it, they begin; at least 1.
        cache: Its keys and values, all before ``first_position``.
        additive: Whether the model's attention adds masks to its scores, and takes none of booleans.

    Returns:
        Logits after each node, float32 (N, vocab).
    """
    embeddings = vlm.embed_tokens(torch.tensor(trie.tokens, dtype=torch.int64))
    batch = PromptBatch.of([prompt])
    depths = torch.tensor(trie.depths, device=embeddings.device)
    positions = batch.positions(first_position, int(depths.max()) + 1).index_select(-1, depths)
    logits = vlm.forward_batch(
        embeddings,
        batch=batch,
        first_position=first_position,
        cache=cache,
        logit_rows=len(trie),
        branches=(positions, _mask(vlm, trie, cache, embeddings, additive=additive)),
    )
    cache.crop(-len(trie))  # tokens to drop, so it is right for the shorter caches of pruned layers too
    return logits[0]


def _mask(vlm: VLM, trie: TokenTrie, cache: DynamicCache, embeddings: Tensor, *, additive: bool) -> Tensor:
    """(1, 1, N, S + N): every node sees the prompt; boolean, or 0 and very negative numbers."""
    # Pruned layers get masks of their own; this is for those that have seen the whole prompt.
    known = max(vlm.cache_tokens(cache))
    own = trie.visible().to(embeddings.device)
    seen = torch.cat((own.new_ones(len(trie), known), own), dim=1)[None, None]
    if not additive:
        return seen
    nothing = torch.zeros((), dtype=embeddings.dtype, device=embeddings.device)
    return nothing.masked_fill(~seen, torch.finfo(embeddings.dtype).min)

"""Prepares prompts for the first forward of a pass, and decides which of them run side by side.

Every pass begins with a ``Prefiller``: it embeds pictures, lays prompts side by side, and looks up what is
known of them. Then comes the token loop (``sgl_engine.decoding.loop``), or forwards of the pass's own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from sgl_engine.config import ReuseConfig
from sgl_engine.decoding.answer import Answer, AnswerTask
from sgl_engine.passes.pictures import EmbeddedPrompt, embed_pictures, run_towers
from sgl_engine.passes.prefixes import KnownPrefix, find_prefixes
from sgl_engine.prompt.encoded import MAX_ROWS, EncodedPrompt, PromptBatch, PromptTiles, most_rows
from sgl_engine.pruning.plan import PruningPlan

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Prompts side by side, ready for the first forward of a pass.

    Attributes:
        batch: The prompts.
        embeddings: (B, S - P, width), visual features in place; of the columns after the P known ones.
        prefix: What is known of the P columns before.
    """

    batch: PromptBatch
    embeddings: Tensor
    prefix: KnownPrefix


@dataclass(frozen=True, eq=False)
class Prefiller:
    """Prepares prompts for one model.

    Attributes:
        vlm: The model.
        reuse: What may be kept for, or known from, another request.
    """

    vlm: VLM
    reuse: ReuseConfig

    def see(self, answers: Sequence[Answer], prompts: Sequence[EncodedPrompt]) -> list[EmbeddedPrompt | None]:
        """Runs the vision tower on pictures that are not known, and embeds each answer's prompt.

        Args:
            answers: What is to be generated.
            prompts: What each is generated from: its prompt, or what enters of it (``PruningPlan.enter``).

        Returns:
            In order, the embedded prompts. None for an answer that has an error, now or before, or that is
            not wanted any more.
        """
        asked = list(zip(answers, prompts, strict=True))
        going_on = [prompt for answer, prompt in asked if answer.goes_on()]
        computed = run_towers(self.vlm, going_on, self.reuse)
        return [
            answer.attempt(partial(embed_pictures, self.vlm, prompt, self.reuse, computed=computed))
            for answer, prompt in asked
        ]

    def prefill(
        self,
        prompts: Sequence[EncodedPrompt],
        embedded: Sequence[EmbeddedPrompt],
        plans: Sequence[PruningPlan] | None = None,
    ) -> Prefilled:
        """Lays prompts side by side, and looks up or computes what is worth keeping of them.

        Args:
            prompts: Encoded by the model.
            embedded: The same prompts, embedded.
            plans: How they will be pruned, all from the same layer on; None prunes none of them.
        """
        batch = self.vlm.batch(prompts)
        parts = [each.embeddings for each in embedded]
        prefix = find_prefixes(self.vlm, batch, parts, plans, self.reuse)
        return Prefilled(batch, batch.join(parts)[:, prefix.tokens :], prefix)


def group_rows(
    lengths: Sequence[int], kinds: Sequence[Hashable], *, max_rows: int = MAX_ROWS
) -> list[list[int]]:
    """Sorts rows into groups that run together: of one kind, of similar lengths, within limits.

    Args:
        lengths: Tokens of each row.
        kinds: What has to be equal in a group.
        max_rows: Rows of a group at most.

    Returns:
        For each group, the numbers of its rows.
    """
    groups: dict[Hashable, list[list[int]]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        of_kind = groups.setdefault(kinds[row], [[]])
        # Rows come in ascending order, so this one would be the longest of its group.
        if of_kind[-1] and len(of_kind[-1]) >= most_rows(lengths[row], max_rows):
            of_kind.append([])
        of_kind[-1].append(row)
    return [group for of_kind in groups.values() for group in of_kind]


def takes_padding(vlm: VLM) -> bool:
    """Whether prompts of different lengths can run side by side: masks decide who sees what.

    Not with flash attention, and not in a model whose architecture is not known.
    """
    return attention_of(vlm).endswith(("sdpa", "eager")) and not vlm.family.needs_check


def can_branch(vlm: VLM) -> bool:
    """Whether texts run side by side after a prompt (``attention.trie``), and its cache is as before then.

    Not where windows or recurrent states have moved on, which cannot be taken back.
    """
    return takes_padding(vlm) and all(type(layer) is DynamicLayer for layer in vlm.new_cache().layers)


def adds_masks(vlm: VLM) -> bool:
    """Whether its attention adds masks to its scores, and takes none of booleans."""
    return attention_of(vlm).endswith("eager")


def attention_of(vlm: VLM) -> str:
    """Returns the name of the attention that its decoder runs, as transformers calls it."""
    implementation: str = vlm.text_model.config._attn_implementation  # noqa: SLF001  # no public getter
    return implementation


def find_tiles(vlm: VLM, prompt: EncodedPrompt) -> PromptTiles | None:
    """Finds the tiles of which some can be left out of a prompt, exactly as if they had been masked.

    None where no picture comes in several. Also where masks do not decide who sees what (``takes_padding``),
    or a window would reach further back because there is less in it.
    """
    if not prompt.spans or not takes_padding(vlm) or vlm.has_sliding_layers:
        return None
    tiles = prompt.tiles
    # A prompt that ends with a visual token goes on from that token's row, so that has to enter.
    ends_in_text = max(prompt.visual_positions) < len(prompt) - 1
    several = tiles is not None and len(set(tiles.pictures)) < len(tiles)
    return tiles if ends_in_text and several else None


def sharing(vlm: VLM, kind: Hashable) -> Hashable | None:
    """Returns ``kind``, or None if the model cannot be given padded prompts, so that each runs alone."""
    return kind if takes_padding(vlm) else None


def run_in_groups(
    vlm: VLM,
    tasks: Sequence[AnswerTask],
    kinds: Sequence[Hashable],
    run: Callable[[list[int]], list[Result]],
    *,
    max_rows: int = MAX_ROWS,
) -> list[Result]:
    """Runs tasks group by group, and returns the results in the order of the tasks.

    Args:
        vlm: The model; one that cannot be given padded prompts runs them one by one.
        tasks: What is run.
        kinds: What has to be equal in a group.
        run: Numbers of tasks that run together -> a result for each.
        max_rows: Rows of a group at most.
    """
    lengths = [len(task.prompt) for task in tasks]
    groups = group_rows(lengths, kinds, max_rows=max_rows if takes_padding(vlm) else 1)
    found = {row: result for group in groups for row, result in zip(group, run(group), strict=True)}
    return [found[row] for row in range(len(tasks))]

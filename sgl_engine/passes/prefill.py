"""Prepares prompts for the first forward of a pass, and decides which of them run side by side.

Every pass begins with a ``Prefiller``: it embeds pictures, lays prompts side by side, and looks up what is
known of them. Then comes the token loop (``sgl_engine.decoding.loop``), or forwards of the pass's own.

A picture's features are kept under the digest of what the processor made of it: the same pixels have the same
features wherever they came from, and others do not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import Answer, AnswerTask
from sgl_engine.model.encoding import check_features
from sgl_engine.passes.prefixes import KnownPrefix, find_prefixes
from sgl_engine.prompt.encoded import (
    MAX_ROWS,
    TOKEN_INPUTS,
    EncodedPrompt,
    PromptBatch,
    join_pictures,
    most_rows,
    split_pictures,
)
from sgl_engine.pruning.plan import PruningPlan

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

Result = TypeVar("Result")


@dataclass(frozen=True)
class Reused:
    """What a pass did not have to compute, because it was known (``sgl_engine.config.ReuseConfig``).

    Attributes:
        pictures: Pictures that did not go through the vision tower.
        tokens: Prompt tokens whose keys and values were known: in all layers, or, where the large model is
            pruned, in those below K.
        tower_patches: Patches in each pass of the vision tower that was made. None where nothing was looked
            up: then all of the prompt's patches went through it.
    """

    pictures: int = 0
    tokens: int = 0
    tower_patches: tuple[int, ...] | None = None


NOTHING_REUSED = Reused()

_MOST_TOGETHER = 8  # pictures in one pass; more hold more memory and gain little


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt:
    """A prompt as the decoder takes it.

    Attributes:
        embeddings: (1, S, width), the visual features in place.
        tower_patches: Patches in each pass of the vision tower that was made for it.
        known_pictures: Pictures that needed no pass: seen before, or twice in this prompt.
    """

    embeddings: Tensor
    tower_patches: tuple[int, ...]
    known_pictures: int = 0

    def reused(self, tokens: int) -> Reused:
        """Reports what a pass on this prompt did not compute: its known pictures, and ``tokens`` tokens."""
        return Reused(self.known_pictures, tokens, self.tower_patches)


def embed_pictures(
    vlm: VLM,
    prompt: EncodedPrompt,
    reuse: ReuseConfig = NO_REUSE,
    *,
    computed: Mapping[bytes, Tensor] = MappingProxyType({}),
) -> EmbeddedPrompt:
    """Embeds a prompt as ``vlm.embed`` does, from known features; unknown pictures are run in one pass.

    Args:
        vlm: The model.
        prompt: Encoded by it.
        reuse: What may be kept.
        computed: Digest -> features of pictures that ``run_towers`` has run for this call. They are used if
            they are all that is missing; else the tower runs on everything that is.

    Raises:
        InvalidRequestError: The images do not give one feature for each image token.
    """
    if not (reuse.keeps_features and prompt.spans and prompt.picture_digests):
        return EmbeddedPrompt(vlm.embed(prompt), vlm.tower_patches(prompt))
    with vlm.exclusive():
        # The digests tell pictures apart; what they become also depends on how the model computes.
        keys = [(digest, vlm.model.dtype, vlm.device) for digest in prompt.picture_digests]
        known = {key: vlm.store.get("features", key) for key in keys}
        # A picture that stands in the prompt twice is one key, so it is run once.
        missing = [keys.index(key) for key, features in known.items() if features is None]
        inputs = _inputs_of(prompt, missing) if missing else {}
        digests = [prompt.picture_digests[number] for number in missing]
        ready = [computed[digest] for digest in digests if digest in computed]
        if len(ready) < len(missing):
            ready = list(_run_tower(vlm, prompt, inputs, missing))
        for number, features in zip(missing, ready, strict=True):
            known[keys[number]] = features
            vlm.store.put("features", keys[number], features, [features], max_bytes=reuse.max_bytes)
        vlm.store.count("features", hits=len(keys) - len(missing), misses=len(missing))
        embeddings = vlm.merge(prompt, torch.cat([known[key] for key in keys]))
    # Some processors make one input of all pictures, with one digest: then all of them are known, or none.
    pictures = len({span.image for span in prompt.spans})
    return EmbeddedPrompt(
        embeddings,
        tower_patches=vlm.family.tower_patches(vlm.config, inputs),
        known_pictures=len(keys) - len(missing) if len(keys) == pictures else pictures * (not missing),
    )


@torch.inference_mode()
def run_towers(vlm: VLM, prompts: Sequence[EncodedPrompt], reuse: ReuseConfig) -> dict[bytes, Tensor]:
    """Runs pictures of several prompts through the vision tower together, in few passes.

    Only prompts of one unknown picture each take part, and only with others of the same shape. What is left
    out here, or fails, is left to ``embed_pictures``.

    Args:
        vlm: The model.
        prompts: Encoded by it.
        reuse: What may be kept; where features are not, nothing is run here.

    Returns:
        Digest -> features (V, width) of each picture that was run.
    """
    alike: dict[Hashable, dict[bytes, EncodedPrompt]] = {}
    for prompt in prompts:
        axes = prompt.picture_axes
        if not (reuse.keeps_features and prompt.spans and axes and len(prompt.picture_digests) == 1):
            continue  # no picture, several of them, or inputs that cannot be joined
        [digest] = prompt.picture_digests
        if not vlm.store.holds("features", (digest, vlm.model.dtype, vlm.device)):
            shapes = tuple(
                (name, axis, prompt.inputs[name].shape) for name, (axis, _) in sorted(axes.items())
            )
            alike.setdefault(shapes, {})[digest] = prompt
    found: dict[bytes, Tensor] = {}
    for of_shape in alike.values():
        left = list(of_shape.items())
        while len(left) > 1:  # a single one gains nothing from being run here
            together, left = left[:_MOST_TOGETHER], left[_MOST_TOGETHER:]
            # If this fails, some picture may be at fault: which one shows when each is run by itself.
            with suppress(Exception):
                found |= _run_together(vlm, dict(together))
    return found


def _run_together(vlm: VLM, prompts: Mapping[bytes, EncodedPrompt]) -> dict[bytes, Tensor]:
    """Runs the tower once on pictures of one shape, each the only one of its prompt; digest -> features."""
    token, axes = vlm.family.image_token_id(vlm.config), next(iter(prompts.values())).picture_axes
    assert axes is not None
    inputs = join_pictures([prompt.inputs for prompt in prompts.values()], axes)
    rows = [int((prompt.input_ids == token).sum()) for prompt in prompts.values()]
    with vlm.exclusive():
        features = vlm.family.image_features(vlm.model, inputs)
    check_features(features, sum(rows))
    assert features is not None
    # Copies, so that each picture's features can be dropped by themselves.
    return {digest: part.clone() for digest, part in zip(prompts, features.split(rows), strict=True)}


def _inputs_of(prompt: EncodedPrompt, chosen: Sequence[int]) -> Mapping[str, Tensor]:
    """Returns the vision inputs of the pictures ``chosen``, by number."""
    parts = split_pictures(prompt.inputs, prompt.picture_axes)
    if prompt.picture_axes is None or len(chosen) == len(parts):
        return {name: value for name, value in prompt.inputs.items() if name not in TOKEN_INPUTS}
    return join_pictures([parts[number] for number in chosen], prompt.picture_axes)


@torch.inference_mode()
def _run_tower(
    vlm: VLM, prompt: EncodedPrompt, inputs: Mapping[str, Tensor], chosen: Sequence[int]
) -> Sequence[Tensor]:
    """Runs the tower once on the pictures ``chosen``, whose inputs are given; returns each one's features."""
    if not chosen:
        return ()
    # How many features belong to each picture: as many as it has image tokens.
    image = (prompt.input_ids[0] == vlm.family.image_token_id(vlm.config)).nonzero()[:, 0].tolist()
    rows = [len(image)]
    if prompt.picture_axes is not None:
        first = {span.image: span.start for span in reversed(prompt.spans)}
        starts = [0, *sorted(first.values())[1:], len(prompt)]  # separators may stand before a picture
        rows = [sum(start <= at < stop for at in image) for start, stop in pairwise(starts)]
    features = vlm.family.image_features(vlm.model, inputs)
    wanted = [rows[number] for number in chosen]
    check_features(features, sum(wanted))
    assert features is not None
    # Copies, so that each picture's features can be dropped by themselves.
    return [part.clone() if len(wanted) > 1 else part for part in features.split(wanted)]


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

    def see(self, answers: Sequence[Answer]) -> list[EmbeddedPrompt | None]:
        """Runs the vision tower on pictures that are not known, and embeds each answer's prompt.

        Returns:
            In order, the embedded prompts. None for an answer that has an error, now or before, or that is
            not wanted any more.
        """
        computed = run_towers(self.vlm, [answer.prompt for answer in answers if answer.goes_on()], self.reuse)
        return [
            answer.attempt(partial(embed_pictures, self.vlm, answer.prompt, self.reuse, computed=computed))
            for answer in answers
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
    implementation: str = vlm.text_model.config._attn_implementation  # noqa: SLF001  # no public getter
    return implementation.endswith(("sdpa", "eager")) and not vlm.family.needs_check


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

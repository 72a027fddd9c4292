"""Embeds a prompt's pictures; a picture that was seen before does not go through the vision tower again.

A picture's features are kept under the digest of what the processor made of it. So the same pixels have the
same features, whatever file they came from and however it was scaled, and other pixels have others.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.prompt.encoded import (
    TOKEN_INPUTS,
    EncodedPrompt,
    join_pictures,
    split_pictures,
)

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


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
    vlm.check_features(features, sum(rows))
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
    vlm.check_features(features, sum(wanted))
    assert features is not None
    # Copies, so that each picture's features can be dropped by themselves.
    return [part.clone() if len(wanted) > 1 else part for part in features.split(wanted)]

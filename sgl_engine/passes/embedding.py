"""Pictures of a prompt -> its embeddings; a picture that was seen before does not run the vision tower again.

A picture's features are kept under the digest of what the processor made of it, so whatever the picture came
from, and however it was scaled, the same pixels have the same features, and others do not.
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
    from torch import Tensor

    from sgl_engine.model.vlm import VLM


@dataclass(frozen=True)
class Reused:
    """What a pass did not have to compute, because it was known (``sgl_engine.config.ReuseConfig``).

    Attributes:
        pictures: Pictures that did not go through the vision tower.
        tokens: Prompt tokens whose keys and values were known: in all layers, or in a pruned large model in
            those below K.
        tower_patches: Patches in each pass of the vision tower that was made; None where nothing was looked
            up, so that each of the prompt's was.
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
        known_pictures: Pictures that needed none: seen before, or twice in this prompt.
    """

    embeddings: Tensor
    tower_patches: tuple[int, ...]
    known_pictures: int = 0

    def reused(self, tokens: int) -> Reused:
        """What a pass on it did not have to compute: pictures, and so many tokens."""
        return Reused(self.known_pictures, tokens, self.tower_patches)


def embed_pictures(
    vlm: VLM,
    prompt: EncodedPrompt,
    reuse: ReuseConfig = NO_REUSE,
    *,
    computed: Mapping[bytes, Tensor] = MappingProxyType({}),
) -> EmbeddedPrompt:
    """``vlm.embed``, with what is known; pictures that are not run through the vision tower once, together.

    Args:
        vlm: The model.
        prompt: Encoded by it.
        reuse: What may be kept.
        computed: Digest -> features of pictures that were run through the tower for this call
            (``run_towers``); where there are not those of all that are missing, the tower runs.

    Raises:
        InvalidRequestError: The images do not give one feature for each image token.
    """
    if not (reuse.keeps_features and prompt.spans and prompt.picture_digests):
        return EmbeddedPrompt(vlm.embed(prompt), vlm.tower_patches(prompt))
    with vlm.exclusive():
        # The digests tell pictures apart; what they become also depends on how the model computes.
        keys = [(digest, vlm.model.dtype, vlm.device) for digest in prompt.picture_digests]
        known = {key: vlm.store.get("features", key) for key in keys}
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
    pictures = len({span.image for span in prompt.spans})
    return EmbeddedPrompt(
        embeddings,
        tower_patches=vlm.family.tower_patches(vlm.config, inputs),
        known_pictures=len(keys) - len(missing) if len(keys) == pictures else pictures * (not missing),
    )


@torch.inference_mode()
def run_towers(vlm: VLM, prompts: Sequence[EncodedPrompt], reuse: ReuseConfig) -> dict[bytes, Tensor]:
    """Pictures of several prompts side by side, in few passes of the vision tower.

    Only prompts of one unknown picture each take part, and only with others of the same shape; what is left
    out here, or fails, is left to ``embed_pictures``.

    Args:
        vlm: The model.
        prompts: Encoded by it.
        reuse: What may be kept; without features, nothing is run here.

    Returns:
        Digest -> features (V, width) of each picture that was run.
    """
    alike: dict[Hashable, dict[bytes, EncodedPrompt]] = {}
    for prompt in prompts:
        axes = prompt.picture_axes
        if not (reuse.keeps_features and prompt.spans and axes and len(prompt.picture_digests) == 1):
            continue
        [digest] = prompt.picture_digests
        if not vlm.store.holds("features", (digest, vlm.model.dtype, vlm.device)):
            shapes = tuple(
                (name, axis, prompt.inputs[name].shape) for name, (axis, _) in sorted(axes.items())
            )
            alike.setdefault(shapes, {})[digest] = prompt
    found: dict[bytes, Tensor] = {}
    for of_shape in alike.values():
        left = list(of_shape.items())
        while len(left) > 1:
            together, left = left[:_MOST_TOGETHER], left[_MOST_TOGETHER:]
            with suppress(Exception):  # whose fault it is shows when each is run by itself
                found |= _run_together(vlm, dict(together))
    return found


def _run_together(vlm: VLM, prompts: Mapping[bytes, EncodedPrompt]) -> dict[bytes, Tensor]:
    """Features of pictures of one shape, each alone in its prompt."""
    token, axes = vlm.family.image_token_id(vlm.config), next(iter(prompts.values())).picture_axes
    assert axes is not None
    inputs = join_pictures([prompt.inputs for prompt in prompts.values()], axes)
    rows = [int((prompt.input_ids == token).sum()) for prompt in prompts.values()]
    with vlm.exclusive():
        features = vlm.family.image_features(vlm.model, inputs)
    vlm.check_features(features, sum(rows))
    assert features is not None
    return {digest: part.clone() for digest, part in zip(prompts, features.split(rows), strict=True)}


def _inputs_of(prompt: EncodedPrompt, chosen: Sequence[int]) -> Mapping[str, Tensor]:
    """The vision inputs of some of the pictures."""
    parts = split_pictures(prompt.inputs, prompt.picture_axes)
    if prompt.picture_axes is None or len(chosen) == len(parts):
        return {name: value for name, value in prompt.inputs.items() if name not in TOKEN_INPUTS}
    return join_pictures([parts[number] for number in chosen], prompt.picture_axes)


@torch.inference_mode()
def _run_tower(
    vlm: VLM, prompt: EncodedPrompt, inputs: Mapping[str, Tensor], chosen: Sequence[int]
) -> Sequence[Tensor]:
    """Features of each of the chosen pictures, in one pass."""
    if not chosen:
        return ()
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
    # Copies, so that each of them can be let go by itself.
    return [part.clone() if len(wanted) > 1 else part for part in features.split(wanted)]

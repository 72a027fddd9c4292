"""Pictures of a prompt -> its embeddings; a picture that was seen before does not run the vision tower again.

A picture's features are kept under the digest of what the processor made of it, so whatever the picture came
from, and however it was scaled, the same pixels have the same features, and others do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.digests import TOKEN_INPUTS, join_pictures, split_pictures
from sgl_engine.types import EncodedPrompt, Reused

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM


@dataclass(frozen=True, eq=False)
class Embedded:
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


def embed_pictures(vlm: VLM, prompt: EncodedPrompt, reuse: ReuseConfig = NO_REUSE) -> Embedded:
    """``vlm.embed``, with what is known; pictures that are not run through the vision tower once, together.

    Args:
        vlm: The model.
        prompt: Encoded by it.
        reuse: What may be kept.

    Raises:
        InvalidRequestError: The images do not give one feature for each image token.
    """
    if not (reuse.keeps_features and prompt.spans and prompt.picture_digests):
        return Embedded(vlm.embed(prompt), vlm.tower_patches(prompt))
    with vlm.exclusive():
        # The digests tell pictures apart; what they become also depends on how the model computes.
        keys = [(digest, vlm.model.dtype, vlm.device) for digest in prompt.picture_digests]
        known = {key: vlm.store.get("features", key) for key in keys}
        missing = [keys.index(key) for key, features in known.items() if features is None]
        inputs = _inputs_of(prompt, missing) if missing else {}
        for number, features in zip(missing, _run_tower(vlm, prompt, inputs, missing), strict=True):
            known[keys[number]] = features
            vlm.store.put("features", keys[number], features, [features], max_bytes=reuse.max_bytes)
        vlm.store.count("features", hits=len(keys) - len(missing), misses=len(missing))
        embeddings = vlm.merge(prompt, torch.cat([known[key] for key in keys]))
    pictures = len({span.image for span in prompt.spans})
    return Embedded(
        embeddings,
        tower_patches=vlm.family.tower_patches(vlm.config, inputs),
        known_pictures=len(keys) - len(missing) if len(keys) == pictures else pictures * (not missing),
    )


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

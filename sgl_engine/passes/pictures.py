"""Embeds a prompt's pictures: the vision tower runs on what is not known of them.

A picture's features are kept under the digest of what the processor made of it: the same pixels have the same
features wherever they came from, and others do not. Of a prompt without some of its tiles, the tower runs on
those alone that are left; what it makes of them is kept tile by tile, and joined by those that a later
question needs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.model.encoding import check_features
from sgl_engine.prompt.encoded import TOKEN_INPUTS, EncodedPrompt, PromptPart, join_pictures, split_pictures

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
_MOST_TILES = 4 * _MOST_TOGETHER


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
    computed: Mapping[Hashable, Tensor] = MappingProxyType({}),
) -> EmbeddedPrompt:
    """Embeds a prompt as ``vlm.embed`` does, from known features; unknown pictures are run in one pass.

    Args:
        vlm: The model.
        prompt: Encoded by it.
        reuse: What may be kept.
        computed: What ``run_towers`` has run for this call. Pictures are used if they are all that is
            missing; else the tower runs on everything that is.

    Raises:
        InvalidRequestError: The images do not give one feature for each image token.
    """
    part = prompt.part or _known_in_tiles(vlm, prompt, reuse)
    if part is not None:
        return _embed_part(vlm, prompt, part, reuse, computed)
    if not (reuse.keeps_features and prompt.spans and prompt.picture_digests):
        return EmbeddedPrompt(vlm.embed(prompt), vlm.tower_patches(prompt))
    with vlm.exclusive():
        # The digests tell pictures apart; what they become also depends on how the model computes.
        keys = _keys(vlm, prompt)
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


_Key: TypeAlias = tuple[bytes, torch.dtype, torch.device]


def _keys(vlm: VLM, prompt: EncodedPrompt) -> list[_Key]:
    """Returns what features of each picture are kept under."""
    return [(digest, vlm.model.dtype, vlm.device) for digest in prompt.picture_digests]


def _known_in_tiles(vlm: VLM, prompt: EncodedPrompt, reuse: ReuseConfig) -> PromptPart | None:
    """Returns all of a prompt as a part of it, where single tiles of a picture in it are known; else None."""
    if not (reuse.keeps_features and prompt.spans):
        return None
    if not any(vlm.store.holds("tiles", key) for key in _keys(vlm, prompt)):
        return None
    tiles = prompt.tiles
    if tiles is None:
        return None
    return PromptPart(prompt, torch.arange(len(prompt)), tiles, tuple(range(len(tiles))))


@torch.inference_mode()
def _embed_part(
    vlm: VLM, prompt: EncodedPrompt, part: PromptPart, reuse: ReuseConfig, computed: Mapping[Hashable, Tensor]
) -> EmbeddedPrompt:
    """Embeds what is left of a prompt; the tower runs on its tiles that are not known."""
    with vlm.exclusive():
        pictures = _pictures_of(vlm, part, reuse)
        missing = {tile: name for picture in pictures for tile, name in picture.missing.items()}
        features = {tile: computed[name] for tile, name in missing.items() if name in computed}
        left = [tile for tile in missing if tile not in features]
        if left:
            slices = vlm.family.tile_slices(vlm.config, part.whole.inputs, left)
            features |= dict(zip(left, vlm.family.tile_features(vlm.model, slices), strict=True))
        rows = torch.cat([picture.rows(vlm, features, reuse) for picture in pictures])
    misses = sum(bool(picture.missing) for picture in pictures)
    vlm.store.count("features", hits=len(pictures) - misses, misses=misses)
    is_image = part.whole.input_ids[0] == vlm.family.image_token_id(vlm.config)
    check_features(rows, int(is_image.sum()))
    stays = torch.zeros_like(is_image)
    stays[part.columns.to(stays.device)] = True
    # Every tile is the same square, and so takes the same patches.
    patches = vlm.tower_patches(part.whole)[:1] * len(missing)
    return EmbeddedPrompt(
        vlm.merge(prompt, rows[stays[is_image].to(rows.device)]), patches, len(pictures) - misses
    )


@dataclass(frozen=True, eq=False)
class _TiledPicture:
    """A picture of which some tiles are wanted; or all pictures of a prompt, where they cannot be told apart.

    Attributes:
        key: What its features are kept under; None where they are not kept.
        inputs: Its vision inputs.
        tiles: Numbers of its tiles in the prompt.
        whole: Features of all of it, one row per image token, where these are known.
        known: Number of a tile in the picture -> its features (tokens of a tile, width).
        missing: Numbers in the prompt of the tiles that the tower has to run on, and what they are called
            whatever prompt they are in.
    """

    key: _Key | None
    inputs: Mapping[str, Tensor]
    tiles: Sequence[int]
    whole: Tensor | None
    known: Mapping[int, Tensor]
    missing: Mapping[int, Hashable]

    def rows(self, vlm: VLM, run: Mapping[int, Tensor], reuse: ReuseConfig) -> Tensor:
        """Joins known tiles and those that the tower has run on, and keeps them; rows of others are blank."""
        if self.whole is not None:
            return self.whole
        # Copies, so that each tile's features can be dropped by themselves.
        own = {at: run[tile].clone() for at, tile in enumerate(self.tiles) if tile in run}
        found = {**self.known, **own}
        if self.key is not None and own:
            vlm.store.put("tiles", self.key, found, found.values(), max_bytes=reuse.max_bytes)
        blank = torch.zeros_like(next(iter(found.values())))
        features = torch.stack([found.get(at, blank) for at in range(len(self.tiles))])
        return vlm.family.join_tiles(vlm.model, self.inputs, features)


def _pictures_of(vlm: VLM, part: PromptPart, reuse: ReuseConfig) -> list[_TiledPicture]:
    """Looks up what is known of a part's pictures."""
    whole, chosen, pictures = part.whole, set(part.chosen), []
    inputs = split_pictures(whole.inputs, whole.picture_axes)
    keys: Sequence[_Key | None] = _keys(vlm, whole) if reuse.keeps_features else [None] * len(inputs)
    for key, given, tiles in zip(keys, inputs, part.tiles.by_picture(len(inputs)), strict=True):
        rows = None if key is None else vlm.store.get("features", key)
        known = {} if key is None or rows is not None else vlm.store.get("tiles", key) or {}
        missing = {tile: (key, at) for at, tile in enumerate(tiles) if tile in chosen and at not in known}
        missing = missing if rows is None else {}
        pictures.append(_TiledPicture(key, given, tiles, rows, known, missing))
    return pictures


@torch.inference_mode()
def run_towers(vlm: VLM, prompts: Sequence[EncodedPrompt], reuse: ReuseConfig) -> dict[Hashable, Tensor]:
    """Runs pictures of several prompts through the vision tower together, in few passes.

    Only prompts of one unknown picture each take part, and only with others of the same shape; and all tiles
    of prompts without some of their tiles. What is left out here, or fails, is left to ``embed_pictures``.

    Args:
        vlm: The model.
        prompts: Encoded by it.
        reuse: What may be kept; where features are not, nothing is run here.

    Returns:
        Digest -> features (V, width) of each picture that was run, and what a tile is called -> its features
        (tokens of a tile, width).
    """
    found = _run_pictures(vlm, prompts, reuse)
    parts = [prompt.part for prompt in prompts if prompt.part is not None]
    return found | _run_tiles(vlm, parts, reuse) if reuse.keeps_features and len(parts) > 1 else found


def _run_tiles(vlm: VLM, parts: Sequence[PromptPart], reuse: ReuseConfig) -> dict[Hashable, Tensor]:
    """Runs the tower on what is not known of several prompts' tiles."""
    family, found = vlm.family, dict[Hashable, Tensor]()
    alike: dict[Hashable, dict[Hashable, Mapping[str, Tensor]]] = {}
    for part in parts:
        for picture in _pictures_of(vlm, part, reuse):
            for tile, name in picture.missing.items():
                slices = family.tile_slices(vlm.config, part.whole.inputs, [tile])
                shapes = tuple((key, value.shape) for key, value in sorted(slices.items()))
                alike.setdefault(shapes, {})[name] = slices
    for of_shape in alike.values():
        left = list(of_shape.items())
        while left:
            together, left = left[:_MOST_TILES], left[_MOST_TILES:]
            joined = {
                name: torch.cat([slices[name] for _, slices in together], dim=family.tile_axis)
                for name in together[0][1]
            }
            # If this fails, some picture may be at fault: which one shows when each is run by itself.
            with suppress(Exception), vlm.exclusive():
                features = family.tile_features(vlm.model, joined)
                found |= dict(zip((name for name, _ in together), features, strict=True))
    return found


def _run_pictures(vlm: VLM, prompts: Sequence[EncodedPrompt], reuse: ReuseConfig) -> dict[Hashable, Tensor]:
    """Runs the tower on unknown pictures of prompts that have one each; digest -> features."""
    alike: dict[Hashable, dict[bytes, EncodedPrompt]] = {}
    for prompt in prompts:
        axes = prompt.picture_axes
        if not (reuse.keeps_features and prompt.spans and axes and len(prompt.picture_digests) == 1):
            continue  # no picture, several of them, or inputs that cannot be joined
        [digest] = prompt.picture_digests
        [key] = _keys(vlm, prompt)
        if not (vlm.store.holds("features", key) or vlm.store.holds("tiles", key)):
            shapes = tuple(
                (name, axis, prompt.inputs[name].shape) for name, (axis, _) in sorted(axes.items())
            )
            alike.setdefault(shapes, {})[digest] = prompt
    found: dict[Hashable, Tensor] = {}
    for of_shape in alike.values():
        left = list(of_shape.items())
        while len(left) > 1:  # a single one gains nothing from being run here
            together, left = left[:_MOST_TOGETHER], left[_MOST_TOGETHER:]
            # If this fails, some picture may be at fault: which one shows when each is run by itself.
            with suppress(Exception):
                found |= _run_together(vlm, dict(together))
    return found


def _run_together(vlm: VLM, prompts: Mapping[bytes, EncodedPrompt]) -> dict[Hashable, Tensor]:
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
        rows = [stop - start for start, stop in pairwise(bisect_left(image, at) for at in starts)]
    features = vlm.family.image_features(vlm.model, inputs)
    wanted = [rows[number] for number in chosen]
    check_features(features, sum(wanted))
    assert features is not None
    # Copies, so that each picture's features can be dropped by themselves.
    return [part.clone() if len(wanted) > 1 else part for part in features.split(wanted)]

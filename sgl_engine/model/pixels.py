"""What an image processor makes of pictures, kept: to scale and cut one takes longer than to recognise it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch import Tensor

from sgl_engine.config import ReuseConfig
from sgl_engine.model.store import ReuseStore


@contextmanager
def known_pixels(processor: Any, store: ReuseStore, reuse: ReuseConfig) -> Iterator[None]:
    """Within the context, pictures that ``processor`` was given before are not processed again.

    The caller holds the model's lock: the processor is changed for as long.

    Args:
        processor: A model's processor.
        store: That model's.
        reuse: What may be kept.
    """
    own = getattr(processor, "image_processor", None)
    if own is None or not reuse.keeps_pixels:
        yield
        return
    processor.image_processor = _Remembering(own, store, reuse.max_bytes)
    try:
        yield
    finally:
        processor.image_processor = own


class _Remembering:
    """Stands in for an image processor."""

    def __init__(self, own: Any, store: ReuseStore, max_bytes: int) -> None:
        self._own, self._store, self._max_bytes = own, store, max_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, **settings: Any) -> Any:
        pictures = _pictures(images)
        if pictures is None:
            return self._own(images, **settings)
        key = _key(self._own, images, pictures, settings)
        found = self._store.get("pixels", key)
        self._store.count("pixels", hits=int(found is not None), misses=int(found is None))
        if found is None:
            found = self._own(images, **settings)
            tensors = [value for value in found.values() if isinstance(value, Tensor)]
            self._store.put("pixels", key, copy.copy(found), tensors, max_bytes=self._max_bytes)
        return copy.copy(found)  # processors take entries out of it


def _pictures(images: Any) -> list[Image.Image] | None:
    """All of them, in whatever nesting; None where one is something else."""
    if isinstance(images, Image.Image):
        return [images]
    if not isinstance(images, list | tuple):
        return None
    found: list[Image.Image] = []
    for part in map(_pictures, images):
        if part is None:
            return None
        found += part
    return found


def _key(own: Any, images: Any, pictures: list[Image.Image], settings: Mapping[str, Any]) -> bytes:
    """Digest of the pictures, how they are nested, and how they are processed."""
    found = hashlib.sha256(f"{own.to_json_string()} {sorted(settings.items())} {_nesting(images)}".encode())
    for picture in pictures:
        found.update(f"{picture.mode} {picture.size} ".encode())
        found.update(picture.tobytes())
    return found.digest()


def _nesting(images: Any) -> str:
    return "." if isinstance(images, Image.Image) else f"[{''.join(map(_nesting, images))}]"

"""What a model has computed of pictures it has seen: least recently used entries go first. Thread-safe.

One store per model, shared by all engines on it. Entries are never changed; what is evicted while somebody
works with it lives until that work is done. Nothing in here knows the model, so nothing keeps it alive. What
an image processor makes of pictures is kept, too: to scale and cut one takes longer than to recognise it.
Where both models of a pair have the same image processor, what one has kept serves the other.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

from PIL import Image
from torch import Tensor

from sgl_engine.prompt.encoded import salted

Kind = Literal["pixels", "features", "tiles", "prefix", "map"]


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds, and how often it helped since it was made.

    Attributes:
        entries: Entries now.
        bytes: Bytes of their tensors, on whatever device these are.
        pixel_hits: Requests whose pictures had been processed before.
        pixel_misses: Requests whose pictures were processed.
        feature_hits: Pictures whose features were known.
        feature_misses: Pictures that went through the vision tower.
        prefix_hits: Prompts whose prefix was known, at least in part.
        prefix_misses: Prompts whose prefix had to be computed.
        evictions: Entries that made room for others.
    """

    entries: int = 0
    bytes: int = 0
    pixel_hits: int = 0
    pixel_misses: int = 0
    feature_hits: int = 0
    feature_misses: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    evictions: int = 0


@dataclass(frozen=True)
class _Entry:
    value: Any
    bytes: int


@dataclass
class _Counts:
    hits: Counter[Kind] = field(default_factory=Counter)
    misses: Counter[Kind] = field(default_factory=Counter)
    evictions: int = 0


class ReuseStore:
    """See the module docstring."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Kind, Hashable], _Entry] = OrderedDict()
        self._bytes = 0
        self._counts = _Counts()
        self._lock = threading.Lock()
        self._beside: WeakSet[ReuseStore] = WeakSet()  # of models that are paired with this one

    def get(self, kind: Kind, key: Hashable) -> Any:
        """The entry, from now on the most recently used one; None where there is none."""
        with self._lock:
            entry = self._entries.get((kind, key))
            if entry is None:
                return None
            self._entries.move_to_end((kind, key))
            return entry.value

    def pixels(self, key: Hashable) -> Any:
        """What an image processor made of pictures, for this model or one that is paired with it, or None."""
        with self._lock:
            beside = list(self._beside)
        return next((found for each in (self, *beside) if (found := each.get("pixels", key))), None)

    def look_in(self, other: ReuseStore) -> None:
        """From now on ``pixels`` looks in another model's store, too; keys tell image processors apart."""
        if other is not self:
            with self._lock:
                self._beside.add(other)

    def holds(self, kind: Kind, key: Hashable) -> bool:
        """Whether there is such an entry."""
        with self._lock:
            return (kind, key) in self._entries

    def items(self, kind: Kind) -> list[tuple[Hashable, Any]]:
        """Entries of one kind, the most recently used first; looking at them is no use of them."""
        with self._lock:
            found = reversed(self._entries.items())
            return [(key, entry.value) for (of_kind, key), entry in found if of_kind == kind]

    def count(self, kind: Kind, *, hits: int = 0, misses: int = 0) -> None:
        """Notes how often what was needed was there, and how often not."""
        with self._lock:
            self._counts.hits[kind] += hits
            self._counts.misses[kind] += misses

    def put(
        self, kind: Kind, key: Hashable, value: Any, tensors: Iterable[Tensor], *, max_bytes: int
    ) -> None:
        """Keeps an entry, and lets go of the least recently used ones.

        Args:
            kind: What it is.
            key: What it is found by; an entry of the same key is replaced.
            value: Never changed from now on.
            tensors: All that it holds; their whole storages are counted, once each.
            max_bytes: What the store may hold afterwards; a larger entry is not kept at all.
        """
        size = storage_bytes(tensors)
        with self._lock:
            replaced = self._entries.pop((kind, key), None)
            self._bytes -= 0 if replaced is None else replaced.bytes
            if size > max_bytes:
                return
            self._entries[kind, key] = _Entry(value, size)
            self._bytes += size
            while self._bytes > max_bytes:
                _, evicted = self._entries.popitem(last=False)
                self._bytes -= evicted.bytes
                self._counts.evictions += 1

    def clear(self) -> None:
        """Forgets all entries: to be called when the model's weights or its processor have been changed."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def info(self) -> StoreInfo:
        """A snapshot."""
        with self._lock:
            hits, misses = self._counts.hits, self._counts.misses
            return StoreInfo(
                entries=len(self._entries),
                bytes=self._bytes,
                pixel_hits=hits["pixels"],
                pixel_misses=misses["pixels"],
                feature_hits=hits["features"],
                feature_misses=misses["features"],
                prefix_hits=hits["prefix"],
                prefix_misses=misses["prefix"],
                evictions=self._counts.evictions,
            )


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors keep in memory: a view keeps all that it is a view of."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


class KnownPictures:
    """Stands in for an image processor, for one request: pictures that it was given before are looked up.

    Nothing that requests share is changed but the store, so any number may process pictures side by side.

    Args:
        own: The image processor.
        process: What processes pictures in its place.
        store: Its model's.
        max_bytes: What that may hold (``ReuseConfig``).
        still_wanted: Called before every picture; what it raises ends the work.
        cache_salt: Only pictures that came with the same one are looked up.
    """

    def __init__(
        self,
        own: Any,
        process: Callable[..., Any],
        store: ReuseStore,
        max_bytes: int,
        still_wanted: Callable[[], None],
        cache_salt: str | None,
    ) -> None:
        self._own, self._process, self._store = own, process, store
        self._max_bytes, self._still_wanted, self._salt = max_bytes, still_wanted, cache_salt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, **settings: Any) -> Any:
        """What the image processor returns."""
        pictures = _pictures(images)
        if pictures is None:
            return self._process(images, **settings)
        key = self._key(images, pictures, settings)
        found = self._store.pixels(key)
        self._store.count("pixels", hits=int(found is not None), misses=int(found is None))
        if found is None:
            found = self._process(images, **settings)
            tensors = [value for value in found.values() if isinstance(value, Tensor)]
            self._store.put("pixels", key, copy.copy(found), tensors, max_bytes=self._max_bytes)
        return copy.copy(found)  # processors take entries out of it

    def _key(self, images: Any, pictures: list[Image.Image], settings: Mapping[str, Any]) -> bytes:
        """Digest of the pictures, how they are nested, and how they are processed."""
        kind = self._own.__class__  # two may be configured alike and work differently
        how = kind.__module__, kind.__qualname__, self._own.to_json_string(), sorted(settings.items())
        found = hashlib.sha256(f"{how} {_nesting(images)}".encode())
        for picture in pictures:
            self._still_wanted()
            found.update(f"{picture.mode} {picture.size} ".encode())
            found.update(picture.tobytes())
        return salted(found.digest(), self._salt)


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


def _nesting(images: Any) -> str:
    return "." if isinstance(images, Image.Image) else f"[{''.join(map(_nesting, images))}]"

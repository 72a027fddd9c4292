"""What a model has computed of pictures it has seen: least recently used entries go first. Thread-safe.

One store per model, shared by all engines on it. Entries are never changed; what is evicted while somebody
works with it lives until that work is done. Nothing in here knows the model, so nothing keeps it alive. What
an image processor makes of pictures is kept, too: to scale and cut one takes longer than to recognise it.
Where both models of a pair have the same image processor, what one has kept serves the other; within one
call it does so even where nothing may be kept.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from weakref import WeakSet

from PIL import Image
from torch import Tensor

from sgl_engine.config import ReuseConfig
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


def with_image_processor(
    processor: Any,
    store: ReuseStore,
    reuse: ReuseConfig,
    still_wanted: Callable[[], None],
    cache_salt: str | None = None,
    seen: Seen | None = None,
) -> Any:
    """A copy of a processor whose image processor is one request's alone.

    Args:
        processor: A model's processor, which is left as it is.
        store: That model's.
        reuse: What may be kept of pictures, or known.
        still_wanted: Called before every step of a picture; what it raises ends the work.
        cache_salt: The request's.
        seen: What the same call has processed; looked at where no other may be known.
    """
    own = getattr(processor, "image_processor", None)
    if own is None:
        return processor
    mine, watched = copy.copy(processor), copy.copy(own)
    # Image processors work through pictures one by one, or alike ones together, by methods of their own.
    for name in _methods(own.__class__):
        of = own if name.startswith("to_") else watched  # descriptions of itself have no place for functions
        setattr(watched, name, _after(still_wanted, getattr(of, name)))
    mine.image_processor = watched
    if reuse.keeps_pixels:
        mine.image_processor = KnownPictures(own, watched, store, reuse.max_bytes, still_wanted, cache_salt)
    elif seen is not None:
        mine.image_processor = SeenPictures(own, watched, seen)
    return mine


@cache
def _methods(kind: type) -> tuple[str, ...]:
    names = (name for name in dir(kind) if not name.startswith("__"))
    return tuple(name for name in names if inspect.isfunction(inspect.getattr_static(kind, name)))


def _after(check: Callable[[], None], step: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*given: Any, **settings: Any) -> Any:
        check()
        return step(*given, **settings)

    return checked


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
        found = hashlib.sha256(_way(self._own, images, settings).encode())
        for picture in pictures:
            self._still_wanted()
            found.update(f"{picture.mode} {picture.size} ".encode())
            found.update(picture.tobytes())
        return salted(found.digest(), self._salt)


class SeenPictures:
    """Stands in for an image processor where nothing is kept: what one call has processed is known within it.

    Both models of a pair are shown the same pictures, and mostly process them alike. They are known by where
    they come from, not by what is on them, so that nothing has to be read for it. Arguments as above.
    """

    def __init__(self, own: Any, process: Callable[..., Any], seen: Seen) -> None:
        self._own, self._process, self._seen = own, process, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, images: Any, **settings: Any) -> Any:
        """What the image processor returns."""
        names = tuple(self._seen.name(picture) for picture in _pictures(images) or ())
        if not names or None in names:
            return self._process(images, **settings)
        key = _way(self._own, images, settings), names
        # Kept with the sources, so that no id is used again, until it has served the other model.
        known = self._seen.processed.pop(key, None)
        if known is None:
            known = self._seen.sources, self._process(images, **settings)
            self._seen.processed[key] = known
        return copy.copy(known[1])  # processors take entries out of it


@dataclass(frozen=True, eq=False)
class Seen:
    """What one call has processed, and where a request's pictures come from.

    Attributes:
        processed: The call's, by how it was processed and from what.
        sources: Of the request's pictures.
        loaded: The same, as the processor is given them.
    """

    processed: dict[Hashable, Any]
    sources: Sequence[Any]
    loaded: Sequence[Any]

    def name(self, picture: Any) -> Hashable:
        """By which a picture is known in this call; None where it is none of the request's."""
        of = (source for source, loaded in zip(self.sources, self.loaded, strict=True) if loaded is picture)
        return next(((id(source), picture.size) for source in of), None)  # it may have been scaled down


def _way(processor: Any, images: Any, settings: Mapping[str, Any]) -> str:
    """How pictures are processed: two image processors may be configured alike and work differently."""
    kind = processor.__class__
    how = kind.__module__, kind.__qualname__, processor.to_json_string(), sorted(settings.items())
    return f"{how} {_nesting(images)}"


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

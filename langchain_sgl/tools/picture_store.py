"""Where pictures wait under an id, so that messages and checkpoints hold the id and not the picture."""

from __future__ import annotations

import hashlib
import itertools
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from langchain_core.stores import BaseStore, InvalidKeyException

from langchain_sgl.chat.image_blocks import checked_url, pixels_of
from sgl_engine import ConfigError, CorruptImageError

if TYPE_CHECKING:
    from sgl_engine import ImageSource

NAMESPACE = ("pictures",)
"""Where pictures are looked for in a LangGraph store."""
_MAX_IDS = 1000  # looked through for an error message


@runtime_checkable
class PictureStore(Protocol):
    """What a picture reference is looked up in. Called from several threads."""

    def get(self, picture_id: str, /) -> ImageSource | None:
        """Returns encoded bytes, a PIL image, a ``pathlib.Path`` or a URL; None where there is no such id."""

    def ids(self) -> Iterable[str]:
        """Lists ids that exist, for error messages; need not be all."""


class InMemoryPictureStore:
    """Pictures in a dictionary, which threads may share.

    Args:
        pictures: The first ones, by id.
        max_pictures: How many it holds; the ones that were added first go first. None is no limit.

    Raises:
        ConfigError: ``max_pictures`` is below 1.
    """

    def __init__(
        self, pictures: Mapping[str, ImageSource] | None = None, *, max_pictures: int | None = None
    ) -> None:
        if max_pictures is not None and max_pictures < 1:
            raise ConfigError(f"max_pictures is {max_pictures}.", remedy="Use 1 or more, or None.")
        self._lock = threading.Lock()
        self._max_pictures = max_pictures
        self._pictures: dict[str, ImageSource] = {}
        for picture_id, picture in (pictures or {}).items():
            self.add(picture, picture_id)

    def __repr__(self) -> str:
        return f"InMemoryPictureStore({self.ids()})"

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, picture: ImageSource | bytearray, picture_id: str | None = None) -> str:
        """Adds a picture; one that has the same id is replaced.

        Args:
            picture: Encoded bytes, a PIL image, a ``pathlib.Path`` or a URL.
            picture_id: Its id; None makes a short one from the content, the same for the same content.

        Returns:
            The id.

        Raises:
            MissingImageError: A text that is no URL: a file is a ``pathlib.Path``.
        """
        if isinstance(picture, str):
            checked_url(picture)
        elif isinstance(picture, bytearray):
            picture = bytes(picture)  # which nobody changes later
        chosen = picture_id or f"picture-{_digest(picture)}"
        with self._lock:
            if self._max_pictures is not None:
                self._pictures.pop(chosen, None)  # so that it counts as the newest
            self._pictures[chosen] = picture
            while self._max_pictures is not None and len(self._pictures) > self._max_pictures:
                del self._pictures[next(iter(self._pictures))]
        return chosen

    def get(self, picture_id: str, /) -> ImageSource | None:
        """Returns the picture, or None where there is no such id."""
        return self._pictures.get(picture_id)

    def ids(self) -> list[str]:
        """Lists all ids, in the order in which they came."""
        with self._lock:
            return list(self._pictures)


def as_picture_store(store: Any, *, namespace: tuple[str, ...] = NAMESPACE) -> PictureStore:
    """Makes a picture store of whatever holds pictures.

    Args:
        store: A ``PictureStore``; a mapping of ids to pictures; a LangChain key-value store of bytes
            (``langchain_core.stores``); or a LangGraph store, whose values are image content blocks:
            ``{"base64": ...}`` or ``{"url": ...}``. Local paths in a LangGraph store mean nothing, because
            agents write to it.
        namespace: Of the LangGraph store.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(store, Mapping):
        return _MappingStore(store)
    if isinstance(store, BaseStore):
        return _KeyValueStore(store)
    graph_stores = sys.modules.get("langgraph.store.base")  # an instance cannot exist before the import
    if graph_stores is not None and isinstance(store, graph_stores.BaseStore):
        return _GraphStore(store, namespace)
    if isinstance(store, PictureStore):
        return store
    raise ConfigError(
        f"A {type(store).__name__} cannot be used as a picture store.",
        remedy="Give a mapping, a LangChain or LangGraph store, or an object with get(id) and ids().",
    )


class _MappingStore:
    """Reads a mapping of ids to pictures, which stays the caller's."""

    def __init__(self, pictures: Mapping[str, ImageSource]) -> None:
        self._pictures = pictures

    def get(self, picture_id: str, /) -> ImageSource | None:
        return self._pictures.get(picture_id)

    def ids(self) -> list[str]:
        return list(itertools.islice(self._pictures, _MAX_IDS))


class _KeyValueStore:
    """Reads a LangChain key-value store of bytes."""

    def __init__(self, store: BaseStore[str, bytes]) -> None:
        self._store = store

    def get(self, picture_id: str, /) -> ImageSource | None:
        try:
            return self._store.mget([picture_id])[0]
        except InvalidKeyException:  # a store of files refuses what cannot be a file name: not there, then
            return None

    def ids(self) -> list[str]:
        return list(itertools.islice(self._store.yield_keys(), _MAX_IDS))


class _GraphStore:
    """Reads image content blocks from one namespace of a LangGraph store."""

    def __init__(self, store: Any, namespace: tuple[str, ...]) -> None:
        self._store = store
        self._namespace = namespace

    def get(self, picture_id: str, /) -> ImageSource | None:
        item = self._store.get(self._namespace, picture_id)
        if item is None:
            return None
        if isinstance(data := item.value.get("base64"), str):
            return data if data.startswith("data:") else f"data:image/unknown;base64,{data}"
        if isinstance(url := item.value.get("url"), str):
            return url
        raise CorruptImageError(
            f"The stored item {picture_id!r} is no picture; its keys are {', '.join(map(str, item.value))}.",
            remedy='Store pictures as {"base64": ...} or {"url": ...}.',
        )

    def ids(self) -> list[str]:
        # A prefix also finds what lies in deeper namespaces.
        found = self._store.search(self._namespace, limit=_MAX_IDS)
        return [item.key for item in found if item.namespace == self._namespace]


def _digest(picture: ImageSource) -> str:
    """Makes sixteen characters from the content: of bytes, of a path's or URL's text, or of pixels."""
    if isinstance(picture, bytes):
        data = picture
    elif isinstance(picture, str | Path):
        data = str(picture).encode()
    else:
        data = pixels_of(picture)
    return hashlib.sha256(data).hexdigest()[:16]

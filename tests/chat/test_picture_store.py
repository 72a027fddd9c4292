"""Stores: whatever holds pictures can be one."""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from langchain_core.stores import InMemoryByteStore, InvalidKeyException
from langgraph.store.memory import InMemoryStore
from PIL import Image

from langchain_sgl.indexing.blobs import _hash_name
from langchain_sgl.tools.picture_store import InMemoryPictureStore, PictureStore, as_picture_store
from sgl_engine.config import LimitsConfig
from sgl_engine.demo import PICTURES
from sgl_engine.errors import ConfigError, CorruptImageError
from sgl_engine.prompt.images import load_image

PNG = (PICTURES / "receipt.png").read_bytes()


class FileKeys(InMemoryByteStore):
    """Refuses keys that no file could have, as LangChain's store of files does."""

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        if any("/" in key for key in keys):
            raise InvalidKeyException(keys[0])
        return super().mget(keys)


class Custom:
    def get(self, picture_id: str, /) -> bytes | None:
        return PNG if picture_id == "a" else None

    def ids(self) -> Iterator[str]:
        yield "a"


def graph_store() -> InMemoryStore:
    store = InMemoryStore()
    store.put(("pictures",), "a", {"type": "image", "base64": base64.b64encode(PNG).decode()})
    store.put(("pictures", "deeper"), "b", {"url": "https://example.com/b.png"})
    return store


def byte_store() -> FileKeys:
    store = FileKeys()
    store.mset([("a", PNG)])
    return store


@pytest.mark.parametrize(
    "held",
    [
        {"a": PNG},
        MappingProxyType({"a": PICTURES / "receipt.png"}),
        byte_store(),
        graph_store(),
        InMemoryPictureStore({"a": PNG}),
        Custom(),
    ],
    ids=lambda held: type(held).__name__,
)
def test_anything_that_holds_pictures_is_a_store(held: Any) -> None:
    store = as_picture_store(held)
    picture = store.get("a")
    assert picture is not None
    expected = Image.open(PICTURES / "receipt.png").convert("RGB")
    assert load_image(picture, LimitsConfig()).tobytes() == expected.tobytes()
    assert store.get("b") is None
    assert store.get("b/c") is None
    assert list(store.ids()) == ["a"]
    assert isinstance(store, PictureStore)
    assert as_picture_store(store) is store


def test_a_graph_store_has_a_namespace() -> None:
    store = as_picture_store(graph_store(), namespace=("pictures", "deeper"))
    assert list(store.ids()) == ["b"]
    assert store.get("b") == "https://example.com/b.png"


@pytest.mark.parametrize("value", [{"path": "/etc/passwd"}, {"base64": b"bytes"}, {}])
def test_a_graph_store_never_names_files(value: dict[str, Any]) -> None:
    """Agents write to it."""
    held = InMemoryStore()
    held.put(("pictures",), "a", value)
    with pytest.raises(CorruptImageError, match="'a' is no picture"):
        as_picture_store(held).get("a")


@pytest.mark.parametrize("held", [[PNG], "receipt.png", PICTURES, object()])
def test_other_things_are_refused(held: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be used as a picture store"):
        as_picture_store(held)


def test_pictures_can_be_added_under_ids_of_their_content() -> None:
    store = InMemoryPictureStore()
    picture = Image.new("RGB", (4, 4), "red")
    ids = [
        store.add(PNG),
        store.add(picture),
        store.add(Path("a.png")),
        store.add("https://example.com/a.png"),
    ]
    assert len(set(ids)) == len(store) == 4
    assert store.add(PNG) == ids[0]
    assert store.add(picture.copy()) == ids[1]
    assert store.add(picture, "mine") == "mine"
    assert store.get("mine") is picture
    assert store.ids() == [*ids, "mine"]
    assert "mine" in repr(store)


def test_pictures_of_other_colours_are_other_pictures() -> None:
    """Also where only their palettes differ."""

    def painted(colour: tuple[int, int, int]) -> Image.Image:
        image = Image.new("P", (4, 4), 0)
        image.putpalette(list(colour) * 256)
        return image

    red, blue = painted((255, 0, 0)), painted((0, 0, 255))
    assert red.tobytes() == blue.tobytes()
    store = InMemoryPictureStore()
    assert store.get(store.add(red)) is red
    assert store.add(blue) != store.add(red)
    assert len(store) == 2
    assert _hash_name(red) != _hash_name(blue)
    assert _hash_name(red) == _hash_name(red.copy())

"""Every way to write an image, and every role."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from PIL import Image

from langchain_sgl import InMemoryPictureStore, image_block
from langchain_sgl.chat.image_blocks import normalize_pictures
from langchain_sgl.chat.messages import to_engine_messages
from sgl_engine.config import LimitsConfig
from sgl_engine.demo import PICTURES
from sgl_engine.errors import (
    CorruptImageError,
    ImageLimitError,
    InvalidRequestError,
    MissingImageError,
    UnsafePathError,
)
from sgl_engine.prompt.images import load_image
from sgl_engine.request import ImagePart, Message, ToolCall

RECEIPT = PICTURES / "receipt.png"
DATA = RECEIPT.read_bytes()
BASE64 = base64.b64encode(DATA).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"

# name -> a block that shows the receipt
FORMS: dict[str, dict[str, Any]] = {
    "standard base64": {"type": "image", "base64": BASE64, "mime_type": "image/png"},
    "standard base64 of a wrong mime type": {"type": "image", "base64": BASE64, "mime_type": "image/jpeg"},
    "standard base64 in lines": {"type": "image", "base64": "\n".join((BASE64[:76], BASE64[76:]))},
    "standard url": {"type": "image", "url": DATA_URL},
    "standard path": {"type": "image", "path": "receipt.png"},
    "file url": {"type": "image", "url": f"file://{RECEIPT}"},
    "PIL": {"type": "image", "image": Image.open(RECEIPT)},
    "OpenAI image_url": {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "high"}},
    "OpenAI image_url as a string": {"type": "image_url", "image_url": DATA_URL},
    "OpenAI responses": {"type": "input_image", "image_url": DATA_URL},
    "v0 base64": {"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"},
    "v0 url": {"type": "image", "source_type": "url", "url": DATA_URL},
    "Anthropic base64": {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": BASE64},
    },
    "Anthropic url": {"type": "image", "source": {"type": "url", "url": DATA_URL}},
    "file of an image type": {"type": "file", "base64": BASE64, "mime_type": "image/png"},
    "media of an image type": {"type": "media", "data": BASE64, "mime_type": "image/png"},
    "image_block of bytes": image_block(DATA),
    "image_block of a path": image_block(RECEIPT),
    "image_block of a picture": image_block(Image.open(RECEIPT)),
    "image_block of a URL": image_block(DATA_URL),
}


def pixels(message: Message) -> list[Any]:
    parts = [part for part in message.content if isinstance(part, ImagePart)]
    return [np.asarray(load_image(part.source, LimitsConfig())) for part in parts]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage, "tool"])
def test_every_form_of_image_arrives_in_every_role(name: str, kind: Any) -> None:
    content = [{"type": "text", "text": "look:"}, FORMS[name], "and say"]
    message = ToolMessage(content, tool_call_id="1") if kind == "tool" else kind(content)
    (translated,) = to_engine_messages([message], image_root=PICTURES)
    assert [part for part in translated.content if isinstance(part, str)] == ["look:", "and say"]
    assert isinstance(translated.content[1], ImagePart)
    (seen,) = pixels(translated)
    assert np.array_equal(seen, np.asarray(Image.open(RECEIPT).convert("RGB")))


def test_remote_urls_are_left_to_the_engine() -> None:
    for block in (
        {"type": "image", "url": "https://example.com/a.png"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    ):
        (message,) = to_engine_messages([HumanMessage([block])])
        assert message.content == (ImagePart("https://example.com/a.png"),) or (
            message.content[0].source == "https://example.com/a.png"  # type: ignore[union-attr]
        )


@pytest.mark.parametrize("path", ["receipt.png", str(RECEIPT), "/etc/passwd"])
@pytest.mark.parametrize("form", ["path", "file url"])
def test_local_files_need_a_root(path: str, form: str) -> None:
    block = {"type": "image", "path": path} if form == "path" else {"type": "image", "url": f"file://{path}"}
    with pytest.raises(UnsafePathError, match="image_root"):
        to_engine_messages([HumanMessage([block])])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": RECEIPT},
        {"type": "image", "image": RECEIPT},
        {"type": "image", "source": RECEIPT},
        {"type": "image", "source": {"type": "url", "url": RECEIPT}},
        {"type": "image_url", "image_url": RECEIPT},
        {"type": "image_url", "image_url": {"url": RECEIPT}},
        {"type": "input_image", "image_url": RECEIPT},
    ],
)
def test_path_objects_need_a_root_wherever_they_stand(block: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsafePathError, match="image_root"):
        to_engine_messages([HumanMessage([block])])
    with pytest.raises(UnsafePathError, match="leads out"):
        to_engine_messages([HumanMessage([block])], image_root=tmp_path)
    (message,) = to_engine_messages([HumanMessage([block])], image_root=PICTURES)
    assert message.content[0].source == RECEIPT.resolve()  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["../weights/README.md", "/etc/passwd", "~/x.png"])
def test_paths_do_not_lead_out_of_the_root(path: str) -> None:
    with pytest.raises((UnsafePathError, MissingImageError)):
        to_engine_messages([HumanMessage([{"type": "image", "path": path}])], image_root=PICTURES)


@pytest.mark.parametrize(
    ("block", "error", "words"),
    [
        ({"type": "image", "file_id": "file-1"}, InvalidRequestError, "file-1"),
        ({"type": "image", "id": "x", "source_type": "id"}, InvalidRequestError, "file store"),
        ({"type": "image", "source": {"type": "file", "file_id": "f9"}}, InvalidRequestError, "f9"),
        ({"type": "image", "mime_type": "image/png"}, MissingImageError, "mime_type, type"),
        ({"type": "image", 1: 2, "a": 3}, MissingImageError, "its keys are 1, a, type"),
        ({"type": "image_url"}, MissingImageError, "names no image"),
        ({"type": "image", "base64": "no base64!"}, CorruptImageError, "base64"),
        ({"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}, InvalidRequestError, "audio/wav"),
        ({"type": "file", "base64": "AAAA", "mime_type": "application/pdf"}, InvalidRequestError, "pdf"),
        ({"type": "video", "url": "https://example.com/a.mp4"}, InvalidRequestError, "video"),
        ({"type": "tool_use", "name": "x"}, InvalidRequestError, "tool_use"),  # not an assistant's
        ({"type": "telepathy"}, InvalidRequestError, "telepathy"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_never_dropped(
    block: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        to_engine_messages([HumanMessage(["Look", block])])


def test_roles_calls_and_results() -> None:
    call = {"name": "look", "args": {"at": "roof"}, "id": "c1", "type": "tool_call"}
    conversation: list[BaseMessage] = [
        SystemMessage("Be brief."),
        HumanMessage("Is it red?"),
        HumanMessage("And round?"),
        AIMessage("Let me look.", tool_calls=[call]),
        ToolMessage("yes", tool_call_id="c1", name="look"),
        FunctionMessage("no", name="old"),
        ChatMessage("Thanks", role="user"),
        ChatMessage("Rules", role="developer"),
    ]
    translated = to_engine_messages(conversation)
    assert [message.role for message in translated] == (
        "system user user assistant tool tool user system".split()
    )
    assert translated[3].tool_calls == (ToolCall("c1", "look", {"at": "roof"}),)
    assert (translated[4].tool_call_id, translated[4].name) == ("c1", "look")
    assert translated[4].content == ("yes",)


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'critic'"):
        to_engine_messages([ChatMessage("Hm", role="critic")])
    with pytest.raises(InvalidRequestError, match="'remove'"):
        to_engine_messages([RemoveMessage(id="1")])


def test_a_missing_mime_type_is_filled_in() -> None:
    for block in ({"base64": BASE64}, {"source_type": "base64", "data": "\n" + BASE64}):
        (message,) = normalize_pictures([HumanMessage([{"type": "image", **block}])])
        assert message.content[0]["mime_type"] == "image/png"  # type: ignore[index,call-overload]
    for block in ({"base64": DATA}, {"source_type": "base64", "data": DATA}):  # bytes, which are no JSON
        (message,) = normalize_pictures([HumanMessage([{"type": "image", **block}])])
        assert message.content[0]["mime_type"] == "image/png"  # type: ignore[index,call-overload]
        assert BASE64 in json.dumps(message.content)
    untouched = HumanMessage([{"type": "image", "url": "https://example.com/a.png"}, "text"])
    assert normalize_pictures([untouched])[0] is untouched


def test_what_an_assistant_says_about_itself_is_left_out() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "reasoning", "reasoning": "Hm."},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
        {"type": "non_standard", "value": {"type": "what no provider has thought of yet"}},
        {"type": "text", "text": "Here."},
        {"type": "refusal", "refusal": "No more."},
    ]
    call = {"name": "look", "args": {}, "id": "c1", "type": "tool_call"}
    (message,) = to_engine_messages([AIMessage(content, tool_calls=[call])])  # type: ignore[arg-type]
    assert message.content == ("Here.", "No more.")
    assert [call.name for call in message.tool_calls] == ["look"]
    # What it has shown is nothing that can be left out, and neither is what a user sends.
    for unseen in (AIMessage([{"type": "audio", "base64": ""}]), HumanMessage([content[3]])):  # type: ignore[list-item]
        with pytest.raises(InvalidRequestError, match="which no model here can read"):
            to_engine_messages([unseen])


def test_pil_images_are_encoded_so_that_caches_and_traces_see_them() -> None:
    red, green = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "green")
    plain = HumanMessage("no picture")
    messages = [plain, HumanMessage(["What?", {"type": "image", "image": red, "extra": 1}])]
    encoded = normalize_pictures(messages)
    assert encoded[0] is plain
    block = encoded[1].content[1]
    assert isinstance(block, dict)
    assert "image" not in block
    assert block["extra"] == 1
    assert json.dumps(block)
    other = normalize_pictures([HumanMessage(["What?", {"type": "image", "image": green, "extra": 1}])])
    assert dumps(encoded[1:]) != dumps(other)


def test_a_pil_image_over_the_limit_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: Any, **__: Any) -> None:
        raise AssertionError("the picture was encoded")

    monkeypatch.setattr(Image.Image, "save", encode)
    large = HumanMessage([{"type": "image", "image": Image.new("1", (100, 100))}])
    with pytest.raises(ImageLimitError, match="limit is 9999"):
        normalize_pictures([large], LimitsConfig(max_image_pixels=9999))
    with pytest.raises(AssertionError, match="was encoded"):
        normalize_pictures([large], LimitsConfig(max_image_pixels=10000))


def test_a_pil_image_is_not_refused_for_the_bytes_that_encoding_it_takes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    message = HumanMessage([{"type": "image", "image": Image.fromarray(noise)}])
    types = {}
    for limit in (11_500, 20_000):
        limits = LimitsConfig(max_image_bytes=limit)
        (encoded,) = to_engine_messages(normalize_pictures([message], limits))
        block = normalize_pictures([message], limits)[0].content[0]
        types[limit] = block["mime_type"]  # type: ignore[index,call-overload]
        assert load_image(encoded.content[0].source, limits).size == (64, 64)  # type: ignore[union-attr]
    assert types == {11_500: "image/jpeg", 20_000: "image/png"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_image_blocks_keep_the_pixels_of_every_mode(mode: str) -> None:
    ramp = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    picture = (
        ramp.convert("RGB").convert(mode) if mode not in {"I;16", "I"} else ramp.convert("I").convert(mode)
    )
    (message,) = to_engine_messages([HumanMessage([image_block(picture)])])
    (seen,) = pixels(message)
    assert np.array_equal(seen, np.asarray(load_image(picture, LimitsConfig())))


def test_image_blocks_are_upright() -> None:
    picture = Image.new("RGB", (20, 10), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    (message,) = to_engine_messages([HumanMessage([image_block(picture)])])
    (seen,) = pixels(message)
    assert seen.shape[:2] == (20, 10)
    assert seen[0, -1].tolist() == [255, 0, 0]


def test_floating_point_pictures_are_refused_as_the_engine_refuses_them() -> None:
    with pytest.raises(CorruptImageError, match="mode F"):
        image_block(Image.new("F", (4, 4)))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_mime_types_are_sniffed(format_: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.dat"
    Image.new("RGB", (4, 4), "red").save(file, format=format_)
    assert image_block(file)["mime_type"] == Image.MIME[format_]


@pytest.mark.parametrize("text", ["receipt.png", "./a/receipt.png", "/a/b.png", "C:\\a.png", "", BASE64[:80]])
def test_a_text_that_is_no_url_is_refused_at_once(text: str) -> None:
    for write in (image_block, InMemoryPictureStore().add):
        with pytest.raises(MissingImageError, match="pathlib.Path") as caught:
            write(text)
        assert len(str(caught.value)) < 300
    for url in (
        "https://example.com/a.png",
        "HTTP://example.com",
        f"data:image/png;base64,{BASE64}",
        "file:a",
    ):
        assert image_block(url)["url"] == url


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingImageError, match=r"nowhere\.png"):
        image_block(Path("nowhere.png"))

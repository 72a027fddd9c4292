"""Files of several pages, and what else a folder holds: a page is a Document, nothing is lost in silence."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from picture_folders import FakeChat, picture
from PIL import Image

from langchain_sgl import IncompleteIndexError, SGLImageIndexer
from langchain_sgl.indexing.indexer import TRANSCRIBE
from sgl_engine import (
    CorruptImageError,
    ImageLimitError,
    LimitsConfig,
    MissingImageError,
    UnsupportedImageError,
)

SIZES = [(10, 5), (20, 5), (30, 5)]


def several(kind: str, sizes: list[tuple[int, int]] = SIZES) -> bytes:
    """A file of pages; an animation has one size, so its frames differ in colour."""
    if kind in {"TIFF", "PDF"}:
        pages = [Image.open(io.BytesIO(picture(*size))) for size in sizes]
    else:
        pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def indexer(source: Any, chat: FakeChat | None = None, **options: Any) -> SGLImageIndexer:
    return SGLImageIndexer(source, model=chat or FakeChat(), **options)


@pytest.mark.parametrize(
    ("kind", "mime_type"),
    [
        ("TIFF", "image/tiff"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("PNG", "image/png"),
        ("PDF", "application/pdf"),
    ],
)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_every_page_is_a_document(tmp_path: Path, kind: str, mime_type: str, batch_size: int) -> None:
    if kind == "PDF":
        pytest.importorskip("pypdfium2")
    (tmp_path / f"a.{kind.lower()}").write_bytes(several(kind))
    (tmp_path / "b.png").write_bytes(picture(40, 5))
    chat = FakeChat()
    loader = indexer(tmp_path, chat, batch_size=batch_size, limits=LimitsConfig(pdf_dpi=72))
    documents = loader.load()
    assert loader.errors == []
    about = [(document.metadata["page"], document.metadata["total_pages"]) for document in documents]
    assert about == [(0, 3), (1, 3), (2, 3), (0, 1)]
    assert {document.metadata["mime_type"] for document in documents[:3]} == {mime_type}
    assert len({document.metadata["content_hash"] for document in documents[:3]}) == 1
    assert len({document.id for document in documents}) == 4
    texts = [document.page_content.removeprefix(f"{TRANSCRIBE}: ") for document in documents]
    sizes = SIZES if kind in {"TIFF", "PDF"} else [(16, 16)] * 3
    assert texts == [f"{width} x {height}" for width, height in [*sizes, (40, 5)]]
    assert [(document.metadata["width"], document.metadata["height"]) for document in documents[:3]] == sizes
    assert {seen["mime_type"] for seen in chat.seen} == {"image/png"}  # a model gets one picture at a time
    assert (loader.progress.done, loader.progress.total, loader.progress.new) == (2, 2, 4)


def test_the_first_page_alone(tmp_path: Path) -> None:
    loader = indexer(("pages", several("TIFF")), pages="first")
    (document,) = loader.load()
    assert (document.metadata["page"], document.metadata["total_pages"]) == (0, 3)
    assert loader.progress.done == 1


def test_a_manifest_knows_pages(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "pictures/a.tiff"
    path.write_bytes(several("TIFF"))
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 20 x 5"})
    loader = indexer(tmp_path / "pictures", chat, manifest=tmp_path / "index.db")
    assert [document.metadata["page"] for document in loader.load()] == [0, 2]
    assert [(failure.source, failure.page) for failure in loader.errors] == [(str(path), 1)]
    chat.fails_on.clear()
    asked = len(chat.seen)
    first = loader.load()
    assert [document.metadata["page"] for document in first] == [0, 1, 2]
    assert len(chat.seen) == asked + 1  # the other two are known
    assert loader.load() == first
    assert len(chat.seen) == asked + 1
    # One page changes and fails: it keeps what it was, the others become what they are.
    path.write_bytes(several("TIFF", [(11, 5), (21, 5)]))
    chat.fails_on.add(f"{TRANSCRIBE}: 21 x 5")
    changed = list(loader.lazy_load())
    texts = [document.page_content.removeprefix(f"{TRANSCRIBE}: ") for document in changed]
    assert texts == ["11 x 5", "20 x 5"]
    assert [document.metadata["total_pages"] for document in changed] == [2, 3]
    failing = indexer(tmp_path / "pictures", chat, failed="document").load()
    assert [(document.metadata["page"], "error" in document.metadata) for document in failing] == [
        (0, False),
        (1, True),
    ]


def test_a_bad_page_is_named_and_the_others_are_read() -> None:
    pytest.importorskip("pypdfium2")
    limits = LimitsConfig(pdf_dpi=72, max_image_pixels=1000)
    loader = indexer(("pages", several("PDF", [(10, 5), (400, 400), (30, 5)])), limits=limits)
    assert [document.metadata["page"] for document in loader.load()] == [0, 2]
    assert [(failure.page, type(failure.error)) for failure in loader.errors] == [(1, ImageLimitError)]


@pytest.mark.parametrize("kept", [0.1, 0.4, 0.7, 0.9])
def test_a_file_that_breaks_off_loses_no_page_in_silence(kept: float) -> None:
    data = several("TIFF", [(100, 100)] * 3)
    loader = indexer(("pages", data[: int(len(data) * kept)]))
    documents = loader.load()
    pages = [failure.page for failure in loader.errors]
    # The whole file, or what could not be read of it.
    assert (len(documents), pages) in [(0, [None]), (2, [2])]


def test_too_many_pages() -> None:
    loader = indexer([("pages", several("GIF")), ("one", picture(9, 9))], max_pages=2)
    assert [document.metadata["source"] for document in loader.load()] == ["one"]
    (failure,) = loader.errors
    assert isinstance(failure.error, ImageLimitError)
    assert "max_pages" in str(failure.error)
    assert len(indexer(("pages", several("GIF")), max_pages=3).load()) == 3


# What else a folder holds.


def test_a_pdf_that_nothing_can_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_engine.prompt.formats.find_spec", lambda _: None)  # as without the extra
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7 ...")
    (tmp_path / "nameless").write_bytes(b"%PDF-1.7 ...")
    loader = indexer(tmp_path)
    assert loader.load() == []
    assert [Path(failure.source).name for failure in loader.errors] == ["nameless", "scan.pdf"]
    assert {type(failure.error) for failure in loader.errors} == {UnsupportedImageError}
    assert "pypdfium2" in str(loader.errors[0].error)
    with pytest.raises(IncompleteIndexError):
        list(loader.lazy_load())


def test_what_looks_like_a_picture_is_never_passed_over(tmp_path: Path) -> None:
    files = {
        "damaged": picture(40, 40)[:500],  # no suffix; its first bytes say PNG
        "damaged.dat": several("TIFF")[:100],
        "empty.heic": b"",
        "empty.pdf": b"",
        "logo.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "new.jxl": b"\xff\x0a1234",
        # No pictures, and not called so.
        "BMW.txt": b"BMW, and other words that begin like a bitmap",
        "P1.txt": b"P1 is the first point of the list",
        "film": b"\x00\x00\x00\x18ftypmp42" + bytes(100),
        "letter.docx": b"PK\x03\x04" + bytes(100),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    loader = indexer(tmp_path)
    assert loader.load() == []
    assert [Path(failure.source).name for failure in loader.errors] == list(files)[:6]
    assert loader.progress.skipped == 4


def test_what_cannot_be_opened_is_never_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell what it is."""
    for name in ("a", "b.txt", "c.png"):
        (tmp_path / name).write_bytes(picture(9, 9))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    opened = Path.open

    def refuse(path: Path, *given: Any, **options: Any) -> Any:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *given, **options)

    monkeypatch.setattr(Path, "open", refuse)  # permissions do not stop root
    loader = indexer(tmp_path, follow_symlinks=True)
    assert loader.load() == []
    assert [Path(failure.source).name for failure in loader.errors] == ["a", "b.txt", "c.png", "dangling"]
    assert {type(failure.error) for failure in loader.errors} == {MissingImageError}
    assert loader.progress.skipped == 1  # the pipe


def test_a_file_too_large_to_be_read_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(picture(100, 100))
    (tmp_path / "film").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(20_000))
    loader = indexer(tmp_path, limits=LimitsConfig(max_image_bytes=10_000))
    assert loader.load() == []
    assert [(Path(each.source).name, type(each.error)) for each in loader.errors] == [
        ("large", ImageLimitError)
    ]


def test_an_empty_pdf_is_corrupt() -> None:
    pytest.importorskip("pypdfium2")
    loader = indexer(("scan", b"%PDF-1.7 and nothing that could be read"))
    assert loader.load() == []
    assert isinstance(loader.errors[0].error, CorruptImageError)
    assert sys.getsizeof(str(loader.errors[0].error)) < 1000

import asyncio
import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.document_loaders import BlobLoader
from langchain_core.documents import Document
from langchain_core.documents.base import Blob
from picture_folders import FakeChat, picture
from PIL import Image

from langchain_sgl.indexing.files import PictureFailure
from langchain_sgl.indexing.indexer import TRANSCRIBE, SGLImageBlobParser, SGLImageIndexer
from langchain_sgl.indexing.manifest import IndexManifest, StoredAnswer
from langchain_sgl.indexing.progress import IndexProgress
from sgl_engine.config import LimitsConfig
from sgl_engine.demo.pages import draw_page
from sgl_engine.demo.vocabulary import TRANSCRIBE as PAIRS_PROMPT
from sgl_engine.errors import (
    ConfigError,
    CorruptImageError,
    ImageLimitError,
    InvalidRequestError,
    MissingImageError,
    UnsupportedModelError,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures in three folders, and what else lies about in picture folders."""
    files = {
        "a.png": picture(10, 5),
        "b.jpg": picture(20, 5, "JPEG"),
        "deep/c.webp": picture(30, 5, "WEBP"),
        "deep/deeper/d": picture(40, 5),  # no suffix
        "deep/deeper/e.txt": picture(50, 5, "GIF"),  # the wrong one
        "f.png": picture(10, 5),  # the same bytes as a.png
        "notes.txt": b"not a picture",
        "film.mp4": b"neither",
        "empty": b"",
        ".hidden.png": picture(60, 5),
        ".git/g.png": picture(70, 5),
    }
    for name, data in files.items():
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(data)
    return tmp_path / "pictures"


NAMES = ["a.png", "b.jpg", "f.png", "deep/c.webp", "deep/deeper/d", "deep/deeper/e.txt"]


def indexer(source: Any, chat: FakeChat | None = None, **options: Any) -> SGLImageIndexer:
    return SGLImageIndexer(source, model=chat or FakeChat(), **options)


def names(documents: list[Document], folder: Path) -> list[str]:
    return [Path(document.metadata["source"]).relative_to(folder).as_posix() for document in documents]


def test_a_folder_becomes_documents(folder: Path) -> None:
    loader = indexer(folder)
    documents = loader.load()
    assert names(documents, folder) == NAMES
    first = documents[0]
    assert first.page_content == f"{TRANSCRIBE}: 10 x 5"
    assert first.metadata == {
        "source": str(folder / "a.png"),
        "mime_type": "image/png",
        "content_hash": hashlib.sha256((folder / "a.png").read_bytes()).hexdigest(),
        "width": 10,
        "height": 5,
        "page": 0,
        "total_pages": 1,
        "prompt": TRANSCRIBE,
        "model_name": "fake-large",
        "finish_reason": "stop",
        "sgl_route": "large",
    }
    mime_types = [document.metadata["mime_type"] for document in documents]
    assert mime_types == ["image/png", "image/jpeg", "image/png", "image/webp", "image/png", "image/gif"]
    assert len({document.id for document in documents}) == 6
    assert json.dumps([document.metadata for document in documents])
    assert loader.errors == []
    assert loader.progress == IndexProgress(
        done=9, total=9, new=6, skipped=3, asked=5, source=str(folder / "deep/deeper/e.txt")
    )


def test_the_default_prompt_is_the_bundled_pairs() -> None:
    assert TRANSCRIBE == PAIRS_PROMPT


def test_the_size_is_that_of_the_picture_held_upright(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (30, 10)).save(buffer, "JPEG", exif=exif)
    (document,) = indexer(("turned", buffer.getvalue())).load()
    assert (document.metadata["width"], document.metadata["height"]) == (10, 30)


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*", ["a.png", "b.jpg", "f.png"]),
        ("*.png", ["a.png", "f.png"]),
        ("**/*.webp", ["deep/c.webp"]),
        ("deep/**/*", ["deep/c.webp", "deep/deeper/d", "deep/deeper/e.txt"]),
        ("*/*/*", ["deep/deeper/d", "deep/deeper/e.txt"]),
        ("*.tiff", []),
    ],
)
def test_glob(folder: Path, glob: str, found: list[str]) -> None:
    assert names(indexer(folder, glob=glob).load(), folder) == found
    visible = {path for path in folder.glob(glob) if path.is_file() and not path.name.startswith(".")}
    assert {folder / name for name in found} <= visible  # as pathlib has it


def test_lists_blobs_and_loaders(folder: Path) -> None:
    class Loader(BlobLoader):
        def yield_blobs(self) -> Iterator[Blob]:
            yield Blob.from_path(folder / "a.png", metadata={"album": "holidays"})
            yield Blob.from_data(picture(7, 7), metadata={"source": "memory"})

    given = [folder / "b.jpg", str(folder / "a.png"), ("id-3", picture(9, 9))]
    sources = [document.metadata["source"] for document in indexer(given).load()]
    assert sources == [str(folder / "b.jpg"), str(folder / "a.png"), "id-3"]
    assert [document.metadata["source"] for document in indexer(iter(given)).load()] == sources
    documents = indexer(Loader()).load()
    assert [document.metadata["source"] for document in documents] == [str(folder / "a.png"), "memory"]
    assert documents[0].metadata["album"] == "holidays"
    assert [len(indexer(one).load()) for one in (folder / "a.png", ("id", picture(9, 9)))] == [1, 1]
    assert SGLImageBlobParser(FakeChat(), prompt="what").parse(Blob.from_data(picture(7, 7), path="x"))


def test_what_was_named_is_never_skipped(folder: Path) -> None:
    """A text file in a folder is passed over; the same file, named, is an error."""
    loader = indexer([folder / "notes.txt", folder / "gone.png", folder / "deep"])
    assert loader.load() == []
    assert [type(failure.error) for failure in loader.errors] == [
        CorruptImageError,
        MissingImageError,
        MissingImageError,
    ]


def test_relative_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    documents = indexer(folder.name, relative_to=folder.name).load()
    assert [document.metadata["source"] for document in documents] == NAMES
    loader = indexer([folder / "a.png"], relative_to=folder / "deep")
    assert loader.load() == []
    assert isinstance(loader.errors[0].error, ConfigError)


def test_only_a_batch_is_read_and_asked_at_a_time(folder: Path) -> None:
    chat = FakeChat()
    documents = indexer(folder, chat, batch_size=2, incomplete="allow").lazy_load()
    assert chat.seen == []
    next(documents)
    assert len(chat.seen) == 2
    (folder / "b.jpg").unlink()  # read already
    (folder / "deep/c.webp").unlink()  # not yet
    assert names(list(documents), folder) == ["b.jpg", "f.png", "deep/deeper/d", "deep/deeper/e.txt"]


def test_settings_reach_the_model() -> None:
    for retention, expected in (("100%", {"retention": "100%"}), ("35%", {"retention": "35%"}), (None, {})):
        chat = FakeChat()
        indexer(("x", picture(9, 9)), chat, retention=retention, prompt="describe").load()
        assert chat.seen == [{"mime_type": "image/png", "answer": "describe: 9 x 9", **expected}]


@pytest.mark.parametrize("failed", ["skip", "document"])
def test_a_bad_picture_never_ends_the_run(folder: Path, failed: str) -> None:
    truncated = picture(40, 40)[:2000]
    (folder / "corrupt.png").write_bytes(truncated)
    (folder / "zero.png").write_bytes(b"")
    (folder / "large.png").write_bytes(picture(100, 100))
    (folder / "huge.png").write_bytes(picture(65, 65))
    told: list[PictureFailure] = []
    limits = LimitsConfig(max_image_bytes=20_000, max_image_pixels=4_000)
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 30 x 5"})
    loader = indexer(folder, chat, limits=limits, on_error=told.append, failed=failed, batch_size=3)
    documents = loader.load()
    good = [document for document in documents if "error" not in document.metadata]
    assert names(good, folder) == [name for name in NAMES if name != "deep/c.webp"]
    failures = {Path(failure.source).name: type(failure.error) for failure in loader.errors}
    assert failures == {
        "corrupt.png": CorruptImageError,
        "zero.png": CorruptImageError,
        "large.png": ImageLimitError,
        "huge.png": ImageLimitError,
        "c.webp": InvalidRequestError,
    }
    assert told == loader.errors
    assert loader.progress.failed == 5
    bad = [document for document in documents if "error" in document.metadata]
    assert len(bad) == (5 if failed == "document" else 0)
    for document in bad:
        assert document.page_content == ""
        assert document.metadata["error"].startswith(
            failures[Path(document.metadata["source"]).name].__name__
        )


def test_a_bad_picture_can_end_the_run(folder: Path) -> None:
    (folder / "corrupt.png").write_bytes(picture(80, 80)[:2000])
    with pytest.raises(CorruptImageError):
        indexer(folder, failed="raise").load()
    with pytest.raises(CorruptImageError):
        SGLImageBlobParser(FakeChat()).parse(Blob.from_path(folder / "corrupt.png"))


def test_a_broken_model_ends_the_run(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        indexer(folder, FakeChat(broken=True)).load()


def test_a_model_that_breaks_later_does_not(folder: Path) -> None:
    chat = FakeChat()
    loader = indexer(folder, chat, batch_size=2, incomplete="allow")
    documents = loader.lazy_load()
    found = [next(documents), next(documents)]
    chat.broken = True
    found += documents
    assert names(found, folder) == NAMES[:2]
    assert len(loader.errors) == 4


def test_links_and_loops(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture(11, 11))
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "other").symlink_to(outside)
    (folder / "deep/loop").symlink_to(folder)
    (folder / "ring.png").symlink_to(folder / "ring.png")
    assert names(indexer(folder).load(), folder) == NAMES
    loader = indexer(folder, follow_symlinks=True)
    assert sorted(names(loader.load(), folder)) == sorted([*NAMES, "link.png", "other/secret.png"])
    assert [Path(failure.source).name for failure in loader.errors] == ["ring.png"]


def test_names_that_are_no_text(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (folder / name).write_bytes(picture(12, 12))
    except OSError:
        pytest.skip("this file system refuses such names")
    loader = indexer(folder, manifest=tmp_path / "index.db")
    assert loader.load()[2].metadata["source"] == str(folder / "caf\\xe9.png")
    assert loader.errors == []


def test_special_files_are_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    loader = indexer(folder)
    assert names(loader.load(), folder) == NAMES
    assert [type(failure.error) for failure in loader.errors] == [MissingImageError]


def test_folders_that_cannot_be_listed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = indexer(folder, manifest=tmp_path / "index.db")
    loader.load()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "deeper":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # permissions do not stop root, as whom containers run tests
    assert names(loader.load(), folder) == [*NAMES[4:], *NAMES[:4]]  # what is known of it comes first
    assert [(failure.source, type(failure.error)) for failure in loader.errors] == [
        (str(folder / "deep/deeper"), PermissionError)
    ]
    assert loader.removed() == []  # its pictures may come back


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no picture file or folder"):
        indexer(tmp_path / "nowhere").load()


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "  "},
        {"batch_size": 0},
        {"max_pages": 0},
        {"pages": "last"},
        {"unchanged": "keep"},
        {"failed": "never"},
        {"incomplete": True},
        {"report": "short"},
    ],
)
def test_options_are_checked(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be indexed"):
        indexer(folder, **options)


def test_progress_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[IndexProgress] = []
    indexer(folder, on_progress=told.append, show_progress=True).load()
    assert [progress.done for progress in told] == list(range(1, 10))
    assert {progress.total for progress in told} == {9}
    assert told[-1].new == 6
    captured = capsys.readouterr()
    assert "6 new, 0 unchanged, 0 failed" in captured.err
    assert captured.out == ""
    told.clear()
    indexer(iter([folder / "a.png"]), on_progress=told.append).load()
    assert told[0].total is None


# The manifest.


def test_a_second_run_asks_nothing_and_yields_the_same(folder: Path, tmp_path: Path) -> None:
    chat = FakeChat()
    first = indexer(folder, chat, manifest=tmp_path / "deep/er/index.db").load()
    assert len(chat.seen) == 5  # two of the six pictures are equal
    loader = indexer(folder, chat, manifest=tmp_path / "deep/er/index.db")
    assert loader.load() == first
    assert len(chat.seen) == 5
    assert (loader.progress.new, loader.progress.unchanged, loader.progress.asked) == (0, 6, 0)
    assert indexer(folder, chat, batch_size=1).load() == first  # without one, everything is asked again
    assert len(chat.seen) == 11


def test_only_what_changed_is_asked_and_may_be_yielded_alone(folder: Path, tmp_path: Path) -> None:
    chat = FakeChat()
    options: dict[str, Any] = {"manifest": tmp_path / "index.db", "unchanged": "skip"}
    before = {
        document.metadata["source"]: document.id for document in indexer(folder, chat, **options).load()
    }
    assert indexer(folder, chat, **options).load() == []
    (folder / "b.jpg").write_bytes(picture(21, 5, "JPEG"))
    (folder / "new.png").write_bytes(picture(22, 5))
    (folder / "deep/moved.webp").write_bytes((folder / "deep/c.webp").read_bytes())
    os.utime(folder / "a.png")
    asked = len(chat.seen)
    changed = indexer(folder, chat, **options).load()
    assert names(changed, folder) == ["b.jpg", "new.png", "deep/moved.webp"]
    assert len(chat.seen) == asked + 2  # the moved picture was seen before
    assert changed[0].id != before[str(folder / "b.jpg")]


@pytest.mark.parametrize(
    ("chat", "options"),
    [
        (FakeChat(), {"prompt": "describe"}),
        (FakeChat(), {"retention": "35%"}),
        (FakeChat(version="2"), {}),
    ],
)
def test_another_prompt_setting_or_model_asks_anew(
    folder: Path, tmp_path: Path, chat: FakeChat, options: dict[str, Any]
) -> None:
    manifest = tmp_path / "index.db"
    before = indexer(folder, manifest=manifest).load()
    assert indexer(folder, FakeChat(), manifest=manifest).load() == before  # the control
    loader = indexer(folder, chat, manifest=manifest, **options)
    after = loader.load()
    assert len(chat.seen) == 5
    assert not {document.id for document in before} & {document.id for document in after}
    assert {document.id for document in loader.removed()} == {document.id for document in before}


def test_removed_documents_are_known_until_they_are_forgotten(folder: Path, tmp_path: Path) -> None:
    loader = indexer(folder, manifest=tmp_path / "index.db")
    ids = {document.metadata["source"]: document.id for document in loader.load()}
    assert loader.removed() == []
    (folder / "b.jpg").unlink()
    (folder / "a.png").write_bytes(picture(23, 5))
    next(loader.lazy_load())
    assert loader.removed() == []  # that run did not come to its end
    loader.load()
    removed = loader.removed()
    assert [(document.source, document.id) for document in removed] == [
        (source, ids[source]) for source in (str(folder / "a.png"), str(folder / "b.jpg"))
    ]
    assert indexer(folder, manifest=tmp_path / "index.db").removed() == removed
    loader.forget(removed[:1])
    assert loader.removed() == removed[1:]
    loader.load()
    assert loader.removed() == removed[1:]
    with pytest.raises(ConfigError, match="without a manifest"):
        indexer(folder).removed()


def test_what_cannot_be_read_is_not_removed(folder: Path, tmp_path: Path) -> None:
    loader = indexer(folder, manifest=tmp_path / "index.db")
    loader.load()
    intact = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(intact[:-30])
    loader.load()
    assert [failure.source for failure in loader.errors] == [str(folder / "a.png")]
    assert loader.removed() == []
    (folder / "a.png").write_bytes(intact)
    loader.load()
    assert (loader.progress.unchanged, loader.errors, loader.removed()) == (6, [], [])


def test_failures_are_tried_again(folder: Path, tmp_path: Path) -> None:
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 30 x 5"})
    loader = indexer(folder, chat, manifest=tmp_path / "index.db")
    assert len(loader.load()) == 5
    chat.fails_on.clear()
    assert len(loader.load()) == 6
    assert loader.progress.asked == 1


KILLED = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
from picture_folders import FakeChat
from langchain_sgl import SGLImageIndexer

class Slow(FakeChat):
    def _generate(self, *arguments, **settings):
        result = super()._generate(*arguments, **settings)
        if result.generations[0].text.endswith("40 x 5"):
            print("in the middle", flush=True)
            time.sleep(3600)
        return result

loader = SGLImageIndexer(sys.argv[1], model=Slow(), manifest=sys.argv[2], batch_size=2)
for document in loader.lazy_load():
    pass
"""


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "index.db"
    (folder / "f.png").write_bytes(picture(31, 31))
    command = [sys.executable, "-c", KILLED, str(folder), str(manifest), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    chat = FakeChat()
    loader = indexer(folder, chat, manifest=manifest, batch_size=2)
    assert names(loader.load(), folder) == NAMES
    answers = {seen["answer"].removeprefix(f"{TRANSCRIBE}: ") for seen in chat.seen}
    assert answers == {"30 x 5", "40 x 5", "50 x 5"}  # the batch that was being asked, and what follows


def test_a_consumer_that_stops_gets_the_rest_next_time(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"manifest": tmp_path / "index.db", "unchanged": "skip", "batch_size": 4}
    options["incomplete"] = "allow"
    documents = indexer(folder, **options).lazy_load()
    assert names([next(documents), next(documents)], folder) == NAMES[:2]
    documents.close()  # type: ignore[attr-defined]
    # The second one was handed out, but nobody came back for another.
    assert names(indexer(folder, **options).load(), folder) == NAMES[1:]


def test_a_file_that_is_no_manifest(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "text.db").write_text("something else entirely, and longer than a header of SQLite")
    with pytest.raises(ConfigError, match="text.db cannot be used"):
        indexer(folder, manifest=tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE things (name)")
    other.close()
    with pytest.raises(ConfigError, match="no manifest of version 2"):
        indexer(folder, manifest=tmp_path / "other.db")


def test_runs_at_once_share_a_manifest(folder: Path, tmp_path: Path) -> None:
    loaders = [indexer(folder, manifest=tmp_path / "index.db", batch_size=1) for _ in range(4)]
    found: list[list[Document]] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.load())) for one in loaders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(documents == found[0] for documents in found)
    assert loaders[0].removed() == []


def test_a_manifest_keeps_what_it_is_given(tmp_path: Path) -> None:
    manifest = IndexManifest(tmp_path / "index.db")
    answer = StoredAnswer("zwölf € \U0001f9fe", {"sgl": {"route": "small"}, "width": 3})
    manifest.save({"one": answer})
    assert IndexManifest(tmp_path / "index.db").answers({"one", "two"}) == {"one": answer}


# Asynchronous.


async def test_the_async_twin_does_the_same(folder: Path, tmp_path: Path) -> None:
    loader = indexer(folder, manifest=tmp_path / "index.db", batch_size=2)
    documents = await loader.aload()
    assert documents == indexer(folder).load()
    assert loader.progress.new == 6
    assert await loader.aload() == documents
    assert loader.progress.unchanged == 6
    (folder / "a.png").unlink()
    assert len([document async for document in loader.alazy_load()]) == 5
    assert len(loader.removed()) == 1


async def test_async_does_not_block_the_loop(folder: Path) -> None:
    loop, answers = asyncio.get_running_loop(), []

    def ask_the_loop() -> None:
        beaten = threading.Event()
        loop.call_soon_threadsafe(beaten.set)
        answers.append(beaten.wait(300))

    await indexer(folder, FakeChat(asked=ask_the_loop), batch_size=2).aload()
    assert answers == [True] * 6


async def test_a_cancelled_async_run_goes_on(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"manifest": tmp_path / "index.db", "batch_size": 2}
    third, cancelled, asked = threading.Event(), threading.Event(), []

    def hold_the_third() -> None:
        asked.append(1)
        if len(asked) >= 3:  # of the second batch
            third.set()
            cancelled.wait(300)

    slow = asyncio.create_task(indexer(folder, FakeChat(asked=hold_the_third), **options).aload())
    assert await asyncio.to_thread(third.wait, 300)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    cancelled.set()
    loader = indexer(folder, **options)
    assert len(await loader.aload()) == 6
    assert loader.progress.asked < 5


# End to end.


def test_the_bundled_pair_transcribes_a_folder(tmp_path: Path) -> None:
    truths = {}
    for seed in (3, 4, 5, 7):
        page = draw_page(seed, tiles=1, only=["document"])
        Image.fromarray(page.pixels).save(tmp_path / f"{seed}.png")
        truths[f"{seed}.png"] = page.contents[0].transcription  # type: ignore[union-attr]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    loader = SGLImageIndexer(tmp_path, manifest=tmp_path / "index.db", relative_to=tmp_path)
    documents = {document.metadata["source"]: document for document in loader.load()}
    assert sorted(documents) == sorted(truths)
    shares = []
    for name, document in documents.items():
        said, truth = (set(text.replace(",", "").split()) for text in (document.page_content, truths[name]))
        shares.append(len(said & truth) / len(truth))
    assert sum(shares) / len(shares) >= 0.5  # a floor, not the measurement: sgl bench
    report = documents["3.png"].metadata
    assert report["sgl_visual_tokens"] == 144
    assert {documents[name].metadata.get("sgl_keep_ratio") for name in truths} <= {None, 1.0}
    assert documents["3.png"].metadata["finish_reason"] == "stop"
    assert documents["3.png"].metadata["model_name"] in {"sgl-demo-small", "sgl-demo-large"}
    assert [Path(failure.source).name for failure in loader.errors] == ["bad.png"]
    again = SGLImageIndexer(tmp_path, manifest=tmp_path / "index.db", relative_to=tmp_path)
    assert again.load() == list(documents.values())
    assert again.progress.asked == 0

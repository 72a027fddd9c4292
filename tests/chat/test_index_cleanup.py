"""Nothing leaves a store because an indexer failed: LangChain's ``index`` over it, cleaning up."""

import ast
import inspect
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.vectorstores import InMemoryVectorStore
from picture_folders import FakeChat, picture

from langchain_sgl import ChatSGL, IncompleteIndexError, SGLImageIndexer
from langchain_sgl.indexing.indexer import TRANSCRIBE
from sgl_engine import ConfigError
from sgl_engine.demo import PICTURES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures/deep").mkdir(parents=True)
    for name, size in {"a.png": 10, "b.png": 20, "deep/c.png": 30}.items():
        (tmp_path / "pictures" / name).write_bytes(picture(size, 5))
    return tmp_path / "pictures"


class Index:
    """A store, and what LangChain remembers of it."""

    def __init__(self, key_encoder: Any = "sha256") -> None:
        self.store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        self.records = InMemoryRecordManager("pictures")
        self.records.create_schema()
        self.options: dict[str, Any] = {
            "cleanup": "full",
            "source_id_key": "source",
            "key_encoder": key_encoder,
        }

    def run(self, indexer: SGLImageIndexer, **options: Any) -> tuple[int, int, int]:
        """Added, skipped, deleted."""
        result = index(indexer, self.records, self.store, **{**self.options, **options})
        return result["num_added"], result["num_skipped"], result["num_deleted"]

    @property
    def texts(self) -> set[str]:
        return {entry["text"].removeprefix(f"{TRANSCRIBE}: ") for entry in self.store.store.values()}


ALL = {"10 x 5", "20 x 5", "30 x 5"}
ENCODERS = [lambda document: document.id, "sha256", "blake2b"]


@pytest.mark.parametrize("key_encoder", ENCODERS)
def test_what_is_new_changed_gone_and_back(
    folder: Path, tmp_path: Path, key_encoder: str | Callable[[Document], str]
) -> None:
    target = Index(key_encoder)
    indexer = SGLImageIndexer(folder, model=FakeChat(), manifest=tmp_path / "index.db")
    assert target.run(indexer) == (3, 0, 0)
    assert target.run(indexer) == (0, 3, 0)
    original = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(picture(25, 5))
    assert target.run(indexer) == (1, 2, 1)
    (folder / "b.png").unlink()
    assert target.run(indexer) == (0, 2, 1)
    (folder / "b.png").write_bytes(original)
    assert target.run(indexer) == (1, 2, 0)
    assert target.texts == ALL


@pytest.mark.parametrize("cleanup", ["full", "scoped_full", "incremental"])
@pytest.mark.parametrize("failed", ["skip", "document"])
def test_a_failure_removes_nothing_without_a_manifest(folder: Path, failed: Any, cleanup: str) -> None:
    target = Index()
    target.run(SGLImageIndexer(folder, model=FakeChat()))
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: {size}" for size in ALL})
    (folder / "new.png").write_bytes(picture(40, 5))
    with pytest.raises(IncompleteIndexError, match="3 pictures or folders failed.*a.png") as raised:
        target.run(SGLImageIndexer(folder, model=chat, failed=failed), cleanup=cleanup, batch_size=1)
    assert len(raised.value.failures) == 3
    if failed == "skip":
        assert target.texts == {*ALL, "40 x 5"}
    elif cleanup != "incremental":  # as asked for, a document of the failure comes in its place
        assert target.texts == {*ALL, "40 x 5", ""}


@pytest.mark.parametrize("broken", ["damaged", "changed", "folder"])
def test_with_a_manifest_a_failure_keeps_the_document(
    folder: Path, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Index()
    manifest = tmp_path / "index.db"
    before = SGLImageIndexer(folder, model=FakeChat(), manifest=manifest)
    target.run(before)
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 35 x 5"})
    if broken == "damaged":
        (folder / "deep/c.png").write_bytes(picture(30, 5)[:-40])
    elif broken == "changed":
        (folder / "deep/c.png").write_bytes(picture(35, 5))
    else:
        (folder / "deep").rename(tmp_path / "elsewhere")
        (folder / "deep").write_bytes(b"")
        monkeypatch.setattr("langchain_sgl.indexing.files._walk", _refusing(folder / "deep"))
    indexer = SGLImageIndexer(folder, model=chat, manifest=manifest)
    (folder / "b.png").unlink()
    assert target.run(indexer) == (0, 2, 1)  # what is gone does go
    assert target.texts == {"10 x 5", "30 x 5"}
    assert len(indexer.errors) == 1
    assert [removed.source for removed in indexer.removed()] == [str(folder / "b.png")]
    monkeypatch.undo()
    (folder / "deep").is_dir() or (folder / "deep").unlink()
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep/c.png").write_bytes(picture(36, 5))
    assert target.run(indexer) == (1, 1, 1)
    assert target.texts == {"10 x 5", "36 x 5"}


def _refusing(folder: Path) -> Any:
    from langchain_sgl.indexing.files import _walk as walk

    def refusing(root: Path, *, follow_symlinks: bool, onerror: Callable[[OSError], None]) -> Any:
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return (
            path for path in walk(root, follow_symlinks=follow_symlinks, onerror=onerror) if path != folder
        )

    return refusing


def test_a_manifest_knows_nothing_of_a_picture_that_it_never_delivered(folder: Path, tmp_path: Path) -> None:
    """It may have been begun after the store was, so a failure leaves the store alone."""
    target = Index()
    target.run(SGLImageIndexer(folder, model=FakeChat()))
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 10 x 5"})
    with pytest.raises(IncompleteIndexError, match="1 pictures or folders failed"):
        target.run(SGLImageIndexer(folder, model=chat, manifest=tmp_path / "new.db"))
    assert target.texts == ALL


def test_what_was_left_out_on_purpose_cannot_be_cleaned_up_by(folder: Path, tmp_path: Path) -> None:
    target = Index()
    options: dict[str, Any] = {"manifest": tmp_path / "index.db", "unchanged": "skip"}
    for _ in range(2):
        with pytest.raises(ConfigError, match="look removed"):
            target.run(SGLImageIndexer(folder, model=FakeChat(), **options))
    new = SGLImageIndexer(folder, model=FakeChat(), incomplete="allow", **options)
    assert [len(list(new.lazy_load())), len(list(new.lazy_load()))] == [3, 0]
    assert len(SGLImageIndexer(folder, model=FakeChat(), **options).load()) == 0


@pytest.mark.parametrize("glob", ["**/*", "*.tiff"])
def test_a_folder_without_a_picture_removes_nothing(folder: Path, tmp_path: Path, glob: str) -> None:
    target = Index()
    target.run(SGLImageIndexer(folder, model=FakeChat()))
    if glob == "**/*":  # as a disk that is not mounted looks
        shutil.rmtree(folder)
        folder.mkdir()
    indexer = SGLImageIndexer(folder, model=FakeChat(), glob=glob)
    with pytest.raises(IncompleteIndexError, match="no picture among the folder's files: 0 were"):
        target.run(indexer)
    assert target.texts == ALL
    assert indexer.load() == []
    assert target.run(SGLImageIndexer(folder, model=FakeChat(), glob=glob, incomplete="allow")) == (0, 0, 3)


async def test_the_async_twin_is_as_careful(folder: Path, tmp_path: Path) -> None:
    target = Index()
    target.run(SGLImageIndexer(folder, model=FakeChat()))
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 10 x 5"})
    indexer = SGLImageIndexer(folder, model=chat)
    with pytest.raises(IncompleteIndexError):
        await aindex(indexer, target.records, target.store, **target.options)
    assert target.texts == ALL
    assert len(await indexer.aload()) == 2
    with pytest.raises(ConfigError, match="look removed"):
        await aindex(
            SGLImageIndexer(folder, model=chat, unchanged="skip"),
            target.records,
            target.store,
            **target.options,
        )


def test_the_recipe_in_the_docstring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run as it is written: twice, in a bad moment, and after a picture is gone; with the bundled pair."""
    shutil.copytree(PICTURES, tmp_path / "scans", ignore=shutil.ignore_patterns("*.json"))
    monkeypatch.chdir(tmp_path)
    docstring = inspect.getdoc(SGLImageIndexer) or ""
    indented = docstring.split("any more::\n\n", maxsplit=1)[1].split("\n\n", maxsplit=1)[0]
    recipe = textwrap.dedent(indented)
    assert [type(statement) for statement in ast.parse(recipe).body][-1] is ast.Expr
    target = Index()

    def run(model: ChatSGL | None = None) -> int:
        names: dict[str, Any] = {"index": index, "records": target.records, "store": target.store}
        names["SGLImageIndexer"] = lambda *given, **options: SGLImageIndexer(*given, model=model, **options)
        exec(recipe, names)
        return len(target.store.store)

    assert [run(), run()] == [4, 4]
    shutil.copy("scans/scene.png", "scans/later.png")
    (tmp_path / "scans/receipt.png").write_bytes(picture(90, 90))
    assert run(ChatSGL(timeout=1e-9)) == 4 + 1  # the answer to later.png is known, receipt.png keeps its own
    (tmp_path / "scans/later.png").unlink()
    shutil.copy(PICTURES / "receipt.png", "scans/receipt.png")
    assert run() == 4


# Metadata.


def test_flat_metadata_are_the_same_in_every_run_and_taken_by_every_store() -> None:
    brief = ChatSGL(max_tokens=6)

    def documents(**options: Any) -> list[Document]:
        return SGLImageIndexer(PICTURES, model=brief, glob="[rs]*.png", **options).load()

    first = documents()
    assert documents(batch_size=1) == first
    for document in first:
        # What Chroma takes; a None was refused by versions before 1.0.
        assert {type(value) for value in document.metadata.values()} <= {str, int, float, bool}
        assert document.metadata["sgl_route"] in {"small", "large"}
    none, full = documents(report="none"), documents(report="full")
    assert not [name for name in none[0].metadata if name.startswith("sgl")]
    assert full[0].metadata["sgl"]["stage_ms"]
    # The control: with times and scores in them, no two runs have the same.
    assert documents(report="full") != full
    assert [document.id for document in full] == [document.id for document in first]


def test_how_much_is_reported_is_chosen_when_documents_are_made(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": FakeChat(), "manifest": tmp_path / "index.db"}
    (first, *_) = SGLImageIndexer(folder, report="none", **options).load()
    assert not [name for name in first.metadata if name.startswith("sgl")]
    indexer = SGLImageIndexer(folder, report="full", **options)
    assert indexer.load()[0].metadata["sgl"] == {"route": "large", "n": 1}
    assert indexer.progress.asked == 0


def test_the_name_of_a_picture_may_begin_like_anothers(tmp_path: Path) -> None:
    """As keys of an object store do: "a" is no folder in which "a/1" lies."""
    manifest = tmp_path / "manifest"

    def sources(*pictures: tuple[str, bytes], **options: Any) -> tuple[list[str], list[str]]:
        indexer = SGLImageIndexer(pictures, model=FakeChat(), manifest=manifest, **options)
        found = [document.metadata["source"] for document in indexer.lazy_load()]
        return found, [removed.source for removed in indexer.removed()]

    good, other = picture(10, 5), picture(20, 5)
    assert sources(("a", good), ("a/1", other)) == (["a", "a/1"], [])
    assert sources(("a", b"broken"), ("a/1", other)) == (["a", "a/1"], [])
    assert sources(("a", b"broken")) == (["a"], ["a/1"])
    with pytest.raises(IncompleteIndexError, match="what they held before is not known"):
        sources(("b", b"broken"), ("b/1", other))


def test_a_manifest_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="The folder of the manifest .* cannot be made"):
        SGLImageIndexer([("a", picture(10, 5))], model=FakeChat(), manifest=tmp_path / "file" / "m")

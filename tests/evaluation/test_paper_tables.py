"""Files of benchmarks: the same rows from every kind of file, pictures read late, bad rows named."""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS
from sgl_engine.evaluation.paper.dataset import PaperData, fetch_benchmarks, find_benchmarks
from sgl_engine.evaluation.paper.tables import read_rows

Rows = list[dict[str, Any]]


def png(shade: int, size: tuple[int, int] = (40, 20)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def rows(count: int = 3) -> Rows:
    return [
        {
            "questionId": str(n),
            "question": f"What is {n}?",
            "answers": [f"a{n}", "b"],
            "image": {"bytes": png(n), "path": None},
        }
        for n in range(count)
    ]


def as_parquet(path: Path, found: Rows) -> Path:
    parquet.write_table(pa.Table.from_pylist(found), path.with_suffix(".parquet"), row_group_size=2)
    return path.with_suffix(".parquet")


def as_saved_to_disk(path: Path, found: Rows) -> Path:
    """As ``Dataset.save_to_disk`` lays it out: Arrow's stream format in two shards, and descriptions."""
    path.mkdir()
    for number, part in enumerate((found[:1], found[1:])):
        table = pa.Table.from_pylist(part)
        with (
            pa.OSFile(str(path / f"data-0000{number}-of-00002.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table)
    (path / "state.json").write_text("{}")
    (path / "dataset_info.json").write_text("{}")
    return path


def as_json(path: Path, found: Rows) -> Path:
    shown = [{**row, "image": base64.b64encode(row["image"]["bytes"]).decode()} for row in found]
    path.with_suffix(".json").write_text(json.dumps({"dataset": "d", "data": shown}))
    return path.with_suffix(".json")


def as_jsonl(path: Path, found: Rows) -> Path:
    for row in found:
        (path.parent / f"{row['questionId']}.png").write_bytes(row["image"]["bytes"])
    lines = [json.dumps({**row, "image": f"{row['questionId']}.png"}) for row in found]
    path.with_suffix(".jsonl").write_text("\n".join(lines))
    return path.with_suffix(".jsonl")


def as_tsv(path: Path, found: Rows) -> Path:
    """As VLMEvalKit writes it: pictures in base64, lists as Python writes them."""
    with path.with_suffix(".tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["index", "image", "question", "answer"], delimiter="\t")
        writer.writeheader()
        for row in found:
            image = base64.b64encode(row["image"]["bytes"]).decode()
            line = {"index": row["questionId"], "image": image, "answer": str(row["answers"])}
            writer.writerow({**line, "question": row["question"]})
    return path.with_suffix(".tsv")


WRITERS = [as_parquet, as_saved_to_disk, as_json, as_jsonl, as_tsv]


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_file_says_the_same(write: Callable[[Path, Rows], Path], tmp_path: Path) -> None:
    data = PaperData.read({"docvqa": write(tmp_path / "docvqa", rows())})
    assert [(row.id, row.metric, row.answers, row.max_new_tokens) for row, _ in data.rows] == [
        (f"docvqa/{n}", "anls", (f"a{n}", "b"), 32) for n in range(3)
    ]
    for number in (2, 0, 1):  # in any order
        sample = data[number]
        assert sample.row.question == (
            f"What is {number}?\nAnswer the question using a single word or phrase."
        )
        [source] = sample.images
        content = source.read_bytes() if isinstance(source, Path) else source
        assert content == png(number)
    assert data.bad == ()
    assert data.identity == PaperData.read({"docvqa": write(tmp_path / "again", rows())}).identity
    assert data.identity != PaperData.read({"docvqa": write(tmp_path / "fewer", rows(2))}).identity


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    lines = [
        {"question": "q?", "answers": ["a"], "image": "gone.png"},
        {"question": "q?", "image": "gone.png"},
        ["no object"],
        {"question": "q?", "answers": ["a"]},
    ]
    (tmp_path / "docvqa.jsonl").write_text("\n".join([*map(json.dumps, lines), "{cut"]))
    data = PaperData.read({"docvqa": tmp_path / "docvqa.jsonl"})
    assert sorted(each.problem for each in data.bad) == [
        "DocVQA, docvqa.jsonl row 2: it has no answers or answer",
        "DocVQA, docvqa.jsonl row 3: list, and no object",
        (
            "DocVQA, docvqa.jsonl row 5: no JSON (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1))"
        ),
    ]
    assert [data[n].problem for n in range(2)] == [  # found out when they are asked about
        "docvqa.jsonl row 1: there is no picture 'gone.png'",
        "docvqa.jsonl row 4: it has 0 pictures, and not one",
    ]


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mme.json").write_text(json.dumps([{"question": "q?", "answer": "maybe", "category": "c"}]))
    with pytest.raises(ConfigError, match=r"no row .* MME.* 1 problems: MME, .* 'maybe', neither yes nor no"):
        PaperData.read({"mme": tmp_path / "mme.json"})
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"broken.parquet cannot be read"):
        read_rows(tmp_path / "broken.parquet")
    with pytest.raises(ConfigError, match=r"has no file that ends in .parquet"):
        read_rows(tmp_path / "nowhere")


def test_a_split_has_files_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "textvqa" / "data"
    folder.mkdir(parents=True)
    for name in ("train-00000", "validation-00000", "validation_extra"):
        as_parquet(folder / name, rows(1 + len(name) % 3))
    assert {row.name for row in read_rows(tmp_path / "textvqa", "validation")} == {
        "validation-00000.parquet row 1",
        "validation-00000.parquet row 2",
    }
    assert len(read_rows(tmp_path / "textvqa", "test")) == len(read_rows(tmp_path / "textvqa"))


def test_benchmarks_are_found_by_any_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "GQA_TestDev_Balanced.tsv").touch()
    (tmp_path / "docvqa").mkdir()
    (tmp_path / "notes.txt").touch()
    assert find_benchmarks(tmp_path, list(BENCHMARKS)) == {
        "docvqa": tmp_path / "docvqa",
        "gqa": tmp_path / "GQA_TestDev_Balanced.tsv",
    }
    with pytest.raises(ConfigError, match="has none of the benchmarks mme"):
        find_benchmarks(tmp_path, ["mme"])
    with pytest.raises(ConfigError, match="is no folder"):
        find_benchmarks(tmp_path / "gone", ["mme"])


def test_a_tsv_s_picture_may_be_another_row_s(tmp_path: Path) -> None:
    image = base64.b64encode(png(7)).decode()
    lines = ["index\timage\tquestion\tanswer", f"0\t{image}\tq?\ta", "1\t0\tq?\ta", "2\t9\tq?\ta"]
    (tmp_path / "gqa.tsv").write_text("\n".join(lines))
    data = PaperData.read({"gqa": tmp_path / "gqa.tsv"})
    assert data[0].images == data[1].images == (png(7),)
    assert data[2].problem == "gqa.tsv row 3: there is no row '9', whose picture it names"


def test_gqa_s_pictures_lie_apart(tmp_path: Path) -> None:
    pictures = [{"id": "n1", "image": {"bytes": png(1), "path": "n1.jpg"}}]
    questions = [{"id": "07", "imageId": "n1", "question": "Is it?", "answer": "yes"}]
    for name, found in (("images", pictures), ("questions", questions)):
        (tmp_path / "gqa" / name).mkdir(parents=True)
        as_parquet(tmp_path / "gqa" / name / "testdev-0", found)
    data = PaperData.read({"gqa": tmp_path / "gqa"})
    assert [row.id for row, _ in data.rows] == ["gqa/07"]
    assert data[0].images == (png(1),)


def test_the_hub_is_asked_for_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def download(repository: str, **settings: Any) -> str:
        asked.append({"repository": repository, **settings})
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_benchmarks(["gqa"]) == {"gqa": tmp_path}
    [found] = asked
    assert (found["repository"], found["repo_type"]) == ("lmms-lab-encoder/GQA", "dataset")
    assert found["allow_patterns"] == [
        "testdev_balanced_instructions/testdev/*",
        "testdev_balanced_images/testdev/*",
    ]

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ConfigError, match=r"GQA cannot be fetched from lmms-lab-encoder/GQA \(OSError: no"):
        fetch_benchmarks(["gqa"])

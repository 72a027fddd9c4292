"""``sgl batch``: rows out are rows in, in order, whatever is wrong with some, and wherever it was killed."""

import base64
import io
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import Sgl
from PIL import Image

from sgl_engine import (
    EngineClosedError,
    EngineConfig,
    ExitConfig,
    GenerationConfig,
    Request,
    Response,
    RunReport,
    SGLEngine,
)
from sgl_engine.batch import output
from sgl_engine.batch.forms import Written
from sgl_engine.batch.inputs import LineRows, open_rows
from sgl_engine.batch.job import describe
from sgl_engine.batch.local import WAITING_BATCHES, answer_rows
from sgl_engine.batch.output import RunFolder
from sgl_engine.batch.plain import PlainForm
from sgl_engine.cli import options
from sgl_engine.demo import WEIGHTS
from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.columns import RawRow
from sgl_engine.testing import tiny_vlm

COLOURS = ["red", "green", "blue", "white", "black", "yellow"]


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    """Tiny models, whose answers are short."""
    config = EngineConfig(generation=GenerationConfig(max_new_tokens=3))
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config)


@pytest.fixture
def asked(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Loads of models: tiny ones, with the configuration of the command line."""
    loaded: list[Any] = []

    def load(arguments: Any, config: EngineConfig) -> Any:
        loaded.append(config)
        made = engine.with_config(config.model_copy(update={"generation": engine.config.generation}))
        made.close = lambda **_: None  # type: ignore[method-assign]  # it is shared by tests
        return made

    monkeypatch.setattr(options, "load_engine", load)
    monkeypatch.setenv("COLUMNS", "400")
    return loaded


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    return tmp_path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


BAD = {
    "gone": ('{"question": "Gone?", "image": "gone.png"}', "MissingImageError"),
    "none": ('{"question": "Where is it?"}', "MissingImageError"),
    "no JSON": ('{"question": ', "InvalidRequestError"),
    "nested": ("[" * 100_000, "InvalidRequestError"),
    "a number": ("7", "InvalidRequestError"),
    "no text": ('{"question": 7, "image": "red.png"}', "InvalidRequestError"),
    "half a surrogate": (
        '{"id": "\\ud800", "question": "\\udc00?", "image": "red.png"}',
        "InvalidRequestError",
    ),
    "half a path": ('{"question": "?", "image": "\\ud800.png"}', "MissingImageError"),
    "NUL": ('{"question": "?", "image": "a\\u0000b"}', "MissingImageError"),
    "no picture": ('{"question": "?", "image": "questions.jsonl"}', "CorruptImageError"),
    "wrong type": ('{"question": "?", "image": [1.5]}', "MissingImageError"),
    "huge": (json.dumps({"question": "why " * 300_000, "image": "red.png"}), "PromptTooLongError"),
    "refused": ('{"question": "?", "image": "http://127.0.0.1/x.png"}', "UnsafeUrlError"),
}


@pytest.fixture
def questions(folder: Path) -> Path:
    """Good rows, a bad one behind each, blank lines, and no line feed at the end."""
    good = [
        {"id": n if n % 2 else f"id {n}", "question": f"What is {n}?", "images": [f"{colour}.png"]}
        for n, colour in enumerate(COLOURS)
    ]
    bad = [line for line, _ in BAD.values()]
    rows = [json.dumps(row) for row in good for _ in (0,)]
    mixed = [line for pair in zip(rows, bad, strict=False) for line in pair] + bad[len(rows) :]
    path = folder / "questions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(mixed).encode())
    return path


def test_rows_out_are_rows_in(
    sgl: Sgl, questions: Path, engine: SGLEngine, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = questions.parent / "run"
    singles = [
        engine.run(Request.ask(f"What is {n}?", questions.parent / f"{colour}.png"))
        for n, colour in enumerate(COLOURS)
    ]
    scores = sorted(single.report.score for single in singles)
    threshold = (scores[2] + scores[3]) / 2
    monkeypatch.setattr("sgl_engine.batch.inputs.MAX_LINE_BYTES", 2_000_000)
    code, _, err = sgl("batch", questions, "--out", out, "--threshold", threshold)
    assert code == 2, err
    assert f"{len(COLOURS) + len(BAD)} rows: {len(COLOURS)} answered, {len(BAD)} failed." in err
    rows = lines_of(out / "rows.jsonl")
    assert [row["row"] for row in rows] == list(range(len(rows)))
    good = [row for row in rows if row["error"] is None]
    assert [row["id"] for row in good] == [n if n % 2 else f"id {n}" for n in range(len(COLOURS))]
    chosen = engine.with_config(engine.config.model_copy(update={"exit": ExitConfig(threshold=threshold)}))
    for n, row in enumerate(good):
        single = chosen.run(Request.ask(f"What is {n}?", questions.parent / f"{COLOURS[n]}.png"))
        assert (row["answer"], row["route"]) == (single.text, single.report.route)
        assert row["score"] == pytest.approx(single.report.score, abs=1e-5)
    assert {row["route"] for row in good} == {"small", "large"}
    reports = lines_of(out / "reports.jsonl")
    assert [report.pop("id") for report in reports] == [row["report"] for row in good]
    assert [RunReport(**report).score for report in reports] == [row["score"] for row in good]
    expected = [kind for _, kind in BAD.values()]
    assert [row["error"]["type"] for row in rows if row["error"]] == expected
    assert "\ud800" in [row["id"] for row in rows]

    before = (out / "rows.jsonl").read_bytes()
    code, _, err = sgl("batch", questions, "--out", out, "--threshold", threshold)
    assert (code, len(asked)) == (2, 1), "nothing is left, so no model is loaded"
    assert "19 were there already" in err
    assert (out / "rows.jsonl").read_bytes() == before


def test_a_changed_job_is_refused(sgl: Sgl, folder: Path, asked: list[Any]) -> None:
    path, out = folder / "q.jsonl", folder / "run"
    path.write_text('{"question": "?", "image": "red.png"}\n')
    assert sgl("batch", path, "--out", out)[0] == 0
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    for options_given, word in (
        (["--question", "Why?"], "--question"),
        (["--threshold", 0.3], "a setting of the engine"),
        (["--max-new-tokens", 3], "--max-new-tokens"),
    ):
        code, _, err = sgl("batch", path, "--out", out, *options_given)
        assert code == 2
        assert f"{word} changed" in err
    path.write_text('{"question": "!", "image": "red.png"}\n')
    assert "the input changed" in sgl("batch", path, "--out", out)[2]
    (out / "job.json").unlink()
    assert "has rows.jsonl and no job.json" in sgl("batch", path, "--out", out)[2]
    (out / "job.json").write_bytes(whole["job.json"])
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole


def test_a_changed_model_is_another(tmp_path: Path) -> None:
    from sgl_engine.planning.files import model_identity

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * 2**20))
    before = model_identity(tmp_path)
    assert model_identity(tmp_path) == before
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\1")
    assert model_identity(tmp_path) != before


def test_folders_and_tables(sgl: Sgl, folder: Path, engine: SGLEngine, asked: list[Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (folder / "notes.txt").write_text("no picture")
    out = folder.parent / "of folder"
    code, _, err = sgl("batch", folder, "--question", "What is it?", "--out", out)
    assert code == 0, err
    rows = lines_of(out / "rows.jsonl")
    assert [row["id"] for row in rows] == sorted(f"{colour}.png" for colour in COLOURS)

    told = {row["id"]: row["answer"] for row in rows}
    table = folder.parent / "rows.parquet"
    pictures = [{"bytes": png(colour), "path": None} for colour in COLOURS]
    pictures[1] = {"bytes": None, "path": str(folder / "green.png")}
    columns = {"picture": pictures, "id": range(6), "question": [None, *["What is it?"] * 5]}
    parquet.write_table(pyarrow.table(columns), table, row_group_size=4)
    out = folder.parent / "of table"
    code, _, err = sgl("batch", table, "--out", out)
    assert code == 2
    rows = lines_of(out / "rows.jsonl")
    assert [row["id"] for row in rows] == list(range(6))
    assert rows[0]["error"]["type"] == "InvalidRequestError"
    assert [row["answer"] for row in rows[1:]] == [told[f"{colour}.png"] for colour in COLOURS[1:]]
    for given in (folder / "notes.txt", folder / "gone", folder / "broken.parquet", folder / "empty.jsonl"):
        if given.suffix in {".parquet", ".jsonl"}:
            given.write_text("\n")
        assert sgl("batch", given, "--out", folder / "none")[0] == 2
        assert not (folder / "none").exists()


FORM = PlainForm("run")
JOB = {"rows": 5, "input": "same"}


def write(path: Path, rows: int) -> int:
    """Goes on with a run of which the last row is the only one to fail; returns where it went on."""
    with RunFolder(path, JOB, FORM) as run:
        begun = run.done
        for number in range(begun, rows):
            head = {"row": number, "id": None}
            if number == 4:
                run.add(FORM.failed(head, ValueError("the last")))
            else:
                line = json.dumps({**head, "answer": "é" * number, "error": None}).encode()
                run.add(Written(line, json.dumps({"id": f"run-{number}"}).encode()))
        assert (run.done, run.failed) == (rows, int(rows == 5))
    return begun


def test_a_run_killed_at_any_byte_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert write(whole, 5) == 0
    rows, reports = ((whole / name).read_bytes() for name in (output.ROWS, output.REPORTS))
    killed = tmp_path / "killed"
    killed.mkdir()
    for cut in {*range(0, len(rows), 5), *range(len(rows) - 9, len(rows) + 1)}:
        (killed / output.JOB).write_bytes((whole / output.JOB).read_bytes())
        (killed / output.ROWS).write_bytes(rows[:cut])
        # A report may have been written whole, in part, or not at all, when the row was not.
        known = rows[:cut].count(b"\n")
        ends = [at + 1 for at, byte in enumerate(reports) if byte == ord("\n")]
        at_least = ends[min(known, 4) - 1] if known else 0
        torn = min(len(reports), at_least + cut % 17)
        (killed / output.REPORTS).write_bytes(reports[:torn])
        begun = write(killed, 5)
        assert known <= begun <= known + 1, "a last line that lacks its line feed alone is whole"
        assert (killed / output.ROWS).read_bytes() == rows
        if begun == known:
            assert (killed / output.REPORTS).read_bytes() == reports


def test_lines_of_others_and_other_runs_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 3)
    kept = (tmp_path / output.ROWS).read_bytes()
    for more in (b"{}\n", b'{"row": 1, "error": null}\n', b"[]\n", b"\0\0\0\n"):
        (tmp_path / output.ROWS).write_bytes(kept + more)
        with pytest.raises(ConfigError, match="Line 4 of .*rows.jsonl is none of this run"):
            write(tmp_path, 5)
        assert (tmp_path / output.ROWS).read_bytes() == kept + more
    (tmp_path / output.ROWS).write_bytes(kept)
    with (
        RunFolder(tmp_path, JOB, FORM),
        pytest.raises(ConfigError, match="Another run is writing"),
        RunFolder(tmp_path, JOB, FORM),
    ):
        pass
    assert write(tmp_path, 5) == 3


class Scripted:
    """An engine whose answers come in another order than they are asked for."""

    def __init__(self, report: RunReport) -> None:
        self.config, self.under_way, self.most = EngineConfig(), 0, 0
        self._report, self._later = report, []
        self._lock = threading.Lock()

    def submit(self, request: Any) -> Future[Response]:
        future: Future[Response] = Future()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        text = request.messages[0].content[-1]
        self._later.append(lambda: future.set_result(Response(text, "stop", self._report)))
        if len(self._later) == 32:  # the last first
            for end in reversed(self._later):
                end()
            self._later.clear()
        return future


class ManyRows:
    """Rows that hold nothing, and count how many were read."""

    identity = "many"

    def __init__(self, count: int) -> None:
        self._count, self.read = count, 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> RawRow:
        self.read += 1
        return RawRow(f"row {index}", {"question": f"{index}?"}, lambda: (b"",))


def test_many_rows_are_told_in_order_and_few_are_held(make_report: Callable[..., RunReport]) -> None:
    rows, told = ManyRows(3200), 0
    engine: Any = Scripted(make_report())
    for told, written in enumerate(answer_rows(engine, rows, FORM), start=1):
        engine.under_way -= 1
        line = json.loads(written.line)
        assert (line["row"], line["answer"]) == (told - 1, f"{told - 1}?")
        assert rows.read - told < WAITING_BATCHES * 32
    assert told == 3200
    assert engine.most == WAITING_BATCHES * 32


def test_an_engine_that_cannot_go_on_ends_the_run(folder: Path) -> None:
    def submit(request: Any) -> Future[Response]:
        raise EngineClosedError("It was closed.", remedy="Make another.")

    engine: Any = SimpleNamespace(config=EngineConfig(), submit=submit)
    with pytest.raises(EngineClosedError):
        list(answer_rows(engine, ManyRows(2), FORM))


def test_unforeseen_errors_are_rows(caplog: pytest.LogCaptureFixture) -> None:
    def submit(request: Any) -> Iterator[Any]:
        raise KeyError("surprise")

    engine: Any = SimpleNamespace(config=EngineConfig(), submit=submit)
    [written] = answer_rows(engine, ManyRows(1), FORM)
    assert json.loads(written.line)["error"]["type"] == "KeyError"
    assert "row 0 failed." in caplog.text


def test_lines_are_found_wherever_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_engine.batch.inputs._BLOCK_BYTES", 3)
    monkeypatch.setattr("sgl_engine.batch.inputs.MAX_LINE_BYTES", 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n   \n{"a":"\xc3\xa9\xe2\x80\xa8"}\r\n\t\n{"a":2}\n{"a":"' + b"x" * 30 + b'"}\n{"a":')
    rows = LineRows(path)
    read = [rows[index] for index in range(len(rows))]
    assert [row.values.get("a") for row in read] == ["é\u2028", 2, None, None]
    assert [row.name for row in read] == [f"rows.jsonl line {n}" for n in (3, 5, 6, 7)]
    assert [row.problem is None for row in read] == [True, True, False, False]
    path.write_bytes("x".encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-16"):
        open_rows(path)


def test_data_urls_and_base64_are_pictures(folder: Path, engine: SGLEngine) -> None:
    coded = base64.b64encode(png("red")).decode()
    path = folder / "q.jsonl"
    sources = ["red.png", f"data:image/png;base64,{coded}", coded]
    path.write_text("".join(json.dumps({"question": "?", "image": each}) + "\n" for each in sources))
    answers = [json.loads(written.line)["answer"] for written in answer_rows(engine, open_rows(path), FORM)]
    assert answers[0] is not None
    assert len(set(answers)) == 1


@pytest.mark.parametrize("name", ["gone.json", "empty"])
def test_a_calibration_that_cannot_be_read_is_bad_input(
    sgl: Sgl, folder: Path, asked: list[Any], name: str
) -> None:
    (folder / "empty").mkdir()
    path = folder / "q.jsonl"
    path.write_text('{"question": "?", "image": "red.png"}\n')
    line = ("batch", path, "--out", folder / "run", "--calibration", folder / name, "--risk", 0.05)
    code, _, err = sgl(*line)
    assert (code, asked, (folder / "run").exists()) == (2, [], False)
    assert f"{folder / name} cannot be read as a calibration" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("given", [None, True, 1.5, 7, "a", [1, ["b"]], {"page": 1, "of": [2.0]}])
def test_ids_come_back_as_they_are(folder: Path, engine: SGLEngine, given: Any) -> None:
    path = folder / "q.jsonl"
    path.write_text(json.dumps({"id": given, "question": "?", "image": "red.png"}))
    [written] = answer_rows(engine, open_rows(path), FORM)
    found = json.loads(written.line)
    assert (found["id"], type(found["id"]), found["error"]) == (given, type(given), None)


def test_ids_that_json_does_not_have_are_texts() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    for given in (date(2026, 1, 2), b"x", {1: 2}, [date(2026, 1, 2)], deep):
        assert FORM.head(0, RawRow("row", {"id": given}, tuple))["id"] == str(given)


def test_what_is_no_number_is_null(make_report: Callable[..., RunReport]) -> None:
    response = Response("?", "stop", make_report(score=math.nan, confidence=math.inf))
    written = FORM.answered({"row": 0, "id": [math.nan, -math.inf, 1.5]}, response)
    assert written.report is not None
    line, report = (json.loads(each, parse_constant=pytest.fail) for each in (written.line, written.report))
    assert (line["score"], report["score"], report["confidence"]) == (None, None, None)
    assert line["id"] == [None, None, 1.5]


def test_a_calibration_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "calibration.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text('{"question": "?"}')
    rows = open_rows(tmp_path / "rows.jsonl")
    jobs = [
        describe(
            rows,
            form="plain",
            small=WEIGHTS / "small",
            large=WEIGHTS / "large",
            config=EngineConfig(exit=ExitConfig(calibration=Path(folder) / "calibration.json")),
        )
        for folder in ("~", tmp_path)
    ]
    assert jobs[0]["calibration"] == jobs[1]["calibration"]

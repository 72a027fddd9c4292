"""``sgl decide``: rows that agree with the engine, and runs that go on where another was cut short."""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import Sgl
from PIL import Image

from sgl_engine import ConfigError, ImagePart, SGLEngine
from sgl_engine.cli import options
from sgl_engine.cli.decide import command
from sgl_engine.cli.decide.questions import read_questions
from sgl_engine.decisions import (
    BoxQuestion,
    ChoiceQuestion,
    DecisionCalibration,
    DecisionConfig,
    ScoreQuestion,
    TypeCalibration,
    YesNoQuestion,
    decide,
    how_put,
)
from sgl_engine.exit import OperatingPoint, bind
from sgl_engine.testing import tiny_vlm

QUESTIONS = {
    "legible": {"type": "yes_no", "instructions": "Is it legible?"},
    "kind": {"type": "choice", "instructions": "What is it?", "choices": ["receipt", "chart"]},
    "quality": {"type": "score", "instructions": "How good?", "levels": ["poor", "fair", "good"]},
    "total": {"type": "box", "instructions": "the total"},
}


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


@pytest.fixture
def loads(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How often models were loaded: tiny ones, of the configuration that the command line says."""
    loaded: list[Any] = []

    def load(arguments: Any, config: Any) -> SGLEngine:
        loaded.append(config)
        return engine.with_config(config)

    monkeypatch.setattr(options, "load_engine", load)
    return loaded


@pytest.fixture
def sgl(sgl: Sgl, loads: list[Any], monkeypatch: pytest.MonkeyPatch) -> Sgl:
    """The same with the tiny models, on a terminal that is wide enough for any path."""
    monkeypatch.setenv("COLUMNS", "400")
    return sgl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in two folders, one of them broken, and a file that is none."""
    (tmp_path / "scans" / "old").mkdir(parents=True)
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "scans" / "b.png")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "scans" / "old" / "a.jpg")
    Image.new("RGB", (48, 64), "blue").save(tmp_path / "scans" / "photograph", "PNG")
    (tmp_path / "scans" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "scans" / "notes.txt").write_text("no picture either")
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    return tmp_path


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_rows_are_the_engines_answers(sgl: Sgl, folder: Path, engine: SGLEngine) -> None:
    picture = folder / "scans" / "b.png"
    code, out, err = sgl(
        "decide", picture, "--questions", folder / "questions.json", "--json", "--form", "instructed"
    )
    assert code == 0, err
    [row] = rows_of(out)
    questions, _ = read_questions(folder / "questions.json")
    expected = decide(engine, ImagePart(Image.open(picture)), questions, DecisionConfig())
    assert (row["picture"], row["error"]) == (str(picture), None)
    answers = row["answers"]
    assert list(answers) == list(QUESTIONS)
    yes_no, choice, score, box = expected.answers.values()
    assert answers["legible"]["probability"] == pytest.approx(yes_no.probability, abs=1e-5)
    assert answers["kind"]["choice"] == choice.choice
    assert answers["kind"]["probabilities"] == pytest.approx(dict(choice.probabilities), abs=1e-5)
    assert answers["quality"]["score"] == pytest.approx(score.score, abs=1e-4)
    assert answers["quality"]["probabilities"] == pytest.approx(list(score.probabilities), abs=1e-5)
    assert list(answers["total"]["box"]) == ["left", "top", "right", "bottom"]
    assert list(answers["total"]["box"].values()) == pytest.approx(list(box.box), abs=1e-5)
    assert {name: each["route"] for name, each in row["reports"].items()} == {
        name: report.route for name, report in expected.reports.items()
    }


def test_a_folder_is_looked_through_and_bad_pictures_are_named(sgl: Sgl, folder: Path) -> None:
    scans, gone = folder / "scans", folder / "gone.png"
    out_file = folder / "rows" / "rows.jsonl"
    code, out, err = sgl(
        "decide", scans, gone, scans / "b.png", "--questions", folder / "questions.json", "--out", out_file
    )
    assert code == command.SOME_FAILED == 2
    rows = rows_of(out_file.read_text())
    assert [Path(row["picture"]).name for row in rows] == [
        "b.png",
        "broken.png",
        "a.jpg",
        "photograph",
        "gone.png",
    ]
    errors = {Path(row["picture"]).name: row["error"] for row in rows if row["error"]}
    assert {name: error["type"] for name, error in errors.items()} == {
        "broken.png": "CorruptImageError",
        "gone.png": "MissingImageError",
    }
    assert all(bool(row["answers"]) == (row["error"] is None) for row in rows)
    for told in (
        "5 pictures: 3 decided, 2 that cannot be used.",
        f"{gone} cannot be used (MissingImageError)",
    ):
        assert told in err
    for told in ("legible", "quality", "CorruptImageError", "of 0 to 2"):
        assert told in out
    assert "notes.txt" not in out + err


def test_a_run_goes_on_where_another_was_cut_short(sgl: Sgl, folder: Path, loads: list[Any]) -> None:
    out_file, command_line = (
        folder / "rows.jsonl",
        ("decide", folder / "scans", "--questions", folder / "questions.json"),
    )
    assert sgl(*command_line, "--out", out_file)[0] == 2
    whole = out_file.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4
    assert len(loads) == 1

    # Nothing is left to be asked, so nothing is loaded; the table has all rows all the same.
    code, out, err = sgl(*command_line, "--out", out_file)
    assert (code, out_file.read_bytes(), len(loads)) == (2, whole, 1)
    assert "4 were known" in err
    assert "photograph" in out

    # Killed in the middle of the third line.
    out_file.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    code, _, err = sgl(*command_line, "--out", out_file)
    assert "2 were known" in err
    assert len(loads) == 2
    again = rows_of(out_file.read_text())
    assert [row["picture"] for row in again] == [row["picture"] for row in rows_of(whole.decode())]
    for before, after in zip(rows_of(whole.decode()), again, strict=True):
        assert list(before["answers"]) == list(after["answers"])
        assert before["error"] == after["error"]

    # A line that somebody has spoilt is left, and its picture asked again.
    out_file.write_bytes(b"".join([lines[0], b"spoilt\n", *lines[2:]]))
    _, _, err = sgl(*command_line, "--out", out_file)
    assert "Line 2" in err
    assert "3 were known" in err
    assert out_file.read_bytes().count(b"\n") == 5


def test_other_questions_settings_and_pictures_are_asked(sgl: Sgl, folder: Path, loads: list[Any]) -> None:
    out_file, picture = folder / "rows.jsonl", folder / "scans" / "b.png"
    questions = folder / "questions.json"
    line = ("decide", picture, "--questions", questions, "--out", out_file)
    sgl(*line)
    for more in (("--permutations", "2"), ("--escalate", "never"), ("--labels", "mean")):
        sgl(*line, *more)
        sgl(*line, *more)  # known by now
    assert len(loads) == 4
    questions.write_text(json.dumps({**QUESTIONS, "more": QUESTIONS["legible"]}))
    sgl(*line)
    Image.new("RGB", (64, 64), "green").save(picture)
    sgl(*line)
    assert len(loads) == 6
    rows = rows_of(out_file.read_text())
    assert len(rows) == 6
    assert len({(row["sha256"], row["asked"]) for row in rows}) == 6


def test_a_model_that_was_trained_again_is_asked_again(sgl: Sgl, folder: Path, loads: list[Any]) -> None:
    """Under the name that it had; one that was moved, or is only looked at, is known."""
    model, weights = folder / "model", folder / "model" / "model.safetensors"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights.write_bytes(bytes(2_000_000))
    line = ("decide", folder / "scans" / "b.png", "--questions", folder / "questions.json")
    line = (*line, "--out", folder / "rows.jsonl", "--small", model, "--large", model)
    for times in (1, 1):
        sgl(*line)
        assert len(loads) == times
    weights.write_bytes(b"\1" * 2_000_000)  # of the same size
    sgl(*line)
    assert len(loads) == 2
    (model / "config.json").write_text("{ }")
    sgl(*line)
    assert len(loads) == 3


def test_a_calibration_is_one_of_decisions(
    sgl: Sgl, folder: Path, engine: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type goes by its certified threshold; one without goes to the large model."""
    point = OperatingPoint(
        target_risk=0.05, threshold=0.0, records=100, exits=100, harmful_exits=0, p_value=0.0
    )
    of_type = TypeCalibration(small=1.0, large=1.0, points=(point,), records=100)
    bound = bind(engine.small, engine.large, engine.config)
    made = DecisionCalibration(
        small=bound.small,
        large=bound.large,
        put=how_put(DecisionConfig()),
        confidence_level=0.9,
        types={"yes_no": of_type},
    ).identified()
    made.save(folder / "decisions.json")
    line = ("decide", folder / "scans" / "b.png", "--questions", folder / "questions.json", "--json")
    monkeypatch.setenv("HOME", str(folder))
    line = (*line, "--form", "instructed", "--calibration=~/decisions.json")  # no shell has expanded it
    code, out, err = sgl(*line, "--risk", "0.05")
    assert code == 0, err
    reports = rows_of(out)[0]["reports"]
    assert (reports["legible"]["route"], reports["legible"]["certified_risk"]) == ("small", 0.05)
    assert reports["legible"]["calibration"] == made.id
    assert (reports["kind"]["route"], reports["kind"]["policy"]) == ("large", "uncovered")
    code, _, err = sgl(*line, "--share", "0.3")
    assert code == 2
    assert "--share 0.3 is of a calibration of answers" in err


@pytest.mark.parametrize("name", ["gone.json", "scans"])
def test_a_calibration_that_cannot_be_read_is_bad_input(
    sgl: Sgl, folder: Path, loads: list[Any], name: str
) -> None:
    line = ("decide", folder / "scans" / "b.png", "--questions", folder / "questions.json")
    code, out, err = sgl(*line, "--calibration", folder / name, "--risk", "0.05")
    assert (code, out, loads) == (2, "", [])
    assert f"{folder / name} cannot be read as {DecisionCalibration.kind_of_file}" in err
    assert err.count("\n") == 1


def test_what_was_not_there_is_tried_again(sgl: Sgl, folder: Path) -> None:
    out_file, late = folder / "rows.jsonl", folder / "late.png"
    line = ("decide", late, "--questions", folder / "questions.json", "--out", out_file)
    assert sgl(*line)[0] == 2
    assert sgl(*line)[0] == 2
    assert len(rows_of(out_file.read_text())) == 1  # nothing new was said
    Image.new("RGB", (64, 64), "green").save(late)
    assert sgl(*line)[0] == 0
    assert [row["error"] is None for row in rows_of(out_file.read_text())] == [False, True]


def test_rows_are_written_before_the_next_picture_is_looked_at(
    sgl: Sgl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_file, seen = folder / "rows.jsonl", []
    original = command._Job._decide

    def stop(job: Any, *given: Any) -> Any:
        seen.append(out_file.read_text() if out_file.exists() else "")
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(job, *given)

    monkeypatch.setattr(command._Job, "_decide", stop)
    assert (
        sgl("decide", folder / "scans", "--questions", folder / "questions.json", "--out", out_file)[0] == 130
    )
    assert len(rows_of(seen[1])) == 1
    assert [row["error"] is None for row in rows_of(out_file.read_text())] == [True, False]


def test_a_question_that_cannot_be_put_is_refused_alone(sgl: Sgl, folder: Path) -> None:
    path = folder / "questions.json"
    path.write_text(json.dumps({**QUESTIONS, "long": {"type": "yes_no", "instructions": "long " * 3000}}))
    code, out, _ = sgl("decide", folder / "scans" / "b.png", "--questions", path, "--json")
    [row] = rows_of(out)
    assert (code, row["error"]) == (0, None)
    assert row["answers"]["long"]["type"] == "refusal"
    assert "long" not in row["reports"]
    path.write_text(json.dumps({"long": {"type": "yes_no", "instructions": "long " * 3000}}))
    code, out, _ = sgl("decide", folder / "scans" / "b.png", "--questions", path, "--json")
    assert (code, rows_of(out)[0]["error"]["type"]) == (2, "PromptTooLongError")


def test_standard_input_and_data_urls(sgl: Sgl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (folder / "scans" / "b.png").read_bytes()

    class Stdin:
        buffer = io.BytesIO(data)

    monkeypatch.setattr("sys.stdin", Stdin)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    code, out, err = sgl("decide", "-", url, "--questions", folder / "questions.json", "--json")
    assert code == 0, err
    first, second = rows_of(out)
    assert first["picture"] == "-"
    assert len(second["picture"]) < 200  # data is not repeated
    assert first["sha256"] == second["sha256"]
    assert first["answers"]["quality"]["score"] == pytest.approx(
        second["answers"]["quality"]["score"], abs=1e-4
    )
    refused = sgl("decide", "http://127.0.0.1/x.png", "--questions", folder / "questions.json", "--json")
    assert (refused[0], rows_of(refused[1])[0]["error"]["type"]) == (2, "UnsafeUrlError")


def test_an_empty_folder_is_named(sgl: Sgl, folder: Path) -> None:
    (folder / "empty").mkdir()
    code, out, _ = sgl("decide", folder / "empty", "--questions", folder / "questions.json", "--json")
    assert code == 2
    assert "holds no picture" in rows_of(out)[0]["error"]["message"]


def test_no_picture_steers_the_terminal(sgl: Sgl, folder: Path) -> None:
    evil = folder / "\x1b[2Jevil.png"
    Image.new("RGB", (64, 64), "green").save(evil)
    questions = folder / "questions.json"
    questions.write_text(json.dumps({"\x1b[31mred": QUESTIONS["legible"]}))
    _, out, err = sgl("decide", evil, folder / "gone\x1b[2J.png", "--questions", questions)
    assert "\x1b[2J" not in out + err
    assert "\x1b[31m" not in out


def read(tmp_path: Path, data: Any) -> Any:
    path = tmp_path / "q.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_questions(path)[0]


def test_questions_come_as_langchain_and_openai_write_them(tmp_path: Path) -> None:
    by_name = read(
        tmp_path,
        {
            "a": {"type": "noul", "instructions": "Is it?", "criteria": {"true": "It is.", "false": None}},
            "b": {"type": "choice", "instructions": "Which?", "criteria": {"x": "An x.", "y": None}},
            "c": {"type": "score", "instructions": "How?", "criteria": ["low", {"is": "high"}]},
            "d": {"type": "box", "instructions": "it"},
        },
    )
    assert by_name == {
        "a": YesNoQuestion("Is it?", yes="It is."),
        "b": ChoiceQuestion("Which?", ["x", "y"], ["An x.", None]),
        "c": ScoreQuestion("How?", ["low", ('{"is": "high"}',)]),
        "d": BoxQuestion("it"),
    }
    listed = read(
        tmp_path,
        [
            {"type": "predicate", "name": "a", "instructions": "Is it?"},
            {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": True, "description": "It is."}, "no"],
            },
            {
                "type": "score",
                "instructions": "How?",
                "levels": [{"label": "low", "description": "Little."}, "high"],
            },
        ],
    )
    assert listed == {
        "a": YesNoQuestion("Is it?"),
        "2": ChoiceQuestion("Which?", ["true", "no"], ["It is.", None]),
        "3": ScoreQuestion("How?", ["low: Little.", "high"]),
    }


YES_NO = {"type": "yes_no", "instructions": "Is it?"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{", "no JSON"),
        ("7", "valid"),
        (f'{{"a": {json.dumps(YES_NO)}, "a": {json.dumps(YES_NO)}}}', "'a' twice"),
        ({}, "no questions"),
        ([], "no questions"),
        ({"a": {"type": "riddle", "instructions": "?"}}, "a.type"),
        ({"a": {"type": "yes_no"}}, "a.instructions"),
        ({"a": {**YES_NO, "labels": []}}, "a.labels"),
        ({"a": {**YES_NO, "levels": ["x", "y"]}}, "has levels"),
        ({"a": {**YES_NO, "criteria": {"maybe": "x"}}}, "criteria"),
        ({"a": {"type": "choice", "instructions": "?"}}, "neither choices"),
        (
            {"a": {"type": "choice", "instructions": "?", "choices": ["x"], "criteria": {"x": None}}},
            "choices and criteria",
        ),
        ({"a": {"type": "choice", "instructions": "?", "choices": ["x", "x"]}}, "not all different"),
        ({"a": {"type": "score", "instructions": "?", "levels": ["x"]}}, "1 for levels"),
        ({"a": {"type": "box", "instructions": "?", "criteria": ["x"]}}, "has criteria"),
        ([{**YES_NO, "name": "a"}, {**YES_NO, "name": "a"}], "one name"),
    ],
)
def test_files_that_hold_no_questions(sgl: Sgl, tmp_path: Path, data: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, data)
    code, _, err = sgl("decide", "x.png", "--questions", tmp_path / "q.json")
    assert code == 2
    assert err.count("\n") == 1


def test_files_that_cannot_be_used(sgl: Sgl, folder: Path) -> None:
    picture = folder / "scans" / "b.png"
    assert sgl("decide", picture, "--questions", folder / "nowhere.json")[0] == 2
    code, _, err = sgl("decide", picture, "--questions", folder / "questions.json", "--out", folder / "scans")
    assert code == 2
    assert "--out" in err
    assert sgl("decide", picture)[0] == 2
    assert sgl("decide", picture, "--questions", folder / "questions.json", "--permutations", "25")[0] == 2


def test_an_engine_that_fails_is_no_bad_picture(
    sgl: Sgl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SGLEngine, "score_batch", fail)
    code, _, err = sgl("decide", folder / "scans" / "b.png", "--questions", folder / "questions.json")
    assert code == 1
    assert "out of memory" in err


def test_a_pipe_in_a_folder_is_passed_over(sgl: Sgl, folder: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(folder / "scans" / "pipe")
    code, out, _ = sgl("decide", folder / "scans", "--questions", folder / "questions.json", "--json")
    assert code == 2  # for broken.png
    assert len(rows_of(out)) == 4


def test_a_name_that_is_no_text_is_escaped_and_found_again(sgl: Sgl, folder: Path, loads: list[Any]) -> None:
    try:
        (folder / "scans" / "b.png").rename(folder / "scans" / "\udcff.png")  # the byte 0xff
    except OSError:
        pytest.skip("this file system holds texts only")
    (folder / "scans" / "broken.png").rename(folder / "scans" / "\udcfe.png")
    out = folder / "rows.jsonl"
    command_line = ("decide", folder / "scans", "--questions", folder / "questions.json", "--out", out)
    assert sgl(*command_line)[0] == 2
    names = {Path(row["picture"]).name for row in rows_of(out.read_text())}
    assert names == {"\\udcff.png", "\\udcfe.png", "photograph", "a.jpg"}
    before, loaded = out.read_bytes(), len(loads)
    assert sgl(*command_line)[0] == 2
    assert (out.read_bytes(), len(loads)) == (before, loaded)


@pytest.mark.parametrize("content", [b'{\n "star": {"type": "yes_no"}\n}', b"\x89PNG\r\n\x1a\nabc", b"notes"])
def test_a_file_of_something_else_is_no_place_for_rows(sgl: Sgl, folder: Path, content: bytes) -> None:
    """The end of such a file is no row that was cut off."""
    other = folder / "other"
    other.write_bytes(content)
    picture, questions = folder / "scans" / "b.png", folder / "questions.json"
    code, _, err = sgl("decide", picture, "--questions", questions, "--out", other)
    assert code == 2
    assert "holds something else than rows" in err
    assert other.read_bytes() == content


def test_rows_can_go_to_what_is_no_file(sgl: Sgl, folder: Path) -> None:
    picture, questions = folder / "scans" / "b.png", folder / "questions.json"
    assert sgl("decide", picture, "--questions", questions, "--out", os.devnull)[0] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_told(sgl: Sgl, folder: Path) -> None:
    picture, questions = folder / "scans" / "b.png", folder / "questions.json"
    code, _, err = sgl("decide", picture, "--questions", questions, "--out", "/dev/full")
    assert code == 2
    assert "/dev/full cannot be used" in err


def test_questions_that_are_no_text_are_refused(folder: Path) -> None:
    path = folder / "questions.json"
    path.write_text(json.dumps({"\ud800": {"type": "yes_no", "instructions": "Is it?"}}))
    with pytest.raises(ConfigError, match="no JSON"):
        read_questions(path)

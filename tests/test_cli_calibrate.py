"""``sgl calibrate``: from questions to a file that an engine and a chat model take, and the check of it."""

import json
import re
from pathlib import Path

import pytest
from command_line import Sgl
from PIL import Image

from langchain_sgl import ChatSGL
from sgl_engine.cli import main
from sgl_engine.demo.pages import heldout_pages
from sgl_engine.errors import ConfigError
from sgl_engine.exit.calibration_file import load_calibration

PROMISE = ("--target", "0.1", "0.3", "0.001")


def draw_rows(folder: Path, count: int, start: int = 0) -> list[str]:
    """Lines of a file of questions with short answers, and their pictures."""
    rows: list[str] = []
    for page, question in heldout_pages(count, start=start):
        name, kind = f"{page.seed}.png", question.kind
        Image.fromarray(page.pixels).save(folder / name)
        row = {"image": name, "question": question.text, "answers": [question.answer], "kind": kind}
        rows.append(json.dumps(row))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of the bundled pair on few questions, and its data, records and page."""
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "data.jsonl").write_text("\n".join([*draw_rows(folder, 28), "nonsense"]))
    (folder / "new.jsonl").write_text("\n".join(draw_rows(folder, 16, start=500)))
    arguments = ["calibrate", "--data", folder / "data.jsonl", "--out", folder / "calibration.json"]
    arguments += ["--report", folder / "report", *PROMISE]
    assert main([str(argument) for argument in arguments]) == 0
    return folder


def test_a_calibration_is_written_with_its_page(folder: Path) -> None:
    calibration = load_calibration(folder / "calibration.json")
    assert [point.target_risk for point in calibration.points] == [0.001, 0.1, 0.3]
    assert calibration.points[0].threshold is None  # an answer, not an error
    assert calibration.points[2].threshold is not None
    assert (calibration.samples.failed, calibration.conditions.max_images) == (1, 1)
    assert len((folder / "calibration.records.jsonl").read_text().splitlines()) == 29
    assert (folder / "report" / "report.md").exists()


def test_no_question_is_asked_twice(sgl: Sgl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_engine.engine.SGLEngine.run", None)
    known, out = folder / "calibration.records.jsonl", folder / "logistic.json"
    arguments = ("calibrate", "--data", folder / "data.jsonl", "--records", known, "--out", out)
    code, printed, said = sgl(*arguments, "--method", "logistic", "--risk", "regression", *PROMISE)
    assert code == 0
    assert "No threshold can be certified for 0.1% risk" in printed
    assert "wrong, and the large model's would have been right" in printed
    assert "Line 29 of" in said
    calibration = load_calibration(out)
    assert (calibration.calibrator.method, calibration.risk) == ("logistic", "regression")


def test_asking_goes_by_the_calibration(sgl: Sgl, folder: Path) -> None:
    ask = ("ask", folder / "0.png", "what is shown?", "--calibration", folder / "calibration.json")
    code, printed, _ = sgl(*ask, "--risk", 0.3, "--json")
    report = json.loads(printed)["report"]
    calibration = load_calibration(folder / "calibration.json")
    assert code == 0
    assert report["calibration"] == calibration.id
    assert report["threshold"] == calibration.point(0.3).threshold
    assert report["calibrated_probability"] == report["score"]
    code, printed, _ = sgl(*ask, "--risk", 0.3)
    assert f"of calibration {calibration.id}" in " ".join(printed.split())


def test_an_uncovered_request_says_why(sgl: Sgl, folder: Path) -> None:
    ask = ("ask", folder / "0.png", "what is shown?", "--calibration", folder / "calibration.json")
    code, printed, _ = sgl(*ask, "--risk", 0.3, "--max-new-tokens", 3)
    assert code == 0
    reason = "the calibration does not cover the request (max_new_tokens is 3, calibrated with 256)"
    assert reason in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--risk", 0.2), "certified are"),
        (("--risk", 0.001), "No threshold can be certified for 0.1% risk"),
        (("--retention", "64%"), "pruning.keep_ratio is 0.4, not 0.2"),
        (("--threshold", 0.5), "not allowed with argument"),
    ],
)
def test_what_a_calibration_is_refused_for(
    sgl: Sgl, folder: Path, arguments: tuple[object, ...], message: str
) -> None:
    calibration = ("--calibration", folder / "calibration.json")
    code, printed, said = sgl("ask", folder / "0.png", "what?", *calibration, *arguments)
    assert (code, printed) == (2, "")
    assert message in said


def test_a_risk_without_a_calibration(sgl: Sgl, folder: Path) -> None:
    code, _, said = sgl("ask", folder / "0.png", "what?", "--risk", 0.1)
    assert code == 2
    assert "--risk is given without --calibration" in said


def test_the_check_says_whether_it_holds(sgl: Sgl, folder: Path) -> None:
    check = ("calibrate", "--check", folder / "calibration.json", "--data", folder / "new.jsonl")
    before = (folder / "calibration.records.jsonl").read_text()
    code, printed, _ = sgl(*check)
    assert code == 0
    assert re.search("Nothing speaks against the calibration|The calibration holds", printed)
    assert re.search(r"of \d+\)", printed)
    assert (folder / "calibration.records.jsonl").read_text() == before
    records = (folder / "calibration.check.jsonl").read_text().replace('"agreed":true', '"agreed":false')
    (folder / "bad.jsonl").write_text(records)
    code, printed, _ = sgl(*check, "--records", folder / "bad.jsonl")
    assert code == 3
    assert "does not hold" in printed


def test_the_check_refuses_another_system_prompt(sgl: Sgl, folder: Path) -> None:
    check = ("calibrate", "--check", folder / "calibration.json", "--data", folder / "data.jsonl")
    code, _, said = sgl(*check, "--system", "be brief")
    assert code == 2
    assert "the system prompt is another one" in said


def test_bad_promises_fail_before_anything_is_loaded(
    sgl: Sgl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_engine.cli.options.load_engine", None)
    for arguments in (("--target", 5), ("--confidence", 1), ("--check", folder / "none.json")):
        code, _, said = sgl("calibrate", "--data", folder / "data.jsonl", *arguments)
        assert code == 2
        assert said.startswith("sgl: ")
    assert sgl("calibrate", "--data", folder / "none.jsonl")[0] == 2
    assert sgl("calibrate")[0] == 2


def test_a_missing_library_is_named(sgl: Sgl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.isotonic", None)
    code, _, said = sgl("calibrate", "--data", folder / "data.jsonl", "--out", folder / "calibration.json")
    assert code == 2
    assert "pip install '.[evaluation]'" in said


QUESTION = [{"type": "text", "text": "what is shown?"}]


@pytest.fixture
def message(folder: Path) -> list[tuple[str, list[dict[str, object]]]]:
    import base64

    data = base64.b64encode((folder / "0.png").read_bytes()).decode()
    image = {"type": "image", "base64": data, "mime_type": "image/png"}
    return [("user", [image, *QUESTION])]


def test_chat_models_take_a_calibration(folder: Path, message: object) -> None:
    chat = ChatSGL(calibration=folder / "calibration.json", risk=0.3)
    calibration = load_calibration(folder / "calibration.json")

    def report(**options: object) -> dict[str, object]:
        return chat.invoke(message, **options).response_metadata["sgl"]  # type: ignore[arg-type,no-any-return]

    plain = report()
    assert (plain["calibration"], plain["uncovered"]) == (calibration.id, None)
    assert plain["threshold"] == calibration.point(0.3).threshold
    own = report(exit_threshold=0.0)
    assert (own["calibration"], own["threshold"], own["route"]) == (None, 0.0, "small")
    other = report(retention="100%")  # nothing was certified for it
    assert (other["calibration"], other["route"], other["forced"]) == (None, "large", True)
    assert report(retention="35%")["calibration"] == calibration.id
    assert report(retention="100%", escalate="never")["route"] == "small"
    assert chat._identifying_params["calibration"] == str(folder / "calibration.json")


def test_chat_models_refuse_what_does_not_fit(
    folder: Path, message: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="Both exit_threshold=0.5 and a calibration are given"):
        ChatSGL(calibration=folder / "calibration.json", exit_threshold=0.5)
    with pytest.raises(ConfigError, match="keep_ratio is 0.05, not 0.2"):
        ChatSGL(calibration=folder / "calibration.json", retention="9%").invoke(message)  # type: ignore[arg-type]
    monkeypatch.setenv("SGL_EXIT_THRESHOLD", "0.5")
    monkeypatch.setenv("SGL_CALIBRATION", str(folder / "calibration.json"))
    metadata = ChatSGL(risk=0.3).invoke(message).response_metadata["sgl"]  # type: ignore[arg-type]
    assert metadata["calibration"] is not None

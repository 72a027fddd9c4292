"""``sgl bench``: from a file of questions to a folder of results."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sgl_engine.cli import bench as command
from sgl_engine.cli import main
from sgl_engine.evaluation import report, runner, systems
from sgl_engine.evaluation.runner import Runner
from sgl_engine.testing import tiny_vlm

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two saved models."""
    folder = tmp_path_factory.mktemp("pair")
    for size in ("small", "large"):
        vlm = tiny_vlm(size=size)
        vlm.model.save_pretrained(folder / size)
        vlm.processor.save_pretrained(folder / size)
    return folder / "small", folder / "large"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Three rows, one of them without its picture, and a line that is no row."""
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "a.png")
    lines = [
        {"image": image, "question": f"what is {n}?", "answers": ["red"], "metric": "anls"}
        for n, image in enumerate(("a.png", "gone.png", "a.png"))
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "nonsense"]))
    return path


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pair: tuple[Path, Path],
    questions: Path,
    tmp_path: Path,
) -> Bench:
    """Runs the command on the tiny pair -> exit code, stdout, stderr."""
    monkeypatch.setattr(systems, "STUDIES", {})
    monkeypatch.setattr(runner, "STUDIES", {})
    fixed = ["--data", questions, "--small", pair[0], "--large", pair[1], "--out", tmp_path / "out"]
    fixed += ["--max-new-tokens", 3, "--bootstrap", 100]

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(["bench", *map(str, fixed), *map(str, arguments)])
        except SystemExit as usage:
            code = int(usage.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_from_questions_to_results(bench: Bench, tmp_path: Path) -> None:
    code, out, err = bench("--retention", "35%,0:0.5", "--rankers", "small-guided,random")
    assert code == 0
    assert "sgl: line 4 is left out: no JSON" in err
    assert "line 2: MissingImageError: " in err
    assert "Systems on the same 2 questions" in out
    assert "Rows that failed, and are in no table: 1." in out
    assert all(len(line) <= 120 for line in out.splitlines() if not line.startswith("wrote"))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["retention"]) == ["0:0.5", "35%"]
    assert results["retention"]["0:0.5"] == 0.5
    assert sorted(results["rankers"]) == ["random", "small-guided"]
    assert results["run"]["settings"]["generation"]["max_new_tokens"] == 3
    for path in (tmp_path / "out").iterdir():
        assert path.name in {"run.json", "records.jsonl"} or f"wrote {path}\n" in out


def test_the_same_command_goes_on_and_another_is_refused(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "charts", lambda _summary: {})  # drawing takes most of the time
    assert bench("--rankers", "none", "--questions", 1)[0] == 0
    first = (tmp_path / "out/records.jsonl").read_text()
    asked: list[list[int]] = []
    pending = Runner.pending
    monkeypatch.setattr(Runner, "pending", lambda self: asked.append(pending(self)) or pending(self))
    code, out, _ = bench("--rankers", "none")
    assert code == 0
    assert asked[0] == [1, 2]
    assert (tmp_path / "out/records.jsonl").read_text().startswith(first)
    assert "Systems on the same 2 questions" in out
    code, out, err = bench("--rankers", "random")
    assert (code, out) == (2, "")
    assert "holds a run that differs: rankers was [] and is ['random']." in err
    assert err.count("\n") == 1
    assert bench("--rankers", "none", "--overwrite", "--seed", 4, "--questions", 1)[0] == 0
    assert len((tmp_path / "out/records.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_several_processes_record_what_one_does(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "charts", lambda _summary: {})  # drawing takes most of the time
    plain = ("--retention", "35%", "--rankers", "random")
    assert bench(*plain)[0] == 0
    assert bench(*plain, "--processes", 2, "--out", tmp_path / "two")[0] == 0

    def answers(folder: str) -> dict[str, tuple[str | None, ...]]:
        lines = (tmp_path / folder / "records.jsonl").read_text().splitlines()
        return {
            each["row"]["id"]: (each["error"], *(each["outcome"] or {}).get("large", {"text": ""})["text"])
            for each in map(json.loads, lines)
        }

    assert answers("out") == answers("two")
    assert len(answers("two")) == 3
    code, _, err = bench("--rankers", "none", "--out", tmp_path / "bad", "--processes", 2, "--device", "none")
    assert code == 2
    assert "none" in err


def test_an_interrupt_says_what_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Runner.run

    def interrupted(self: Runner) -> object:
        yield next(run(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    code, out, err = bench("--rankers", "none")
    assert (code, out) == (130, "")
    assert "sgl: stopped; 1 of 3 questions are kept in " in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl cannot be read (No such file or directory)."),
        (
            ["--rankers", "oracle"],
            "There is no ranker 'oracle'. Use baselines, all, none, or some of small-guided",
        ),
        (["--rankers", ","], "There is no ranker ','"),
        (
            ["--cascade-at", "9%", "--retention", "35%"],
            "--cascade-at 9% is none of the operating points 35%.",
        ),
        (["--small", "nowhere"], "nowhere"),
        (["--out", "/proc/bench"], "/proc/bench cannot be written"),
        (
            ["--retention", "50%"],
            "'50%' is neither one of 64%, 35%, 9%, 100% nor two numbers such as 0.2:0.2",
        ),
        (["--retention", "1:0.5"], "'1:0.5' is neither"),
        (["--retention", "0:0"], "'0:0' is neither"),
        (["--retention", "35%+0"], "'35%+0' is neither"),
        (["--questions", "0"], "'0' is not a whole number of at least 1"),
        (["--seed", "-1"], "'-1' is not a whole number of at least 0"),
    ],
)
def test_bad_input_is_code_2(bench: Bench, arguments: list[str], said: str) -> None:
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_held_out_questions_and_the_bundled_pair_are_the_default() -> None:
    from sgl_engine.cli import bench as command
    from sgl_engine.evaluation.dataset import HeldOut

    parser = command.argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args([])
    assert command._data(arguments) == HeldOut(200, transcriptions=True)
    assert command._data(parser.parse_args(["--data", "generated"])) == HeldOut(200, transcriptions=True)
    assert list(arguments.retention) == ["64%", "35%", "9%"]
    assert command._cascade_point(arguments) == "35%"
    points = parser.parse_args(["--retention", "35%+5,0.1:0.3+2,9%-neutral"]).retention
    assert [(point.layer_fraction, point.keep_ratio, point.tiles) for point in points.values()] == [
        (0.2, 0.2, 5),
        (0.1, 0.3, 2),
        (0.05, 0.05, "all"),
    ]
    assert [point.neutral for point in points.values()] == [False, False, True]
    assert command._config(arguments).generation.max_new_tokens == 128
    assert command._cascade_point(parser.parse_args(["--retention", "9%,64%"])) == "9%"


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    out = capsys.readouterr().out
    assert "sgl bench --questions 500 --out runs/bench\n" in out
    assert "default: 64%,35%,9%" in " ".join(out.split())


@pytest.mark.parametrize(
    ("data", "rows"), [([], 44), (["--questions", "30"], 44), (["--data", "q.jsonl"], 40)]
)
def test_transcriptions_count_besides_the_questions_that_are_compared(
    data: list[str], rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "question": "?", "answers": ["red"]}\n' * 50)
    monkeypatch.setattr(command.options, "load_engine", lambda *_: None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    _, _, systems = command.begin(parser.parse_args([*data, "--compare-on", "40"]))
    assert systems.compared == rows
    assert command.begin(parser.parse_args(data))[2].compared is None

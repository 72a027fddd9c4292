"""``sgl bench --suite paper``: from benchmarks' files to the paper's table."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgl_engine.cli import main
from sgl_engine.cli.bench import paper as bench_paper
from sgl_engine.testing import tiny_vlm

Suite = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved models."""
    folder = tmp_path_factory.mktemp("pair")
    for size in ("small", "large"):
        vlm = tiny_vlm(size=size)
        vlm.model.save_pretrained(folder / size)
        vlm.processor.save_pretrained(folder / size)
    return folder


@pytest.fixture
def suite(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Suite:
    """Runs the command on a folder with three benchmarks -> exit code, stdout, stderr."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(out, "PNG")
    image = base64.b64encode(out.getvalue()).decode()
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    gqa: list[Any] = [{"id": n, "question": "Is it?", "answer": "yes", "image": image} for n in range(2)]
    gqa += [{"id": "x", "question": "Is it?", "answer": "yes", "image": "gone.png"}, {"id": "y"}]
    (folder / "gqa.json").write_text(json.dumps(gqa))
    mme = [
        {"question_id": "1.png", "category": "count", "question": "q", "answer": "Yes", "image": image}
    ] * 2
    (folder / "MME.json").write_text(json.dumps(mme))
    vet = [{"question_id": "v1", "question": "Why?", "answer": "because", "image": image}]
    (folder / "mmvet.json").write_text(json.dumps(vet))
    fixed = ["--suite", "paper", "--from", folder, "--small", pair / "small", "--large", pair / "large"]
    fixed += ["--out", tmp_path / "out", "--retention", "35%", "--bootstrap", 50, "--max-new-tokens", 3]

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bench", *map(str, fixed), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_from_files_to_the_papers_table(suite: Suite, tmp_path: Path) -> None:
    code, out, err = suite()
    assert code == 0
    assert "sgl: left out: GQA, gqa.json row 4: it has no question" in err
    assert "sgl: not found, and in no table: TextVQA, ChartQA" in err
    assert "GQA (2)" in out
    assert "MME (1)" in out
    assert "- gqa/x: gqa.json row 3: there is no picture 'gone.png'" in out
    assert "MM-Vet is not in the last column: its unpruned score is 0 or unknown." in out
    found = json.loads((tmp_path / "out/paper.json").read_text())
    assert list(found["systems"]) == [
        "large alone",
        "large, guided 35%",
        "cascade 35%, exit 0.8",
        "small alone",
    ]
    assert found["failed"] == {"gqa/x": "gqa.json row 3: there is no picture 'gone.png'"}
    assert found["bad_rows"] == ["GQA, gqa.json row 4: it has no question"]
    records = [json.loads(line) for line in (tmp_path / "out/records.jsonl").read_text().splitlines()]
    limits = {each["row"]["kind"]: each["row"]["max_new_tokens"] for each in records}
    assert limits == {"gqa": 3, "mmvet": 3, "mme": 3}
    assert "Data: GQA, MM-Vet, MME" in (tmp_path / "out/paper.md").read_text()


def test_wrong_names_are_refused(suite: Suite) -> None:
    code, _, err = suite("--tasks", "gqa,vqav3")
    assert (code, err.count("\n")) == (2, 1)
    assert "There is no benchmark 'vqav3'. Use some of textvqa, chartqa" in err
    code, _, err = suite("--tasks", "docvqa")
    assert code == 2
    assert "has none of the benchmarks docvqa" in err


def test_a_judge_that_is_named_judges(suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    class Says:
        name = "judge-1"

        def __init__(self, url: str, model: str, *, api_key: str | None) -> None:
            asked.append(f"{model} at {url} with {api_key}")

        def stream(self, _: Any) -> Any:
            from sgl_engine import HostedAnswer

            yield from ()
            return HostedAnswer("0.5")

    monkeypatch.setattr(bench_paper, "OpenAIModel", Says)
    monkeypatch.setenv(bench_paper.JUDGE_KEY, "secret\n")  # as a mounted file has it
    code, out, _ = suite("--tasks", "mmvet", "--judge", "judge-1@https://host/v1", "--questions", 1)
    assert code == 0
    assert asked == ["judge-1 at https://host/v1 with secret"]
    assert "50.0" in out
    assert "secret" not in out + (tmp_path / "out/judged.jsonl").read_text()
    code, _, err = suite("--tasks", "mmvet", "--judge", "judge-1", "--questions", 1)
    assert code == 2
    assert "--judge judge-1 names no model and server." in err


def test_rankers_cannot_take_part_in_some_questions_of_a_benchmark_only(suite: Suite, tmp_path: Path) -> None:
    code, out, err = suite("--rankers", "random", "--compare-on", 1)
    assert (code, out) == (2, "")
    assert "--compare-on 1 cannot be had with --suite" in err
    assert not (tmp_path / "out").exists()

"""``sgl``: what it prints and returns, on a tiny pair that is loaded from disk like any other."""

import argparse
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Sgl
from PIL import Image

from sgl_engine import demo
from sgl_engine.chat.text_stream import TextDelta
from sgl_engine.cli import ask, main, options, output
from sgl_engine.config import EngineConfig
from sgl_engine.engine import SGLEngine
from sgl_engine.errors import ConfigError
from sgl_engine.report.run_report import RunReport
from sgl_engine.request import Request
from sgl_engine.response import Response, StreamEvent
from sgl_engine.testing import tiny_vlm

Script = Callable[[Callable[[], str]], None]
MakeReport = Callable[..., RunReport]


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
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
    return path


@pytest.fixture
def ask_tiny(sgl: Sgl, pair: tuple[Path, Path], picture: Path) -> Sgl:
    """``sgl ask`` with the tiny pair."""

    def run(*arguments: object) -> tuple[int, str, str]:
        models = ("--small", pair[0], "--large", pair[1], "--max-new-tokens", 4)
        return sgl("ask", picture, "what is it?", *models, *arguments)

    return run


class ScriptedEngine:
    """Stands where an engine does; says, or does, what a test wants."""

    def __init__(self, behave: Callable[[], str], report: RunReport) -> None:
        self.behave = behave
        self.report = report

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        assert request.images
        text = self.behave()
        yield TextDelta(text)
        yield Response(text=text, finish_reason="stop", report=self.report)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, make_report: MakeReport) -> Script:
    """Puts a scripted engine in the place of the one that the arguments name."""

    def put(behave: Callable[[], str]) -> None:
        engine = ScriptedEngine(behave, make_report())
        monkeypatch.setattr(options, "load_engine", lambda _arguments, _config: engine)

    return put


def raising(error: BaseException) -> Callable[[], str]:
    def behave() -> str:
        raise error

    return behave


def test_the_answer_comes_first_then_the_report(
    ask_tiny: Sgl, pair: tuple[Path, Path], picture: Path
) -> None:
    code, out, err = ask_tiny()
    request = Request.ask("what is it?", picture, max_new_tokens=4)
    expected = SGLEngine.from_pretrained(*pair).run(request)
    assert (code, err) == (0, "")
    answer, _, rest = out.partition("\n\nanswered by")
    assert answer == output.printable(expected.text)
    assert "large model, guided by the small one" in rest
    assert all(len(line) <= 80 for line in rest.splitlines())


def test_json_is_one_document_with_answer_and_report(ask_tiny: Sgl) -> None:
    code, out, err = ask_tiny("--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert sorted(document) == ["answer", "finish_reason", "report"]
    assert RunReport.model_validate(document["report"]).route == "large"


def test_json_stays_json_when_the_score_is_not_a_number(make_report: MakeReport) -> None:
    response = Response(text="a", finish_reason="stop", report=make_report(score=float("nan")))
    document = json.loads(ask.as_json(response), parse_constant=pytest.fail)
    assert document["report"]["score"] is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--escalate", "never"], {"route": "small", "forced": True}),
        (["--escalate", "always", "--threshold", "0"], {"route": "large", "forced": True}),
        (["--threshold", "0"], {"route": "small", "forced": False, "threshold": 0.0}),
        (["--retention", "64%"], {"prune_layer": 2, "kept_visual_tokens": 6}),
        (["--retention", "9%"], {"prune_layer": 0, "kept_visual_tokens": 1}),
        (["--keep-ratio", "0.5"], {"prune_layer": 1, "kept_visual_tokens": 8}),
        (["--retention", "64%", "--keep-ratio", "1"], {"prune_layer": 2, "kept_visual_tokens": 16}),
        (["--tiles", "5", "--retention", "64%"], {"tiles": 1, "kept_tiles": 1, "keep_ratio": 0.4}),
        (["--neutral", "--escalate", "always"], {"neutral": True, "keep_ratio": 0.2}),
        (["--dtype", "bfloat16", "--device", "cpu"], {"route": "large"}),
    ],
)
def test_options_reach_the_engine(ask_tiny: Sgl, arguments: list[str], expected: dict[str, object]) -> None:
    code, out, _ = ask_tiny("--json", *arguments)
    assert code == 0
    found = json.loads(out)["report"]
    assert {name: found[name] for name in expected} == expected


def test_a_picture_can_be_piped_in(
    monkeypatch: pytest.MonkeyPatch, sgl: Sgl, pair: tuple[Path, Path], picture: Path
) -> None:
    arguments = ("what is it?", "--small", pair[0], "--large", pair[1], "--max-new-tokens", 2, "--json")
    from_file = json.loads(sgl("ask", picture, *arguments)[1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    from_pipe = json.loads(sgl("ask", "-", *arguments)[1])
    assert from_pipe["answer"] == from_file["answer"]
    assert from_pipe["report"]["score"] == from_file["report"]["score"]


def test_defaults_are_the_engines_own() -> None:
    parser = ask.argparse.ArgumentParser()
    ask.add_arguments(parser)
    assert options.engine_config(parser.parse_args(["x.png", "what?"])) == EngineConfig()


@pytest.mark.parametrize("given", [("--keep-ratio", "0.3"), ("--tiles", "5"), ("--neutral",)])
def test_what_a_calibration_chooses_cannot_be_named_as_well(given: tuple[str, ...]) -> None:
    parser = ask.argparse.ArgumentParser()
    ask.add_arguments(parser)
    auto = ["x.png", "what?", "--retention", "auto"]
    assert options.engine_config(parser.parse_args(auto)).pruning.auto
    with pytest.raises(ConfigError, match=f"{' '.join(given)} is given with --retention auto"):
        options.engine_config(parser.parse_args([*auto, *given]))


def test_the_bundled_pair_is_the_default(
    monkeypatch: pytest.MonkeyPatch, sgl: Sgl, picture: Path, make_report: MakeReport
) -> None:
    calls: list[object] = []

    def bundled(config: EngineConfig, **settings: object) -> ScriptedEngine:
        calls.append((config.exit.threshold, settings))
        return ScriptedEngine(lambda: "red", make_report())

    monkeypatch.setattr(demo, "demo_engine", bundled)
    assert sgl("ask", picture, "what?", "--threshold", 0.25, "--device", "cpu")[1].startswith("red\n")
    assert sgl("ask", picture, "what?", "--dtype", "bfloat16")[1].startswith("red\n")
    assert calls == [
        (0.25, {"device": "cpu", "dtype": "auto"}),
        (0.8, {"device": None, "dtype": "bfloat16"}),
    ]


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_bundled_pair_is_the_same_in_every_dtype(
    monkeypatch: pytest.MonkeyPatch, sgl: Sgl, picture: Path, dtype: str
) -> None:
    engines: list[SGLEngine] = []
    load = demo.demo_engine

    def loaded(*arguments: Any, **settings: Any) -> SGLEngine:
        engines.append(load(*arguments, **settings))
        return engines[-1]

    monkeypatch.setattr(demo, "demo_engine", loaded)
    code, out, _ = sgl("ask", picture, "what?", "--json", "--max-new-tokens", 1, "--dtype", dtype)
    report = json.loads(out)["report"]
    assert (code, report["scorer"], report["small_model"]["name"]) == (0, demo.SCORER, "sgl-demo-small")
    wanted = "float32" if dtype == "auto" else dtype
    assert {str(vlm.model.dtype) for vlm in (engines[0].small, engines[0].large)} == {f"torch.{wanted}"}


def test_weights_that_cannot_be_loaded_are_one_line_and_code_2(
    sgl: Sgl, pair: tuple[Path, Path], picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pair[0], broken)
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    code, out, err = sgl("ask", picture, "what?", "--small", broken, "--large", pair[1])
    assert (code, out) == (2, "")
    assert "not whole safetensors files" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.png", "what?"], "missing.png does not exist"),
        (["http://example.org/x.png", "what?"], "scheme 'http'"),
        (["data:image/png;base64,???", "what?"], "not base64"),
        (["text.png", "what?"], "cannot be read as a picture"),
        (["fine.png", "what?", "--small", "somewhere"], "--small is given without --large"),
        (["fine.png", "what?", "--large", "somewhere"], "--large is given without --small"),
        (["fine.png", "what?", "--small", "./a", "--large", "./b"], "no model folder ./a"),
        (["fine.png", "what?", "--small", "./a", "--large", "./b", "--device", "abacus"], "device 'abacus'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sgl: Sgl, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save("fine.png")
    code, out, err = sgl("ask", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("sgl: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["ask"], "PICTURE, QUESTION"),
        (["ask", "x.png", "  "], "argument QUESTION: it is empty"),
        (["ask", "x.png", "q", "--threshold", "1.5"], "not a number from 0 to 1"),
        (["ask", "x.png", "q", "--threshold", "nan"], "not a number from 0 to 1"),
        (["ask", "x.png", "q", "--keep-ratio", "0"], "would keep nothing"),
        (["ask", "x.png", "q", "--keep-ratio", "half"], "not a number from 0 to 1"),
        (["ask", "x.png", "q", "--max-new-tokens", "0"], "whole number of at least 1"),
        (["ask", "x.png", "q", "--retention", "50%"], "invalid choice"),
        (["ask", "x.png", "q", "--tiles", "0"], "whole number of at least 1"),
        (["explain", "x.png", "q"], "-o/--output"),
    ],
)
def test_wrong_usage_is_code_2(sgl: Sgl, arguments: list[str], said: str) -> None:
    code, out, err = sgl(*arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_an_engine_failure_is_one_line_and_code_1(script: Script, sgl: Sgl, picture: Path) -> None:
    script(raising(RuntimeError("out of\nmemory")))
    code, out, err = sgl("ask", picture, "what?")
    assert (code, out) == (1, "")
    assert err.startswith("sgl: The engine failed (RuntimeError: out of)")
    assert err.count("\n") == 1
    with pytest.raises(RuntimeError):
        sgl("ask", picture, "what?", "--debug")


def test_an_interrupt_is_code_130(script: Script, sgl: Sgl, picture: Path) -> None:
    script(raising(KeyboardInterrupt()))
    assert sgl("ask", picture, "what?")[0] == 130


def test_an_answer_cannot_steer_the_terminal(script: Script, sgl: Sgl, picture: Path) -> None:
    script(lambda: "red\x1b[2J\r[bold]\nblue")
    _, out, _ = sgl("ask", picture, "what?")
    assert out.startswith("red\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}[bold]\nblue\n")


def test_explain_writes_the_picture(sgl: Sgl, pair: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    models = ("--small", pair[0], "--large", pair[1], "--max-new-tokens", 4)
    code, out, err = sgl("explain", picture, "what is it?", "-o", target, *models)
    assert (code, err) == (0, "")
    assert out.endswith(f"wrote {target}\n")
    with Image.open(target) as drawing:
        assert drawing.width > 768
        colours = drawing.convert("RGB").getcolors(2**20) or []
    assert (0, 224, 255) in {colour for _, colour in colours}  # outlines of kept tokens


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("out.doc", "does not end like a picture's name"),
        ("nowhere/out.png", "no folder nowhere"),
        ("picture.png", "is the picture itself"),
    ],
)
def test_explain_refuses_bad_targets_before_loading(
    monkeypatch: pytest.MonkeyPatch, script: Script, sgl: Sgl, picture: Path, target: str, said: str
) -> None:
    monkeypatch.chdir(picture.parent)
    script(raising(AssertionError("loaded")))
    code, _, err = sgl("explain", "picture.png", "what?", "-o", target)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_help_and_usage_errors_load_no_models() -> None:
    code = (
        "import sys; from sgl_engine.cli import main; code = main(['ask', 'missing.png', 'what?']); "
        "print(code, *{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_a_reader_that_stops_reading_is_no_error(
    monkeypatch: pytest.MonkeyPatch, script: Script, picture: Path
) -> None:
    script(lambda: "red")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["ask", str(picture), "what?"]) == 0
        monkeypatch.undo()


def test_a_server_without_a_key_is_for_this_machine_only(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi", reason="needs the extra server")
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    shown = capsys.readouterr()
    assert "SGL_API_KEY" in shown.err
    assert "Traceback" not in shown.err


def test_a_server_without_its_extra_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sgl_engine.server", None)
    assert main(["serve"]) == 2
    assert 'pip install "langchain-sgl[server]"' in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "playground"])
@pytest.mark.parametrize("port", ["0", "65536", "70000", "-1", "http"])
def test_a_port_is_a_number_that_ports_have(
    command: str, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"sgl_engine.cli.{command}").add_arguments(parser)
    assert parser.parse_args(["--port", "65535"]).port == 65535
    with pytest.raises(SystemExit) as usage:
        parser.parse_args([f"--port={port}"])
    assert usage.value.code == 2
    assert "is not a port" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["batch", "bench", "calibrate", "decide", "explain", "ask"])
def test_every_path_may_begin_with_a_tilde(command: str) -> None:
    """Shells expand ``--out ~/x`` and not ``--out=~/x``."""
    module = importlib.import_module(
        "sgl_engine.cli.decide.command" if command == "decide" else f"sgl_engine.cli.{command}"
    )
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    types = [action.type for action in parser._actions]
    assert Path not in types
    assert options.path in types or command == "bench"
    for read in types:
        if callable(read) and (read is options.path or read.__name__ == "<lambda>"):
            assert read("~/x.json") == Path.home() / "x.json"
    with pytest.raises(argparse.ArgumentTypeError, match="nobody's home"):
        options.path("~nobody-of-this-name/x")

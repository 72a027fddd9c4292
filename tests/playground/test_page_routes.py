"""The page's routes, and the engine behind them: events, errors, keys, visitors who leave."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr
from served import Running, picture_url, serving

from sgl_engine import EngineConfig, ExitConfig, GenerationConfig, PruningConfig, Request, SGLEngine
from sgl_engine.cli import main
from sgl_engine.decoding import AnswerTask
from sgl_engine.demo import PICTURES
from sgl_engine.passes import run_large_pass
from sgl_engine.playground import create_playground
from sgl_engine.playground.state import AskBody, PageState
from sgl_engine.playground.steps import STEPS, ask, config_at
from sgl_engine.pruning import keep_everything
from sgl_engine.rankers import RANKERS, RankingCase
from sgl_engine.request import Decoding
from sgl_engine.server import ServerSettings
from sgl_engine.testing import FakeEngine, tiny_vlm

SALT = "0123456789"
STATE: dict[str, Any] = {"picture": "scene", "q": "What is it?", "k": 2}


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    # Random weights are never so sure.
    config = EngineConfig(exit=ExitConfig(threshold=1.0), generation=GenerationConfig(max_new_tokens=6))
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config)


@pytest.fixture(scope="module")
def server(engine: SGLEngine) -> Iterator[Running]:
    with serving(engine, make_app=create_playground) as running:
        yield running


def body(*parts: str, **state: Any) -> dict[str, Any]:
    return {"state": STATE | {"t": 1.0} | state, "parts": parts or tuple(STEPS), "salt": SALT}


def events_of(engine: SGLEngine, *parts: str, **state: Any) -> dict[str, dict[str, Any]]:
    """The last event of each name."""
    asked = AskBody.model_validate(body(*parts, **state))
    return {event["event"]: event for event in ask(engine, asked, threading.Event())}


def streamed(server: Running, asked: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.client.post("/playground/ask", json=asked)
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def test_events_are_what_the_engine_says_at_these_settings(engine: SGLEngine) -> None:
    found = events_of(engine, keep=0.5, ranker="uniform")
    at = engine.with_config(config_at(PageState(**STATE, t=1.0, keep=0.5), engine.config, 6))
    request = Request.ask("What is it?", PICTURES / "scene.png")
    small, both = (
        at.with_config(at.config.escalating(how)).run(request)  # type: ignore[arg-type]
        for how in ("never", "always")
    )
    assert found["small"]["text"] == small.text
    assert found["score"]["score"] == pytest.approx(small.report.score)
    assert found["large"]["text"] == both.text
    assert both.plan is not None
    assert found["large"]["kept_tokens"] == both.plan.kept_visual_tokens == 8
    assert found["large"]["layer"] == both.plan.layer == 2
    assert found["pair"]["report"]["route"] == "large"
    assert found["pair"]["text"] == both.text
    prompt = engine.large.encode(request, engine.config.limits)
    alone = run_large_pass(engine.large, AnswerTask(prompt, 6, Decoding()), keep_everything(prompt))
    assert found["pair"]["alone"]["text"] == alone.generation.text
    case = RankingCase.of(at, request)
    plan = at.plan(case.large_prompt, RANKERS["uniform"](case))
    assert found["ranker"]["text"] == (
        run_large_pass(engine.large, AnswerTask(prompt, 6, Decoding()), plan).generation.text
    )
    assert found["ranker"]["kept"] != found["large"]["kept"]


def test_pieces_come_before_the_whole(engine: SGLEngine) -> None:
    events = list(ask(engine, AskBody.model_validate(body("small", "large")), threading.Event()))
    names = [event["event"] for event in events]
    assert names[0] == "score"
    assert names.index("small_text") < names.index("small") < names.index("large_text") < names.index("large")
    for model in ("small", "large"):
        pieces = "".join(event["text"] for event in events if event["event"] == f"{model}_text")
        assert pieces == next(event["text"] for event in events if event["event"] == model)


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_a_pair_of_two_families_whose_grids_differ(family: str) -> None:
    config = EngineConfig(generation=GenerationConfig(max_new_tokens=3))
    large = tiny_vlm(family, size="large", max_tiles=4)
    found = events_of(SGLEngine(tiny_vlm(max_tiles=4), large, config), picture="page", ranker="uniform")
    assert found["large"]["visual_tokens"] == found["small"]["visual_tokens"]
    assert len(found["small"]["turns"]["cells"]) == len(found["large"]["kept"]["cells"])
    assert found["large"]["kept_tokens"] == found["ranker"]["kept_tokens"]


@pytest.mark.parametrize("k", range(6))
def test_k_is_the_layer_that_the_slider_says(engine: SGLEngine, k: int) -> None:
    config = config_at(PageState(k=k), engine.config, 6)
    assert config.pruning.layer(6) == k


def test_a_layer_beyond_the_last_and_the_commands_tiles(engine: SGLEngine) -> None:
    config = engine.config.model_copy(update={"pruning": PruningConfig(tiles=3)})
    for k in (99, 10**400):
        assert config_at(PageState(k=k), config, 6).pruning.layer(6) == 5
    assert config_at(PageState(k=0), config, 6).pruning.tiles == 3


def test_every_answer_token_has_a_map_and_together_they_are_part_of_the_whole(engine: SGLEngine) -> None:
    found = events_of(engine, "small", "tokens")
    assert len(found["tokens"]["heats"]) == len(found["small"]["tokens"]) == 6
    cells = torch.tensor([heat["cells"] for heat in found["tokens"]["heats"]])
    assert cells.shape[1] == len(found["small"]["heat"]["cells"])
    assert not torch.equal(cells[0], cells[-1])


def test_a_slider_runs_nothing_that_it_does_not_change(engine: SGLEngine) -> None:
    """The picture is known from the question before it: neither tower runs again, at other settings."""
    events_of(engine, "small", "large")
    seen: list[int] = []
    towers = [vlm.model.get_submodule("model.vision_tower") for vlm in (engine.small, engine.large)]
    hooks = [
        tower.register_forward_hook(lambda *_, number=number: seen.append(number))
        for number, tower in enumerate(towers)
    ]
    try:
        events_of(engine, "large", keep=0.7)
        assert seen == []
        events_of(engine, "pair", keep=0.7)  # control: what is measured knows nothing
        assert set(seen) == {0, 1}
    finally:
        for hook in hooks:
            hook.remove()


def test_what_was_measured_is_not_measured_again(engine: SGLEngine) -> None:
    alone = {"text": "as before", "ms": 12.5}
    asked = AskBody.model_validate(body("pair") | {"alone": alone})
    [event, _] = ask(engine, asked, threading.Event())
    assert event["alone"] == alone
    assert event["rows"][1]["alone"] == 12.5


def test_the_pages_files_load_nothing_from_elsewhere(server: Running) -> None:
    page = server.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    names = ["style.css", "main.js", "stage.js", "view.js", "ask.js"]
    files = [server.client.get(f"/playground/{name}") for name in names]
    assert [file.status_code for file in files] == [200] * len(names)
    for file in (page, *files):
        assert "://" not in file.text.replace("http://www.w3.org", "")
    picture = server.client.get("/playground/pictures/scene.png")
    assert picture.content == (PICTURES / "scene.png").read_bytes()
    assert server.client.get("/playground/pictures/..%2f..%2fapp.py").status_code == 404


def test_setup_says_what_there_is_and_reads_the_link(server: Running) -> None:
    setup = server.client.get("/playground/setup?t=0.25&keep=9&picture=chart").json()
    assert (setup["state"]["t"], setup["state"]["picture"]) == (0.25, "chart")
    assert [problem for problem in setup["problems"] if "keep=9" in problem]
    assert setup["default"]["t"] == 1.0
    assert setup["layers"] == 6
    assert "uniform" in {ranker["name"] for ranker in setup["rankers"]}
    assert all(ranker["does"] for ranker in setup["rankers"])


def test_a_bad_picture_is_refused_and_the_next_question_answered(server: Running) -> None:
    bad = body("small", picture="") | {"data": "data:image/png;base64," + base64.b64encode(b"no").decode()}
    answer = server.client.post("/playground/ask", json=bad)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    good = body("small", picture="") | {"data": picture_url()}
    assert [event["event"] for event in streamed(server, good)][-1] == "done"


@pytest.mark.parametrize(
    "wrong", [{"keep": 0}, {"t": 2}, {"cover": [[0, 0, 0, 1]]}, {"picture": "nowhere"}, {"colour": "red"}]
)
def test_a_state_that_cannot_be_is_refused_with_its_reason(server: Running, wrong: dict[str, Any]) -> None:
    answer = server.client.post("/playground/ask", json=body("small", **wrong))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_what_goes_wrong_on_the_way_is_an_event(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_: Any) -> Iterator[dict[str, Any]]:
        yield {"event": "score", "score": 0.5}
        raise OSError("the disk of a secret path")

    monkeypatch.setitem(STEPS, "small", breaks)
    first, last = streamed(server, body("small"))
    assert first["event"] == "score"
    assert last["event"] == "error"
    assert "secret" not in last["message"]
    assert "the disk of a secret path" in caplog.text  # the message says that the log tells why
    monkeypatch.undo()
    assert streamed(server, body("small"))[-1]["event"] == "done"


def test_what_the_page_sent_goes_back_as_it_came(server: Running) -> None:
    """JSON can write half a surrogate pair, and UTF-8 cannot."""
    content = json.dumps(body("pair") | {"alone": {"text": "\ud800é", "ms": 1.0}}).encode()
    headers = {"content-type": "application/json"}
    answer = server.client.post("/playground/ask", content=content, headers=headers)
    [event] = [json.loads(line[6:]) for line in answer.text.split("\n\n") if '"pair", "text"' in line]
    assert event["alone"]["text"] == "\ud800é"


def test_the_page_waits_until_the_models_are_loaded() -> None:
    go_on = threading.Event()

    def load() -> SGLEngine:
        assert go_on.wait(60)
        return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))

    with serving(load, wait=False, make_app=create_playground) as server:
        early = server.client.get("/playground/setup")
        assert (early.status_code, early.json()) == (202, {"loading": True})
        assert server.client.get("/").status_code == 200
        assert server.client.post("/playground/ask", json=body("small")).status_code == 503
        go_on.set()
        server.wait_ready()
        assert server.client.get("/playground/setup").json()["layers"] == 6


async def test_a_visitor_who_leaves_stops_the_models() -> None:
    inside, cancelled = threading.Event(), threading.Event()

    def say(request: Request) -> str:
        inside.set()
        assert request.cancel is not None
        if request.cancel.wait(60):
            cancelled.set()
        return "nobody reads this"

    with serving(FakeEngine(say), make_app=create_playground) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
            asking = asyncio.create_task(client.post("/playground/ask", json=body("small")))
            assert await asyncio.to_thread(inside.wait, 60)
            assert not cancelled.is_set()  # control: a visitor who stays
            asking.cancel()
            assert await asyncio.to_thread(cancelled.wait, 60)


def test_with_a_key_only_the_files_are_open(engine: SGLEngine) -> None:
    settings = ServerSettings(api_key=SecretStr("secret"))
    with serving(engine, settings, make_app=create_playground) as server:
        assert server.client.get("/").status_code == 200
        assert server.client.get("/playground/main.js").status_code == 200
        assert server.client.get("/playground/setup").status_code == 401
        assert server.client.post("/playground/ask", json=body("small")).status_code == 401
        known = {"authorization": "Bearer secret"}
        assert server.client.get("/playground/setup", headers=known).status_code == 200


@pytest.mark.parametrize("given", [["--retention", "auto"], ["--escalate", "always"], ["--neutral"]])
def test_the_command_takes_no_setting_that_its_sliders_set(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["playground", *given]) == 2
    assert "sliders" in capsys.readouterr().err


def test_the_command_binds_loopback_without_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGL_API_KEY", raising=False)
    assert main(["playground", "--host", "0.0.0.0"]) == 2
    assert "--api-key" in capsys.readouterr().err


def test_the_page_comes_with_the_package() -> None:
    folder = Path(create_playground.__code__.co_filename).with_name("page")
    assert {path.suffix for path in folder.iterdir()} == {".html", ".css", ".js"}
    assert all(len(path.read_text().splitlines()) <= 350 for path in folder.iterdir())


def test_settings_of_the_server_stay(engine: SGLEngine) -> None:
    settings = ServerSettings(model="mine")
    app = create_playground(engine, settings)
    assert replace(settings) == settings
    assert "/v1/chat/completions" in {getattr(route, "path", "") for route in app.routes}

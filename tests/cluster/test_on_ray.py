"""The whole of it on Ray: HTTP in front, processes for each model, a replica that is killed under way.

One start for all of it, as each process takes seconds to import what it needs.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import about, picture_url

ray = pytest.importorskip("ray", reason="needs the extra cluster")

from ray import serve  # noqa: E402  # after the check that it is installed

from sgl_engine import EngineConfig, SGLEngine  # noqa: E402
from sgl_engine.cluster import ClusterSettings, ModelSource, Replicas, build_app  # noqa: E402
from sgl_engine.server import ServerSettings  # noqa: E402
from sgl_engine.server.chat import engine_for, to_request  # noqa: E402
from sgl_engine.server.fields import ChatBody  # noqa: E402
from sgl_engine.testing import tiny_vlm  # noqa: E402

CONFIG = EngineConfig().without_reuse()
PORT = 8765
QUESTION = about(picture_url("blue", 96))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both models as files."""
    found = {}
    for size in ("small", "large"):
        vlm, found[size] = tiny_vlm(size=size), tmp_path_factory.mktemp(size)
        vlm.model.save_pretrained(found[size])
        vlm.processor.save_pretrained(found[size])
    return found


@pytest.fixture(scope="module")
def client(ray_here: None, folders: dict[str, Path]) -> Iterator[httpx.Client]:
    """A cluster of this machine, with no large model until one is asked for."""
    settings = ClusterSettings(
        small=ModelSource(path=str(folders["small"]), name="little"),
        large=ModelSource(path=str(folders["large"]), name="big"),
        engine=CONFIG,
        small_replicas=Replicas(cpus=0),
        large_replicas=Replicas(least=0, cpus=0, up_s=0, idle_s=1),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(build_app(settings.model_dump()), name="sgl")
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=300, trust_env=False) as opened:
        yield opened
    serve.shutdown()


@pytest.fixture(scope="module")
def local(folders: dict[str, Path]) -> Callable[..., Any]:
    """What one process answers to the same body."""
    from sgl_engine import VLM

    models = [
        VLM.from_pretrained(folders[size], name=name)
        for size, name in (("small", "little"), ("large", "big"))
    ]
    engine = SGLEngine(*models, CONFIG)

    def run(body: dict[str, Any]) -> Any:
        fields = ChatBody.model_validate(body)
        chosen = engine_for(engine, fields, ServerSettings())
        return chosen.run(to_request(fields, ServerSettings(), since=0.0, cancel=None))  # type: ignore[arg-type]

    return run


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": QUESTION, "max_tokens": 8, **fields}


def replicas() -> list[str]:
    """Names of the large model's processes."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in names if each["name"].startswith("SERVE_REPLICA::sgl#large#")]


def same(report: dict[str, Any], expected: Any) -> bool:
    told = json.loads(expected.report.model_dump_json(exclude={"stage_ms"}))
    return {name: value for name, value in report.items() if name != "stage_ms"} == told


@pytest.mark.slow
def test_a_pair_in_processes_of_their_own(client: httpx.Client, local: Callable[..., Any]) -> None:
    assert client.get("/ready").status_code == 200
    assert client.get("/v1/models/sgl:large").json()["root"] == "big"
    # The small model alone; nobody has needed the large one.
    answer = client.post("/v1/chat/completions", json=body("sgl:small")).json()
    expected = local(body("sgl:small"))
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert same(answer["sgl"], expected)
    assert replicas() == []
    # The first escalation starts it.
    answer = client.post("/v1/chat/completions", json=body("sgl:large", logprobs=True)).json()
    expected = local(body("sgl:large", logprobs=True))
    assert answer["choices"][0]["message"]["content"] == expected.text
    logprobs = [each["logprob"] for each in answer["choices"][0]["logprobs"]["content"]]
    assert logprobs == [token.logprob for token in expected.tokens]
    assert same(answer["sgl"], expected)
    # It is killed in the middle of an answer: another one takes over, and nothing is said twice.
    long = body("sgl:large", max_tokens=300, logit_bias={"0": -100.0}, stream=True)
    expected, text, killed = local(long), "", False
    with client.stream("POST", "/v1/chat/completions", json=long) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += event["choices"][0]["delta"].get("content") or ""
            if text and not killed:
                ray.kill(ray.get_actor(replicas()[0], namespace="serve"))
                killed = True
            report = event.get("sgl")
    assert killed
    assert text == expected.text
    assert same(report, expected)
    # Bad requests, and what the gateway knows by itself.
    assert client.post("/v1/chat/completions", json=body("sgl", max_tokens=-1)).status_code == 400
    assert client.post("/tokenize", json={"messages": QUESTION}).json()["visual_tokens"] > 0
    assert 'sgl_answers_total{finish_reason="length",route="large"} 2.0' in client.get("/metrics").text
    # Nobody asks any more.
    while replicas():
        time.sleep(0.2)

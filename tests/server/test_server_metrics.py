"""What /metrics says is what the reports say; what dashboards ask for is there."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from served import Running, about, picture_url, serving

prometheus = pytest.importorskip("prometheus_client.parser", reason="needs the extra server")

from sgl_engine.server import ServerSettings  # noqa: E402  # after the check that it is installed
from sgl_engine.testing import FakeEngine  # noqa: E402

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
TOTAL = "sgl_errors_total"
_NAME = re.compile(r"\b((?:sgl_|vllm:)\w+)")


@pytest.fixture
def counted() -> Iterator[Running]:
    engine = FakeEngine(
        lambda request: "a red fox", score=lambda request: 0.1 if "hard" in str(request.messages) else 0.9
    )
    with serving(engine, ServerSettings(vllm_metric_names=True)) as running:
        yield running


def read(server: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples of /metrics by name and labels."""
    families = prometheus.text_string_to_metric_families(server.client.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_counts_are_sums_of_the_reports(counted: Running) -> None:
    asked = [about(picture_url()), about(picture_url(), "hard"), about(picture_url("blue"), "hard too")]
    bodies = [counted.chat(messages, max_tokens=16).json() for messages in asked]
    reports = [body["sgl"] for body in bodies]
    assert counted.chat([]).status_code == 400
    assert counted.chat(model="no").status_code == 404
    samples = read(counted)

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    def total(field: str) -> float:
        return sum(report[field] or 0 for report in reports)

    answered = sum(v for (name, labels), v in samples.items() if name == "sgl_answers_total")
    assert answered == 3
    assert value("sgl_escalations_total", reason="score") == 2
    assert value("sgl_errors_total", code="invalid_value") == 1
    assert value("sgl_errors_total", code="model_not_found") == 1
    for model in ("small", "large"):
        for kind in ("input", "output"):
            assert value("sgl_tokens_total", model=model, kind=kind) == total(f"{model}_{kind}_tokens")
        assert value("sgl_tflops_total", of=model) == pytest.approx(total(f"{model}_tflops"))
    assert value("sgl_tflops_total", of="large_alone") == pytest.approx(total("large_alone_tflops"))
    assert value("sgl_visual_tokens_total", kind="kept") == total("kept_visual_tokens")
    assert value("sgl_draft_tokens_total", kind="accepted") == total("accepted_tokens")
    assert value("sgl_score_count") == 3
    assert value("sgl_score_sum") == pytest.approx(total("score"))
    assert value("sgl_stage_seconds_sum", stage="total") == pytest.approx(
        sum(report["stage_ms"]["total"] for report in reports) / 1e3
    )
    assert value("sgl_load", kind="under_way") == 0
    own = {"model_name": "sgl", "engine": "0"}
    usage = [body["usage"] for body in bodies]
    assert value("vllm:prompt_tokens_total", **own) == sum(each["prompt_tokens"] for each in usage)
    assert value("vllm:generation_tokens_total", **own) == sum(each["completion_tokens"] for each in usage)
    assert value("vllm:num_requests_running", **own) == 0


def test_what_is_refused_at_the_door_is_counted_too() -> None:
    settings = ServerSettings(api_key=SecretStr("k"), max_body_bytes=1000, body_timeout_s=0.2)
    codes: dict[str, float] = {}
    key = {"authorization": "Bearer k"}

    def counts(server: Running) -> dict[str, float]:
        return {dict(labels)["code"]: n for (name, labels), n in read(server).items() if name == TOTAL}

    with serving(FakeEngine(lambda request: "a red fox"), settings) as server:
        assert [server.chat().status_code for _ in range(2)] == [401, 401]
        assert server.chat([{"role": "user", "content": "x" * 2000}], headers=key).status_code == 413
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\nhal".encode())
            assert connection.recv(10_000).decode().startswith("HTTP/1.1 408")
        assert server.chat([], headers=key).status_code == 400  # by the app, which counts it itself
        server.app.state.sgl.is_ending = True
        assert server.chat(headers=key).status_code == 503
        codes = counts(server)
    wanted = {"invalid_api_key": 2, "body_too_long": 1, "slow_body": 1, "invalid_value": 1, "ending": 1}
    assert codes == wanted
    with serving(FakeEngine(lambda request: "a red fox")) as server:
        assert server.chat(headers={"host": "evil.example"}).status_code == 400
        assert counts(server) == {"foreign_host": 1}


def test_streams_are_counted_with_their_first_token(counted: Running) -> None:
    text = counted.chat(about(picture_url(), "hard"), stream=True, max_tokens=16).text
    finish = "length" if '"finish_reason": "length"' in text else "stop"
    samples = read(counted)
    own = (("engine", "0"), ("model_name", "sgl"))
    assert samples["vllm:time_to_first_token_seconds_count", own] == 1
    assert samples["vllm:e2e_request_latency_seconds_count", own] == 1
    assert samples["vllm:time_to_first_token_seconds_sum", own] > 0
    assert samples["vllm:inter_token_latency_seconds_sum", own] >= 0
    assert samples["sgl_answers_total", (("finish_reason", finish), ("route", "large"))] == 1


def test_vllms_names_and_numbers_come_when_asked_for(counted: Running) -> None:
    names = {name for name, _ in read(counted)}
    wanted = (
        "vllm:num_requests_running vllm:num_requests_waiting vllm:prompt_tokens_total "
        "vllm:generation_tokens_total vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total "
        "vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket "
        "vllm:e2e_request_latency_seconds_bucket vllm:request_queue_time_seconds_bucket "
        "vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket"
    ).split()
    assert set(wanted) <= names
    metrics = counted.chat(about(picture_url())).json()["metrics"]
    assert set(metrics) == {
        "time_to_first_token_ms",
        "generation_time_ms",
        "queue_time_ms",
        "mean_itl_ms",
        "tokens_per_second",
    }
    assert metrics["generation_time_ms"] > 0


def test_without_the_flag_they_do_not(server: Running) -> None:
    assert b"vllm:" not in server.client.get("/metrics").content
    assert "metrics" not in server.chat().json()


def expressions(node: Any) -> Iterator[str]:
    """Every expression of a dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_every_expression_of_the_dashboard_names_what_is_there(counted: Running) -> None:
    counted.chat(about(picture_url()))
    counted.chat(about(picture_url(), "hard"), max_tokens=16)
    counted.chat([])
    counted.client.post("/rerank", json={"query": "fox?", "documents": ["a fox", "a cat"]})
    question = {"type": "predicate", "instructions": "Is it red?"}
    counted.client.post("/v1/decisions", json={"input": "a red fox", "questions": [question]})
    there = {name for name, _ in read(counted)}
    found = list(expressions(json.loads(DASHBOARD.read_text())))
    assert len(found) >= 8
    for expression in found:
        names = set(_NAME.findall(expression))
        assert names, expression
        assert names <= there, expression
    assert not set(_NAME.findall("rate(sgl_no_such_metric[5m])")) <= there  # control

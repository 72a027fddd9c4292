"""OpenAI's batch files: answered line by line as the server answers a body."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Sgl
from PIL import Image

from sgl_engine import EngineConfig, SGLEngine
from sgl_engine.cli import options
from sgl_engine.testing import FakeEngine


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def line(name: Any, text: str = "What is it?", url: str | None = None, **fields: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url or picture()}},
    ]
    body = {"model": "pair", "messages": [{"role": "user", "content": parts}], **fields}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Says the question."""
    scripted = FakeEngine(lambda request: request.messages[-1].content[0])

    def load(arguments: Any, config: EngineConfig) -> SGLEngine:
        return scripted.with_config(config)

    monkeypatch.setattr(options, "load_engine", load)
    return scripted


def run(sgl: Sgl, folder: Path, lines: list[Any]) -> list[dict[str, Any]]:
    path, out = folder / "requests.jsonl", folder / "out"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    code, _, err = sgl("batch", path, "--out", out, "--model-name", "pair")
    assert code in {0, 2}, err
    assert not (out / "reports.jsonl").read_bytes()
    return [json.loads(each) for each in (out / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("given", "wanted"), [(True, True), (1, True), ("true", True), (0, False), ("no", False)]
)
def test_switches_are_read_as_the_server_reads_them(
    sgl: Sgl, tmp_path: Path, engine: FakeEngine, given: Any, wanted: bool
) -> None:
    [row] = run(sgl, tmp_path, [line("a", logprobs=given)])
    assert row["response"]["status_code"] == 200
    assert (row["response"]["body"]["choices"][0]["logprobs"] is not None) is wanted


def test_answers_have_openais_form(sgl: Sgl, tmp_path: Path, engine: FakeEngine) -> None:
    asked = [line(f"n {n}", f"question {n}", logprobs=n == 1) for n in range(3)]
    asked.append(line("large", "?", model="pair:large", max_tokens=8))
    rows = run(sgl, tmp_path, asked)
    assert [row["custom_id"] for row in rows] == ["n 0", "n 1", "n 2", "large"]
    assert len({row["id"] for row in rows}) == len({row["response"]["request_id"] for row in rows}) == 4
    for n, row in enumerate(rows[:3]):
        assert set(row) == {"id", "custom_id", "response", "error"}
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        body = row["response"]["body"]
        assert (body["object"], body["model"]) == ("chat.completion", "pair")
        [choice] = body["choices"]
        assert choice["message"]["content"] == f"question {n}"
        assert (choice["logprobs"] is not None) is (n == 1)
        assert body["usage"]["total_tokens"] > 0
        assert body["sgl"]["route"] == "small"
    assert rows[3]["response"]["body"]["sgl"]["route"] == "large"


def test_what_is_wrong_with_a_body_has_the_servers_status(
    sgl: Sgl, tmp_path: Path, engine: FakeEngine
) -> None:
    wrong = {
        "model": (line("a", model="gpt"), 404, "model_not_found"),
        "field": (line("b", temperatur=1), 400, "unknown_parameter"),
        "value": (line("c", temperature="hot"), 400, "invalid_value"),
        "stream": (line("d", stream=True), 400, "invalid_value"),
        "picture": (line("e", url="data:image/png;base64,AAAA"), 400, "corrupt_image"),
        "path": (line("f", url="file:///etc/passwd"), 400, "unsafe_path"),
        "half": (line("g", text="\ud800"), 400, "invalid_value"),
    }
    rows = run(sgl, tmp_path, [*(each for each, _, _ in wrong.values()), line("last")])
    assert [row["custom_id"] for row in rows] == [*"abcdefg", "last"]
    for row, (_, status, code) in zip(rows, wrong.values(), strict=False):
        assert row["error"] is None
        assert (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) == (status, code)
    assert rows[-1]["response"]["status_code"] == 200


def test_lines_that_are_no_requests_have_an_error(sgl: Sgl, tmp_path: Path, engine: FakeEngine) -> None:
    wrong: list[tuple[Any, str | None, str]] = [
        ("{broken", None, "invalid_json_line"),
        ({**line("a"), "custom_id": 7}, None, "missing_required_parameter"),
        ({**line("b"), "method": "GET"}, "b", "invalid_method"),
        ({**line("c"), "url": "/v1/embeddings"}, "c", "invalid_url"),
        ({**line("d"), "body": "text"}, "d", "invalid_body"),
        (line("first"), "first", "duplicate_custom_id"),
    ]
    rows = run(sgl, tmp_path, [line("first"), *(each for each, _, _ in wrong)])
    assert rows[0]["response"]["status_code"] == 200
    assert [(row["custom_id"], row["response"], row["error"]["code"]) for row in rows[1:]] == [
        (name, None, code) for _, name, code in wrong
    ]


def test_what_requests_say_themselves_cannot_be_set(sgl: Sgl, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(line("a")))
    code, _, err = sgl("batch", path, "--out", tmp_path / "out", "--question", "Why?")
    assert code == 2
    assert "OpenAI's format" in err

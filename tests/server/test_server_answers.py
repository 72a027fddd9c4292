"""What a client gets: OpenAI's shapes, the engine's answers, and the report beside them."""

import json
from typing import Any

import pytest
from served import QUESTION, Running, about, picture_url, serving

from sgl_engine import ImagePart, Message, Request, SGLEngine
from sgl_engine.chat.tool_calls import render_call
from sgl_engine.request import ToolCall
from sgl_engine.testing import FakeEngine, tiny_vlm

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}


def pieces(server: Running, messages: Any = QUESTION, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, which ends as OpenAI's do."""
    answer = server.chat(messages, stream=True, **fields)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def test_an_answer_has_openais_shape_and_the_report(server: Running) -> None:
    answer = server.chat(about(picture_url()), model="sgl")
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "sgl"
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "a red fox", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    report = body["sgl"]
    assert (report["route"], report["escalated"]) == ("small", False)
    usage = body["usage"]
    assert usage["prompt_tokens"] == report["small_input_tokens"]
    assert usage["completion_tokens"] == report["small_output_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["image_tokens"] == report["visual_tokens"] > 0
    assert answer.headers["x-sgl-route"] == "small"
    assert float(answer.headers["x-sgl-score"]) == pytest.approx(report["score"], abs=1e-4)
    assert float(answer.headers["x-sgl-saved"]) == pytest.approx(report["saved_fraction"], abs=1e-4)


def test_the_pieces_of_a_stream_are_the_whole_answer(server: Running) -> None:
    chunks = pieces(server, stream_options={"include_usage": True})
    whole = server.chat().json()
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]] == [
        "stop"
    ]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    last = chunks[-1]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["sgl"]["route"] == "small"
    assert [chunk for chunk in chunks[:-1] if "usage" in chunk] == []


def test_without_usage_the_report_comes_with_the_last_piece(server: Running) -> None:
    chunks = pieces(server)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["sgl"]["route"] == "small"
    assert not any("usage" in chunk for chunk in chunks)


def test_the_decision_is_in_the_headers_before_the_answer_is_there(server: Running) -> None:
    answer = server.chat([{"role": "user", "content": "hard"}], stream=True, max_tokens=16)
    assert answer.headers["x-sgl-route"] == "large"
    assert float(answer.headers["x-sgl-score"]) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "route", "forced"),
    [
        ({"model": "sgl:small"}, "small", True),
        ({"model": "sgl:large"}, "large", True),
        ({"sgl": {"escalate": "always"}}, "large", True),
        ({"sgl": {"threshold": 0.95}}, "large", False),
        ({"sgl": {"threshold": 0.85}}, "small", False),
    ],
)
def test_a_request_chooses_its_route(server: Running, fields: Any, route: str, forced: bool) -> None:
    report = server.chat(max_tokens=16, **fields).json()["sgl"]
    assert (report["route"], report["forced"]) == (route, forced)


def test_a_request_chooses_what_the_large_model_sees(server: Running) -> None:
    def report(**own: Any) -> dict[str, Any]:
        own = {"escalate": "always", **own}
        found: dict[str, Any] = server.chat(about(picture_url()), max_tokens=16, sgl=own).json()["sgl"]
        return found

    assert report(retention="64%")["keep_ratio"] == 0.4
    assert report(retention="100%")["keep_ratio"] == 1.0


@pytest.fixture(scope="module")
def pair() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


def test_the_engines_own_answer_comes_out(pair: SGLEngine) -> None:
    """Every setting reaches the engine: the same request, asked directly, has the same answer."""
    url = picture_url("blue")
    fields = {
        "max_completion_tokens": 12,
        "temperature": 1.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": "zz",
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logprobs": True,
        "top_logprobs": 2,
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "logit_bias": {"70": 3.0},
    }
    request = Request(
        messages=(Message("user", ("What is it?", ImagePart(url))),),
        max_new_tokens=12,
        temperature=1.5,
        top_p=0.9,
        seed=7,
        stop=("zz",),
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logprobs=True,
        top_logprobs=2,
        top_k=50,
        min_p=0.01,
        repetition_penalty=1.1,
        logit_bias={70: 3.0},
    )
    with serving(pair) as server:
        body = server.chat(about(url), **fields).json()
    wanted = pair.run(request)
    [choice] = body["choices"]
    assert choice["message"]["content"] == wanted.text
    tokens = choice["logprobs"]["content"]
    assert [token["token"] for token in tokens] == [token.token for token in wanted.tokens]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * len(tokens)
    assert body["sgl"]["score"] == pytest.approx(wanted.report.score)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": picture_url(), "detail": "high"}},
        {"type": "image_url", "image_url": picture_url()},
        {"type": "image_url", "image_url": picture_url().partition(",")[2]},
        {"type": "input_image", "image_url": picture_url()},
        {"type": "image", "image": picture_url()},
    ],
    ids=["OpenAI", "bare string", "bare base64", "Responses", "template"],
)
def test_a_picture_may_come_in_every_form(server: Running, part: dict[str, Any]) -> None:
    content = ["Look:", part, {"type": "text", "text": "What is it?"}]
    body = server.chat([{"role": "user", "content": content}]).json()
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 16


def test_a_conversation_keeps_its_roles_calls_and_results() -> None:
    seen = []

    def say(request: Request) -> str:
        seen.append(request)
        return "done"

    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a fox"}]},
    ]
    with serving(FakeEngine(say)) as server:
        assert server.chat(messages, tools=[TOOL], user="u", metadata={}, store=None).status_code == 200
    system, user, assistant, tool = seen[0].messages
    assert (system.role, system.content) == ("system", ("Be brief.",))
    assert user.content == ("Look.",)
    assert assistant.tool_calls == (ToolCall("c1", "look", {"at": "it"}),)
    assert assistant.reasoning == "hm"
    assert (tool.tool_call_id, tool.content) == ("c1", ("a fox",))
    assert seen[0].tools[0].name == "look"


@pytest.mark.parametrize("broken_first", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_come_whole_or_in_pieces(stream: bool, broken_first: bool) -> None:
    calls_made = [render_call(ToolCall("x", "look", {"at": "the fox"})), "<tool_call>{broken</tool_call>"]
    said = "".join(reversed(calls_made) if broken_first else calls_made)
    with serving(FakeEngine(lambda request: said)) as server:
        if stream:
            calls: dict[int, dict[str, str]] = {}
            chunks = pieces(server, tools=[TOOL])
            for chunk in chunks:
                for each in chunk["choices"][0]["delta"].get("tool_calls", ()):
                    call = calls.setdefault(
                        each["index"], {"arguments": "", **each["function"], "id": each.get("id")}
                    )
                    if "id" not in each:
                        call["arguments"] += each["function"]["arguments"]
            read = [(call["name"], call["arguments"]) for _, call in sorted(calls.items())]
            finish = chunks[-1]["choices"][0]["finish_reason"]
        else:
            [choice] = server.chat(tools=[TOOL]).json()["choices"]
            assert choice["message"]["content"] is None
            functions = [call["function"] for call in choice["message"]["tool_calls"]]
            read = [(function["name"], function["arguments"]) for function in functions]
            finish = choice["finish_reason"]
    assert finish == "tool_calls"
    assert len(read) == 2
    [(_, arguments)] = [call for call in read if call[0] == "look"]
    assert json.loads(arguments) == {"at": "the fox"}
    assert [
        call for call in read if "broken" in call[1]
    ]  # as the model wrote it: nobody repairs it into a call that was not meant


def test_a_forced_call_and_a_schema_hold_the_answer(pair: SGLEngine) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema}}
    choice = {"type": "function", "function": {"name": "look"}}
    short = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
    with serving(pair) as server:
        body = server.chat(response_format=form, max_tokens=64).json()
        assert json.loads(body["choices"][0]["message"]["content"])["n"] in (1, 2)
        called = server.chat(
            tools=[short], tool_choice=choice, parallel_tool_calls=False, max_tokens=128
        ).json()
    [made] = called["choices"][0]["message"]["tool_calls"]
    assert made["function"]["name"] == "look"


def test_tokens_are_counted_as_either_model_reads_them(server: Running) -> None:
    body = server.client.post("/tokenize", json={"messages": about(picture_url())}).json()
    assert body["visual_tokens"] == 16
    assert body["count"] == len(body["tokens"]) == body["sgl"]["large"]["count"]
    asked = server.chat(about(picture_url()), sgl={"escalate": "always"}, max_tokens=16).json()
    assert body["count"] == asked["usage"]["prompt_tokens"]
    text = server.client.post("/tokenize", json={"prompt": "hello", "model": "sgl:small"}).json()
    assert (text["visual_tokens"], text["count"]) == (0, text["sgl"]["small"]["count"])


def test_models_are_the_pair_and_its_two(server: Running) -> None:
    cards = server.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["sgl", "sgl:small", "sgl:large"]
    assert server.client.get("/v1/models/sgl:small").json() == cards[1]
    assert cards[1]["root"].endswith("small")
    assert all(card["max_model_len"] == 2048 for card in cards)

"""Typed questions over HTTP: OpenAI's client and LangChain's OpenAIDecisions get the engine's own answers."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from pydantic import SecretStr
from served import Running, about, picture_url, serving

from sgl_engine import EngineConfig, ImagePart, Message, Request, SchedulerConfig, SGLEngine
from sgl_engine.decisions import (
    ChoiceAnswer,
    ChoiceQuestion,
    DecisionConfig,
    ScoreAnswer,
    ScoreQuestion,
    YesNoAnswer,
    YesNoQuestion,
    decide,
)
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.server import ServerSettings
from sgl_engine.server.deciding import routes
from sgl_engine.server.deciding.translate import MAX_JSON_VALUES
from sgl_engine.testing import FakeHostedModel, tiny_vlm

openai = pytest.importorskip("openai", reason="needs the extra test")
langchain_decisions = pytest.importorskip("langchain_openai.decisions", reason="needs the extra test")

KEY = "s3cret"
LIMIT_S = 60.0
"""Only ends a hang."""
RED = {"type": "predicate", "name": "red", "instructions": "Is it red?"}
COLOR = {
    "type": "choice",
    "name": "color",
    "instructions": "Which color is it?",
    "choices": [{"value": "red", "description": "As blood."}, {"value": "blue"}],
}
SIZE = {
    "type": "score",
    "name": "size",
    "instructions": "How large is it?",
    "levels": [{"label": "small"}, {"label": "medium", "description": "In between."}, {"label": "large"}],
}
QUESTIONS = [RED, COLOR, SIZE]
ASKED = {
    "red": YesNoQuestion("Is it red?"),
    "color": ChoiceQuestion("Which color is it?", ["red", "blue"], ["As blood.", None]),
    "size": ScoreQuestion("How large is it?", ["small", "medium: In between.", "large"]),
}


def about_picture(url: str) -> list[dict[str, Any]]:
    parts = [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": url, "detail": "high"},
    ]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def pair() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


@pytest.fixture(scope="module")
def tiny(pair: SGLEngine) -> Iterator[Running]:
    with serving(pair, ServerSettings(api_key=SecretStr(KEY))) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture
def client(tiny: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def ask(
    server: Running, questions: Any = QUESTIONS, given: Any = "A red fox.", **fields: Any
) -> httpx.Response:
    return server.client.post("/v1/decisions", json={"input": given, "questions": questions, **fields})


def test_openais_client_gets_the_engines_answers(client: Any, pair: SGLEngine) -> None:
    given = about_picture(picture_url())
    decision = client.decisions.create(model="sgl", input=given, questions=QUESTIONS)
    state = [Message("user", ("Look:", ImagePart(picture_url())))]
    expected = decide(pair, state, ASKED)
    red, color, size = decision.answers
    assert decision.model == "sgl"
    assert [(a.type, a.name) for a in decision.answers] == [
        ("predicate", "red"),
        ("choice", "color"),
        ("score", "size"),
    ]
    yes_no, choice, score = expected.answers.values()
    assert isinstance(yes_no, YesNoAnswer)
    assert isinstance(choice, ChoiceAnswer)
    assert isinstance(score, ScoreAnswer)
    assert red.probability == pytest.approx(yes_no.probability, abs=1e-5)
    assert (color.choice, color.confidence) == (choice.choice, pytest.approx(choice.confidence, abs=1e-4))
    assert [(p.value, p.probability) for p in color.probabilities] == [
        (value, pytest.approx(probability, abs=1e-5)) for value, probability in choice.probabilities.items()
    ]
    assert size.score == pytest.approx(score.score, abs=1e-4)
    assert [(p.label, p.value) for p in size.probabilities] == [("small", 0), ("medium", 1), ("large", 2)]
    assert [p.probability for p in size.probabilities] == pytest.approx(list(score.probabilities), abs=1e-5)
    usage = decision.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0
    assert usage.input_tokens == expected.input_tokens
    assert usage.input_tokens_details.cache_write_tokens == usage.output_tokens_details.reasoning_tokens == 0
    other = client.decisions.create(
        model="sgl", input=about_picture(picture_url("blue")), questions=QUESTIONS
    )
    assert other.answers[0].probability != pytest.approx(yes_no.probability, abs=1e-5)  # the control


async def test_openais_client_asynchronously_and_raw(tiny: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key=KEY) as client:
        raw = await client.decisions.with_raw_response.create(
            model="sgl:small",
            input="A red fox.",
            questions=[RED],
            prompt_cache_key="k",
            safety_identifier="s",
        )
    assert raw.headers["x-sgl-route"] == "small"
    report = raw.parse().model_extra["sgl"]
    assert float(raw.headers["x-sgl-score"]) == pytest.approx(report["score"], abs=1e-4)
    assert float(raw.headers["x-sgl-saved"]) == pytest.approx(report["saved_fraction"], abs=1e-4)
    assert report["questions"] == {"small": 1, "large": 0, "refused": 0}
    assert report["reports"][0]["route"] == "small"


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize(
    "given",
    [
        "A red fox.",
        {"seen": ["a fox", {"color": "red"}]},
        [HumanMessage([{"type": "image", "url": picture_url()}, {"type": "text", "text": "What is it?"}])],
        [
            SystemMessage("Be brief."),
            HumanMessage(
                [{"type": "image", "base64": picture_url().partition(",")[2], "mime_type": "image/png"}]
            ),
            AIMessage("A fox."),
        ],
    ],
    ids=["text", "JSON", "picture", "conversation"],
)
def test_langchains_model_of_openais_decisions(tiny: Running, given: Any) -> None:
    model = langchain_decisions.OpenAIDecisions(
        model="sgl", base_url=f"{tiny.url}/v1", api_key=KEY, max_retries=0
    )
    questions = {
        "red": langchain_decisions.Predicate(instructions="Is it red?"),
        "color": langchain_decisions.Choice(
            instructions="Which?", choices={"red": None, True: "Yes, it has one.", "true": None}
        ),
        "size": langchain_decisions.Score(instructions="How large?", levels=["small", "large"]),
    }
    response = model.invoke({"input": given, "questions": questions})
    assert list(response.answers) == ["red", "color", "size"]
    assert 0 <= response.predicates["red"].probability <= 1
    color = response.choices["color"]
    assert set(color.probabilities) == {"red", True, "true"}
    assert sum(color.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert color.probabilities[color.choice] == max(color.probabilities.values())
    assert response.scores["size"].legend == {0: "small", 1: "large"}
    assert response.usage.input_tokens
    assert response.request_id
    model._client.close()


@pytest.mark.parametrize(
    ("fields", "route"),
    [
        ({"model": "sgl:small"}, "small"),
        ({"model": "sgl:large"}, "large"),
        ({"sgl": {"threshold": 1.0}}, "large"),
    ],
)
def test_a_request_chooses_its_route(tiny: Running, fields: Any, route: str) -> None:
    body = ask(tiny, **fields).json()
    assert {each["route"] for each in body["sgl"]["reports"]} == {route}
    assert body["sgl"]["questions"][route] == 3
    assert body["sgl"]["route"] == route


def test_labels_and_orders_are_settings_of_a_request(tiny: Running, pair: SGLEngine) -> None:
    body = ask(tiny, [COLOR], sgl={"permutations": 2, "labels": "letters"}).json()
    config = DecisionConfig(permutations=2, labels="letters")
    [expected] = decide(pair, "A red fox.", {"color": ASKED["color"]}, config).answers.values()
    assert isinstance(expected, ChoiceAnswer)
    assert body["answers"][0]["probabilities"][0]["probability"] == pytest.approx(
        expected.probabilities["red"], abs=1e-5
    )
    assert body["sgl"]["reports"][0]["orders"] == 2


def test_conversations_calls_and_json_are_evidence(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []
    original = routes.decide

    def spy(engine: Any, state: Any, *given: Any) -> Any:
        seen.append(state)
        return original(engine, state, *given)

    monkeypatch.setattr(routes, "decide", spy)
    given = [
        {"role": "developer", "content": "Be strict."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_json", "data": {"n": [1, {"é": None}]}}],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}], "phase": "commentary"},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"at": "it"}'},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [
                {"type": "input_text", "text": "seen"},
                {"type": "input_image", "image_url": picture_url()},
            ],
        },
        {"type": "custom_tool_call", "call_id": "b", "name": "shell", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "receipt.png"},
    ]
    body = ask(tiny, [RED], given).json()
    assert body["answers"][0]["type"] == "predicate"
    messages = seen[0].messages
    assert [message.role for message in messages] == [
        "system",
        "user",
        "assistant",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]
    assert messages[1].content == ('{"n":[1,{"é":null}]}',)
    assert messages[3].tool_calls[0].arguments == {"at": "it"}
    assert isinstance(messages[4].content[1], ImagePart)
    assert messages[5].tool_calls[0].arguments == {"input": "ls"}


def test_instructions_may_hold_pictures(tiny: Running) -> None:
    parts = [
        {"type": "input_text", "text": "Is it like this one?"},
        {"type": "input_image", "image_url": picture_url("blue")},
    ]
    question = {"type": "predicate", "instructions": parts}
    plain = {"type": "predicate", "instructions": "Is it like this one?"}
    with_picture, without = ask(tiny, [question, plain]).json()["answers"]
    assert with_picture["name"] is None
    assert with_picture["probability"] != pytest.approx(without["probability"], abs=1e-6)


def test_a_question_that_cannot_be_put_is_refused_alone(tiny: Running) -> None:
    long = {"type": "predicate", "name": "long", "instructions": "long " * 3000}
    broken = [{"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="}]
    bad = {"type": "predicate", "name": "bad", "instructions": broken}
    body = ask(tiny, [RED, long, bad, SIZE]).json()
    assert [(each["type"], each["name"]) for each in body["answers"]] == [
        ("predicate", "red"),
        ("refusal", "long"),
        ("refusal", "bad"),
        ("score", "size"),
    ]
    report = body["sgl"]
    assert [(each["index"], each["code"]) for each in report["refusals"]] == [
        (1, "context_length_exceeded"),
        (2, "corrupt_image"),
    ]
    assert report["reports"][1] is None
    assert report["questions"]["refused"] == 2


BROKEN = about_picture("data:image/png;base64,aGVsbG8=")
MANY = [RED] * 401
DEEP: Any = {}
for _ in range(40):
    DEEP = {"deeper": DEEP}


def choice(*values: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}


CALL = {"type": "function_call", "call_id": "None", "name": "look", "arguments": "{}"}
"""Its id is not that of an output without one."""


def said(part: Any, role: str = "user") -> dict[str, Any]:
    return {"input": [{"role": role, "content": [part]}]}


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"input": ""}, 400, "invalid_value", None),
        ({"input": [{"role": "user", "content": ""}]}, 400, "invalid_value", None),
        ({"input": [{"role": "user", "content": []}]}, 400, "invalid_value", None),
        ({"input": []}, 400, "invalid_value", "input"),
        ({"input": None}, 400, "invalid_value", "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", None),
        ({"input": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", None),
        ({"input": [{"role": "user", "content": 7}]}, 400, "invalid_value", None),
        ({"input": [{"type": "web_search_call"}]}, 400, "invalid_value", None),
        ({"input": [{"type": ["message"]}]}, 400, "invalid_value", None),
        ({"input": [{"type": "function_call", "name": "x"}]}, 400, "invalid_value", None),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
            400,
            "invalid_value",
            None,
        ),
        ({"input": [CALL, {"type": "function_call_output", "output": "y"}]}, 400, "invalid_value", None),
        ({"input": {}}, 400, "invalid_value", "input"),
        (said({"type": "input_text", "text": {"a": 1}}), 400, "invalid_value", None),
        (said({"type": "input_audio"}), 400, "invalid_value", None),
        (said({"type": "input_json", "data": 7}), 400, "invalid_value", None),
        (said({"type": "input_json", "data": DEEP}), 400, "invalid_value", None),
        (said({"type": "input_json", "data": {"a": [0] * MAX_JSON_VALUES}}), 400, "invalid_value", None),
        (said({"type": "input_json", "data": {"a": "x" * 300_000}}), 400, "invalid_value", None),
        (said({"type": "input_image", "image_url": "file:///etc/passwd"}), 400, "unsafe_path", None),
        ({"input": about_picture("https://127.0.0.1/x.png")}, 400, "unsafe_url", None),
        ({"input": BROKEN}, 400, "corrupt_image", None),
        ({"input": "long " * 3000}, 400, "context_length_exceeded", None),
        ({"questions": []}, 400, "invalid_value", "questions"),
        ({"questions": MANY}, 400, "invalid_value", "questions"),
        ({"questions": [{"type": "riddle", "instructions": "?"}]}, 400, "invalid_value", "questions.0"),
        ({"questions": [RED, {"type": "predicate"}]}, 400, "invalid_value", "questions.1.instructions"),
        ({"questions": [{**RED, "nmae": "x"}]}, 400, "unknown_parameter", "questions.0.nmae"),
        ({"questions": [{**RED, "instructions": " "}]}, 400, "invalid_value", "questions.0"),
        ({"questions": [choice("only")]}, 400, "invalid_value", "questions.0.choices"),
        ({"questions": [choice(*map(str, range(256)))]}, 400, "invalid_value", "questions.0.choices"),
        ({"questions": [choice("a", "a")]}, 400, "invalid_value", "questions.0"),
        ({"questions": [choice("a", 7)]}, 400, "invalid_value", "questions.0.choices.1.value"),
        ({"questions": [choice("a", " ")]}, 400, "invalid_value", "questions.0"),
        ({"questions": [{**SIZE, "levels": [{"label": "a"}]}]}, 400, "invalid_value", "questions.0.levels"),
        ({"model": "gpt-6-luna"}, 404, "model_not_found", "model"),
        ({"sgl": {"permutations": 25}}, 400, "invalid_value", "sgl.permutations"),
        ({"sgl": {"scorer": "x"}}, 400, "unknown_parameter", "sgl.scorer"),
        ({"temperature": 1}, 400, "unknown_parameter", "temperature"),
        ({"sgl": {"timeout_s": 1e-6}}, 408, "deadline", None),
    ],
)
def test_bad_questions_are_told_what_is_wrong(
    tiny: Running, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = tiny.client.post("/v1/decisions", json={"input": "A fox.", "questions": [RED], **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error


def test_a_name_goes_back_as_it_came(tiny: Running) -> None:
    """JSON can write half a surrogate pair, and UTF-8 cannot."""
    content = json.dumps({"input": "A fox.", "questions": [{**RED, "name": "\ud800é"}]}).encode()
    headers = {"content-type": "application/json"}
    answer = tiny.client.post("/v1/decisions", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["answers"][0]["name"] == "\ud800é"


def test_as_many_choices_as_openai_takes() -> None:
    many = choice(*(f"{number}" for number in range(255)))
    vlms = [tiny_vlm(size=size, context_tokens=8192) for size in ("small", "large")]
    with serving(SGLEngine(*vlms)) as server:
        body = ask(server, [*([RED] * 59), many], sgl={"escalate": "never"}).json()
    assert len(body["answers"]) == 60
    assert len({each["probability"] for each in body["answers"][:59]}) <= 2  # up to rounding in batches
    assert len(body["answers"][59]["probabilities"]) == 255


def test_openais_own_errors(client: Any, tiny: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="picture"):
        client.decisions.create(model="sgl", input=BROKEN, questions=[RED])
    with (
        pytest.raises(openai.AuthenticationError),
        openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="x", max_retries=0) as stranger,
    ):
        stranger.decisions.create(model="sgl", input="A fox.", questions=[RED])


def test_a_hosted_large_model_cannot_score() -> None:
    with serving(SGLEngine(tiny_vlm(size="small"), FakeHostedModel("No"))) as server:
        answer = ask(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "config")


def test_the_bundled_pair_is_asked_as_it_was_trained() -> None:
    import base64

    url = "data:image/png;base64," + base64.b64encode((PICTURES / "receipt.png").read_bytes()).decode()
    given = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    question = "How much is the total?"
    with serving(demo_engine()) as server:
        right = server.chat(about(url, question)).json()["choices"][0]["message"]["content"]
        body = ask(server, [{**choice(right, "9.99", "1.11"), "instructions": question}], given).json()
    assert body["answers"][0]["choice"] == right


def test_questions_are_counted(pair: SGLEngine) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs the extra server")
    with serving(pair) as server:
        body = ask(server, [*QUESTIONS, {**RED, "instructions": "long " * 3000}]).json()
        families = parser.text_string_to_metric_families(server.client.get("/metrics").text)
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
    reports = body["sgl"]["reports"]
    for kind, report in zip(("predicate", "choice", "score"), reports, strict=False):
        assert samples["sgl_decisions_total", (("route", report["route"]), ("type", kind))] == 1
    assert samples["sgl_decisions_total", (("route", "refused"), ("type", "predicate"))] == 1
    escalated = sum(report["escalated"] for report in reports[:3])
    assert samples.get(("sgl_escalations_total", (("reason", "decision"),)), 0) == escalated
    assert samples["sgl_score_count", ()] == 3
    assert samples["sgl_stage_seconds_count", (("stage", "decisions"),)] == 1
    tokens = sum(
        samples["sgl_tokens_total", (("kind", "input"), ("model", model))] for model in ("small", "large")
    )
    assert tokens == body["usage"]["input_tokens"]


def test_a_full_queue_is_a_429_and_a_client_that_leaves_stops_its_questions(
    pair: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on, states = threading.Event(), threading.Event(), []
    original = routes.decide

    def hold(engine: SGLEngine, state: Request, *given: Any) -> Any:
        if not inside.is_set():
            states.append(state)
            [ticket] = engine._admit([state])
            with ticket:
                inside.set()
                assert state.cancel is not None
                assert state.cancel.wait(LIMIT_S)
                go_on.set()
        return original(engine, state, *given)

    monkeypatch.setattr(routes, "decide", hold)
    config = EngineConfig(scheduler=SchedulerConfig(max_queue=1))
    with serving(pair.with_config(config)) as server:

        def leave() -> None:
            with pytest.raises(httpx.ReadTimeout):
                server.client.post(
                    "/v1/decisions",
                    json={"input": "x", "questions": [RED]},
                    timeout=httpx.Timeout(LIMIT_S, read=3.0),
                )

        leaving = threading.Thread(target=leave)
        leaving.start()
        assert inside.wait(LIMIT_S)
        refused = ask(server, [RED])
        leaving.join(LIMIT_S)
        assert go_on.wait(LIMIT_S)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert json.loads(refused.text)["error"]["code"] == "rate_limit_exceeded"

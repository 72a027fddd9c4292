"""Tool calls and structured output through the whole engine, on both routes."""

import json
import re
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from oracles import masked_logits, plain_logits
from samples import noise
from schemas import faults
from templates import HERMES
from tolerances import CONTROL, gap, of_logprobs
from torch import Tensor

from sgl_engine import EngineConfig, Request, Response, SGLEngine, TextDelta
from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.text_stream import TextStream
from sgl_engine.chat.tool_calls import render_call
from sgl_engine.chat.tool_stream import ToolCallDelta
from sgl_engine.config import GenerationConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.decoding.constraint import TokenConstraint
from sgl_engine.demo import demo_engine
from sgl_engine.errors import InvalidRequestError
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.model.siblings import Siblings
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.prompt.encoded import PromptBatch
from sgl_engine.pruning.plan import plan_pruning
from sgl_engine.request import Decoding, ToolCall, ToolSpec
from sgl_engine.testing import FakeEngine, tiny_vlm

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}},
    "required": ["name", "age"],
}
ADD = ToolSpec(
    "add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
)
LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {"where": {"enum": ["Left", "right"]}}})
ASK = Request.ask("How many?", noise(40, 50))
FORCED = replace(ASK, tools=(ADD, LOOK), tool_choice="any", max_new_tokens=90)
STRUCTURED = replace(ASK, response_schema=PERSON, max_new_tokens=60)
Route = Literal["never", "always"]


@pytest.fixture(scope="module")
def tiny() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


@pytest.fixture(scope="module", params=["tiny", "bundled"])
def engine(request: pytest.FixtureRequest, tiny: SGLEngine) -> SGLEngine:
    return tiny if request.param == "tiny" else demo_engine()


def on(engine: SGLEngine, route: Route) -> SGLEngine:
    return engine.with_config(engine.config.escalating(route))


@pytest.fixture(params=[{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "sampled"])
def wishes(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.mark.parametrize("route", ["never", "always"])
@pytest.mark.parametrize("name", [None, "look"])
def test_forced_calls_are_valid(
    engine: SGLEngine, route: Route, name: str | None, wishes: dict[str, Any]
) -> None:
    response = on(engine, route).run(replace(FORCED, tool_name=name, **wishes))
    assert response.text == ""
    assert response.invalid_tool_calls == ()
    assert response.tool_calls
    for call in response.tool_calls:
        assert name in {None, call.name}
        assert faults(call.arguments, dict({"add": ADD, "look": LOOK}[call.name].parameters)) == []
    assert response.report.route == {"never": "small", "always": "large"}[route]


@pytest.mark.parametrize("route", ["never", "always"])
def test_structured_answers_are_valid(engine: SGLEngine, route: Route, wishes: dict[str, Any]) -> None:
    response = on(engine, route).run(replace(STRUCTURED, **wishes))
    assert faults(json.loads(response.text), PERSON) == []
    assert response.tool_calls == ()
    if route == "always":
        assert response.plan is not None
        assert response.plan.prunes


def test_the_control_nothing_of_this_comes_by_itself(engine: SGLEngine) -> None:
    for route in ("never", "always"):
        free = on(engine, route).run(replace(ASK, max_new_tokens=60))
        assert not re.fullmatch(r"\s*[\[{].*[\]}]\s*", free.text)
        auto = on(engine, route).run(replace(FORCED, tool_choice="auto"))
        assert auto.tool_calls == ()


def test_seeds_repeat(tiny: SGLEngine) -> None:
    hot = replace(FORCED, tools=(ADD,), temperature=3.0)
    runs = [on(tiny, "never").run(replace(hot, seed=seed)) for seed in (1, 1, 2)]
    arguments = [[(call.name, call.arguments) for call in run.tool_calls] for run in runs]
    assert arguments[0] == arguments[1]
    assert arguments[0] != arguments[2]
    assert runs[0].tool_calls[0].id != runs[1].tool_calls[0].id


def test_deltas_join_to_the_response(engine: SGLEngine) -> None:
    for route in ("never", "always"):
        for request in (FORCED, STRUCTURED, replace(FORCED, tool_choice="auto")):
            decision, *deltas, response = on(engine, route).stream(request)
            assert isinstance(decision, ExitDecision)
            assert isinstance(response, Response)
            assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == response.text
            arguments: dict[int, str] = {}
            for delta in deltas:
                if isinstance(delta, ToolCallDelta):
                    arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
            assert [json.loads(text) for text in arguments.values()] == [
                call.arguments for call in response.tool_calls
            ]


def test_the_large_models_arguments_are_streamed(tiny: SGLEngine) -> None:
    deltas = [event for event in on(tiny, "always").stream(FORCED) if isinstance(event, ToolCallDelta)]
    assert len(deltas) > 4
    assert [delta.id is not None for delta in deltas if delta.index == 0] == [True] + [False] * (
        sum(delta.index == 0 for delta in deltas) - 1
    )


def masked_logprobs(vlm: Any, grammar: str, rows: Tensor, ids: list[int], limit: int) -> Tensor:
    """The scores that masking would give: what is left is renormalised."""
    held = TokenConstraint(
        vlm.processor.tokenizer,
        vocab_size=rows.shape[-1],
        eos_token_ids=vlm.eos_token_ids,
        grammar=grammar,
        max_new_tokens=limit,
    )
    found = []
    for row, token in zip(rows, ids, strict=True):
        found.append(held.restrict(row).log_softmax(-1)[token])
        held.accept(token)
    return torch.stack(found)


@pytest.mark.parametrize("request_", [FORCED, STRUCTURED], ids=["calls", "schema"])
def test_scores_are_those_of_the_unmasked_model(
    tiny: SGLEngine, request_: Request, wishes: dict[str, Any]
) -> None:
    vlm, grammar = tiny.small, answer_grammar(request_)
    assert grammar is not None
    prompt = vlm.encode(request_)
    decoding = Decoding(grammar=grammar, **wishes)
    result = run_small_pass(vlm, AnswerTask(prompt, 60, decoding=decoding))
    ids = result.generation.token_ids.tolist()
    rows = plain_logits(vlm, prompt, ids)[len(prompt) - 1 : -1]
    expected = rows.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    within = of_logprobs(vlm)
    assert gap(result.generation.logprobs, expected) < within
    assert result.parts["confidence"] == pytest.approx(float(expected.mean().exp()), rel=within)
    masked = masked_logprobs(vlm, grammar, rows, ids, 60)
    assert gap(result.generation.logprobs, masked) > CONTROL * within
    assert masked.mean() > expected.mean() + 0.5
    # The consistency pass goes over the same tokens, unmasked as well.
    assert result.consistency_plan is not None
    keep, layer = result.consistency_plan.keep.tolist(), result.consistency_plan.layer
    seen = masked_logits(vlm, prompt, ids, layer=layer, keep=keep)[len(prompt) - 1 : -1]
    consistency = seen.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert result.parts["consistency_geometric_mean"] == pytest.approx(
        float(consistency.mean().exp()), rel=within
    )


def test_scores_of_the_pruned_large_model_are_unmasked(tiny: SGLEngine) -> None:
    vlm, grammar = tiny.large, answer_grammar(STRUCTURED)
    prompt = vlm.encode(STRUCTURED)
    small = run_small_pass(tiny.small, AnswerTask(tiny.small.encode(STRUCTURED), 4))
    assert small.importance is not None
    plan = plan_pruning(prompt, small.importance, layer=2, keep_ratio=0.3)
    result = run_large_pass(vlm, AnswerTask(prompt, 60, decoding=Decoding(grammar=grammar)), plan)
    ids = result.generation.token_ids.tolist()
    rows = masked_logits(vlm, prompt, ids, layer=2, keep=plan.keep.tolist())[len(prompt) - 1 : -1]
    expected = rows.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert faults(json.loads(result.generation.text), PERSON) == []
    assert gap(result.generation.logprobs, expected) < of_logprobs(vlm)


def test_a_whole_answer_ends_by_itself(tiny: SGLEngine) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    response = on(tiny, "never").run(
        replace(STRUCTURED, response_schema=schema, max_new_tokens=200, logprobs=True)
    )
    assert response.finish_reason == "stop"
    assert len(response.tokens) <= len('{"ok": false}')
    assert "".join(token.token for token in response.tokens) == response.text


def test_budgets_that_are_too_small_are_refused_alone(tiny: SGLEngine) -> None:
    for route in ("never", "always"):
        with pytest.raises(InvalidRequestError, match="max_new_tokens to 19 or more"):
            on(tiny, route).run(replace(STRUCTURED, max_new_tokens=18))
        assert on(tiny, route).run(replace(STRUCTURED, max_new_tokens=19)).text.endswith("}")


def test_the_contexts_end_is_a_budget_too() -> None:
    prompt_tokens = len(tiny_vlm(size="large").encode(STRUCTURED))
    for room, whole in ((18, False), (25, True)):
        large = tiny_vlm(size="large", context_tokens=prompt_tokens + room)
        pair = on(SGLEngine(tiny_vlm(size="small"), large), "always")
        if whole:
            assert faults(json.loads(pair.run(STRUCTURED).text), PERSON) == []
        else:
            with pytest.raises(InvalidRequestError, match="but 18 are allowed or left in the context"):
                pair.run(STRUCTURED)


def test_stop_strings_do_not_cut_json(tiny: SGLEngine) -> None:
    for request in (FORCED, STRUCTURED):
        free = on(tiny, "always").run(request)
        stopped = on(tiny, "always").run(replace(request, stop=("{", '"', "a")))
        assert stopped.text == free.text
        assert [call.arguments for call in stopped.tool_calls] == [call.arguments for call in free.tool_calls]


def test_stop_strings_cut_the_text_around_calls_alone() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"STOP": 1}}\n</tool_call>'
    text = "a" + call + "b STOP c"

    def streamed(*, with_calls: bool) -> str:
        stream = TextStream(lambda ids: text[: len(ids)], ("STOP",), with_calls=with_calls)
        for size in range(1, len(text) + 1):
            stream.push(range(size))
            if stream.stopped:
                break
        return stream.text

    assert streamed(with_calls=True) == "a" + call + "b "
    assert streamed(with_calls=False) == text[: text.index("STOP")]  # the control


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tools": (ADD, ADD)}, "a name of its own"),
        ({"tool_name": "cook"}, "'cook'"),
        ({"tools": ()}, "there is none"),
        ({"response_schema": PERSON}, "response_schema"),
        ({"tools": (replace(ADD, parameters={"type": "object", "not": {}}),)}, "'add' cannot be enforced"),
    ],
)
def test_contradictions_are_refused_before_any_work(
    tiny: SGLEngine, changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Siblings, "encode", None)
    with pytest.raises(InvalidRequestError, match=problem):
        tiny.run(replace(FORCED, **changes))


def test_constraining_leaves_other_requests_alone(tiny: SGLEngine) -> None:
    before = on(tiny, "always").run(ASK).text
    on(tiny, "always").run(FORCED)
    on(tiny, "always").run(STRUCTURED)
    assert on(tiny, "always").run(ASK).text == before


TALKATIVE = replace(FORCED, max_new_tokens=None)
CALL = ToolCall("x", "add", {"a": 7})


class TestScripted:
    """The small model's answer is given; what is done with it is real."""

    def engine(self, answer: str, score: float = 1.0) -> FakeEngine:
        return FakeEngine(lambda _: answer, score=score, config=EngineConfig(generation=LONG))

    def test_calls_are_read(self) -> None:
        answer = "I add.\n" + render_call(CALL) + "\n" + render_call(CALL)
        decision, *deltas, response = self.engine(answer).stream(replace(TALKATIVE, tool_choice="auto"))
        assert isinstance(decision, ExitDecision)
        assert isinstance(response, Response)
        assert response.text == "I add."
        assert [(call.name, call.arguments) for call in response.tool_calls] == [("add", {"a": 7})] * 2
        assert deltas[0] == TextDelta("I add.")
        assert {delta.id for delta in deltas[1:] if isinstance(delta, ToolCallDelta)} - {None} == {
            call.id for call in response.tool_calls
        }

    def test_calls_that_cannot_be_read(self) -> None:
        response = self.engine("<tool_call>add(7)</tool_call>").run(replace(TALKATIVE, tool_choice="auto"))
        assert response.tool_calls == ()
        [call] = response.invalid_tool_calls
        assert "not JSON" in call.error

    @pytest.mark.parametrize("request_", [ASK, replace(TALKATIVE, tool_choice="none")])
    def test_without_tools_a_call_is_text(self, request_: Request) -> None:
        response = self.engine(render_call(CALL)).run(request_)
        assert response.text == render_call(CALL)
        assert response.tool_calls == ()

    def test_with_a_schema_a_call_comes_first_or_not_at_all(self) -> None:
        both = replace(STRUCTURED, max_new_tokens=None, tools=(ADD,))
        tag = json.dumps({"name": render_call(CALL), "age": 3})
        assert self.engine(tag).run(both).text == tag
        assert len(self.engine(render_call(CALL)).run(both).tool_calls) == 1

    def test_an_overruled_call_is_compared(self) -> None:
        """The large model calls `add` as well, but with arguments of its own."""
        flag = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
        tools = (replace(ADD, parameters=flag),)
        forced = replace(FORCED, tools=tools, parallel_tool_calls=False, max_new_tokens=150)
        large = self.engine(render_call(CALL), score=0.0).run(forced)
        assert large.report.small_answer == render_call(CALL)
        assert large.report.large_agreed is False
        same = "\n".join(map(render_call, large.tool_calls))
        again = self.engine(same, score=0.0).run(forced)
        assert again.report.large_agreed is True

    def test_formats_of_the_models_own(self) -> None:
        engine = self.engine('Let me. <call:add>{"a": 7}</call>')
        engine.small.processor.chat_template = "{% if tools %}{{ tools }}{% endif %}" + HERMES.replace(
            "tool_call>", "call>"
        )
        engine.small.processor.tokenizer.response_template = OWN_FORMAT
        _, *deltas, response = engine.stream(replace(TALKATIVE, tool_choice="auto"))
        assert isinstance(response, Response)
        assert response.text == "Let me."
        assert [(call.name, call.arguments) for call in response.tool_calls] == [("add", {"a": 7})]
        assert deltas == [
            TextDelta("Let me."),
            ToolCallDelta(0, response.tool_calls[0].id, "add", '{"a": 7}'),
        ]
        plain = self.engine("Just text.")
        plain.small.processor = engine.small.processor
        assert plain.run(replace(TALKATIVE, tool_choice="auto")).text == "Just text."


LONG = GenerationConfig(max_new_tokens=400)
OWN_FORMAT = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<call:(?P<name>\w+)>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}


@pytest.fixture
def eager() -> SGLEngine:
    """A pair that begins a call whatever it is asked, and then says whatever random weights say."""
    pair = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))
    for vlm in (pair.small, pair.large):
        tag = vlm.processor.tokenizer("<tool_call>").input_ids

        def patched(
            embeddings: Tensor,
            *,
            batch: PromptBatch,
            first_position: int,
            cache: Any,
            forward: Any = vlm.forward_batch,
            tag: Any = tag,
            **rest: Any,
        ) -> Tensor:
            given = {"batch": batch, "first_position": first_position, "cache": cache}
            logits: Tensor = forward(embeddings, **given, **rest).clone()
            if cache is not None:  # else the answer is there
                rows = logits.shape[1]
                after = first_position + embeddings.shape[1] - rows + 1 - batch.tokens
                for row in range(rows):
                    if 0 <= after + row < len(tag):
                        logits[:, row, tag[after + row]] += 100
            return logits

        vlm.forward_batch = patched  # type: ignore[method-assign]
    return pair


@pytest.mark.parametrize("route", ["never", "always"])
def test_a_call_that_the_model_begins_is_made_a_valid_one(eager: SGLEngine, route: Route) -> None:
    request = replace(FORCED, tool_choice="auto", max_new_tokens=120)
    response = on(eager, route).run(request)
    assert response.tool_calls
    assert response.invalid_tool_calls == ()
    for call in response.tool_calls:
        assert faults(call.arguments, dict({"add": ADD, "look": LOOK}[call.name].parameters)) == []
    short = on(eager, route).run(replace(request, max_new_tokens=30))
    assert short.tool_calls == short.invalid_tool_calls == ()  # no room, so none was begun
    without = on(eager, route).run(replace(request, tools=()))
    assert without.text.startswith("<tool_call>")  # the control: gibberish follows
    assert without.tool_calls == ()

"""Models that think before they answer: thoughts apart, with a budget; all else is about the answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from repositories import write
from samples import noise

from sgl_engine import VLM, Message, ReasoningDelta, Request, Response, SGLEngine, TextDelta
from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.template import render
from sgl_engine.chat.thoughts import ReasoningText
from sgl_engine.config import PRESETS, EngineConfig, ExitConfig, GenerationConfig, LimitsConfig
from sgl_engine.decoding.answer import Answer, AnswerTask, Generation
from sgl_engine.exit import measure_answer
from sgl_engine.request import Decoding, ToolCall, ToolSpec

PICTURE = noise(40, 30)
ASKED = Request.ask("What is it?", PICTURE, max_new_tokens=6)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, "required": ["a"]}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """Its template opens the thoughts."""
    return VLM.from_pretrained(write("qwen3_vl thinking", tmp_path_factory.mktemp("models") / "thinking"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """Its template opens them or closes them, as ``enable_thinking`` says; recurrent layers."""
    return VLM.from_pretrained(write("qwen3_5", tmp_path_factory.mktemp("models") / "hybrid"))


def ids_of(vlm: VLM, text: str) -> list[int]:
    ids: list[int] = vlm.processor.tokenizer.encode(text, add_special_tokens=False)
    return ids


def say(vlm: VLM, request: Request, text: str, **decoding: Any) -> tuple[Generation, list[str]]:
    """What becomes of an answer whose model says ``text``."""
    answer = Answer(vlm, AnswerTask(vlm.encode(request), request.max_new_tokens or 20, Decoding(**decoding)))
    pieces = []
    for token in ids_of(vlm, text):
        if answer.over:
            break
        pieces.append(answer.take(torch.eye(vlm.vocab_size)[token] * 50))
    return answer.generation(), pieces


def test_thoughts_are_apart(thinker: VLM) -> None:
    said, pieces = say(thinker, ASKED, "hm, \nthe fox\n</think>\n\nBlue.<|im_end|>")
    assert (said.reasoning, said.text, said.finish_reason) == ("hm, \nthe fox", "Blue.", "stop")
    assert "".join(piece for piece in pieces if isinstance(piece, ReasoningText)) == said.reasoning
    assert "".join(piece for piece in pieces if not isinstance(piece, ReasoningText)) == said.text
    assert said.answer.token_ids.tolist() == ids_of(thinker, "Blue.<|im_end|>")
    assert len(said) == said.reasoning_tokens + len(said.answer)


def test_a_model_may_begin_them_itself(hybrid: VLM) -> None:
    closed = replace(ASKED, chat_template_kwargs={"enable_thinking": False})
    said, _ = say(hybrid, closed, "<think>\nhm\n</think>\n\nBlue.<|im_end|>")
    assert (said.reasoning, said.text) == ("hm", "Blue.")
    said, _ = say(hybrid, closed, "So <think>.<|im_end|>")
    assert (said.reasoning, said.reasoning_tokens) == ("", 0)
    assert "So" in said.text


def test_the_budget_ends_them(thinker: VLM) -> None:
    request = replace(ASKED, max_new_tokens=4)
    said, _ = say(thinker, request, "the quick brown fox is blue the quick brown fox", max_reasoning_tokens=3)
    tags = thinker.thought_tags
    assert tags is not None
    assert said.reasoning_tokens == 3 + len(tags.closing)
    assert said.token_ids[3 : said.reasoning_tokens].tolist() == list(tags.closing)
    assert thinker.processor.tokenizer.decode(tags.closing) == "\n</think>\n\n"
    assert (len(said.answer), said.finish_reason) == (4, "length")


def test_stop_strings_and_limits_are_the_answers(thinker: VLM) -> None:
    text = "blue fox and the blue fox\n</think>\n\nA blue fox<|im_end|>"
    said, _ = say(thinker, replace(ASKED, max_new_tokens=8), text, stop=("fox",))
    assert (said.text, said.finish_reason) == ("A blue ", "stop")
    assert said.reasoning == "blue fox and the blue fox"


def test_an_end_within_thoughts_is_an_empty_answer(thinker: VLM) -> None:
    said, _ = say(thinker, ASKED, "hm<|im_end|>")
    assert (said.reasoning, said.text, len(said.answer)) == ("hm", "", 1)


def by_hand(vlm: VLM, request: Request, thoughts: int) -> tuple[list[int], list[int]]:
    """The oracle: transformers thinks so many tokens, is given the end of thoughts, and answers."""
    prompt, tags = vlm.encode(request), vlm.thought_tags
    assert tags is not None
    inputs = dict(prompt.inputs)
    grown = [*generate(vlm, inputs, thoughts)[-thoughts:], *tags.closing]
    ids = torch.tensor([grown])
    more = {"input_ids": torch.cat((inputs["input_ids"], ids), 1)}
    more["attention_mask"] = torch.ones_like(more["input_ids"])
    if "mm_token_type_ids" in inputs:
        more["mm_token_type_ids"] = torch.cat((inputs["mm_token_type_ids"], torch.zeros_like(ids)), 1)
    whole = generate(vlm, {**inputs, **more}, request.max_new_tokens or 1)
    return grown, whole[more["input_ids"].shape[1] :]


def generate(vlm: VLM, inputs: dict[str, Any], tokens: int) -> list[int]:
    found = vlm.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    ids: list[int] = found[0].tolist()
    return ids


def engine(vlm: VLM, **generation: Any) -> SGLEngine:
    config = EngineConfig(pruning=PRESETS["100%"], generation=GenerationConfig(**generation)).without_reuse()
    return SGLEngine(vlm, vlm, config)


@pytest.mark.parametrize("name", ["thinker", "hybrid"])
@pytest.mark.parametrize("draft", [True, False])
def test_both_models_think_then_answer(name: str, draft: bool, request: pytest.FixtureRequest) -> None:
    """As by hand; drafts are of answers, and taken where thoughts are over."""
    vlm = request.getfixturevalue(name)
    thoughts, answer = by_hand(vlm, ASKED, 5)
    asked = replace(ASKED, max_reasoning_tokens=5, logprobs=True)
    made = engine(vlm, draft=draft)
    for route in ("never", "always"):
        got = made.with_config(made.config.escalating(route)).run(asked)  # type: ignore[arg-type]
        assert got.reasoning == vlm.text(thoughts[:5]).strip()
        assert got.text == vlm.text(answer)
        assert len(got.tokens) == len(answer)
        assert got.report.small_reasoning_tokens == len(thoughts)
        assert got.report.small_output_tokens == len(thoughts) + len(answer)
    assert got.report.large_reasoning_tokens == len(thoughts)
    if draft:
        assert got.report.drafted_tokens
        assert got.report.accepted_tokens == got.report.drafted_tokens


def test_scores_are_the_answers(thinker: VLM) -> None:
    asked = replace(ASKED, max_reasoning_tokens=5)
    got = engine(thinker).run(asked)
    thoughts, answer = by_hand(thinker, ASKED, 5)
    prompt = thinker.encode(ASKED)
    inputs = dict(prompt.inputs)
    forced = torch.tensor([[*thoughts, *answer]])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], forced), 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat((inputs["mm_token_type_ids"], torch.zeros_like(forced)), 1)
    with torch.inference_mode():
        logs = thinker.model(**inputs).logits[0].float().log_softmax(-1)
    begin = len(prompt) + len(thoughts)
    logprobs = [float(logs[begin - 1 + at, token]) for at, token in enumerate(answer)]
    assert got.report.confidence == pytest.approx(
        measure_answer(logprobs, [0.0] * len(answer), None)["confidence"], rel=1e-4
    )


@pytest.mark.parametrize("escalate", ["never", "always"])
def test_an_answer_with_a_form_has_it_behind_the_thoughts(thinker: VLM, escalate: Any) -> None:
    made = engine(thinker)
    made = made.with_config(made.config.escalating(escalate))
    got = made.run(replace(ASKED, max_reasoning_tokens=4, response_schema=SCHEMA, max_new_tokens=20))
    assert json.loads(got.text)["a"] in {"yes", "no"}
    assert got.reasoning


def test_an_answer_with_a_form_is_not_ended_by_thoughts(thinker: VLM) -> None:
    held = answer_grammar(replace(ASKED, response_schema=SCHEMA), LimitsConfig())
    request = replace(ASKED, max_new_tokens=20)
    said, _ = say(thinker, request, "hm<|im_end|>" + "x" * 40, grammar=held)
    assert said.reasoning == "hm"
    assert json.loads(said.text)["a"] in {"yes", "no"}


def test_a_stream_tells_thoughts_from_text(thinker: VLM) -> None:
    for escalate in ("never", "always"):
        made = engine(thinker)
        made = made.with_config(made.config.escalating(escalate))  # type: ignore[arg-type]
        events = list(made.stream(replace(ASKED, max_reasoning_tokens=5)))
        kinds = [type(event) for event in events]
        assert kinds.index(ReasoningDelta) < kinds.index(TextDelta)
        last = events[-1]
        assert isinstance(last, Response)
        assert "".join(e.text for e in events if isinstance(e, ReasoningDelta)) == last.reasoning
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == last.text


def test_batches_think_side_by_side(thinker: VLM) -> None:
    asked = [replace(ASKED, max_reasoning_tokens=count) for count in (0, 2, 7)]
    made = engine(thinker)
    together, alone = made.run_batch(asked), [made.run(each) for each in asked]
    for got, expected in zip(together, alone, strict=True):
        assert isinstance(got, Response)
        assert (got.text, got.reasoning) == (expected.text, expected.reasoning)
    assert alone[0].reasoning == ""


def test_a_budget_of_nothing_closes_the_prompt(thinker: VLM) -> None:
    closed = thinker.encode(replace(ASKED, max_reasoning_tokens=0))
    open_ = thinker.encode(ASKED)
    texts = [thinker.processor.tokenizer.decode(each.input_ids[0]) for each in (open_, closed)]
    assert texts[1] == texts[0] + "\n</think>\n\n"
    got = engine(thinker).run(replace(ASKED, max_reasoning_tokens=0))
    assert (got.reasoning, got.report.small_reasoning_tokens) == ("", 0)


def test_scored_answers_follow_the_thoughts(thinker: VLM) -> None:
    scored = engine(thinker).score_answers(ASKED, ["yes", "no"], model="small")
    assert scored.report.small_input_tokens == len(thinker.encode(replace(ASKED, max_reasoning_tokens=0)))


def test_history_is_without_thoughts_but_where_the_template_wants_them(hybrid: VLM) -> None:
    """Qwen3.5's shows those of the turns since the last question: between calls of tools."""
    tool = ToolSpec("look", "", {"type": "object", "properties": {}})
    call = Message("assistant", ("",), (ToolCall("c", "look", {}),), reasoning="I look </think> it up.")
    talk = (Message("user", ("Hi",)), call, Message("tool", ("Blue.",), tool_call_id="c"))
    text = shown(hybrid, Request(talk, tools=(tool,)))
    assert "<think>\nI look </think> it up.\n</think>" in text
    later = (*talk, Message("assistant", ("Blue.",), reasoning="So"), Message("user", ("Why?",)))
    assert "look </think>" not in shown(hybrid, Request(later, tools=(tool,)))
    ids = hybrid.encode(Request(talk, tools=(tool,))).input_ids[0].tolist()
    assert ids.count(hybrid.processor.tokenizer.convert_tokens_to_ids("</think>")) == 1


def shown(vlm: VLM, request: Request) -> str:
    return render(vlm.processor, request, image_token="<|image_pad|>").shown


def test_models_that_do_not_think_have_no_tags(tmp_path: Path) -> None:
    assert VLM.from_pretrained(write("qwen3_vl", tmp_path / "model")).thought_tags is None


def test_consistency_is_of_the_answer(thinker: VLM) -> None:
    """With everything seen it is the confidence; side by side with an answer of other thoughts, too."""
    asked = [replace(ASKED, max_reasoning_tokens=count) for count in (3, 6)]
    made = SGLEngine(
        *(thinker, thinker),
        EngineConfig(exit=ExitConfig(consistency_keep_ratio=1.0, escalate="never")).without_reuse(),
    )
    for got in made.run_batch(asked):
        assert isinstance(got, Response)
        parts = got.report.score_parts
        assert parts["consistency_geometric_mean"] == pytest.approx(parts["confidence"], rel=1e-4)

"""A neutral question's map taken off: what is right say the model's own forwards over both prompts."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from combinations import half
from samples import noise
from test_family_exactness import FAMILIES, REQUESTS, model
from test_road import by_hand
from tolerances import CONTROL, of_logprobs, relative_gap
from torch import Tensor
from whole_model import attention_sum

from sgl_engine import VLM, EngineConfig, Message, PruningConfig, Request, Response, SGLEngine, cascade
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import RequestCancelledError
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.passes import NeutralMap, run_neutral_batch, work
from sgl_engine.prompt import NEUTRAL_QUESTION, neutral_request
from sgl_engine.pruning import PruningPlan
from sgl_engine.report.clock import Clock
from sgl_engine.request import Decoding, ImagePart, ToolSpec
from sgl_engine.serving.job import Work

PRUNING = PruningConfig(keep_ratio=0.3, neutral=True)
REUSE = ReuseConfig(min_prefix_tokens=4)
ONE, CHAT = REQUESTS["one picture"], REQUESTS["a conversation"]


def engine(vlm: VLM, reuse: ReuseConfig = NO_REUSE) -> SGLEngine:
    """One model in both places, which always escalates."""
    return SGLEngine(vlm, vlm, EngineConfig(pruning=PRUNING, reuse=reuse).escalating("always"))


def by_oracle(vlm: VLM, request: Request, answer: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The map of the question, and that of the neutral one, of which nothing is answered."""
    asked, neutral = vlm.encode(request), vlm.encode(neutral_request(request))
    return attention_sum(vlm, asked, answer), attention_sum(vlm, neutral, answer[:1])


def misplaced(plan: PruningPlan, mass: Tensor) -> float:
    """By how much the best dropped token is above the worst kept one, as a share of the spread of mass."""
    visual = [position for span in plan.spans for position in span.positions]
    kept = torch.isin(torch.tensor(visual), plan.keep)
    return max(0.0, float(mass[~kept].max() - mass[kept].min())) / float(mass.max() - mass.min())


@half(family=FAMILIES, request_=(ONE, CHAT))
def test_what_is_kept_is_what_stands_out_of_both_forwards(family: str, request_: Request) -> None:
    vlm, request = model(family), replace(request_, max_new_tokens=4)
    response = engine(vlm).run(request)
    assert response.plan is not None
    assert response.importance is not None
    assert response.report.neutral
    prompt = vlm.encode(request)
    small = work.run_small_batch(vlm, [AnswerTask(prompt, 4)])[0]
    plain, neutral = by_oracle(vlm, request, small.generation.token_ids.tolist())  # type: ignore[union-attr]
    beyond = plain / plain.sum() - neutral / neutral.sum()
    # Of shares that are subtracted, rounding is relative to the shares, and not to what is left.
    within = of_logprobs(vlm) * float((plain / plain.sum()).max() / (beyond.max() - beyond.min()))
    assert misplaced(response.plan, beyond) < within
    assert misplaced(response.plan, plain) > CONTROL * within  # the control: by the question's map alone
    # What callers are shown is where the model looked.
    assert relative_gap(response.importance.mass, plain) < of_logprobs(vlm)


@pytest.mark.parametrize("family", ["internvl", "gemma3", "qwen3_5"])
def test_a_map_is_known_for_every_question_about_its_pictures(family: str) -> None:
    """Where prompts can be cut, where tokens see what comes after them, and where layers are recurrent."""
    vlm = model(family)
    vlm.store.clear()

    def look(request: Request, reuse: ReuseConfig = REUSE) -> NeutralMap:
        task = AnswerTask(vlm.encode(neutral_request(request), reuse=reuse), 1)
        [found] = run_neutral_batch(vlm, [task], reuse=reuse)
        assert isinstance(found, NeutralMap)
        return found

    first, again = look(ONE), look(replace(ONE, messages=Request.ask("Else?", *sources(ONE)).messages))
    assert (first.ran, again.ran) == (True, False)
    assert torch.equal(first.importance.mass, again.importance.mass)
    alone = look(ONE, NO_REUSE)
    assert alone.ran
    assert alone.importance.num_queries == first.importance.num_queries
    assert relative_gap(first.importance.mass, alone.importance.mass) < of_logprobs(vlm)
    assert look(replace(ONE, cache_salt="of another")).ran
    assert look(CHAT).ran  # other pictures
    vlm.store.clear()


def sources(request: Request) -> list[Any]:
    return [part.source for part in request.images]


def test_known_or_not_the_same_is_kept_and_only_the_work_differs() -> None:
    vlm = model("llava_next")
    vlm.store.clear()
    asked = engine(vlm, REUSE)
    reports = [asked.run(replace(ONE, max_new_tokens=3)) for _ in range(2)]
    first, second = reports
    assert kept(first) == kept(second)
    assert first.report.neutral
    assert second.report.neutral
    plain = asked.with_config(asked.config.model_copy(update={"pruning": PruningConfig(keep_ratio=0.3)}))
    without = plain.run(replace(ONE, max_new_tokens=3))
    assert kept(without) != kept(first)  # the control
    assert without.report.neutral is False
    # The map is known by then, so the pass costs what it costs without.
    assert second.report.small_tflops == without.report.small_tflops
    vlm.store.clear()


def kept(response: Response) -> list[int]:
    assert response.plan is not None
    return response.plan.keep.tolist()


@pytest.fixture
def pair() -> SGLEngine:
    return engine(model("internvl"))


def test_every_driver_asks_after_the_decision_and_before_the_large_model(pair: SGLEngine) -> None:
    request = replace(ONE, max_new_tokens=3)
    steps = by_hand(pair, cascade.answer(pair._pair, request, Clock()))
    works = [step.model if isinstance(step, Work) else type(step) for step in steps][:4]
    assert works == ["small", ExitDecision, "small", "large"]
    *_, streamed = pair.stream(request)
    answered = [pair.run(request), streamed, pair.submit(request).result(60), *pair.run_batch([request])]
    for response in answered:
        assert isinstance(response, Response)
        assert response.report.neutral
        assert kept(response) == kept(steps[-1])
        assert response.report.small_tflops == steps[-1].report.small_tflops
    exits = pair.with_config(pair.config.escalating("never"))
    steps = by_hand(exits, cascade.answer(exits._pair, request, Clock()))
    assert [type(step) for step in steps][:2] == [Work, ExitDecision]
    assert not [step for step in steps[1:] if isinstance(step, Work)]
    assert steps[-1].report.neutral is None


def test_in_a_batch_neutral_questions_run_together_and_fail_alone(
    pair: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def watched(vlm: VLM, tasks: Sequence[AnswerTask], **settings: Any) -> Any:
        ran.append(len(tasks))
        found = run_neutral_batch(vlm, tasks, **settings)
        gone.set()  # one is cancelled meanwhile, before it comes to the large model
        return found

    monkeypatch.setattr(work, "run_neutral_batch", watched)
    gone = threading.Event()
    other = Request.ask("Which one?", noise(44, 90, 5), max_new_tokens=3)
    requests = [
        replace(ONE, max_new_tokens=3),
        other,
        replace(other, cancel=gone),
        Request.ask("No picture?", max_new_tokens=3),
        replace(other, may_escalate=lambda: False),
    ]
    first, second, cancelled, text, small = pair.run_batch(requests)
    assert ran == [3]
    assert isinstance(cancelled, RequestCancelledError)
    for got, request in ((first, requests[0]), (second, other)):
        assert isinstance(got, Response)
        assert got.report.neutral
        assert kept(got) == kept(pair.run(request))
    assert isinstance(text, Response)
    assert text.report.neutral is False
    assert isinstance(small, Response)
    assert small.report.route == "small"


def test_one_that_is_not_wanted_any_more_is_not_read() -> None:
    vlm, gone = model("internvl"), threading.Event()
    gone.set()
    prompt = vlm.encode(neutral_request(ONE))
    found = run_neutral_batch(vlm, [AnswerTask(prompt, 1, Decoding(cancel=gone)), AnswerTask(prompt, 1)])
    assert isinstance(found[0], RequestCancelledError)
    assert isinstance(found[1], NeutralMap)


def test_given_answers_are_scored_on_the_same_tokens(pair: SGLEngine) -> None:
    scores = pair.score_answers(ONE, ["a", "b"])
    assert scores.report.neutral
    everything = {"pruning": PruningConfig(neutral=True, keep_ratio=1)}
    whole = pair.with_config(pair.config.model_copy(update=everything))
    assert whole.score_answers(ONE, ["a", "b"]).report.neutral is False  # nothing is chosen


def test_the_neutral_request_keeps_what_comes_before_the_question() -> None:
    tool = ToolSpec("look", "Looks.", {"type": "object", "properties": {}})
    first, second = ImagePart("a"), ImagePart("b")
    request = Request(
        (
            Message("system", ("Be brief.",)),
            Message("user", ("First", first, "So?")),
            Message("assistant", ("No.",)),
            Message("user", (second, "And now?")),
        ),
        tools=(tool,),
        cache_salt="mine",
    )
    asked = neutral_request(request)
    assert asked.messages == (
        Message("system", ("Be brief.",)),
        Message("user", (first, second, NEUTRAL_QUESTION)),
    )
    assert replace(asked, messages=request.messages) == request
    # So the usual prompt and the neutral one are the same up to their last visual token.
    vlm = model("internvl")
    one, other = vlm.encode(ONE), vlm.encode(neutral_request(ONE))
    end = max(one.visual_positions) + 1
    assert torch.equal(one.input_ids[:, :end], other.input_ids[:, :end])
    assert one.picture_digests == other.picture_digests

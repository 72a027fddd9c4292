"""The small answer as a draft: where it ends, what is counted, how it streams; nothing else changes."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import REQUESTS, noise
from tolerances import gap, of_logprobs

from sgl_engine import VLM, EngineConfig, ExitConfig, GenerationConfig, Request, Response, SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.chat.text_stream import TextDelta
from sgl_engine.decoding.answer import Answer, AnswerTask
from sgl_engine.decoding.draft import Draft, draft_tokens
from sgl_engine.decoding.loop import MAX_LOGIT_ROWS
from sgl_engine.demo import demo_engine
from sgl_engine.errors import RequestCancelledError
from sgl_engine.passes import run_large_pass
from sgl_engine.passes.large import LargePassResult, stream_large_batch
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import PruningPlan, keep_everything, plan_pruning
from sgl_engine.request import Decoding, ToolSpec
from sgl_engine.testing import FakeEngine, tiny_vlm

Result = TypeVar("Result")

TOKENS = 12
WITHIN = of_logprobs(tiny_vlm(size="large"))
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9999, "minimum": 0}, "name": {"type": "string"}},
    "required": ["n", "name"],
    "additionalProperties": False,
}
LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {}, "additionalProperties": False})


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_vlm(size="large")


@pytest.fixture(scope="module")
def prompt(vlm: VLM) -> EncodedPrompt:
    return vlm.encode(REQUESTS["one image"])


def plan(prompt: EncodedPrompt) -> PruningPlan:
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(1))
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=2, keep_ratio=0.3)


def answer(vlm: VLM, prompt: EncodedPrompt, draft: Any = (), **settings: Any) -> LargePassResult:
    settings = {"max_new_tokens": TOKENS, "stop_at_eos": False} | settings
    return run_large_pass(vlm, AnswerTask(prompt, **settings, draft=tuple(draft)), plan(prompt))


def same(got: LargePassResult, own: LargePassResult) -> None:
    assert torch.equal(got.generation.token_ids, own.generation.token_ids)
    assert got.generation.text == own.generation.text
    assert got.generation.finish_reason == own.generation.finish_reason
    assert gap(got.generation.logprobs, own.generation.logprobs) < WITHIN
    assert got.cache_tokens == own.cache_tokens


def forwards(vlm: VLM, work: Callable[[], Result]) -> tuple[int, Result]:
    """How often the decoder runs, and the result."""
    calls: list[int] = []
    hook = vlm.text_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        result = work()
    finally:
        hook.remove()
    return len(calls), result


def wrong_from(ids: list[int], place: int) -> list[int]:
    """A draft that is right up to a place, and nowhere after it."""
    other = min(set(range(90)) - set(ids))
    return [*ids[:place], *[other] * (len(ids) - place)]


def wrong_at(ids: list[int], place: int) -> list[int]:
    """A draft that is wrong in one place."""
    return [*ids[:place], *wrong_from(ids, place)[place : place + 1], *ids[place + 1 :]]


@pytest.mark.parametrize("longer", [0, 1, 300])
def test_the_limit_within_a_draft(vlm: VLM, prompt: EncodedPrompt, longer: int) -> None:
    own = answer(vlm, prompt)
    ids = [*own.generation.token_ids.tolist(), *[7] * longer]
    for limit in range(1, TOKENS + 1):
        got = answer(vlm, prompt, ids, max_new_tokens=limit)
        same(got, answer(vlm, prompt, max_new_tokens=limit))
        assert (got.drafted_tokens, got.accepted_tokens, got.fed) == (limit - 1, limit - 1, ((0, limit - 1),))


def test_a_draft_that_would_leave_the_context() -> None:
    vlm = tiny_vlm(size="large", context_tokens=64)
    prompt = vlm.encode(Request.ask("?", noise(30, 30)))
    room = vlm.context_tokens - len(prompt)
    own = answer(vlm, prompt, max_new_tokens=1000)
    got = answer(vlm, prompt, own.generation.token_ids.tolist() + [1] * 50, max_new_tokens=1000)
    same(got, own)
    assert (len(got.generation), got.accepted_tokens, len(got.fed)) == (room, room - 1, 1)


def test_the_end_of_the_answer_within_a_draft(vlm: VLM, prompt: EncodedPrompt) -> None:
    ids = answer(vlm, prompt).generation.token_ids.tolist()
    for place in range(TOKENS - 1):
        vlm.model.generation_config.eos_token_id = ids[place]
        own = answer(vlm, prompt, stop_at_eos=True)
        end = len(own.generation)
        for draft in (ids, ids[: end - 1], ids[:end], wrong_at(ids, end), wrong_at(ids, max(0, end - 2))):
            same(answer(vlm, prompt, draft, stop_at_eos=True), own)
        # The draft is the answer without its end: the model ends it in the one forward that checks it.
        assert forwards(vlm, partial(answer, vlm, prompt, ids[: end - 1], stop_at_eos=True))[0] == 1
    vlm.model.generation_config.eos_token_id = vlm.processor.tokenizer.eos_token_id


def test_stop_strings_within_a_draft(vlm: VLM, prompt: EncodedPrompt) -> None:
    whole = answer(vlm, prompt).generation
    ids, stops = whole.token_ids.tolist(), [whole.text[at : at + 2] for at in range(len(whole.text) - 1)]
    ended = 0
    for stop in stops:
        own = answer(vlm, prompt, decoding=Decoding(stop=(stop,)))
        ended += own.generation.finish_reason == "stop"
        for place in (3, 6, TOKENS):
            same(answer(vlm, prompt, wrong_at(ids, place), decoding=Decoding(stop=(stop,))), own)
    assert ended == len(stops)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampling_with_a_draft_is_sampling_without_one(vlm: VLM, prompt: EncodedPrompt, top_p: float) -> None:
    """Draw from the target, accept where the draw is the draft's token: with a seed, the very same tokens."""
    answers = set()
    for seed in range(4):
        decoding = Decoding(temperature=1.3, top_p=top_p, seed=seed)
        own = answer(vlm, prompt, decoding=decoding)
        ids = own.generation.token_ids.tolist()
        answers.add(tuple(ids))
        for place in (0, 5, TOKENS):
            got = answer(vlm, prompt, wrong_from(ids, place), decoding=decoding)
            same(got, own)
            assert got.accepted_tokens == min(place, TOKENS - 1)
            same(answer(vlm, prompt, wrong_at(ids, place), decoding=decoding), own)
    assert len(answers) > 1


def test_a_draw_for_every_fed_token_would_change_what_is_sampled(
    vlm: VLM, prompt: EncodedPrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: drawing behind a rejected token too."""
    decoding = Decoding(temperature=1.3, seed=3)
    own = answer(vlm, prompt, decoding=decoding)
    original = Answer.follow

    def drawing_for_all(self: Answer, logits: torch.Tensor, chunk: list[int], fed: int) -> str:
        text = original(self, logits, chunk, fed)
        for row in logits[len(self.ids) - fed :]:
            self._choose(row)
        return text

    monkeypatch.setattr(Answer, "follow", drawing_for_all)
    got = answer(vlm, prompt, wrong_at(own.generation.token_ids.tolist(), 2), decoding=decoding)
    assert not torch.equal(got.generation.token_ids, own.generation.token_ids)


def test_a_draft_longer_than_the_logits_that_are_held(
    vlm: VLM, prompt: EncodedPrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = answer(vlm, prompt)
    ids = own.generation.token_ids.tolist()
    assert MAX_LOGIT_ROWS >= 256  # room for the default limit, in one forward
    monkeypatch.setattr("sgl_engine.decoding.loop.MAX_LOGIT_ROWS", 4)
    for place in range(TOKENS + 1):
        same(answer(vlm, prompt, wrong_at(ids, place)), own)
    got = answer(vlm, prompt, ids)
    assert got.fed == ((0, 3), (3, 4), (7, 4))
    assert got.accepted_tokens == TOKENS - 1


def test_the_accepted_part_streams_at_once(vlm: VLM, prompt: EncodedPrompt) -> None:
    own = answer(vlm, prompt).generation
    ids = own.token_ids.tolist()
    for place in range(TOKENS + 1):
        task = AnswerTask(prompt, TOKENS, stop_at_eos=False, draft=tuple(wrong_from(ids, place)))
        steps = stream_large_batch(vlm, [task], [plan(prompt)])
        pieces = [piece for step in steps for _, piece in step if isinstance(piece, str)]
        assert "".join(pieces) == own.text
        known = vlm.text(ids[: place + 1])
        final = known if place >= TOKENS - 1 else known.rstrip("\N{REPLACEMENT CHARACTER}")
        assert not final or pieces[0] == final


def test_an_answer_that_comes_back_to_its_draft_goes_on_with_it(vlm: VLM, prompt: EncodedPrompt) -> None:
    """A word replaced, left out or put in costs a forward or two, and not the rest of the draft."""
    own = answer(vlm, prompt, max_new_tokens=28)
    ids = own.generation.token_ids.tolist()[:24]
    other = min(set(range(90)) - set(ids))
    for draft, forwards_at_most in (
        (ids, 4),  # the last four are not drafted
        ([*ids[:4], other, *ids[5:]], 8),
        ([*ids[:4], other, other, *ids[4:]], 8),
        ([*ids[:4], *ids[6:]], 10),
        ([other] * 24, 28),
    ):
        got = answer(vlm, prompt, draft, max_new_tokens=28)
        same(got, own)
        assert len(got.fed) <= forwards_at_most


@pytest.mark.parametrize(
    ("draft", "answer", "accepted"),
    [
        ("abcdef", "abcdef", 6),
        ("abcdef", "abxdef", 5),  # replaced
        ("abxcdef", "abcdef", 5),  # left out: c is there, so what follows is expected behind it
        ("abcdef", "abxcdef", 5),  # put in: c is found again
        ("abcdef", "abab", 2),  # never back to what was right
        ("aaaa", "aaaaaaaa", 4),
        ("abc", "xyz", 0),
        ("", "abc", 0),
    ],
)
def test_what_is_taken_over(draft: str, answer: str, accepted: int) -> None:
    follower = Draft([ord(letter) for letter in draft])
    assert follower.expected() == [ord(letter) for letter in draft]
    for letter in answer:
        follower.take(ord(letter))
    assert follower.accepted == accepted <= len(draft)
    assert follower.wrong == (not draft.startswith(answer))


def test_what_is_expected_grows_with_what_was_right() -> None:
    follower = Draft(range(100))
    follower.take(500)
    lengths = []
    for token in range(1, 8):
        expected = follower.expected()
        lengths.append(len(expected))
        assert expected == list(range(token, token + len(expected)))
        follower.take(token)
    assert lengths == [0, 2, 4, 6, 8, 10, 12]
    follower.take(500)
    assert follower.expected() == []


def test_cancelling_ends_it_within_one_forward(vlm: VLM, prompt: EncodedPrompt) -> None:
    cancel = threading.Event()
    ids = answer(vlm, prompt).generation.token_ids.tolist()
    hook = vlm.text_model.register_forward_hook(lambda *_: cancel.set())
    try:
        with pytest.raises(RequestCancelledError, match="after 1 of 12 answer tokens"):
            answer(vlm, prompt, ids, decoding=Decoding(cancel=cancel))
    finally:
        hook.remove()


# The engine

# Of any two tokens that a model could choose, one is likelier by 100 times what rounding makes.
MIXED: tuple[Request, ...] = (
    replace(REQUESTS["one image"], max_new_tokens=9),
    replace(REQUESTS["several tiles"], max_new_tokens=3, logprobs=True),
    replace(Request.ask("No picture at all?"), max_new_tokens=6),
    replace(REQUESTS["images with text between"], max_new_tokens=12, temperature=0.7, seed=5),
    replace(Request.ask("A number?", noise(40, 40, 3)), max_new_tokens=60, response_schema=SCHEMA),
    replace(Request.ask("Call it.", noise(30, 60, 4)), max_new_tokens=60, tools=(LOOK,), tool_choice="any"),
    replace(Request.ask("Call it?", noise(30, 60, 9)), max_new_tokens=40, tools=(LOOK,), stop=("e", "a")),
)


def escalating(*, draft: bool = True, preset: str = "35%") -> EngineConfig:
    config = EngineConfig.preset(preset).model_copy(update={"generation": GenerationConfig(draft=draft)})
    return config.escalating("always").without_reuse()  # what a pass costs is compared


def outcome(response: Any) -> tuple[Any, ...]:
    assert isinstance(response, Response)
    calls = [(call.name, call.arguments) for call in response.tool_calls]
    return response.text, calls, response.finish_reason, [token.token for token in response.tokens]


@pytest.fixture(scope="module")
def pair() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), escalating())


def test_answers_do_not_depend_on_the_switch(pair: SGLEngine) -> None:
    plain = pair.with_config(escalating(draft=False))
    alone = [plain.run(request) for request in MIXED]
    drafted = [pair.run(request) for request in MIXED]
    batch = pair.run_batch(MIXED)
    assert (
        [outcome(got) for got in drafted]
        == [outcome(own) for own in alone]
        == [outcome(got) for got in batch]
    )
    assert [own.report.drafted_tokens for own in alone] == [0] * len(MIXED)
    assert sum(got.report.accepted_tokens or 0 for got in drafted) > 10  # where a form leaves little choice
    for got, own, one in zip(drafted, alone, batch, strict=True):
        assert isinstance(one, Response)
        assert got.report.accepted_tokens == one.report.accepted_tokens
        # Side by side, rows take their steps together, and so try other numbers of guesses.
        assert own.report.large_tflops < one.report.large_tflops
        assert one.report.large_tflops == pytest.approx(got.report.large_tflops, rel=0.1)
        assert got.report.large_alone_tflops == own.report.large_alone_tflops


def test_one_forward_where_both_models_say_the_same() -> None:
    """A pair of twins, nothing pruned: every draft is right."""
    twins = SGLEngine(tiny_vlm(size="large"), tiny_vlm(size="large"), escalating(preset="100%"))
    requests = [request for request in MIXED if not request.temperature and not request.tools]
    for request in requests:
        count, response = forwards(twins.large, partial(twins.run, request))
        assert count == 1
        assert response.report.large_agreed
        checked = response.report.large_output_tokens - 1
        assert response.report.accepted_tokens == response.report.drafted_tokens == checked
    assert forwards(twins.large, partial(twins.run_batch, requests))[0] == 1


def test_what_was_fed_in_vain_is_counted(pair: SGLEngine) -> None:
    request = MIXED[0]
    wasted = pair.run(request).report
    plain = pair.with_config(escalating(draft=False)).run(request).report
    assert (wasted.drafted_tokens, wasted.accepted_tokens) == (8, 0)
    assert wasted.large_tflops > plain.large_tflops * 1.02
    assert wasted.saved_fraction < plain.saved_fraction


def test_an_early_exit_drafts_nothing(pair: SGLEngine) -> None:
    report = pair.with_config(EngineConfig(exit=ExitConfig(threshold=0.0))).run(MIXED[0]).report
    assert report.drafted_tokens is report.accepted_tokens is None
    scores = pair.score_answers(MIXED[0], ["a", "b"]).report
    assert scores.drafted_tokens is scores.accepted_tokens is None


def test_a_stream_with_a_draft_joins_to_the_answer(pair: SGLEngine) -> None:
    for request in MIXED[:5]:
        _, *deltas, last = pair.stream(request)
        assert isinstance(last, Response)
        assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == last.text


# The draft itself


def said(vlm: VLM, text: str, *more: int) -> list[int]:
    return [*vlm.processor.tokenizer.encode(text, add_special_tokens=False), *more]


def test_one_vocabulary_takes_ids_over_without_the_end() -> None:
    small, large = tiny_vlm(), tiny_vlm(size="large")
    (end,) = large.eos_token_ids
    plain = said(large, "so", end)
    assert draft_tokens(small, large, plain) == tuple(plain[:-1])
    assert draft_tokens(small, large, said(large, "so")) == draft_tokens(small, large, plain)
    assert draft_tokens(small, large, said(large, "", end)) == ()
    # A control token in the middle is part of it, as in a call in a format of the model's own.
    start = large.processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start in draft_tokens(small, large, said(large, "so", start, 70, end))


def test_another_vocabulary_takes_the_text() -> None:
    demo, large = demo_engine().small, tiny_vlm(size="large")
    text = "12.50 red"
    answered = said(demo, text, *sorted(demo.eos_token_ids)[:1])
    draft = draft_tokens(demo, large, answered)
    assert large.text(draft) == text
    assert draft == tuple(large.processor.tokenizer.encode(text, add_special_tokens=False))
    assert set(draft).isdisjoint(large.eos_token_ids)
    assert draft_tokens(large, demo, said(large, text)) == tuple(
        demo.processor.tokenizer.encode(text, add_special_tokens=False)
    )


def test_ids_that_neither_tokenizer_knows_are_no_draft() -> None:
    small, large = tiny_vlm(), tiny_vlm(size="large")
    beyond = len(large.processor.tokenizer) + 1  # rows of the logits that stand for nothing
    assert draft_tokens(small, large, said(large, "so", beyond)) == tuple(
        large.processor.tokenizer.encode("so", add_special_tokens=False)
    )


def test_the_end_written_out_ends_the_draft() -> None:
    demo, large = demo_engine().small, tiny_vlm(size="large")
    written = large.processor.tokenizer.decode(sorted(large.eos_token_ids))
    spoken = [*said(demo, "no"), *said(demo, written + "no")]
    assert large.text(draft_tokens(demo, large, spoken)).strip() == "no"


def test_pairs_with_two_vocabularies_answer_as_without_a_draft() -> None:
    demo, large = demo_engine().small, tiny_vlm(size="large")
    engine = SGLEngine(demo, large, escalating())
    requests = [MIXED[0], MIXED[2], MIXED[4]]
    plain = [outcome(got) for got in engine.with_config(escalating(draft=False)).run_batch(requests)]
    assert [outcome(got) for got in engine.run_batch(requests)] == plain
    assert outcome(engine.run(requests[-1])) == plain[-1]


def test_scripted_engines_draft_too() -> None:
    large = tiny_vlm(size="large")
    request = Request.ask("What?", max_new_tokens=20)
    prompt = large.encode(request)
    own = run_large_pass(large, AnswerTask(prompt, 20), keep_everything(prompt))
    spelt = large.text(own.generation.token_ids.tolist()[:3])
    engine = FakeEngine(lambda _: spelt, score=0.0, large=large)
    assert engine.run(request).text == own.generation.text


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
)
def test_a_draft_comes_back_at_the_nearest_place(tokens: list[int], answer: list[int]) -> None:
    draft, at, earliest = Draft(tokens), 0, 0
    for token in answer:
        draft.take(token)
        if at < len(tokens) and tokens[at] == token:
            at = earliest = at + 1
        else:  # looked for everywhere
            places = (place for place in range(earliest, len(tokens)) if tokens[place] == token)
            at = 1 + min(places, key=lambda place: abs(place - at), default=at)
        assert draft._next == at

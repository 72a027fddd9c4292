"""With a draft, right or wrong in any place, every family says what it says without one."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import pytest
import torch
from combinations import half
from test_family_batches import plans, tasks
from test_family_exactness import (
    FAMILIES,
    IMPLEMENTATIONS,
    attention_of,
    encoded,
    families,
    model,
    random_plan,
    rebuilt,
)
from tolerances import CONTROL, gap, of_logprobs
from whole_model import masked_logits

from sgl_engine import VLM
from sgl_engine.decoding import loop as generation
from sgl_engine.decoding.answer import Answer, AnswerTask
from sgl_engine.decoding.loop import Rewinding
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.passes import run_large_pass
from sgl_engine.passes.large import LargePassResult, run_large_batch
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import PruningPlan

TOKENS = 6
ACCEPTED = (0, 1, 3, 5, 6)
"""Of a draft of all tokens: none, some, all that are checked, and all."""
REQUEST = "a conversation"  # longer than the windows of those that have some
PLANS = {"before layer 0": (0, 0.3), "before layer 3": (3, 0.3), "nothing pruned": (0, 1.0)}
pruned = pytest.mark.parametrize("pruned", PLANS)


def case(family: str, pruned: str) -> tuple[VLM, EncodedPrompt, PruningPlan]:
    prompt = encoded(family, REQUEST)
    return model(family), prompt, random_plan(prompt, *PLANS[pruned])


def large_pass(family: str, pruned: str, draft: list[int]) -> LargePassResult:
    vlm, prompt, plan = case(family, pruned)
    return run_large_pass(vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False, draft=tuple(draft)), plan)


@cache
def own_pass(family: str, pruned: str, implementation: str) -> LargePassResult:
    """The model's own, without a draft."""
    with attention_of(model(family), implementation):
        return large_pass(family, pruned, [])


def wrong_from(ids: list[int], place: int) -> list[int]:
    """A draft that is right up to a place, and nowhere after it."""
    other = min(set(range(90)) - set(ids))
    return [*ids[:place], *[other] * (len(ids) - place)]


def wrong_at(ids: list[int], place: int) -> list[int]:
    """A draft that is wrong in one place."""
    return [*ids[:place], *wrong_from(ids, place)[place : place + 1], *ids[place + 1 :]]


def differs(vlm: VLM, got: LargePassResult, own: LargePassResult, times: float = 1) -> bool:
    """In tokens, or in log-probabilities by more than rounding makes, or by so many times that."""
    return not torch.equal(got.generation.token_ids, own.generation.token_ids) or gap(
        got.generation.logprobs, own.generation.logprobs
    ) > times * of_logprobs(vlm)


@half(family=FAMILIES, implementation=IMPLEMENTATIONS, pruned=PLANS)
def test_whatever_is_accepted_the_answer_is_the_models_own(
    family: str, implementation: str, pruned: str
) -> None:
    own = own_pass(family, pruned, implementation)
    ids = own.generation.token_ids.tolist()
    vlm, prompt, plan = case(family, pruned)
    logits = masked_logits(vlm, prompt, ids[:-1], layer=plan.layer, keep=plan.keep.tolist())
    assert logits[len(prompt) - 1 :].argmax(dim=-1).tolist() == ids
    forwards: list[int] = []
    with attention_of(vlm, implementation):
        for accepted in ACCEPTED:
            with counted(vlm) as found:
                got = large_pass(family, pruned, wrong_from(ids, accepted))
            forwards.append(len(found))
            assert len(got.fed) == len(found)
            assert not differs(vlm, got, own), accepted
            assert got.generation.text == own.generation.text
            # The last token ends the answer, so it is written, not checked.
            assert (got.drafted_tokens, got.accepted_tokens) == (TOKENS - 1, min(accepted, TOKENS - 1))
            assert got.cache_tokens == own.cache_tokens
        assert not differs(vlm, large_pass(family, pruned, wrong_at(ids, 1)), own)
    # One for what is accepted, and one for each token after it.
    if family != "qwen3_5":
        assert forwards == [6, 5, 3, 1, 1]
    elif pruned == "before layer 3":  # reads its prompt first; what is right is fed again with what is wrong
        assert forwards == [6, 6, 4, 2, 2]


@contextmanager
def counted(vlm: VLM) -> Iterator[list[int]]:
    """The decoder's forwards within the context."""
    found: list[int] = []
    hook = vlm.text_model.register_forward_hook(lambda *_: found.append(1))
    try:
        yield found
    finally:
        hook.remove()


class NoWayBack(Rewinding):
    """Says that the cache went back, and leaves it as it is."""

    def back_to(self, wanted: int, position: int) -> int:
        layers, self._layers = self._layers, []
        try:
            self._copies = {}
            return super().back_to(wanted, position)
        finally:
            self._layers = layers


@families
@pruned
def test_a_cache_that_did_not_go_back_is_noticed(
    family: str, pruned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    own = own_pass(family, pruned, "sdpa")
    wrong = wrong_at(own.generation.token_ids.tolist(), 2)
    monkeypatch.setattr(generation, "Rewinding", NoWayBack)
    with suppress(RuntimeError, IndexError):  # masks of another length are noticed by attention itself
        assert differs(model(family), large_pass(family, pruned, wrong), own, CONTROL)


@pytest.mark.parametrize("family", [family for family in TINY_FAMILIES if model(family).has_sliding_layers])
def test_a_window_that_forgot_what_has_left_it_is_noticed(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_engine.decoding.loop.DynamicSlidingWindowLayer", ())
    with pytest.raises(RuntimeError, match="does not track past states"):
        large_pass(family, "before layer 3", [1, 2, 3])


@families
def test_a_token_that_is_not_compared_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: everything behind a wrong token is taken as if it were right."""
    own = own_pass(family, "before layer 3", "sdpa")

    def follow_blindly(self: Answer, logits: torch.Tensor, chunk: list[int], fed: int) -> str:
        known = len(self.ids) - fed - len(chunk) + len(logits) - 1
        return "".join(self.take(row) for row in logits[known:] if self.goes_on())

    monkeypatch.setattr(Answer, "follow", follow_blindly)
    wrong = wrong_at(own.generation.token_ids.tolist(), 2)
    assert differs(model(family), large_pass(family, "before layer 3", wrong), own, CONTROL)


def random_draft(ids: list[int], dice: random.Random) -> tuple[int, ...]:
    """None, or the answer or a part of it, perhaps with a wrong token, perhaps with more after it."""
    wrong = dice.choice([wrong_at, wrong_from])
    draft = wrong(ids, dice.randrange(len(ids) + 1))[: dice.choice([0, 1, 3, len(ids)])]
    return (*draft, *(dice.randrange(90) for _ in range(dice.choice([0, 0, 4]))))


@families
@pytest.mark.parametrize(("implementation", "layer"), [("sdpa", 0), ("eager", 3)])
def test_batches_with_drafts_of_all_kinds(family: str, implementation: str, layer: int) -> None:
    vlm, dice = model(family), random.Random(f"{family} {implementation} {layer}")
    with attention_of(vlm, implementation):
        own = run_large_batch(vlm, tasks(family), plans(family, layer))
        assert all(isinstance(result, LargePassResult) for result in own)
        for _ in range(2):
            drafted = [
                replace(task, draft=random_draft(result.generation.token_ids.tolist(), dice))  # type: ignore[union-attr]
                for task, result in zip(tasks(family), own, strict=True)
            ]
            for got, alone, task in zip(
                run_large_batch(vlm, drafted, plans(family, layer)), own, drafted, strict=True
            ):
                assert isinstance(got, LargePassResult)
                assert isinstance(alone, LargePassResult)
                assert not differs(vlm, got, alone)
                assert got.drafted_tokens == min(len(task.draft), task.max_new_tokens - 1)


@families
def test_a_batch_that_is_foreseen_takes_one_forward(family: str) -> None:
    vlm = model(family)
    own = run_large_batch(vlm, tasks(family), plans(family, 3))
    drafted = [
        replace(task, draft=tuple(result.generation.token_ids.tolist()))  # type: ignore[union-attr]
        for task, result in zip(tasks(family), own, strict=True)
    ]
    with counted(vlm) as forwards:
        got = run_large_batch(vlm, drafted, plans(family, 3))
    assert [result.accepted_tokens for result in got if isinstance(result, LargePassResult)] == [5, 2, 4]
    assert len(forwards) == (1 if family != "qwen3_5" else 1 + 3)  # rows of different length, side by side


@pytest.mark.parametrize(
    ("beyond", "implementation"), [(-20, "sdpa"), (0, "eager"), (1, "sdpa"), (3, "eager"), (5, "sdpa")]
)
def test_windows_that_fill_up_before_within_and_after_a_draft(beyond: int, implementation: str) -> None:
    """A window of so many tokens more than the prompt has."""
    prompt = encoded("llava_next", REQUEST)
    vlm = rebuilt("llava_next", sliding_window=len(prompt) + beyond)
    assert vlm.has_sliding_layers
    with attention_of(vlm, implementation):
        for pruned, (layer, keep_ratio) in PLANS.items():
            plan = random_plan(prompt, layer, keep_ratio)

            def answer(draft: list[int], plan: PruningPlan = plan) -> LargePassResult:
                return run_large_pass(
                    vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False, draft=tuple(draft)), plan
                )

            own = answer([])
            ids = own.generation.token_ids.tolist()
            for accepted in (0, 3, 5):
                assert not differs(vlm, answer(wrong_from(ids, accepted)), own), (pruned, accepted)
            assert not differs(vlm, answer(wrong_at(ids, 2)), own)

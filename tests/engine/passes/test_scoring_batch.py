"""Several questions about one picture in one forward: the scores are those of passes of their own."""

import threading
from collections.abc import Sequence

import pytest
import torch
from samples import noise
from test_family_exactness import families, model
from tolerances import CONTROL, gap, of_logprobs

from sgl_engine import VLM, Message, Request, SGLEngine
from sgl_engine.attention.trie import MAX_NODES, TokenTrie, in_tries
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.errors import RequestCancelledError
from sgl_engine.passes.prefill import can_branch
from sgl_engine.passes.scored_texts import ScoringTask
from sgl_engine.passes.scoring import run_scoring_pass
from sgl_engine.passes.scoring_batch import shared_beginning, stream_scoring_batch
from sgl_engine.request import Decoding, ImagePart

PICTURE = ImagePart(noise(70, 40))
QUESTIONS = {
    "What is it?": ("yes", "no, never", "a cat"),
    "What is there, and why is it there?": ("a cat", "a car", "nothing"),
    "What": ("no",),
}
REUSE = ReuseConfig(min_prefix_tokens=1)


def tasks_of(vlm: VLM, *, pictures: bool = True) -> list[ScoringTask]:
    tasks = []
    for question, answers in QUESTIONS.items():
        content = (PICTURE, question) if pictures else (question,)
        prompt = vlm.encode(Request((Message("user", content),)))
        tasks.append(ScoringTask(prompt, answers, Decoding()))
    return tasks


def scored(vlm: VLM, tasks: Sequence[ScoringTask], reuse: ReuseConfig) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for ended in stream_scoring_batch(vlm, tasks, reuse=reuse):
        for number, result in ended:
            assert number not in found
            found[number] = [value for tokens in result.token_logprobs for value in tokens]
    return [found[number] for number in range(len(tasks))]


@families
@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("reuse", [REUSE, NO_REUSE], ids=["kept", "not kept"])
def test_scores_are_those_of_single_passes(family: str, reuse: ReuseConfig, *, pictures: bool) -> None:
    vlm = model(family)
    tasks = tasks_of(vlm, pictures=pictures)
    kinds = {shared_beginning(vlm, task, reuse) for task in tasks}
    if kinds == {None}:
        pytest.skip("a model whose questions run one by one")
    assert len(kinds) == 1
    for task, together in zip(tasks, scored(vlm, tasks, reuse), strict=True):
        alone = run_scoring_pass(vlm, task.prompt, task.answers)
        expected = [value for tokens in alone.token_logprobs for value in tokens]
        assert gap(together, expected) < of_logprobs(vlm)


def test_questions_that_see_each_other_are_noticed(small: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a plain causal mask over the row of all tokens."""
    tasks = tasks_of(small)
    right = scored(small, tasks, REUSE)
    monkeypatch.setattr(TokenTrie, "visible", lambda trie: torch.ones(len(trie), len(trie)).tril().bool())
    wrong = scored(small, tasks, REUSE)
    assert gap(wrong[1], right[1]) > CONTROL * of_logprobs(small)


def test_which_tasks_run_side_by_side(small: VLM) -> None:
    one, two, _ = tasks_of(small)
    assert shared_beginning(small, one, REUSE) == shared_beginning(small, two, REUSE) is not None
    other = Request((Message("user", (ImagePart(noise(70, 40, 1)), "What?")),))
    another = ScoringTask(small.encode(other), ("yes",), Decoding())
    assert shared_beginning(small, another, REUSE) != shared_beginning(small, one, REUSE)
    salted = small.encode(Request((Message("user", (PICTURE, "What?")),), cache_salt="mine"))
    mine = ScoringTask(salted, ("yes",), Decoding())
    assert shared_beginning(small, mine, REUSE) != shared_beginning(small, one, REUSE)
    guided = ScoringTask(one.prompt, one.answers, Decoding(), guide=True)
    assert shared_beginning(small, guided, REUSE) is None


def test_one_that_is_not_wanted_fails_alone(small: VLM) -> None:
    first, second, _ = tasks_of(small)
    cancelled = threading.Event()
    cancelled.set()
    unwanted = ScoringTask(first.prompt, first.answers, Decoding(cancel=cancelled))
    outcomes = {
        n: result
        for ended in stream_scoring_batch(small, [unwanted, second], reuse=REUSE)
        for n, result in ended
    }
    assert isinstance(outcomes[0], RequestCancelledError)
    alone = run_scoring_pass(small, second.prompt, second.answers)
    assert gap(outcomes[1].logprobs, alone.logprobs) < of_logprobs(small)


def test_an_engine_packs_what_fits(small: VLM, large: VLM) -> None:
    engine = SGLEngine(small, large)
    requests = [Request((Message("user", (PICTURE, question)),)) for question in QUESTIONS]
    packed = engine.score_batch(requests, list(QUESTIONS.values()), model="small")
    for request, answers, scores in zip(requests, QUESTIONS.values(), packed, strict=True):
        assert not isinstance(scores, Exception)
        alone = engine.score_answers(request, answers, model="small")
        assert gap(scores.logprobs, alone.logprobs) < of_logprobs(small)
        assert scores.report.route == "small"
        assert scores.report.small_output_tokens == alone.report.small_output_tokens
    bad = engine.score_batch(requests[:2], [["yes"], [""]], model="small")
    assert [isinstance(outcome, Exception) for outcome in bad] == [False, True]


def test_a_trie_shares_beginnings() -> None:
    trie = TokenTrie()
    assert trie.add([1, 2, 3]) == [0, 1, 2]
    assert trie.missing([1, 2, 4, 5]) == 2
    assert trie.add([1, 2, 4]) == [0, 1, 3]
    assert trie.add([2]) == [4]
    assert (trie.tokens, trie.parents, trie.depths) == ([1, 2, 3, 4, 2], [-1, 0, 1, 1, -1], [0, 1, 2, 2, 0])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert trie.visible().int().tolist() == expected


def test_large_sets_come_in_several_tries() -> None:
    sequences = [[number % 7, number, number + 1] for number in range(300)]
    packs = list(in_tries(sequences))
    assert len(packs) > 1
    assert all(len(trie) <= MAX_NODES for trie, _ in packs)
    paths = {number: (trie, path) for trie, found in packs for number, path in found.items()}
    assert sorted(paths) == list(range(300))
    assert all([trie.tokens[node] for node in path] == sequences[n] for n, (trie, path) in paths.items())
    [(long, _)] = in_tries([list(range(2 * MAX_NODES))])  # a single one is never cut
    assert len(long) == 2 * MAX_NODES


def test_windows_and_recurrent_states_do_not_branch() -> None:
    assert can_branch(model("internvl"))
    assert not can_branch(model("gemma3"))

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import REQUESTS
from tolerances import CONTROL, gap, of_logprobs
from torch.distributions import Categorical

from sgl_engine import VLM, EngineConfig, ExitConfig, Request, SGLEngine
from sgl_engine.chat.text_stream import TextStream
from sgl_engine.decoding.answer import Answer, AnswerTask, Chooser, Generation
from sgl_engine.decoding.loop import decode
from sgl_engine.errors import DeadlineError, InvalidRequestError, ModelError
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import Decoding
from sgl_engine.testing import tiny_vlm


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return tiny_vlm(context_tokens=64)


@pytest.fixture(scope="module")
def prompt(vlm: VLM) -> EncodedPrompt:
    return vlm.encode(Request.ask("?", REQUESTS["one image"].images[0].source))


def generate(
    vlm: VLM, prompt: EncodedPrompt, decoding: Decoding | None = None, *, max_new_tokens: int = 12
) -> tuple[list[str], Generation]:
    answer = Answer(vlm, AnswerTask(prompt, max_new_tokens, decoding or Decoding(), stop_at_eos=False))
    steps = decode(vlm, vlm.batch([prompt]), vlm.embed(prompt), [answer], cache=vlm.new_cache())
    deltas = [text for (text,) in steps if text]
    return deltas, answer.generation()


def test_pieces_join_to_the_text(vlm: VLM, prompt: EncodedPrompt) -> None:
    deltas, whole = generate(vlm, prompt)
    assert "".join(deltas) == whole.text
    assert whole.finish_reason == "length"
    assert whole.token_ids.dtype == torch.int64
    assert whole.logprobs.dtype == torch.float32
    assert len(whole) == 12


def test_a_seed_repeats_and_other_seeds_differ(vlm: VLM, prompt: EncodedPrompt) -> None:
    hot = [generate(vlm, prompt, Decoding(temperature=1.5, seed=seed))[1].token_ids for seed in (1, 1, 2)]
    assert torch.equal(hot[0], hot[1])
    assert not torch.equal(hot[0], hot[2])


def test_logprobs_ignore_temperature_and_nucleus(vlm: VLM, prompt: EncodedPrompt) -> None:
    sampled = generate(vlm, prompt, Decoding(temperature=3.0, top_p=0.5, seed=5))[1]
    ids = torch.cat((prompt.input_ids[0], sampled.token_ids))[None]
    with torch.no_grad():
        logits = vlm.model(input_ids=ids, pixel_values=prompt.inputs["pixel_values"]).logits[0].float()
    rows = logits[len(prompt) - 1 : -1]
    expected = rows.log_softmax(-1).gather(1, sampled.token_ids[:, None])[:, 0]
    within = of_logprobs(vlm)
    assert gap(sampled.logprobs, expected) < within
    tempered = (rows / 3).log_softmax(-1).gather(1, sampled.token_ids[:, None])[:, 0]
    assert gap(sampled.logprobs, tempered) > CONTROL * within
    assert sampled.entropies.dtype == torch.float32
    # The error of a token's log-probability, and that of its probability times its log-probability.
    within *= 1 + float(Categorical(logits=rows).entropy().max())
    assert gap(sampled.entropies, Categorical(logits=rows).entropy()) < within
    assert gap(sampled.entropies, Categorical(logits=rows / 3).entropy()) > CONTROL * within


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    choose = Chooser(Decoding(temperature=2.0, seed=0), torch.device("cpu"))
    counts = Counter(choose(logits) for _ in range(4000))
    expected = (logits / 2).softmax(-1)
    assert all(abs(counts[token] / 4000 - expected[token]) < 0.03 for token in range(4))


@pytest.mark.parametrize(("top_p", "allowed"), [(0.01, {0}), (0.6, {0}), (0.7, {0, 1}), (0.9, {0, 1, 2})])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, allowed: set[int]) -> None:
    logits = torch.tensor([0.64, 0.24, 0.09, 0.03]).log()  # cumulative 0.64, 0.88, 0.97
    choose = Chooser(Decoding(temperature=1.0, top_p=top_p, seed=0), torch.device("cpu"))
    assert {choose(logits) for _ in range(600)} == allowed


def test_sampling_leaves_the_global_random_state_alone(vlm: VLM, prompt: EncodedPrompt) -> None:
    before = torch.get_rng_state()
    generate(vlm, prompt, Decoding(temperature=1.0, seed=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(vlm: VLM, prompt: EncodedPrompt) -> None:
    text = generate(vlm, prompt)[1].text
    stop = text[4:6]
    deltas, stopped = generate(vlm, prompt, Decoding(stop=("never", stop)))
    assert stopped.text == text[: text.index(stop)] == "".join(deltas)
    assert stopped.finish_reason == "stop"
    assert len(stopped) < 12


def test_a_stop_string_beyond_ascii_is_not_shown_byte_by_byte() -> None:
    encoded = "un né".encode()
    stream = TextStream(lambda ids: encoded[: len(ids)].decode(errors="replace"), ("né",))
    deltas = [stream.push(range(size)) for size in range(1, len(encoded) + 1)]
    assert "".join(deltas) == stream.text == "un "


def test_nothing_that_may_become_a_stop_string_is_shown_early() -> None:
    pieces = ["a", "ab", "abE", "abEN", "abENd", "abENdEND", "abENdENDx"]
    stream = TextStream(lambda ids: pieces[len(ids) - 1], ("END",))
    shown = [stream.push([0] * count) for count in range(1, 7)]
    assert shown == ["a", "b", "", "", "ENd", ""]
    assert stream.stopped
    assert stream.text == "abENd"


def test_half_characters_wait() -> None:
    encoded = "né…".encode()
    stream = TextStream(lambda ids: encoded[: len(ids)].decode(errors="replace"), ())
    shown = [stream.push([0] * count) for count in range(1, len(encoded) + 1)]
    assert shown == ["n", "", "é", "", "", "…"]
    assert stream.flush() == ""


def test_the_context_ends_the_answer(vlm: VLM, prompt: EncodedPrompt) -> None:
    room = vlm.context_tokens - len(prompt)
    whole = generate(vlm, prompt, max_new_tokens=1000)[1]
    assert len(whole) == room
    assert whole.finish_reason == "length"


def test_a_passed_deadline_stops_within_one_token(
    vlm: VLM, prompt: EncodedPrompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    steps = []
    original = vlm.forward_batch

    def slow(*args: object, **kwargs: object) -> torch.Tensor:
        steps.append(1)
        now[0] += 1.0
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(vlm, "forward_batch", slow)
    with pytest.raises(DeadlineError, match=r"passed 0\.500 s ago, after 3 of 12 answer tokens"):
        generate(vlm, prompt, Decoding(deadline=102.5))
    assert len(steps) == 3


def test_no_tokens_are_refused(vlm: VLM, prompt: EncodedPrompt) -> None:
    with pytest.raises(InvalidRequestError, match="max_new_tokens is 0"):
        generate(vlm, prompt, max_new_tokens=0)


def test_seeds_may_be_of_any_kind_of_whole_number(vlm: VLM, prompt: EncodedPrompt) -> None:
    drawn = [
        generate(vlm, prompt, Decoding(temperature=1.0, seed=seed))[1].text for seed in (3, np.int64(3), 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_overflow_are_an_error_and_not_an_answer(value: float) -> None:
    """As half precision does. The small model's never exit; behind the large model there is none."""
    models = [tiny_vlm(size="small"), tiny_vlm(size="large")]
    picture = REQUESTS["one image"].images[0].source
    for temperature in (0.0, 1.0):
        request = Request.ask("?", picture, max_new_tokens=3, temperature=temperature, seed=1)
        expected = SGLEngine(*models).run(replace(request)).report.route
        with broken(models[0], value):
            assert SGLEngine(*models).run(request).report.route == "large"
        with broken(models[1], value):
            always = SGLEngine(*models, EngineConfig(exit=ExitConfig(escalate="always")))
            with pytest.raises(ModelError, match=r"overflowed: its logits are not numbers.*bfloat16"):
                always.run(request)
            [outcome] = always.run_batch([request])
            assert isinstance(outcome, ModelError)
        assert SGLEngine(*models).run(request).report.route == expected  # nothing is left behind


@contextmanager
def broken(vlm: VLM, value: float) -> Iterator[None]:
    """One weight is no number."""
    weight = vlm.model.get_output_embeddings().weight
    before = weight[7].clone()
    with torch.no_grad():
        weight[7] = value
        yield
        weight[7] = before

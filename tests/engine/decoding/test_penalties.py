"""Penalties, biases and the model's generation_config.json: as ``generate`` has them, drafted or not."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from combinations import half
from samples import REQUESTS, noise
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process

from sgl_engine import VLM, EngineConfig, GenerationConfig, Request, Response, SGLEngine
from sgl_engine.decoding.answer import AnswerTask, Chooser, Generation
from sgl_engine.decoding.choice import resolve
from sgl_engine.errors import InvalidRequestError
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import keep_everything
from sgl_engine.request import Decoding
from sgl_engine.testing import tiny_vlm

TOKENS = 16


@pytest.fixture
def vlm() -> VLM:
    return tiny_vlm(size="large")


@pytest.fixture
def prompt(vlm: VLM) -> EncodedPrompt:
    return vlm.encode(REQUESTS["one image"])


def ours(vlm: VLM, prompt: EncodedPrompt, decoding: Decoding = Decoding(), **task: Any) -> Generation:  # noqa: B008
    asked = AnswerTask(prompt, TOKENS, decoding, **task)
    return run_large_pass(vlm, asked, keep_everything(prompt)).generation


def generated(vlm: VLM, prompt: EncodedPrompt, *processors: LogitsProcessor) -> list[int]:
    """What transformers' own ``generate`` says."""
    out = vlm.model.generate(
        **prompt.inputs,
        max_new_tokens=TOKENS,
        do_sample=False,
        logits_processor=LogitsProcessorList(processors),
    )
    ids: list[int] = out[0, len(prompt) :].tolist()
    return ids


def words(ids: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Settings of a generation_config.json that change an answer that begins with `ids`."""
    return {
        "repetition_penalty": {"repetition_penalty": 1.3},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "bad_words_ids": {"bad_words_ids": [[ids[0]], [ids[1], ids[2]]]},
        "sequence_bias": {"sequence_bias": [[[ids[0]], -9.0], [[ids[1], ids[2]], -9.0]]},
        "suppress_tokens": {"suppress_tokens": ids[:3]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [ids[0]]},
        "min_length": {"eos_token_id": ids[3], "min_length": 60},
        "min_new_tokens": {"eos_token_id": [ids[3], ids[5]], "min_new_tokens": 7},
        "eos": {"eos_token_id": [ids[3], ids[5]]},
        "forced_eos_token_id": {"forced_eos_token_id": [201]},
        "decay": {"exponential_decay_length_penalty": (3, 40.0)},
        "two": {"repetition_penalty": 1.2, "suppress_tokens": ids[:2], "min_new_tokens": 3},
    }


@pytest.mark.parametrize("name", list(words([0] * 8)))
def test_a_generation_config_does_what_it_does_in_generate(
    name: str, vlm: VLM, prompt: EncodedPrompt
) -> None:
    plain = ours(vlm, prompt).token_ids.tolist()
    assert plain == generated(vlm, prompt)
    for key, value in words(plain)[name].items():
        setattr(vlm.model.generation_config, key, value)
    want = generated(vlm, prompt)
    assert want != plain  # the control
    assert ours(vlm, prompt).token_ids.tolist() == want
    small = run_small_pass(vlm, AnswerTask(prompt, TOKENS)).generation
    assert small.token_ids.tolist() == want


def test_the_tokenizers_end_counts_beside_the_models(vlm: VLM, prompt: EncodedPrompt) -> None:
    plain = ours(vlm, prompt)
    vlm.model.generation_config.eos_token_id = 250
    vlm.processor.tokenizer.eos_token_id = int(plain.token_ids[4])
    assert vlm.eos_token_ids == {250, int(plain.token_ids[4])}
    assert ours(vlm, prompt).token_ids.tolist() == plain.token_ids[:5].tolist()


class Slow(LogitsProcessor):
    """OpenAI's penalties and biases, token by token."""

    def __init__(self, tokens: int, decoding: Decoding) -> None:
        self.tokens = tokens
        self.decoding = decoding

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        said = input_ids[0, self.tokens :].tolist()
        scores = scores.clone()
        for token in set(said):
            scores[0, token] -= self.decoding.presence_penalty
            scores[0, token] -= self.decoding.frequency_penalty * said.count(token)
        for token, bias in self.decoding.logit_bias.items():
            scores[0, token] += bias
        return scores


def wishes(ids: Sequence[int]) -> dict[str, Decoding]:
    return {
        "presence": Decoding(presence_penalty=2.0),
        "frequency": Decoding(frequency_penalty=1.5),
        "encouraged": Decoding(frequency_penalty=-2.0),
        "bias": Decoding(logit_bias={ids[0]: -100, 7: 0.5}),
        "all": Decoding(
            presence_penalty=0.7, frequency_penalty=0.9, logit_bias={ids[1]: -4.0}, repetition_penalty=1.2
        ),
    }


@pytest.mark.parametrize("name", list(wishes([0, 0])))
def test_wishes_of_a_request_do_what_they_say(name: str, vlm: VLM, prompt: EncodedPrompt) -> None:
    plain = ours(vlm, prompt).token_ids.tolist()
    decoding = wishes(plain)[name]
    vlm.model.generation_config.repetition_penalty = decoding.repetition_penalty
    want = generated(vlm, prompt, Slow(len(prompt), decoding))
    vlm.model.generation_config.repetition_penalty = 3.0 if decoding.repetition_penalty else None
    assert want != plain
    assert ours(vlm, prompt, decoding).token_ids.tolist() == want


def raw_logits(vlm: VLM, prompt: EncodedPrompt, answer: Sequence[int]) -> Tensor:
    """Of everything at once, without this package's decoding: float32 (1 + answer, vocab)."""
    ids = torch.cat((prompt.input_ids[0], torch.tensor(answer, dtype=torch.int64)))[None]
    inputs = {
        key: value for key, value in prompt.inputs.items() if key not in {"input_ids", "attention_mask"}
    }
    with torch.no_grad():
        logits: Tensor = vlm.model(input_ids=ids, **inputs).logits[0].float()
    return logits[len(prompt) - 1 :]


def slowly(vlm: VLM, prompt: EncodedPrompt, decoding: Decoding) -> list[int]:
    """A plain loop: everything is run again for every token, and drawn from what is left."""
    choose, answer = Chooser(decoding, vlm.device), list[int]()
    penalise = Slow(len(prompt), decoding)
    repeat = logits_process.RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty or 1.0)
    while len(answer) < TOKENS and not (answer and answer[-1] in vlm.eos_token_ids):
        scores = raw_logits(vlm, prompt, answer)[-1:]
        ids = torch.cat((prompt.input_ids[0], torch.tensor(answer, dtype=torch.int64)))[None]
        answer.append(choose(penalise(ids, repeat(ids, scores))[0]))
    return answer


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("name", ["presence", "frequency", "all"])
def test_a_draft_changes_nothing(name: str, temperature: float, vlm: VLM, prompt: EncodedPrompt) -> None:
    plain = ours(vlm, prompt).token_ids.tolist()
    decoding = replace(wishes(plain)[name], temperature=temperature, seed=4, top_k=40, min_p=0.01)
    want = slowly(vlm, prompt, decoding)
    assert want != slowly(vlm, prompt, Decoding(temperature=temperature, seed=4, top_k=40, min_p=0.01))
    drafts = [(), want, plain, want[:3] + plain[:3] + want[3:], [want[0]] * 6]
    for draft in drafts:
        result = run_large_pass(
            vlm, AnswerTask(prompt, TOKENS, decoding, draft=tuple(draft)), keep_everything(prompt)
        )
        assert result.generation.token_ids.tolist() == want
        if draft is want:
            assert len(result.fed) == 1  # all of it was accepted


def test_log_probabilities_are_those_before_any_penalty(vlm: VLM, prompt: EncodedPrompt) -> None:
    plain = ours(vlm, prompt).token_ids.tolist()
    vlm.model.generation_config.suppress_tokens = plain[:2]
    answer = ours(vlm, prompt, wishes(plain)["all"])
    chosen = answer.token_ids[:, None]
    logs = raw_logits(vlm, prompt, answer.token_ids.tolist())[:-1].log_softmax(-1)
    assert torch.allclose(answer.logprobs, logs.gather(1, chosen)[:, 0], atol=1e-4)
    assert torch.allclose(answer.entropies, -(logs.exp() * logs).sum(-1), atol=1e-3)


@half(top_k=[None, 1, 3, 40], top_p=[0.6, 1.0], min_p=[0.0, 0.2, 1.0])
def test_tokens_are_drawn_from_those_that_generate_draws_from(
    top_k: int | None, top_p: float, min_p: float
) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 2
    warpers: list[Any] = [logits_process.TemperatureLogitsWarper(1.7)]
    warpers += [logits_process.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [logits_process.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [logits_process.MinPLogitsWarper(min_p)]
    nothing: Any = None
    want = LogitsProcessorList(warpers)(nothing, logits[None])[0].softmax(-1)
    choose = Chooser(
        Decoding(temperature=1.7, top_k=top_k, top_p=top_p, min_p=min_p, seed=0), torch.device("cpu")
    )
    drawn = torch.bincount(torch.tensor([choose(logits) for _ in range(3000)]), minlength=12) / 3000
    assert torch.equal(drawn > 0, want > 1e-3)
    assert torch.allclose(drawn, want, atol=0.04)


@pytest.mark.parametrize("temperature", [1e-308, 1e-40, 1e-5, 1e-4])
def test_the_lowest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.tensor([-1e4, 9e3, 9e3 - 0.01, -torch.inf])
    choose = Chooser(Decoding(temperature=temperature, top_k=3, min_p=0.5), torch.device("cpu"))
    assert {choose(logits) for _ in range(50)} == {1}


def test_what_is_not_done_is_said_once(
    caplog: pytest.LogCaptureFixture, vlm: VLM, prompt: EncodedPrompt
) -> None:
    vlm.model.generation_config.num_beams = 4
    vlm.model.generation_config.guidance_scale = 1.0
    vlm.model.generation_config.do_sample = True
    vlm.model.generation_config.typical_p = 0.9
    vlm.model.generation_config.max_new_tokens = 7
    with caplog.at_level(logging.WARNING, logger="sgl_engine"):
        first = ours(vlm, prompt).token_ids.tolist()
        assert ours(vlm, prompt).token_ids.tolist() == first  # greedy all the same
    assert [record.getMessage() for record in caplog.records] == [
        f"{vlm.name}: not done of its generation_config.json: num_beams=4, typical_p=0.9"
    ]


def test_a_generation_config_that_is_none(vlm: VLM, prompt: EncodedPrompt) -> None:
    vlm.model.generation_config.repetition_penalty = -1.0
    with pytest.raises(InvalidRequestError, match=r"generation_config.json of .* cannot be used \(.*penalty"):
        ours(vlm, prompt)


def test_a_schema_comes_first(vlm: VLM) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    bracket, quote = (vlm.processor.tokenizer(text).input_ids[0] for text in "{n")
    request = replace(
        REQUESTS["one image"], response_schema=schema, max_new_tokens=40, logit_bias={quote: -100.0}
    )
    for model in (small := tiny_vlm(size="small"), vlm):
        model.model.generation_config.suppress_tokens = [bracket]
    for temperature in (0.0, 1.0):
        with SGLEngine(small, vlm, EngineConfig().escalating("always")) as engine:
            answer = engine.run(replace(request, temperature=temperature, seed=1))
        assert isinstance(json.loads(answer.text)["n"], int)


def test_rows_of_a_batch_keep_their_own(vlm: VLM) -> None:
    ask = Request.ask("What is it?", noise(64, 64), max_new_tokens=TOKENS)
    requests = [
        ask,
        replace(ask, repetition_penalty=1.5),
        replace(ask, presence_penalty=2.0),
        replace(ask, frequency_penalty=2.0, temperature=1.0, top_k=5, seed=3),
        replace(ask, logit_bias={5: 100.0}),
    ]
    with SGLEngine(tiny_vlm(size="small"), vlm, EngineConfig().escalating("always")) as engine:
        single = [engine.run(request).text for request in requests]
        batch = engine.run_batch(requests)
    assert [outcome.text for outcome in batch if isinstance(outcome, Response)] == single
    assert len(set(single)) == len(single)


WRONG: list[dict[str, Any]] = [
    {"top_k": 0},
    {"min_p": 1.5},
    {"repetition_penalty": 0.0},
    {"presence_penalty": 2.1},
    {"frequency_penalty": float("nan")},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_wishes_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        resolve(replace(Request.ask("?"), **wrong), GenerationConfig())


@pytest.mark.parametrize("bias", [None, {5: 101}, {"5": 1.0}, {5: float("nan")}, {True: 1.0}, {5: "x"}])
def test_biases_that_are_none(bias: Any) -> None:
    with pytest.raises(InvalidRequestError, match="logit_bias has "):
        resolve(replace(Request.ask("?"), logit_bias=bias), GenerationConfig())


def test_a_bias_for_a_token_that_is_not_there(vlm: VLM, prompt: EncodedPrompt) -> None:
    with pytest.raises(InvalidRequestError, match=r"token 100000; .* has 0 to 271"):
        ours(vlm, prompt, Decoding(logit_bias={100_000: 1.0}))


def test_a_request_says_it_or_the_configuration() -> None:
    settings = GenerationConfig(top_k=5, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.5)
    asked = replace(Request.ask("?"), top_k=7, frequency_penalty=-1.0, logit_bias={3: 1.0})
    decoding = resolve(asked, settings)[1]
    assert (decoding.top_k, decoding.min_p, decoding.repetition_penalty) == (7, 0.1, 1.1)
    assert (decoding.presence_penalty, decoding.frequency_penalty) == (0.5, -1.0)
    assert decoding.logit_bias == {3: 1.0}
    assert resolve(Request.ask("?"), GenerationConfig())[1] == Decoding()

"""Every family against the slow oracles of `whole_model`, in each attention path."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from combinations import half
from oracles import exploding, traces
from samples import noise
from tolerances import CONTROL, gap, of_logits, of_logprobs, relative_gap
from whole_model import attention_of, attention_sum, masked_logits, visual_positions, whole_logits

from sgl_engine import VLM, Message, Request
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.families.tiny.sizes import randomize
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning import patch as pruning
from sgl_engine.pruning import plan_pruning
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.request import ImagePart
from sgl_engine.testing import tiny_vlm

LAYERS = 6
ANSWER = (20, 35, 11, 60, 42)
STEPS = {"one by one": (1, 1, 1, 1, 1), "several at once": (1, 3, 1)}

REQUESTS = {
    "one picture": Request.ask("What is it?", noise(70, 40)),
    # Several pictures of several shapes, text between them, in different turns.
    "a conversation": Request(
        (
            Message("user", ("First", ImagePart(noise(32, 32)), "then", ImagePart(noise(90, 44, 1)), "So?")),
            Message("assistant", ("No.",)),
            Message("user", (ImagePart(noise(30, 66, 2)), "And now?")),
        )
    ),
}
Case = tuple[VLM, EncodedPrompt]

FAMILIES = [family for family in TINY_FAMILIES if family != "smolvlm"]
"""All but SmolVLM, which is Idefics3 under another name: `test_smolvlm_is_idefics3_to_the_bit`."""

IMPLEMENTATIONS = ("sdpa", "eager")
LAYERS_K = (0, 1, LAYERS // 2)
families = pytest.mark.parametrize("family", FAMILIES)
prompts = pytest.mark.parametrize("request_", REQUESTS)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
layers = pytest.mark.parametrize("layer", LAYERS_K)


@cache
def model(family: str) -> VLM:
    """One for all tests here; each must leave it as it was."""
    vlm = tiny_vlm(family, size="large", max_tiles=4)
    # A generated image token is text here, but the models' own forward over a whole sequence wants features.
    vlm.model.lm_head.weight.data[vlm.config.image_token_id] = 0
    return vlm


@cache
def encoded(family: str, request_: str) -> EncodedPrompt:
    return model(family).encode(REQUESTS[request_])


@cache
def embedded(family: str, request_: str, implementation: str) -> torch.Tensor:
    """By the towers in this attention path."""
    with attention_of(model(family), implementation):
        return model(family).embed(encoded(family, request_))


def random_plan(prompt: EncodedPrompt, layer: int, keep_ratio: float = 0.3) -> PruningPlan:
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(3))
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=layer, keep_ratio=keep_ratio)


@cache
def expected_logits(family: str, request_: str, layer: int, keep_ratio: float) -> torch.Tensor:
    """Of the last prompt row and of every answer token."""
    prompt = encoded(family, request_)
    keep = random_plan(prompt, layer, keep_ratio).keep.tolist()
    return masked_logits(model(family), prompt, ANSWER, layer=layer, keep=keep)[len(prompt) - 1 :]


def stepwise_logits(
    vlm: VLM,
    prompt: EncodedPrompt,
    plan: PruningPlan,
    steps: tuple[int, ...],
    *,
    shift: int = 0,
    embeddings: torch.Tensor | None = None,
) -> torch.Tensor:
    """Prefill, then the answer on the cache in steps of so many tokens, numbered `shift` too far."""
    cache_ = vlm.new_cache()
    embeddings = vlm.embed(prompt) if embeddings is None else embeddings.clone()
    with prune_visual_tokens(vlm, plan):
        found = [vlm.forward(embeddings, prompt=prompt, first_position=0, cache=cache_)]
        done = 0
        for count in steps:
            step = vlm.embed_tokens(torch.tensor(ANSWER[done : done + count]))
            first = len(prompt) + done + shift
            found.append(
                vlm.forward(step, prompt=prompt, first_position=first, cache=cache_, logit_rows=count)
            )
            done += count
    return torch.cat(found)


@families
@prompts
@implementations
def test_embedding_then_decoding_is_the_models_own_forward(
    family: str, request_: str, implementation: str
) -> None:
    vlm, prompt = model(family), encoded(family, request_)
    with attention_of(vlm, implementation):
        expected = whole_logits(vlm, prompt, ())
        got = vlm.forward(
            vlm.embed(prompt), prompt=prompt, first_position=0, cache=None, logit_rows=len(prompt)
        )
    assert torch.equal(got, expected)


@families
@prompts
def test_visual_tokens_are_those_that_show_something(family: str, request_: str) -> None:
    prompt = encoded(family, request_)
    assert list(prompt.visual_positions) == visual_positions(model(family), prompt)
    assert [span.image for span in prompt.spans] == sorted(span.image for span in prompt.spans)
    assert len({span.image for span in prompt.spans}) == len(REQUESTS[request_].images)


@half(family=FAMILIES, request_=REQUESTS, implementation=IMPLEMENTATIONS)
def test_captured_map_equals_eager_attention(family: str, request_: str, implementation: str) -> None:
    vlm, prompt = model(family), encoded(family, request_)
    with attention_of(vlm, implementation):
        result = run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False))
    answer = result.generation.token_ids.tolist()
    assert result.importance is not None
    expected = attention_sum(vlm, prompt, answer)
    assert relative_gap(result.importance.mass, expected) < of_logprobs(vlm)
    # The control: another row fewer is noticed.
    fewer = attention_sum(vlm, prompt, answer[:-1])
    assert relative_gap(result.importance.mass, fewer) > CONTROL * of_logprobs(vlm)


@half(
    family=FAMILIES,
    request_=REQUESTS,
    implementation=IMPLEMENTATIONS,
    layer=LAYERS_K,
    keep_ratio=(0.05, 0.8),
    steps=STEPS,
)
def test_pruned_logits_equal_a_masked_forward(
    family: str, request_: str, implementation: str, layer: int, keep_ratio: float, steps: str
) -> None:
    vlm, prompt = model(family), encoded(family, request_)
    plan = random_plan(prompt, layer, keep_ratio)
    with attention_of(vlm, implementation):
        got = stepwise_logits(
            vlm, prompt, plan, STEPS[steps], embeddings=embedded(family, request_, implementation)
        )
    assert gap(got, expected_logits(family, request_, layer, keep_ratio)) < of_logits(vlm)


@prompts
@implementations
def test_smolvlm_is_idefics3_to_the_bit(request_: str, implementation: str) -> None:
    """Prompts, weights, attention and logits: what holds for the one holds for the other."""
    found = []
    for family in ("smolvlm", "idefics3"):
        vlm, prompt = model(family), encoded(family, request_)
        with attention_of(vlm, implementation):
            logits = stepwise_logits(vlm, prompt, random_plan(prompt, 1), STEPS["several at once"])
            result = run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False))
        assert result.importance is not None
        found.append((prompt, logits, result.importance.mass, result.generation.logprobs))
    (prompt, *ours), (other, *theirs) = found
    assert torch.equal(prompt.input_ids, other.input_ids)
    assert prompt.spans == other.spans
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))
    ours, theirs = (dict(model(family).model.named_parameters()) for family in ("smolvlm", "idefics3"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@families
@layers
def test_greedy_answers_equal_the_masked_models(family: str, layer: int) -> None:
    vlm, prompt = model(family), encoded(family, "one picture")
    plan = random_plan(prompt, layer)
    result = run_large_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), plan)
    answer = result.generation.token_ids.tolist()
    # The masked model says each token behind those before it, so it is its own greedy answer, too.
    logits = masked_logits(vlm, prompt, answer[:-1], layer=layer, keep=plan.keep.tolist())
    assert logits[len(prompt) - 1 :].argmax(dim=-1).tolist() == answer


@families
@layers
def test_a_teacher_forced_answer_equals_the_masked_models(family: str, layer: int) -> None:
    """The consistency pass: prompt and answer in one forward, without a cache."""
    vlm, prompt = model(family), encoded(family, "a conversation")
    forced = vlm.append_tokens(vlm.embed(prompt), torch.tensor(ANSWER))
    with prune_visual_tokens(vlm, random_plan(prompt, layer)):
        got = vlm.forward(forced, prompt=prompt, first_position=0, cache=None, logit_rows=len(ANSWER) + 1)
    assert gap(got, expected_logits(family, "a conversation", layer, 0.3)) < of_logits(vlm)


@half(family=FAMILIES, request_=REQUESTS, implementation=IMPLEMENTATIONS)
def test_keep_ratio_1_is_generate_bit_for_bit(
    family: str, request_: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, prompt = model(family), encoded(family, request_)
    logits: list[torch.Tensor] = []
    forward = vlm.forward_batch
    monkeypatch.setattr(vlm, "forward_batch", lambda *a, **k: logits.append(forward(*a, **k)) or logits[-1])
    with attention_of(vlm, implementation):
        expected = vlm.model.generate(
            **prompt.inputs,
            max_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        plan = random_plan(prompt, 1, keep_ratio=1.0)
        result = run_large_pass(vlm, AnswerTask(prompt, 6), plan)
    assert torch.equal(result.generation.token_ids, expected.sequences[0, len(prompt) :])
    assert all(
        torch.equal(ours[0, 0], theirs[0]) for ours, theirs in zip(logits, expected.logits, strict=True)
    )


@families
@layers
def test_wrong_positions_are_noticed(family: str, layer: int) -> None:
    vlm, prompt = model(family), encoded(family, "one picture")
    plan = random_plan(prompt, layer)
    expected = expected_logits(family, "one picture", layer, 0.3)
    embeddings = embedded(family, "one picture", "sdpa")
    got = stepwise_logits(vlm, prompt, plan, STEPS["one by one"], shift=1, embeddings=embeddings)
    assert gap(got, expected) > CONTROL * of_logits(vlm)
    if prompt.positions is None:
        return
    for axis in range(len(prompt.positions)):
        moved = prompt.positions.clone()
        moved[axis, 0, list(prompt.visual_positions)] += 8
        other = replace(prompt, positions=moved)
        got = stepwise_logits(vlm, other, plan, STEPS["several at once"], embeddings=embeddings)
        assert gap(got, expected) > CONTROL * of_logits(vlm)


@families
@layers
def test_wrong_rows_are_noticed(family: str, layer: int) -> None:
    vlm, prompt = model(family), encoded(family, "one picture")
    plan = random_plan(prompt, layer)
    visual = prompt.visual_positions
    kept = set(plan.keep.tolist())
    swap = next(i for i in range(len(visual) - 1) if (visual[i] in kept) and (visual[i + 1] not in kept))
    wrong = sorted((kept - {visual[swap]}) | {visual[swap + 1]})
    off = replace(plan, keep=torch.tensor(wrong))
    embeddings = embedded(family, "one picture", "sdpa")
    got = stepwise_logits(vlm, prompt, off, STEPS["one by one"], embeddings=embeddings)
    assert gap(got, expected_logits(family, "one picture", layer, 0.3)) > CONTROL * of_logits(vlm)


@families
@implementations
def test_wrong_masks_are_noticed(family: str, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of several tokens in which the first also sees the second."""
    vlm, prompt = model(family), encoded(family, "one picture")
    original = pruning._visible

    def one_too_far(plan: pruning.KeptColumns, layer: Any, steps: int, *others: Any) -> torch.Tensor | None:
        visible = original(plan, layer, steps, *others)
        if visible is not None and steps > 1:
            visible = visible.clone()
            visible[:, 0, -steps + 1] = True
        return visible

    monkeypatch.setattr(pruning, "_visible", one_too_far)
    with attention_of(vlm, implementation):
        got = stepwise_logits(vlm, prompt, random_plan(prompt, 1), STEPS["several at once"])
    assert gap(got, expected_logits(family, "one picture", 1, 0.3)) > CONTROL * of_logits(vlm)


@pytest.mark.parametrize("family", [family for family in TINY_FAMILIES if model(family).has_sliding_layers])
def test_a_window_goes_by_original_positions(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control for sliding layers: a window of so many kept tokens reaches too far back."""
    vlm, prompt = model(family), encoded(family, "a conversation")
    monkeypatch.setattr(pruning, "_visible", lambda *_: None)
    got = stepwise_logits(vlm, prompt, random_plan(prompt, 1), STEPS["one by one"])
    assert gap(got, expected_logits(family, "a conversation", 1, 0.3)) > CONTROL * of_logits(vlm)


@families
def test_nothing_remains(family: str) -> None:
    vlm, prompt = model(family), encoded(family, "one picture")
    plan = random_plan(prompt, 1)
    run_small_pass(vlm, AnswerTask(prompt, 2))
    before = traces(vlm)
    run_small_pass(vlm, AnswerTask(prompt, 2))
    run_large_pass(vlm, AnswerTask(prompt, 2), plan)
    assert traces(vlm) == before
    for work in (
        lambda: run_small_pass(vlm, AnswerTask(prompt, 2)),
        lambda: run_large_pass(vlm, AnswerTask(prompt, 2), plan),
    ):
        with exploding(vlm.family.decoder_layers(vlm.model)[3].mlp), pytest.raises(RuntimeError):
            work()
        assert traces(vlm) == before
    with prune_visual_tokens(vlm, plan):
        assert traces(vlm) != before  # the control: hooks are seen


@cache
def rebuilt(family: str, **text: Any) -> VLM:
    """A tiny model with another decoder configuration; one for all tests, as `model`."""
    base = tiny_vlm(family, size="large", decoder="qwen2", max_tiles=4)
    settings = base.config.text_config.to_dict() | {"layer_types": None} | text
    base.config.text_config = type(base.config.text_config)(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = type(base.model)(base.config)
        randomize(built)
    return VLM(built.float(), base.processor, name="rebuilt")


OTHER_WINDOWS = {
    "in every layer": ("llava_next", {"sliding_window": 20}),
    "in the upper layers": (
        "internvl",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3},
    ),
}


@pytest.mark.parametrize("windows", OTHER_WINDOWS)
@implementations
@layers
def test_windows_of_other_decoders(windows: str, implementation: str, layer: int) -> None:
    family, text = OTHER_WINDOWS[windows]
    vlm = rebuilt(family, **text)
    assert vlm.has_sliding_layers
    prompt = vlm.encode(REQUESTS["a conversation"])
    plan = random_plan(prompt, layer)
    expected = masked_logits(vlm, prompt, ANSWER, layer=layer, keep=plan.keep.tolist())[len(prompt) - 1 :]
    with attention_of(vlm, implementation):
        for steps in STEPS.values():
            assert gap(stepwise_logits(vlm, prompt, plan, steps), expected) < of_logits(vlm)
        result = run_small_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False))
    assert result.importance is not None
    answer = result.generation.token_ids.tolist()
    assert relative_gap(result.importance.mass, attention_sum(vlm, prompt, answer)) < of_logprobs(vlm)


def test_sliding_layers_are_among_the_families() -> None:
    assert model("gemma3").has_sliding_layers
    assert not model("qwen3_5").has_sliding_layers


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models are shared; a test that leaves one changed fails here, and not in another test."""
    yield
    family = request.node.callspec.params.get("family") if hasattr(request.node, "callspec") else None
    if family is not None:
        assert model(family).text_model.config._attn_implementation == "sdpa"

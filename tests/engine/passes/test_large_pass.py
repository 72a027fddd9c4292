import pytest
import torch
from oracles import traces
from samples import REQUESTS

from sgl_engine import VLM
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_pass
from sgl_engine.passes.large import stream_large_batch
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning import plan_pruning
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.testing import tiny_vlm

Case = tuple[VLM, EncodedPrompt]


def plan_keeping(prompt: EncodedPrompt, keep_ratio: float) -> PruningPlan:
    mass = torch.arange(prompt.num_visual_tokens, dtype=torch.float32)
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=1, keep_ratio=keep_ratio)


def recorded_logits(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What `vlm.forward_batch` returns from now on."""
    found: list[torch.Tensor] = []
    original = vlm.forward_batch

    def forward(*args: object, **kwargs: object) -> torch.Tensor:
        found.append(original(*args, **kwargs))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(vlm, "forward_batch", forward)
    return found


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_keep_ratio_1_is_generate_bit_for_bit(
    case: Case, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, prompt = case
    vlm.model.set_attn_implementation(implementation)
    expected = vlm.model.generate(
        **prompt.inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    logits = recorded_logits(vlm, monkeypatch)
    result = run_large_pass(vlm, AnswerTask(prompt, 8), plan_keeping(prompt, 1.0))
    assert torch.equal(result.generation.token_ids, expected.sequences[0, len(prompt) :])
    assert all(
        torch.equal(ours[0, 0], theirs[0]) for ours, theirs in zip(logits, expected.logits, strict=True)
    )


def test_a_pruned_pass_is_not_bit_identical(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    vlm, prompt = case
    logits = recorded_logits(vlm, monkeypatch)
    run_large_pass(vlm, AnswerTask(prompt, 1), plan_keeping(prompt, 1.0))
    run_large_pass(vlm, AnswerTask(prompt, 1), plan_keeping(prompt, 0.9))
    assert not torch.equal(logits[0], logits[1])


def test_ends_where_generate_ends(case: Case) -> None:
    vlm, prompt = case
    plan = plan_keeping(prompt, 1.0)
    ids = run_large_pass(vlm, AnswerTask(prompt, 8, stop_at_eos=False), plan).generation.token_ids
    vlm.model.generation_config.eos_token_id = int(ids[3])
    expected = vlm.model.generate(**prompt.inputs, max_new_tokens=8, do_sample=False)[0, len(prompt) :]
    ended = run_large_pass(vlm, AnswerTask(prompt, 8), plan).generation
    assert torch.equal(ended.token_ids, expected)
    assert ended.finish_reason == "stop"
    assert len(run_large_pass(vlm, AnswerTask(prompt, 8, stop_at_eos=False), plan).generation) == 8


def test_streams_may_interleave_and_be_abandoned(case: Case) -> None:
    """Nothing of a stream is on the model while it waits."""
    vlm, prompt = case
    plan = plan_keeping(prompt, 0.3)
    whole = run_large_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False), plan)
    before = traces(vlm)
    task = AnswerTask(prompt, 6, stop_at_eos=False)
    first = stream_large_batch(vlm, [task], [plan])
    second = stream_large_batch(vlm, [task], [plan_keeping(prompt, 1.0)])
    steps = [next(first)]
    next(second)
    assert traces(vlm) == before
    steps += list(first)
    second.close()
    pieces = [piece for step in steps for _, piece in step if isinstance(piece, str)]
    assert "".join(pieces) == whole.generation.text
    assert traces(vlm) == before


def test_the_vision_tower_runs_once() -> None:
    vlm = tiny_vlm(size="large")
    prompt = vlm.encode(REQUESTS["one image"])
    calls: list[int] = []
    vlm.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    run_large_pass(vlm, AnswerTask(prompt, 4), plan_keeping(prompt, 0.5))
    assert len(calls) == 1

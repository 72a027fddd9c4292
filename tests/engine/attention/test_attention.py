import pytest
import torch
from oracles import attention_sum, exploding, plain_logits, traces
from samples import REQUESTS
from tolerances import CONTROL, gap, of_logits, of_logprobs, relative_gap

from sgl_engine import VLM
from sgl_engine.attention import capture as attention
from sgl_engine.attention import capture_attention
from sgl_engine.attention import recorder as recording
from sgl_engine.attention.importance import importance_map
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.testing import tiny_vlm

Case = tuple[VLM, EncodedPrompt]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_captured_map_equals_eager_attention(case: Case, implementation: str) -> None:
    vlm, prompt = case
    vlm.model.set_attn_implementation(implementation)
    result = run_small_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False))
    expected = attention_sum(vlm, prompt, result.generation.token_ids.tolist())
    assert result.importance is not None
    assert result.importance.mass.dtype == torch.float32
    assert relative_gap(result.importance.mass, expected) < of_logprobs(vlm)
    last_visual = prompt.visual_positions[-1]
    assert result.importance.num_queries == (len(prompt) - last_visual) + 5


def test_other_rows_do_not_give_the_map(case: Case) -> None:
    """The control: one row fewer at either end is noticed."""
    vlm, prompt = case
    result = run_small_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False))
    answer = result.generation.token_ids.tolist()
    assert result.importance is not None
    one_row_fewer = attention_sum(vlm, prompt, answer[:-1])
    assert relative_gap(result.importance.mass, one_row_fewer) > CONTROL * of_logprobs(vlm)
    with capture_attention(vlm, prompt, first_row=prompt.visual_positions[-1] + 1) as recorder:
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)
    one_row_fewer = recorder.sums().prefill.sum(0)
    assert relative_gap(one_row_fewer, attention_sum(vlm, prompt, answer[:1])) > CONTROL * of_logprobs(vlm)


def test_captured_steps_of_several_tokens_and_long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are worked through in chunks; chunk borders must not show."""
    monkeypatch.setattr(recording, "_ROWS_AT_ONCE", 3)
    vlm = tiny_vlm(size="large")
    prompt = vlm.encode(REQUESTS["one image"])
    answer = [5, 6, 7, 8, 9]
    cache = vlm.new_cache()
    with capture_attention(vlm, prompt) as recorder:
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=cache)
        vlm.forward(
            vlm.embed_tokens(torch.tensor(answer[:4])), prompt=prompt, first_position=len(prompt), cache=cache
        )
    mass = importance_map(recorder.sums(), prompt.spans).mass
    assert relative_gap(mass, attention_sum(vlm, prompt, answer)) < of_logprobs(vlm)


def test_left_out_masks_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tokens on a cache need a mask; transformers builds none for an unregistered name, silently."""
    vlm = tiny_vlm(size="large")
    prompt = vlm.encode(REQUESTS["one image"])
    answer = [5, 6, 7, 8]

    def captured() -> torch.Tensor:
        cache = vlm.new_cache()
        with capture_attention(vlm, prompt):
            vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=cache)
            step = vlm.embed_tokens(torch.tensor(answer))
            return vlm.forward(step, prompt=prompt, first_position=len(prompt), cache=cache, logit_rows=4)

    expected = plain_logits(vlm, prompt, answer)[-4:]
    assert gap(captured(), expected) < of_logits(vlm)
    from transformers import AttentionMaskInterface

    monkeypatch.delitem(AttentionMaskInterface._global_mapping, "sgl_capture_sdpa")
    assert gap(captured(), expected) > CONTROL * of_logits(vlm)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_capturing_changes_no_bit_of_the_output(case: Case, implementation: str) -> None:
    vlm, prompt = case
    vlm.model.set_attn_implementation(implementation)
    embeddings = vlm.embed(prompt)
    plain = vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None, logit_rows=5)
    with capture_attention(vlm, prompt):
        captured = vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None, logit_rows=5)
    assert torch.equal(plain, captured)


def test_only_the_text_model_is_switched_and_everything_is_restored(case: Case) -> None:
    vlm, prompt = case
    before = traces(vlm)
    with capture_attention(vlm, prompt):
        assert vlm.text_model.config._attn_implementation == "sgl_capture_sdpa"
        assert vlm.config.vision_config._attn_implementation == "sdpa"
    assert traces(vlm) == before


def test_everything_is_restored_when_the_model_raises(case: Case) -> None:
    vlm, prompt = case
    run_small_pass(vlm, AnswerTask(prompt, 1))
    before = traces(vlm)
    with exploding(vlm.text_model.layers[2].mlp), pytest.raises(RuntimeError, match="in the middle"):
        run_small_pass(vlm, AnswerTask(prompt, 4))
    assert traces(vlm) == before
    assert attention._RECORDER.get() is None


def test_no_map_of_the_size_of_the_prompt_squared_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm(size="large", side_tokens=8)
    prompt = vlm.encode(REQUESTS["one image"])
    shapes = []
    original = recording._attention_rows
    monkeypatch.setattr(
        recording, "_attention_rows", lambda *args: shapes.append((got := original(*args)).shape) or got
    )
    with capture_attention(vlm, prompt):
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)
    rows = len(prompt) - prompt.visual_positions[-1]
    heads = vlm.config.text_config.num_attention_heads
    assert set(shapes) == {(1, heads * rows, len(prompt))}
    assert rows < len(prompt) / 2


def test_nested_captures_do_not_count_twice(case: Case) -> None:
    vlm, prompt = case
    with capture_attention(vlm, prompt) as alone:
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)
    with capture_attention(vlm, prompt), capture_attention(vlm, prompt) as inner:
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)
    assert torch.equal(alone.sums().prefill, inner.sums().prefill)
    assert vlm.text_model.config._attn_implementation == "sdpa"

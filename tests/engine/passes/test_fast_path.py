"""One prompt is attended to without a mask, so by the causal kernel, in full and in pruned layers."""

from typing import Any

import pytest
import torch
from samples import REQUESTS, noise

from sgl_engine import Request
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.pruning import plan_pruning
from sgl_engine.testing import tiny_vlm


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Of each attention of several rows to as many keys: whether it had a mask, and whether it was causal."""
    original, seen = torch.nn.functional.scaled_dot_product_attention, []

    def attend(
        query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, **more: Any
    ) -> Any:
        if query.shape[2] == key.shape[2] > 1:
            seen.append((attn_mask is not None, is_causal))
        return original(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    return seen


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_no_mask_for_one_prompt(family: str, calls: list[tuple[bool, bool]]) -> None:
    vlm = tiny_vlm(family)
    prompt = vlm.encode(REQUESTS["one image"])
    importance = ImportanceMap(torch.rand(prompt.num_visual_tokens), prompt.spans, num_queries=1)
    plan = plan_pruning(prompt, importance, layer=1, keep_ratio=0.5)
    run_small_pass(vlm, AnswerTask(prompt, 2))
    run_large_pass(vlm, AnswerTask(prompt, 2), plan)
    assert not any(masked for masked, _ in calls)
    assert sum(causal for _, causal in calls) >= 3 * vlm.num_layers  # prefill, consistency, pruned prefill


def test_a_padded_batch_has_masks(calls: list[tuple[bool, bool]]) -> None:
    vlm = tiny_vlm()
    prompts = [vlm.encode(Request.ask(text, noise(40, 50))) for text in ("What?", "What is it?")]
    batch = vlm.batch(prompts)
    embeddings = batch.join([vlm.embed(prompt) for prompt in prompts])
    calls.clear()
    vlm.forward_batch(embeddings, batch=batch, first_position=0, cache=None)
    assert [masked for masked, _ in calls] == [True] * vlm.num_layers

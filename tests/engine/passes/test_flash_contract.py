"""What flash attention is given: no mask, and no positions with gaps, which it takes for packed prompts.

Flash attention needs a GPU. Here a function stands in for it that computes the same from what it is given,
and refuses what the real one would misread; whatever it is then given is right for the real one too.
"""

from typing import Any

import pytest
import torch
from samples import REQUESTS
from tolerances import gap, of_logprobs, relative_gap
from transformers import AttentionInterface, AttentionMaskInterface

from sgl_engine import VLM
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.pruning import plan_pruning
from sgl_engine.testing import tiny_vlm

NAME = "flash_stand_in"


def stand_in(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    scaling: float,
    position_ids: Any = None,
    **_: Any,
) -> Any:
    assert mask is None, "flash attention takes no mask of columns"
    rows, keys = query.shape[2], key.shape[2]
    if position_ids is not None and rows > 1:
        steps = position_ids.diff(dim=-1)
        assert bool((steps == 1).all()), "flash attention takes gaps for packed prompts"
    visible = torch.arange(keys) <= torch.arange(rows)[:, None] + keys - rows
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, visible, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


@pytest.fixture(params=["internvl", "qwen2_5_vl", "llava_onevision", "smolvlm"])
def pair(request: pytest.FixtureRequest) -> tuple[VLM, VLM]:
    """The same weights, in SDPA and in the stand-in."""
    AttentionInterface.register(NAME, stand_in)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    plain, flash = tiny_vlm(request.param, size="large"), tiny_vlm(request.param, size="large")
    flash.text_model.config._attn_implementation = NAME
    return plain, flash


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("accepted", [None, 2, 5])
def test_pruned_answers_are_those_of_sdpa(pair: tuple[VLM, VLM], layer: int, accepted: int | None) -> None:
    """With a draft that is right up to a place, too."""
    results, draft = [], []
    for vlm in pair:
        prompt = vlm.encode(REQUESTS["images with text between"])
        small = run_small_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False))
        assert small.importance is not None
        plan = plan_pruning(prompt, small.importance, layer=layer, keep_ratio=0.3)
        if accepted is not None and not draft:
            own = run_large_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False), plan)
            draft = own.generation.token_ids.tolist()
            draft[accepted:] = [min(set(range(90)) - set(draft))] * (6 - accepted)
        large = run_large_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False, draft=tuple(draft)), plan)
        assert large.accepted_tokens == (accepted or 0)
        results.append((small, large))
    (small, large), (flash_small, flash_large) = results
    within = of_logprobs(pair[0])
    assert relative_gap(flash_small.importance.mass, small.importance.mass) < within
    assert flash_small.parts == pytest.approx(small.parts, rel=6 * within)
    assert large.generation.token_ids.tolist() == flash_large.generation.token_ids.tolist()
    assert gap(flash_large.generation.logprobs, large.generation.logprobs) < within


def test_the_stand_in_refuses_what_flash_attention_misreads() -> None:
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(AssertionError, match="mask"):
        stand_in(None, query, query, query, torch.ones(3, 3), 1.0)
    with pytest.raises(AssertionError, match="packed"):
        stand_in(None, query, query, query, None, 1.0, position_ids=torch.tensor([[0, 1, 5]]))

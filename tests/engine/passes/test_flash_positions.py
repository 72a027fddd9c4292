"""Mistral 3 with decoders that scale queries by their positions: pruned, and in flash attention.

They hand positions on to attention, where gaps would be read as packed prompts; without any they fail.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from samples import REQUESTS
from test_flash_contract import NAME, stand_in
from tolerances import gap, of_logprobs
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    Mistral3ForConditionalGeneration,
)

from sgl_engine import VLM
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.families.tiny.sizes import randomize
from sgl_engine.passes import run_large_pass
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.pruning import patch, plan_pruning
from sgl_engine.testing import tiny_vlm

SCALED: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,  # prompts are longer, so that the scale differs between tokens
    "llama_4_scaling_beta": 0.5,
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 4,
}
decoders = pytest.mark.parametrize(
    ("model_type", "settings"),
    [("ministral3", {"head_dim": 8, "num_key_value_heads": 2}), ("mistral4", LATENT)],
    ids=["ministral3", "mistral4"],
)


def with_decoder(model_type: str, settings: dict[str, Any]) -> VLM:
    """The tiny model with another decoder of its sizes."""
    plain = tiny_vlm("mistral3")
    config, text = plain.config, plain.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(text, name) for name in names}
    config.text_config = AutoConfig.for_model(
        model_type, **{**sizes, "pad_token_id": None, "rope_parameters": dict(SCALED), **settings}
    )
    torch.manual_seed(0)
    model = Mistral3ForConditionalGeneration(config).float()
    randomize(model)
    return VLM(model, plain.processor, name=model_type)


def answer(vlm: VLM, implementation: str) -> Any:
    """Pruned from layer 1 on, in some attention."""
    AttentionInterface.register(NAME, stand_in)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    prompt = vlm.encode(REQUESTS["images with text between"])
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(0))
    plan = plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=1, keep_ratio=0.3)
    vlm.text_model.config._attn_implementation = implementation
    try:
        return run_large_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), plan).generation
    finally:
        vlm.text_model.config._attn_implementation = "sdpa"


@decoders
def test_pruned_in_flash_attention_as_in_sdpa(model_type: str, settings: dict[str, Any]) -> None:
    vlm = with_decoder(model_type, settings)
    check_exactness(vlm)  # the scale goes by the positions of the whole prompt
    plain, flash = answer(vlm, "sdpa"), answer(vlm, NAME)
    assert flash.token_ids.tolist() == plain.token_ids.tolist()
    assert gap(flash.logprobs, plain.logprobs) < of_logprobs(vlm)


def test_positions_that_reach_flash_attention_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(patch, "without_positions", lambda _: nullcontext())
    with pytest.raises(AssertionError, match="packed"):
        answer(with_decoder("ministral3", {"head_dim": 8, "num_key_value_heads": 2}), NAME)

"""Operations of mixtures of experts and of latent attention, against torch's own counter."""

from typing import Any

import pytest
import torch
from samples import REQUESTS
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, InternVLForConditionalGeneration

from sgl_engine import VLM
from sgl_engine.planning.estimate import working_bytes
from sgl_engine.report.cost import forward_flops
from sgl_engine.testing import tiny_vlm

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def with_decoder(model_type: str, **settings: Any) -> VLM:
    """The tiny InternVL, with another decoder of about its sizes."""
    plain = tiny_vlm("internvl")
    config = plain.config
    kept = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    )
    sizes = {name: getattr(config.text_config, name) for name in kept.split()}
    config.text_config = AutoConfig.for_model(model_type, **{**sizes, "pad_token_id": None, **settings})
    config.text_config._experts_implementation = "eager"  # torch counts no grouped products
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).float()
    model.set_attn_implementation({"text_config": "eager"})  # nor fused attention
    return VLM(model, plain.processor, name=model_type)


@pytest.mark.parametrize(("model_type", "settings"), [("qwen3_moe", EXPERTS), ("deepseek_v3", LATENT)])
def test_a_prefill_is_counted_as_torch_counts_it(model_type: str, settings: dict[str, Any]) -> None:
    vlm = with_decoder(model_type, **settings)
    prompt = vlm.encode(REQUESTS["one image"])
    embeddings = vlm.embed(prompt)
    with FlopCounterMode(display=False) as counter:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    decoder = vlm.shape.decoder
    counted = forward_flops(decoder, [len(prompt)] * decoder.layers, logit_rows=1)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_what_experts_and_latent_heads_hold_is_measured() -> None:
    """A configuration without the width of an MLP, of experts alone; heads that are wider than all of it."""
    experts = with_decoder("qwen3_moe", **EXPERTS, intermediate_size=0)
    assert experts.shape.decoder.intermediate == 2 * 24 + 1  # two experts, and the matrix that chooses them
    latent = with_decoder("deepseek_v3", **LATENT)
    assert latent.shape.decoder.attention_values == 4 * (24 + 24 + 8)
    prompt = latent.encode(REQUESTS["one image"])
    wide = working_bytes(latent, prompt, 1)["float32"]
    rows = 2 * latent.shape.decoder.hidden + max(3 * latent.shape.decoder.intermediate, 4 * (24 + 24 + 8))
    assert wide == 4 * (len(prompt) * rows + latent.shape.decoder.vocab)

"""Known families with decoders that no test holds: checked before use, sinks and caps computed."""

from typing import Any

import pytest
import torch
from samples import REQUESTS
from tolerances import of_logprobs, relative_gap
from transformers import AutoConfig, InternVLForConditionalGeneration

from sgl_engine import VLM
from sgl_engine.attention import capture_attention
from sgl_engine.attention import recorder as recording
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.testing import tiny_vlm

SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}
CAPPED: dict[str, Any] = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 64}
CASES = [
    pytest.param("gpt_oss", EXPERTS, id="sinks"),
    pytest.param("gemma2", CAPPED, id="softcap"),
]


def with_decoder(model_type: str, settings: dict[str, Any]) -> VLM:
    """The tiny model with another decoder of its sizes, whose sinks are not zero."""
    plain = tiny_vlm("internvl")
    config = plain.config
    sizes = {name: getattr(config.text_config, name) for name in SIZES.split()}
    config.text_config = AutoConfig.for_model(
        model_type, **{**sizes, "head_dim": 8, "pad_token_id": None, **settings}
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).float()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
        elif "sinks" in name:
            torch.nn.init.normal_(weight, mean=1.0)
    model.set_attn_implementation({"text_config": "eager"})
    return VLM(model, plain.processor, name=model_type)


@pytest.mark.parametrize(("model_type", "settings"), CASES)
def test_what_shapes_attention_is_recorded(model_type: str, settings: dict[str, Any]) -> None:
    """Against the probabilities that the model's own eager attention returns."""
    vlm = with_decoder(model_type, settings)
    assert not vlm.is_checked
    prompt, received = vlm.encode(REQUESTS["one image"]), []
    visual = list(prompt.visual_positions)
    handles = [
        layer.self_attn.register_forward_hook(
            lambda _, __, out: received.append(out[1][0, :, visual[-1] :][..., visual].sum(dim=(0, 1)))
        )
        for layer in vlm.family.decoder_layers(vlm.model)
    ]
    embeddings = vlm.embed(prompt)
    with capture_attention(vlm, prompt) as recorder:
        vlm.forward(embeddings, prompt=prompt, first_position=0, cache=None)
    for handle in handles:
        handle.remove()
    assert relative_gap(recorder.sums().prefill, torch.stack(received)) < of_logprobs(vlm)
    check_exactness(vlm)
    assert vlm.is_checked


@pytest.mark.parametrize(("model_type", "settings"), CASES)
def test_a_recorder_that_ignores_it_is_noticed(
    model_type: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without sinks and caps in the recorder, the check refuses the model."""
    original = recording._attention_rows
    plain = recording.PLAIN
    monkeypatch.setattr(
        recording,
        "_attention_rows",
        lambda query, key, mask, shaping, *rows: original(query, key, mask, (shaping[0], plain), *rows),
    )
    with pytest.raises(UnsupportedModelError, match=f"{model_type}.*captured is not the attention"):
        check_exactness(with_decoder(model_type, settings))


def test_half_precision_is_no_reason_to_refuse_and_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact model in bfloat16 passes; a recorder off by a few percent does not."""
    vlm = with_decoder("gpt_oss", {**EXPERTS, "num_hidden_layers": 12})
    half = VLM(vlm.model.to(torch.bfloat16), vlm.processor, name="half")
    check_exactness(half)
    assert half.is_checked
    original = recording._attention_rows
    monkeypatch.setattr(recording, "_attention_rows", lambda *arguments: original(*arguments) * 1.02)
    with pytest.raises(UnsupportedModelError, match="captured is not the attention"):
        check_exactness(VLM(vlm.model, vlm.processor, name="half"))

"""Families that differ from the plain path in how tokens see each other, or in what is added between layers.

Against the model's own forward, as `python -m benchmarks.coverage_families` compares; each with a control.
"""

from typing import Any

import pytest
import torch
from samples import noise
from transformers import (
    Gemma2Config,
    Llama4TextConfig,
    LlamaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.coverage_families.architectures import RECIPES
from benchmarks.coverage_families.checks import REQUESTS, compare, wrong_ones
from benchmarks.coverage_families.run import finished
from sgl_engine import VLM, Message, Request
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import PruningConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import ConfigError, ProcessorError, PromptTooLongError, UnsupportedModelError
from sgl_engine.families.base import BaseFamily
from sgl_engine.families.both_ways import BothWays
from sgl_engine.families.tiny.sizes import randomize
from sgl_engine.families.tiny.tokenizer import byte_tokenizer
from sgl_engine.passes import exactness, run_large_pass
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.passes.large import plan_large
from sgl_engine.pruning import patch, plan_pruning, planes

FAMILIES = ("gemma4", "granite4_vision", "llama4", "molmo2", "paligemma")


def build(name: str) -> VLM:
    torch.manual_seed(0)
    model, processor = finished(*RECIPES[name]())
    return VLM(model.float(), processor, name=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_exact(name: str) -> None:
    vlm = build(name)
    assert vlm.family.name == name
    check_exactness(vlm)
    assert not wrong_ones(dict(compare(vlm, vlm.encode(REQUESTS["two"]), {}, "two")))
    assert not vlm.text_model._forward_pre_hooks


@pytest.mark.parametrize("name", ["molmo2", "paligemma"])
def test_causal_masks_would_be_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the masks of its own, the model is refused."""
    monkeypatch.setattr(
        BothWays, "decoder_inputs", lambda self, model, embeddings, *_, **__: {"inputs_embeds": embeddings}
    )
    with pytest.raises(UnsupportedModelError, match=f"'{name}'.*embedding and decoding apart"):
        check_exactness(build(name))


def test_planes_of_other_tokens_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = planes._left

    def shifted(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        left, numbers = original(*arguments)
        return left, numbers.roll(1)

    monkeypatch.setattr(planes, "_left", shifted)
    with pytest.raises(UnsupportedModelError, match="pruned at layer 0, it gives other logits"):
        check_exactness(build("granite4_vision"))


def test_layers_that_see_the_keys_of_others_bound_k() -> None:
    """Layers 4 and 5 see those of 2 and 3."""
    vlm = build("gemma4")
    prompt = vlm.encode(REQUESTS["one"])
    importance = ImportanceMap(torch.rand(prompt.num_visual_tokens), prompt.spans, 1)
    plan = plan_pruning(prompt, importance, layer=3, keep_ratio=0.5)
    with pytest.raises(ConfigError, match="gemma4 cannot be pruned at layer 3; it can at 0 to 2"):
        run_large_pass(vlm, AnswerTask(prompt, 2), plan)
    asked = PruningConfig(layer_fraction=0.8, keep_ratio=0.5)  # layer 4
    assert plan_large(vlm, prompt, importance, asked).layer == 2


def test_beyond_that_layer_pruning_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    for module in (patch, exactness):
        monkeypatch.setattr(module, "last_prunable_layer", lambda vlm: vlm.num_layers - 1)
    with pytest.raises(UnsupportedModelError, match="pruned at layer 3|fails with"):
        check_exactness(build("gemma4"))


def test_chunks_end_the_context() -> None:
    vlm = build("llama4")
    text = vlm.text_model.config
    assert vlm.context_tokens == text.floor_scale - 1 == text.attention_chunk_size - 1
    text.attention_chunk_size = 60
    with pytest.raises(PromptTooLongError, match="the context of llama4 is 60"):
        vlm.encode(REQUESTS["two"])


def test_chunks_end_the_context_of_any_family() -> None:
    text = Llama4TextConfig(attention_chunk_size=300, attn_temperature_tuning=False)
    assert BaseFamily().context_tokens(text) == 300
    assert BaseFamily().context_tokens(LlamaConfig(max_position_embeddings=500)) == 500


def test_beyond_a_chunk_pruning_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the limit is not there for nothing."""
    monkeypatch.setattr(BaseFamily, "context_tokens", lambda self, text: 2048)
    vlm = build("llama4")
    vlm.text_model.config.attention_chunk_size = 40  # the picture and half of the question
    with pytest.raises(UnsupportedModelError, match="gives other logits"):
        check_exactness(vlm)


def pali_gemma() -> VLM:
    """With its own processor, and the decoder of PaliGemma 2: sliding windows, caps."""
    tokenizer = byte_tokenizer(["<image>", "<bos>"], {"image_token": "<image>", "bos_token": "<bos>"})
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = Gemma2Config(
        **sizes,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=32,
        query_pre_attn_scalar=8,
        eos_token_id=tokenizer.eos_token_id,
    )
    tower = {**sizes, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4}
    config = PaliGemmaConfig(
        text_config=text,
        vision_config={**tower, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        hidden_size=32,
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config).float()
    randomize(model)
    return VLM(model, processor, name="pali")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of its labels
def test_pali_gemma_is_prompted_as_its_processor_prompts() -> None:
    vlm = pali_gemma()
    check_exactness(vlm)
    pictures = [noise(20, 30), noise(40, 20)]
    prompt = vlm.encode(Request.ask("caption en", *pictures))
    bare = PaliGemmaProcessor(vlm.processor.image_processor, vlm.processor.tokenizer)
    expected = bare(text=["<image><image>caption en"], images=[pictures], return_tensors="pt")
    assert prompt.input_ids.tolist() == expected["input_ids"].tolist()
    assert [span.grid for span in prompt.spans] == [(4, 4)] * 2
    assert "labels" not in prompt.inputs
    assert bare.chat_template is None


@pytest.mark.parametrize(
    "request_",
    [
        Request((Message("user", ("a",)), Message("assistant", ("b",)), Message("user", ("c",)))),
        Request.ask("Without a picture?"),
    ],
)
def test_pali_gemma_says_that_it_does_not_converse(request_: Request) -> None:
    with pytest.raises(ProcessorError, match="cannot encode 0 images"):
        pali_gemma().encode(request_)

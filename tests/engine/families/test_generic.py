"""Architectures without a family: proven when they are loaded, or refused with the reason."""

from typing import Any

import pytest
import torch
from samples import REQUESTS, noise
from tolerances import of_logprobs, relative_gap
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Kosmos2Config,
    LlamaConfig,
    LlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from whole_model import attention_sum, masked_logits

from sgl_engine import VLM, EngineConfig, Request, SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.decoding.loop import Rewinding
from sgl_engine.errors import IncompatiblePairError, UnsupportedModelError
from sgl_engine.families import find_family
from sgl_engine.families.tiny.sizes import TINY_SIZES, TinyOptions, randomize, text_settings
from sgl_engine.families.tiny.tokenizer import byte_tokenizer, chat_template
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.pruning import plan_pruning
from sgl_engine.pruning.plan import KeptColumns
from sgl_engine.testing import tiny_vlm

EDGE, PATCH = 16, 4
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": EDGE,
    "patch_size": PATCH,
}


def build(size: str, text: Any, tower: Any, config: Any, model: Any, extra_tokens: int) -> VLM:
    tokenizer = byte_tokenizer(["<image>"])
    options = TinyOptions(TINY_SIZES[size], max_tiles=1, side_tokens=4, context_tokens=512)
    image = tokenizer.convert_tokens_to_ids("<image>")
    settings = {**text_settings(options, tokenizer), **text}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = model(config(settings, tower, image))
        randomize(built)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"height": EDGE, "width": EDGE}, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH,
        num_additional_image_tokens=extra_tokens,
        vision_feature_select_strategy="default" if extra_tokens else "full",
        chat_template=chat_template("<image>"),
    )
    return VLM(built.float(), processor, name="nameless")


def vip_llava(size: str = "large") -> VLM:
    """Plain enough: a Llama behind several layers of a CLIP tower."""

    def config(text: dict[str, Any], tower: dict[str, Any], image: int) -> VipLlavaConfig:
        return VipLlavaConfig(
            text_config=LlamaConfig(**text),
            vision_config=CLIPVisionConfig(**tower),
            image_token_index=image,
            vision_feature_layers=(-1, -2),
            vision_feature_layer=(-1, -2),
            tie_word_embeddings=False,
        )

    return build(size, {}, TOWER, config, VipLlavaForConditionalGeneration, 1)


def test_a_plain_architecture_is_proven_and_exact() -> None:
    vlm = vip_llava()
    assert (vlm.family.name, vlm.is_checked) == ("generic", False)
    check_exactness(vlm)
    assert vlm.is_checked
    prompt = vlm.encode(REQUESTS["one image"])
    answer = run_small_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False))
    assert answer.importance is not None
    expected = attention_sum(vlm, prompt, answer.generation.token_ids.tolist())
    assert relative_gap(answer.importance.mass, expected) < of_logprobs(vlm)
    plan = plan_pruning(prompt, answer.importance, layer=1, keep_ratio=0.3)
    result = run_large_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False), plan)
    ids: list[int] = []
    for _ in range(4):
        logits = masked_logits(vlm, prompt, ids, layer=1, keep=plan.keep.tolist())
        ids.append(int(logits[-1].argmax()))
    assert result.generation.token_ids.tolist() == ids


def test_an_engine_proves_what_it_is_given() -> None:
    small, large = vip_llava("small"), vip_llava()
    engine = SGLEngine(small, large, EngineConfig().escalating("always"))
    assert small.is_checked
    assert large.is_checked
    response = engine.run(Request.ask("What?", noise(20, 30), max_new_tokens=2))
    assert response.report.kept_visual_tokens == 3  # of 16


def test_its_map_says_nothing_to_another_tiling() -> None:
    engine = SGLEngine(vip_llava("small"), tiny_vlm(size="large"), EngineConfig().escalating("always"))
    with pytest.raises(IncompatiblePairError, match="unknown"):
        engine.run(Request.ask("What?", noise(20, 30), max_new_tokens=2))


def test_an_architecture_that_is_not_plain_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="'kosmos-2'.*mask of positions.*CONTRIBUTING"):
        find_family(Kosmos2Config(), "it")


def test_a_fault_in_pruning_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: rows one off in every pruned layer."""
    original = KeptColumns.seen

    def shifted(kept: KeptColumns, *arguments: Any) -> torch.Tensor:
        rows = original(kept, *arguments).clone()
        gap = int((rows[0].diff() > 1).nonzero()[0])
        rows[0, gap] += 1
        return rows

    monkeypatch.setattr(KeptColumns, "seen", shifted)
    with pytest.raises(UnsupportedModelError, match="pruned at layer 0, it gives other logits"):
        check_exactness(vip_llava())


def test_a_fault_in_capture_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from sgl_engine.attention import recorder as recording

    original = recording._attention_rows
    monkeypatch.setattr(recording, "_attention_rows", lambda *arguments: original(*arguments) * 1.01)
    with pytest.raises(UnsupportedModelError, match="captured is not the attention"):
        check_exactness(vip_llava())


def test_a_cache_that_does_not_go_back_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rewinding, "back_to", lambda self, wanted, position: wanted)
    with pytest.raises(UnsupportedModelError, match="embedding and decoding apart gives other logits"):
        check_exactness(vip_llava())


def test_nothing_is_left_of_the_reference() -> None:
    vlm = vip_llava()
    check_exactness(vlm)
    assert vlm.text_model.config._attn_implementation == "sdpa"
    prompt = vlm.encode(REQUESTS["one image"])
    everything = ImportanceMap(torch.ones(prompt.num_visual_tokens), prompt.spans, 1)
    plan = plan_pruning(prompt, everything, layer=0, keep_ratio=1.0)
    expected = vlm.model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)[0, len(prompt) :]
    assert torch.equal(run_large_pass(vlm, AnswerTask(prompt, 3), plan).generation.token_ids, expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layer_types": ["mamba", "full_attention", "full_attention"]}, "plain attention throughout"),
        ({"image_token_id": None}, "no single image token"),
        ({"vision_config": None}, "not a decoder and a vision tower"),
    ],
)
def test_configurations_that_cannot_be_proven(change: dict[str, Any], reason: str) -> None:
    config = vip_llava("small").config
    config.model_type = "made_up"
    for name, value in change.items():
        holder = config.text_config if name == "layer_types" else config
        object.__setattr__(holder, "image_token_index" if name == "image_token_id" else name, value)
    with pytest.raises(
        UnsupportedModelError, match=f"'made_up', and .*{reason}.*supported: .*internvl.*CONTRIBUTING"
    ):
        find_family(config, "it")

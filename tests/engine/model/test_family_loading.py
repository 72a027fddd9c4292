"""Every family saved, loaded and counted; raw inputs; architectures without a file."""

import json
from pathlib import Path

import pytest
import torch
from test_cost import counted
from test_family_exactness import ANSWER, REQUESTS, STEPS, encoded, gap, model, random_plan, stepwise_logits
from whole_model import masked_logits, visual_positions

from sgl_engine import VLM, Request
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import InvalidRequestError, ProcessorError
from sgl_engine.families import FAMILIES, KNOWN_DECODERS
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.families.tiny.sizes import randomize
from sgl_engine.passes import run_large_pass
from sgl_engine.report.cost import answer_flops, tower_flops
from sgl_engine.testing import tiny_vlm

# A tower's windows are counted as if they were the whole image; a recurrence token by token, not in chunks.
COUNTED_WITHIN = {"qwen2_5_vl": 0.15, "qwen3_5": 0.2}

families = pytest.mark.parametrize("family", TINY_FAMILIES)


def test_the_table_names_every_family() -> None:
    table = (Path(__file__).parents[3] / "docs" / "families.md").read_text()
    assert all(f"| `{family}`" in table or f", `{family}`" in table for family in FAMILIES)


def save(vlm: VLM, folder: Path) -> None:
    """As checkpoints on the hub are; transformers would want to save the video processor that is missing."""
    processor = vlm.processor
    vlm.model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor.to_dict(), default=str))
    (folder / "chat_template.jinja").write_text(processor.chat_template)


def test_every_family_has_a_tiny_model() -> None:
    """But for those that are proven when they are first used, as no decoder of theirs is known."""
    assert sorted(TINY_FAMILIES) == sorted(KNOWN_DECODERS)
    assert KNOWN_DECODERS.keys() <= FAMILIES.keys()
    assert all(model(family).family.name == family for family in TINY_FAMILIES)


@families
def test_a_saved_model_sees_and_answers_the_same(family: str, tmp_path: Path) -> None:
    original = tiny_vlm(family, max_tiles=4)
    save(original, tmp_path)
    loaded = VLM.from_pretrained(tmp_path, dtype=torch.float32, device="cpu")
    for request in REQUESTS.values():
        ours, theirs = loaded.encode(request), original.encode(request)
        assert ours.spans == theirs.spans
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(loaded.embed(ours), original.embed(theirs))


@families
@pytest.mark.parametrize("request_", REQUESTS)
def test_raw_inputs_give_the_same_prompt(family: str, request_: str) -> None:
    """Boxes of tiles may stay unknown without the images' sizes; all else follows from the inputs."""
    prompt = encoded(family, request_)
    raw = model(family).prompt(prompt.inputs)
    assert raw.visual_positions == prompt.visual_positions
    assert [(span.image, span.grid) for span in raw.spans] == [
        (span.image, span.grid) for span in prompt.spans
    ]
    boxes = zip(raw.spans, prompt.spans, strict=True)
    assert all(ours.box is None or ours.box == theirs.box for ours, theirs in boxes)


@families
@pytest.mark.parametrize("keep_ratio", [0.2, 1.0])
def test_operations_are_counted(family: str, keep_ratio: float) -> None:
    vlm, prompt = model(family), encoded(family, "a conversation")
    plan = random_plan(prompt, 1, keep_ratio)
    expected = counted(lambda: run_large_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), plan))
    got = answer_flops(
        vlm.shape,
        patches=vlm.tower_patches(prompt),
        prompt_tokens=len(prompt),
        output_tokens=5,
        plan=plan,
    )
    assert got == pytest.approx(expected, rel=COUNTED_WITHIN.get(family, 0.02))


@families
def test_missing_pixels_and_sizes_are_refused(family: str) -> None:
    vlm, prompt = model(family), encoded(family, "one picture")
    with pytest.raises((ProcessorError, InvalidRequestError), match="image"):
        vlm.embed(vlm.prompt({"input_ids": prompt.input_ids}))


@families
def test_text_alone(family: str) -> None:
    vlm = model(family)
    prompt = vlm.encode(Request.ask("Hello?"))
    assert prompt.spans == ()
    assert vlm.tower_patches(prompt) == ()
    expected = vlm.model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    result = run_large_pass(vlm, AnswerTask(prompt, 4), random_plan(prompt, 0, 1.0))
    assert torch.equal(result.generation.token_ids, expected[0, len(prompt) :])


def test_pixtral_checkpoints_that_call_themselves_llava() -> None:
    """Another tower and other tiles than the rest of their family: those of Mistral 3, unmerged."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    rows = tiny_vlm("mistral3", size="large", max_tiles=4)
    rows.processor.spatial_merge_size = 1
    config = LlavaConfig(
        text_config=rows.config.text_config,
        vision_config=rows.config.vision_config,
        image_token_index=rows.config.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = LlavaForConditionalGeneration(config)
        randomize(built)
    vlm = VLM(built.float(), rows.processor, name="pixtral")
    for request in REQUESTS.values():
        prompt = vlm.encode(request)
        assert all(span.row_gap == 1 for span in prompt.spans)
        assert list(prompt.visual_positions) == visual_positions(vlm, prompt)
        plan = random_plan(prompt, 1)
        got = stepwise_logits(vlm, prompt, plan, STEPS["several at once"])
        expected = masked_logits(vlm, prompt, ANSWER, layer=1, keep=plan.keep.tolist())
        assert gap(got, expected[len(prompt) - 1 :]) < 2e-4
    counted_ = counted(lambda: vlm.embed(prompt))
    assert sum(tower_flops(vlm.shape.vision, n) for n in vlm.tower_patches(prompt)) == pytest.approx(
        counted_,
        rel=0.05,  # the first convolution also runs over padding
    )


def test_several_pictures_of_one_prompt_are_counted_together() -> None:
    """LLaVA-OneVision shows several pictures whole only; as if each were of another prompt, in tiles."""
    spans = encoded("llava_onevision", "a conversation").spans
    assert [(span.image, span.grid) for span in spans] == [(image, (4, 4)) for image in range(3)]
    assert len(encoded("llava_onevision", "one picture").spans) == 2

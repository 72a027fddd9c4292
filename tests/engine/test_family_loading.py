"""Every family saved, loaded and counted; raw inputs; architectures without a file."""

import json
from pathlib import Path

import pytest
import torch
from samples import noise
from test_cost import counted
from test_family_exactness import REQUESTS, encoded, model, random_plan

from sgl_engine import VLM, Request, run_large_pass
from sgl_engine.cost import answer_flops
from sgl_engine.errors import InvalidRequestError, ProcessorError
from sgl_engine.families import FAMILIES
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.testing import tiny_vlm

# A tower's windows are counted as if they were the whole image; a recurrence token by token, not in chunks.
COUNTED_WITHIN = {"qwen2_5_vl": 0.15, "qwen3_5": 0.2}

families = pytest.mark.parametrize("family", TINY_FAMILIES)


def save(vlm: VLM, folder: Path) -> None:
    """As checkpoints on the hub are; transformers would want to save the video processor that is missing."""
    processor = vlm.processor
    vlm.model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor.to_dict(), default=str))
    (folder / "chat_template.jinja").write_text(processor.chat_template)


def test_every_family_has_a_tiny_model() -> None:
    assert sorted(TINY_FAMILIES) == sorted(FAMILIES)
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
    expected = counted(lambda: run_large_pass(vlm, prompt, plan, max_new_tokens=5, stop_at_eos=False))
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
    result = run_large_pass(vlm, prompt, random_plan(prompt, 0, 1.0), max_new_tokens=4)
    assert torch.equal(result.generation.token_ids, expected[0, len(prompt) :])


@families
def test_text_cannot_pretend_to_be_an_image(family: str) -> None:
    vlm = model(family)
    image = vlm.family.image_text(vlm.processor, vlm.config)
    with pytest.raises(InvalidRequestError, match="stands for an image"):
        vlm.encode(Request.ask(f"look: {image}", noise(8, 8)))

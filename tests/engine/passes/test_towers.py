"""Pictures of several prompts go through the vision tower side by side, and become what they become alone."""

from typing import Any

import pytest
import torch
from samples import noise
from tolerances import CONTROL, gap, of_hidden

from sgl_engine import VLM, Request
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.passes.pictures import embed_pictures, run_towers
from sgl_engine.testing import TINY_FAMILIES, tiny_vlm


def counting(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first dimension of what each pass of the tower was given."""
    given, original = [], type(vlm.family).image_features

    def features(family: Any, model: Any, inputs: Any) -> Any:
        if inputs.get("pixel_values") is not None:
            given.append(len(inputs["pixel_values"]))
        return original(family, model, inputs)

    monkeypatch.setattr(type(vlm.family), "image_features", features)
    return given


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_pictures_side_by_side_become_what_they_become_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, reuse = tiny_vlm(family=family), ReuseConfig()
    prompts = [vlm.encode(Request.ask("?", noise(56, 56, seed=seed))) for seed in range(3)]
    prompts.append(vlm.encode(Request.ask("?", noise(112, 56, seed=3))))  # of another shape, in some families
    prompts.append(vlm.encode(Request.ask("And this one?", noise(56, 56, seed=0))))  # seen above
    prompts.append(vlm.encode(Request.ask("No picture.")))
    alone = [vlm.embed(prompt) for prompt in prompts]
    given = counting(vlm, monkeypatch)
    computed = run_towers(vlm, prompts, reuse)
    if prompts[0].picture_axes is not None:
        assert len(computed) in {3, 4}
        assert len(given) == 1
    together = [embed_pictures(vlm, prompt, reuse, computed=computed) for prompt in prompts]
    for got, wanted in zip(together, alone, strict=True):
        assert gap(got.embeddings, wanted) < of_hidden(vlm, wanted)
    assert min(gap(alone[0], wanted) for wanted in alone[1:3]) > CONTROL * of_hidden(vlm, alone[0])
    assert [got.known_pictures for got in together] == [0, 0, 0, 0, 1, 0]
    assert not run_towers(vlm, prompts, reuse)  # all are known by now
    assert not run_towers(vlm, prompts, NO_REUSE)


def test_what_fails_together_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, reuse = tiny_vlm(), ReuseConfig()
    prompts = [vlm.encode(Request.ask("?", noise(56, 56, seed=seed))) for seed in range(3)]
    alone = [vlm.embed(prompt) for prompt in prompts]
    tiles, original = len(prompts[0].inputs["pixel_values"]), type(vlm.family).image_features

    def features(family: Any, model: Any, inputs: Any) -> Any:
        if len(inputs["pixel_values"]) > tiles:
            raise MemoryError
        return original(family, model, inputs)

    monkeypatch.setattr(type(vlm.family), "image_features", features)
    computed = run_towers(vlm, prompts, reuse)
    assert not computed
    for prompt, wanted in zip(prompts, alone, strict=True):
        assert torch.equal(embed_pictures(vlm, prompt, reuse, computed=computed).embeddings, wanted)


def test_no_window_of_a_qwen_tower_can_be_left_out() -> None:
    """Features of a window depend on the pixels of every other, so none can be had without encoding all.

    By way of the layers between the windows, of which published towers have one at the end. Without these
    layers windows would be tiles, exactly: that is the control.
    """
    vlm = tiny_vlm("qwen2_5_vl", max_tiles=4)
    prompt = vlm.encode(Request.ask("?", noise(112, 112)))
    _, rows, cols = prompt.inputs["image_grid_thw"][0].tolist()
    tower, merged = vlm.model.model.visual, vlm.config.vision_config.spatial_merge_size
    [span] = prompt.spans
    side = tower.window_size // tower.patch_size // merged  # tokens of a window, along each edge
    in_first = torch.zeros(span.grid, dtype=torch.bool)
    in_first[:side, :side] = True
    assert not in_first.all()
    # Patches come token by token, merged x merged of each.
    of_others = (~in_first).flatten().repeat_interleave(merged**2)
    assert len(of_others) == rows * cols
    pixels = prompt.inputs["pixel_values"].clone()
    pixels[of_others] = pixels[of_others].flip(0)
    other = {**prompt.inputs, "pixel_values": pixels}

    def features(inputs: Any) -> torch.Tensor:
        with torch.inference_mode():
            return vlm.family.image_features(vlm.model, inputs)[in_first.flatten()]

    limit = of_hidden(vlm, features(prompt.inputs))
    assert gap(features(other), features(prompt.inputs)) > CONTROL * limit
    tower.fullatt_block_indexes = []
    assert gap(features(other), features(prompt.inputs)) < limit

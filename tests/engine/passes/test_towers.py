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

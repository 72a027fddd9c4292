"""Do grids say where a token looks? With image processors of transformers, on pictures of several shapes."""

import importlib
import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_family_geometry import BLOCK, SIZES, misplaced, picture

from benchmarks.coverage_families.architectures import RECIPES
from sgl_engine.families import find_family

IMAGES = {
    "ernie4_5_vl_moe": ("ernie4_5_vl_moe", "Ernie4_5_VLMoeImageProcessorPil"),
    "exaone4_5": ("qwen2_vl", "Qwen2VLImageProcessorPil"),
    "glm46v": ("glm46v", "Glm46VImageProcessorPil"),
    "glm4v": ("glm4v", "Glm4vImageProcessorPil"),
    "glm4v_moe": ("glm4v", "Glm4vImageProcessorPil"),
    "glm_ocr": ("glm46v", "Glm46VImageProcessorPil"),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRVLImageProcessorPil"),
}
"""Module and class of each family's image processor."""


@cache
def patchwise(name: str) -> tuple[Any, Any]:
    """A model whose tower does not mix patches, and its image processor."""
    torch.manual_seed(0)
    model = RECIPES[name]()[0].float().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "language_model" not in path and re.search(r"\.(layers|blocks|layer)\.\d+\.", path):
                parameter.zero_()
    module, cls = IMAGES[name]
    made = getattr(
        importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}"), cls
    )
    temporal = {} if name != "ernie4_5_vl_moe" else {"temporal_patch_size": 1}
    size = {"shortest_edge": 256, "longest_edge": 16384}
    return model, made(patch_size=4, merge_size=2, size=size, **temporal)


def changed_tokens(name: str, size: tuple[int, int]) -> tuple[Any, torch.Tensor]:
    """Spans, and which of their tokens see the block, bool (V,)."""
    model, images = patchwise(name)
    family = find_family(model.config, name)
    rows = []
    for block in (None, BLOCK):
        inputs = dict(images(images=[picture(*size, block)], return_tensors="pt"))
        with torch.no_grad():
            rows.append(family.image_features(model, inputs))
    plain, marked = rows
    assert plain is not None
    ids = torch.full((1, len(plain)), family.image_token_id(model.config))
    spans = family.spans(model.config, None, {**inputs, "input_ids": ids}, [size])
    change = (plain - marked).abs().amax(dim=-1)
    return SimpleNamespace(spans=spans), change > 0.03 * change.max()


@pytest.mark.parametrize("name", IMAGES)
def test_changed_pixels_change_the_tokens_that_cover_them(name: str) -> None:
    for size in SIZES.values():
        prompt, changed = changed_tokens(name, size)
        assert changed.any()
        assert misplaced(prompt, changed) == []


@pytest.mark.parametrize("name", IMAGES)
def test_grids_that_are_off_are_noticed(name: str) -> None:
    """The control: cells two columns too far to the right."""
    prompt, changed = changed_tokens(name, SIZES["wide"])
    assert misplaced(prompt, changed, shift=2) != []

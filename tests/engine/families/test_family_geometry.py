"""Do grids and boxes say where in the picture a visual token looks? A changed block of pixels shows it."""

import re
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from sgl_engine import VLM, Request
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.prompt.encoded import Box, EncodedPrompt
from sgl_engine.testing import tiny_vlm

SIZES = {"wide": (140, 80), "tall": (80, 140), "square": (96, 96), "very wide": (240, 60)}
BLOCK: Box = (0.52, 0.2, 0.8, 0.6)
MARGIN = 0.9  # of a token: resizing blurs, and grids are rounded to whole tokens


@cache
def patchwise(family: str, max_tiles: int) -> VLM:
    """A model whose tower does not mix patches: what a token holds is what its own pixels are."""
    vlm = tiny_vlm(family, max_tiles=max_tiles, side_tokens=6)
    text = {id(parameter) for parameter in vlm.text_model.parameters()}
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if id(parameter) not in text and re.search(r"\.(layers|blocks|layer)\.\d+\.", name):
                parameter.zero_()
    return vlm


def picture(width: int, height: int, block: Box | None) -> Image.Image:
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    if block is not None:
        left, top, right, bottom = block
        rows, cols = (
            slice(int(top * height), int(bottom * height)),
            slice(int(left * width), int(right * width)),
        )
        pixels[rows, cols] = (250, 20, 200)
    return Image.fromarray(pixels)


def changed_tokens(vlm: VLM, size: tuple[int, int]) -> tuple[EncodedPrompt, torch.Tensor]:
    """The prompt, and which of its visual tokens see the block, bool (V,)."""
    prompts = [vlm.encode(Request.ask("?", picture(*size, block))) for block in (None, BLOCK)]
    plain, marked = (vlm.embed(prompt)[0, list(prompt.visual_positions)] for prompt in prompts)
    change = (plain - marked).abs().amax(dim=-1)
    return prompts[1], change > 0.03 * change.max()  # resizing leaves ripples


def cells(prompt: EncodedPrompt, shift: int = 0) -> list[Box]:
    """The box of each visual token; moved by `shift` columns, for the control."""
    found = []
    for span in prompt.spans:
        assert span.box is not None
        (rows, cols), (left, top, right, bottom) = span.grid, span.box
        width, height = (right - left) / cols, (bottom - top) / rows
        for row in range(rows):
            for col in range(shift, cols + shift):
                x, y = left + col * width, top + row * height
                found.append((x, y, x + width, y + height))
    return found


def overlap(cell: Box, grown: float) -> bool:
    """Whether a cell, grown or shrunk by a part of itself on each side, meets the block."""
    margin_x, margin_y = grown * (cell[2] - cell[0]), grown * (cell[3] - cell[1])
    return (
        cell[0] - margin_x < BLOCK[2]
        and cell[2] + margin_x > BLOCK[0]
        and cell[1] - margin_y < BLOCK[3]
        and cell[3] + margin_y > BLOCK[1]
    )


def misplaced(prompt: EncodedPrompt, changed: torch.Tensor, shift: int = 0) -> list[Box]:
    """Cells that changed away from the block, and cells well in the block that did not."""
    return [
        cell
        for cell, is_changed in zip(cells(prompt, shift), changed.tolist(), strict=True)
        if (is_changed and not overlap(cell, MARGIN)) or (not is_changed and overlap(cell, -0.25))
    ]


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("max_tiles", [1, 6])
@pytest.mark.parametrize("size", SIZES)
def test_changed_pixels_change_the_tokens_that_cover_them(family: str, max_tiles: int, size: str) -> None:
    prompt, changed = changed_tokens(patchwise(family, max_tiles), SIZES[size])
    assert changed.any()
    assert misplaced(prompt, changed) == []


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_grids_that_are_off_are_noticed(family: str) -> None:
    """The control: cells two columns too far to the right."""
    prompt, changed = changed_tokens(patchwise(family, 6), SIZES["wide"])
    assert misplaced(prompt, changed, shift=2) != []

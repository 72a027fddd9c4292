"""A model with another grid: its facts, its starting weights and what it copies lie where they should."""

import numpy as np
import torch
from PIL import Image
from tolerances import CONTROL, gap, rounding
from torch import nn

from sgl_engine.demo.drawing import GRID, PATCH, SIZE
from sgl_engine.demo.generator import draw_sample
from sgl_engine.demo.vocabulary import CHARACTER_CLASSES, FACTS
from training.models import build_model, copying_loss, on_patches
from training.packing import FACT_INDEX, Packer, dense_facts, nearest_cells
from training.tokenizer import build_processor, train_tokenizer

FINE = 12
"""Pixels of a patch: a grid of 16 x 16 instead of 12 x 12."""


def test_facts_stand_where_things_are_drawn() -> None:
    for seed in range(12):
        sample = draw_sample(seed)
        facts = dense_facts(sample, SIZE // FINE).reshape(SIZE // FINE, SIZE // FINE, len(FACTS))
        glyphs = facts[..., [FACT_INDEX["glyph0"], FACT_INDEX["glyph1"]]]
        inside = [m for m in sample.glyphs if 0 <= m.x < SIZE and 0 <= m.y < SIZE]
        for mark in inside:
            found = glyphs[int(mark.y) // FINE, int(mark.x) // FINE]
            assert CHARACTER_CLASSES[mark.character.lower()] in found
        assert (glyphs > 0).sum() <= len(inside)
        coarse = dense_facts(sample).reshape(GRID, GRID, len(FACTS))
        others = [index for name, index in FACT_INDEX.items() if not name.startswith("glyph")]
        for row, col in ((0, 0), (3, 8), (7, 7), (10, 1), (15, 15)):
            y, x = ((2 * cell + 1) * FINE // 2 // PATCH for cell in (row, col))
            assert np.array_equal(facts[row, col, others], coarse[y, x, others])


def test_weights_of_other_patches_see_the_same_plain_picture() -> None:
    tokenizer = train_tokenizer()
    parent = build_model("small", tokenizer).eval().double()
    child = build_model("small", tokenizer, patch=FINE).eval().double()
    kernel = parent.model.vision_tower.embeddings.patch_embeddings.projection.weight
    with torch.no_grad():  # kernels that measure brightness: a plain picture has nothing else
        kernel.copy_(kernel.mean(dim=(2, 3), keepdim=True).expand_as(kernel))
    child.load_state_dict(on_patches(parent.state_dict(), FINE))
    plain = torch.full((1, 3, SIZE, SIZE), 0.7, dtype=torch.float64)
    towers = [model.model.vision_tower.embeddings for model in (parent, child)]
    with torch.no_grad():
        before, after = (tower.patch_embeddings(plain)[0] for tower in towers)
    # A sum of n numbers errs by n * eps of what it adds up, at most.
    added_up = 0.7 * float(kernel.detach().abs().sum(dim=(1, 2, 3)).max())
    within = kernel[0].numel() * torch.finfo(torch.float64).eps * added_up
    assert gap(after[0], before[0]) < within
    assert gap(after[0] * (PATCH / FINE) ** 2, before[0]) > CONTROL * within  # the control: sums, not means
    assert before.shape[0] == GRID**2
    assert after.shape[0] == (SIZE // FINE) ** 2
    # Positions: the class token keeps its own, and corners stay next to corners.
    old, new = (tower.position_embeddings[0] for tower in towers)
    assert torch.equal(old[0], new[0])
    distance = torch.cdist(new[1:], old[1:])
    assert [int(distance[cell].argmin()) for cell in (0, 15, -16, -1)] == [0, 11, 132, 143]
    same = on_patches(parent.state_dict(), PATCH)
    assert all(torch.equal(same[name], value) for name, value in parent.state_dict().items())


def test_copying_asks_for_the_token_under_the_centre() -> None:
    teacher = torch.randn(2, GRID**2, 8)
    plane = teacher.mT.unflatten(2, (GRID, GRID))
    copied = nn.functional.interpolate(plane, size=(16, 16), mode="nearest-exact").flatten(2).mT
    assert copying_loss(copied, teacher) == 0
    assert copying_loss(copied.roll(1, dims=1), teacher) > 0.5  # the control
    assert np.array_equal(nearest_cells(GRID, GRID), np.arange(GRID**2))


def test_training_and_processor_agree() -> None:
    tokenizer = train_tokenizer()
    batch = Packer(tokenizer, patch=FINE).batch(3, 1, split="heldout")
    processor = build_processor(tokenizer, patch=FINE)
    picture = Image.fromarray(draw_sample(3).pixels)
    inputs = processor(images=picture, text="<img><IMG_CONTEXT></img>", return_tensors="pt")
    assert torch.equal(inputs["input_ids"][0], batch.ids[0, 1 : batch.prefix])
    assert gap(inputs["pixel_values"], batch.pixels) < rounding(1) * float(batch.pixels.abs().max())

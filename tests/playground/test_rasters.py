"""Cells over the picture, against a look at each cell's centre, and against what the engine's plans keep."""

import numpy as np
import pytest
import torch
from PIL import Image

from sgl_engine import LimitsConfig, Request
from sgl_engine.attention import ImportanceMap
from sgl_engine.playground.rasters import Raster, heat, kept, turns
from sgl_engine.prompt import VisualSpan
from sgl_engine.pruning import plan_pruning
from sgl_engine.testing import tiny_vlm

BOXES = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]


def two_tiles_and_the_whole(mass: torch.Tensor) -> ImportanceMap:
    """Tiles of 3 x 2 tokens side by side, and a small picture of the whole, 2 x 3."""
    grids = [(3, 2), (3, 2), (2, 3)]
    spans = [
        VisualSpan(image=0, start=6 * number, stop=6 * number + 6, grid=grid, box=box)
        for number, (grid, box) in enumerate(zip(grids, BOXES, strict=True))
    ]
    return ImportanceMap(mass, tuple(spans), num_queries=1)


def covering(importance: ImportanceMap, x: float, y: float) -> list[int]:
    """The tokens that cover a point: what is to be seen at a cell's centre."""
    found, first = [], 0
    for span in importance.spans:
        assert span.box is not None
        (x0, y0, x1, y1), (rows, cols) = span.box, span.grid
        for row in range(rows):
            for col in range(cols):
                left, right = (x0 + (x1 - x0) * edge / cols for edge in (col, col + 1))
                top, bottom = (y0 + (y1 - y0) * edge / rows for edge in (row, row + 1))
                if left <= x < right and top <= y < bottom:
                    found.append(first + row * cols + col)
        first += len(span)
    return found


def centres(raster: Raster) -> list[tuple[int, int, float, float]]:
    xs, ys = ((edges[:-1] + edges[1:]) / 2 for edges in (raster.xs, raster.ys))
    return [(row, col, float(x), float(y)) for row, y in enumerate(ys) for col, x in enumerate(xs)]


def test_a_cells_turn_is_that_of_the_first_token_that_covers_it() -> None:
    importance = two_tiles_and_the_whole(torch.rand(18))
    order = sorted(range(18), key=lambda token: -float(importance.mass[token]))
    raster = turns(importance)
    for row, col, x, y in centres(raster):
        assert raster.cells[row, col] == min(order.index(token) for token in covering(importance, x, y))
    # Control: the whole's tokens alone do not tell.
    others = [
        min(order.index(token) for token in covering(importance, x, y) if token >= 12)
        for _, _, x, y in centres(raster)
    ]
    assert others != raster.cells.ravel().tolist()


def test_equal_tokens_come_in_prompt_order() -> None:
    span = VisualSpan(image=0, start=0, stop=4, grid=(2, 2), box=BOXES[2])
    assert turns(ImportanceMap(torch.ones(4), (span,), 1)).cells.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8, 1.0])
def test_turns_below_the_budget_are_what_a_plan_keeps(ratio: float) -> None:
    vlm = tiny_vlm(max_tiles=4)
    prompt = vlm.encode(Request.ask("?", Image.new("RGB", (128, 64))), LimitsConfig())
    assert len(prompt.spans) > 1  # tiles, and the whole over them
    importance = ImportanceMap(torch.rand(prompt.num_visual_tokens), prompt.spans, 1)
    plan = plan_pruning(prompt, importance, layer=1, keep_ratio=ratio)
    shown = kept(importance, plan)
    assert (shown.cells == (turns(importance).cells < plan.kept_visual_tokens)).all()
    assert set(np.unique(shown.cells)) <= {0, 1}
    if ratio < 0.5:  # control: a plan by another map keeps something else
        other = ImportanceMap(-importance.mass, prompt.spans, 1)
        differs = kept(importance, plan_pruning(prompt, other, layer=1, keep_ratio=ratio))
        assert (differs.cells != shown.cells).any()


def test_heat_is_where_the_mass_is() -> None:
    mass = torch.ones(18)
    mass[0] = 9.0  # the upper left corner of the left tile
    raster = heat(two_tiles_and_the_whole(mass))
    hot = [(x, y) for row, col, x, y in centres(raster) if raster.cells[row, col] == raster.cells.max() > 0.9]
    assert hot
    assert all(x < 0.25 and y < 1 / 3 for x, y in hot)
    assert ((raster.cells >= 0) & (raster.cells <= 1)).all()


def test_an_even_map_has_no_heat() -> None:
    assert not heat(two_tiles_and_the_whole(torch.ones(18))).cells.any()


def test_json_is_plain_and_row_by_row() -> None:
    raster = Raster(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0]), np.array([[0.25, 1.0]]))
    assert raster.as_json() == {"xs": [0.0, 0.5, 1.0], "ys": [0.0, 1.0], "cells": [0.25, 1.0]}

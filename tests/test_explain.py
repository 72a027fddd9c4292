"""The drawing: heat where the mass is, outlines around what is kept, dimmed elsewhere."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.errors import InvalidRequestError
from sgl_engine.explain.heatmap import colorize, draw_importance
from sgl_engine.prompt.encoded import Box, PromptTiles, VisualSpan
from sgl_engine.pruning.plan import PruningPlan

MARGIN = 20  # around the pictures in the drawing
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def span(
    start: int, *, image: int = 0, grid: tuple[int, int] = (4, 4), box: Box | None = WHOLE
) -> VisualSpan:
    return VisualSpan(image=image, start=start, stop=start + grid[0] * grid[1], grid=grid, box=box)


def importance(mass: list[float], *spans: VisualSpan) -> ImportanceMap:
    return ImportanceMap(mass=torch.tensor(mass), spans=spans, num_queries=1)


def plan(*visual: int, spans: tuple[VisualSpan, ...], prompt_tokens: int = 60) -> PruningPlan:
    """Keeps all text, and the visual tokens at these prompt positions."""
    seen = {position for span in spans for position in range(span.start, span.stop)}
    keep = [position for position in range(prompt_tokens) if position not in seen or position in visual]
    return PruningPlan(
        keep=torch.tensor(keep),
        layer=2,
        prompt_tokens=prompt_tokens,
        visual_tokens=len(seen),
        kept_visual_tokens=len(visual),
        keep_ratio=len(visual) / len(seen),
    )


def hot(cell: int, count: int = 16) -> list[float]:
    return [10.0 if index == cell else 0.0 for index in range(count)]


def grey(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (200, 200, 200))


def cells(drawing: Image.Image, *, rows: int = 4, cols: int = 4, side: int = 768) -> npt.NDArray[np.float64]:
    """Colour at the centre of each cell of the first picture, (rows, cols, 3)."""
    pixels = np.asarray(drawing, dtype=np.float64)
    ys = MARGIN + ((np.arange(rows) + 0.5) * side / rows).astype(int)
    xs = MARGIN + ((np.arange(cols) + 0.5) * side / cols).astype(int)
    return pixels[np.ix_(ys, xs)]


def warmth(colours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Red above blue: 0 on grey, positive where there is heat."""
    return colours[..., 0] - colours[..., 2]


def test_heat_lies_on_the_cell_that_has_the_mass() -> None:
    drawing = draw_importance(grey(), importance(hot(6), span(3)))
    warm = warmth(cells(drawing))
    assert warm[1, 2] > 80
    warm[1, 2] = 0
    assert np.abs(warm).max() == 0  # without a plan the rest is the picture itself
    assert cells(drawing)[0, 0].tolist() == [200, 200, 200]


def test_more_mass_is_a_darker_red() -> None:
    mass = [float(index**2) for index in range(16)]
    colours = cells(draw_importance(grey(), importance(mass, span(0)))).reshape(16, 3)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    above_average = np.array(mass) > np.mean(mass)
    assert (np.diff(lightness[above_average]) < 0).all()
    assert np.ptp(lightness[~above_average]) == 0


def test_kept_cells_are_bright_and_outlined_and_the_rest_is_dimmed() -> None:
    spans = (span(3),)
    drawing = draw_importance(grey(), importance(hot(15), *spans), plan(3 + 5, 3 + 6, spans=spans))
    light = cells(drawing).mean(axis=-1)
    assert light[1, 1] > 150
    assert light[1, 2] > 150
    assert (np.delete(light.ravel(), [5, 6, 15]) < 120).all()
    pixels = np.asarray(drawing)
    cell = 768 // 4
    border = pixels[MARGIN + cell, MARGIN + cell + 50]  # top edge of cell (1, 1)
    shared = pixels[MARGIN + cell + 50, MARGIN + 2 * cell]  # between the two kept cells
    assert border.tolist() == [0, 224, 255]
    assert shared.tolist() != [0, 224, 255]


def test_an_even_map_does_not_look_hot() -> None:
    assert warmth(cells(draw_importance(grey(), importance([1.0] * 16, span(0))))).max() == 0


def test_tiles_and_thumbnail_lie_over_their_boxes() -> None:
    spans = (span(0, box=(0.0, 0.0, 0.5, 1.0)), span(20, box=(0.5, 0.0, 1.0, 1.0)), span(40, box=WHOLE))
    right_tile_top_left = importance([0.0] * 16 + hot(0) + [0.0] * 16, *spans)
    warm = warmth(cells(draw_importance(grey(), right_tile_top_left), cols=8))
    assert np.argwhere(warm > 80).tolist() == [[0, 4]]
    thumbnail_bottom_right = importance([0.0] * 32 + hot(15), *spans)
    warm = warmth(cells(draw_importance(grey(), thumbnail_bottom_right), cols=8))
    assert np.argwhere(warm > 80).tolist() == [[3, 6], [3, 7]]


def test_a_crop_leaves_the_rest_of_the_picture_alone() -> None:
    cropped = span(0, box=(0.25, 0.25, 0.75, 0.75))
    warm = warmth(cells(draw_importance(grey(), importance([1.0] * 16, cropped)), rows=8, cols=8))
    assert (warm[2:6, 2:6] > 80).all()
    warm[2:6, 2:6] = 0
    assert (warm == 0).all()


def test_several_pictures_share_one_scale() -> None:
    spans = (span(0), span(20, image=1))
    drawing = draw_importance([grey(), grey()], importance(hot(0) + [5.0] + [0.0] * 15, *spans))
    assert drawing.width == 2 * 768 + 3 * MARGIN
    strong, weak = (drawing.getpixel((left, MARGIN + 96)) for left in (MARGIN + 96, 2 * MARGIN + 768 + 96))
    assert isinstance(strong, tuple)
    assert isinstance(weak, tuple)
    assert strong[0] - strong[1] > weak[0] - weak[1] > 0


def test_many_pictures_wrap_into_rows() -> None:
    spans = tuple(span(20 * index, image=index) for index in range(5))
    drawing = draw_importance([grey()] * 5, importance([1.0] * 80, *spans))
    assert drawing.width <= 2400 + 2 * MARGIN
    assert drawing.height > 2 * 768


@pytest.mark.parametrize(
    ("size", "drawn"), [((64, 32), (768, 384)), ((1000, 500), (1000, 500)), ((4000, 1000), (1536, 384))]
)
def test_small_pictures_are_enlarged_and_huge_ones_reduced(
    size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    drawing = draw_importance(grey(size), importance([1.0] * 16, span(0)))
    assert drawing.width == drawn[0] + 2 * MARGIN
    assert drawn[1] < drawing.height < drawn[1] + 120


def test_the_caption_adds_lines_and_is_cut_when_it_is_endless() -> None:
    flat = importance([1.0] * 16, span(0))
    plain = draw_importance(grey(), flat)
    asked = draw_importance(grey(), flat, question="what is it?", answer="a square")
    endless = draw_importance(grey(), flat, question="what is it?", answer="word " * 5000)
    assert plain.height < asked.height < endless.height < asked.height + 200


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_any_mode_is_drawn(mode: str) -> None:
    assert draw_importance(grey().convert(mode), importance([0.0] * 16, span(0))).mode == "RGB"


def test_a_picture_too_few_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="picture 2, but 1 were given"):
        draw_importance(grey(), importance([1.0] * 32, span(0), span(20, image=1)))


def test_spans_of_unknown_extent_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="which part of picture 1"):
        draw_importance(grey(), importance([1.0] * 16, span(0, box=None)))


def test_a_plan_for_another_prompt_is_refused() -> None:
    shifted = (span(7),)
    with pytest.raises(InvalidRequestError, match="plan_pruning"):
        draw_importance(grey(), importance([1.0] * 16, span(3)), plan(9, 10, spans=shifted))


def test_the_scale_runs_from_pale_yellow_to_red() -> None:
    scale = colorize(np.linspace(0.0, 1.0, 50))
    lightness = scale @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) < 0).all()
    assert scale[0].tolist() == [255, 237, 160]
    assert scale[-1].tolist() == [187, 0, 38]


def test_tiles_that_are_left_out_are_dark() -> None:
    spans = (span(3, box=(0.0, 0.0, 0.5, 1.0)), span(25, box=(0.5, 0.0, 1.0, 1.0)))
    whole = replace(plan(3 + 5, spans=spans), spans=spans, tiles=PromptTiles.of(spans))
    even = importance([1.0] * 32, *spans)

    def light(of: PruningPlan) -> npt.NDArray[np.float64]:
        return cells(draw_importance(grey(), even, of), cols=8).mean(axis=-1)

    left = light(replace(whole, chosen_tiles=(0,)))
    assert (left[:, 4:] < 60).all()
    assert (left[:, :4] > 90).all()
    assert (light(whole) > 90).all()  # the control: no tile is left out

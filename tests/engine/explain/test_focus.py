"""The box around what was looked at: a slow search agrees, sinks do not matter, answers lie inside."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import sgl_engine.attention.canvas as canvas_module
from sgl_engine import Request, SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages import heldout_pages
from sgl_engine.errors import InvalidRequestError
from sgl_engine.explain.focus_box import focus_box
from sgl_engine.prompt.encoded import Box, VisualSpan

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def importance(*parts: tuple[npt.ArrayLike, Box | None], images: tuple[int, ...] = ()) -> ImportanceMap:
    """A map of one span per (grid of masses, box)."""
    spans, masses, start = [], [], 0
    for index, (grid, box) in enumerate(parts):
        mass = np.asarray(grid, dtype=np.float32)
        rows, cols = mass.shape
        image = images[index] if images else 0
        spans.append(VisualSpan(image, start, start + mass.size, (rows, cols), box))
        masses.append(mass.ravel())
        start += mass.size
    return ImportanceMap(mass=torch.from_numpy(np.concatenate(masses)), spans=tuple(spans), num_queries=1)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def tokens(importance: ImportanceMap) -> Iterator[tuple[Box, float]]:
    """Where every token lies, and its weight; written from the documented rule, token by token."""
    places, masses = [], []
    for span, grid in zip(importance.spans, importance.grids(), strict=True):
        rows, cols = span.grid
        assert span.box is not None
        x0, y0, x1, y1 = span.box
        width, height = (x1 - x0) / cols, (y1 - y0) / rows
        for row in range(rows):
            for col in range(cols):
                left, top = x0 + col * width, y0 + row * height
                places.append((left, top, left + width, top + height))
                masses.append(float(grid[row, col]))
    weights = [max(0.0, mass - float(np.median(masses))) for mass in masses]
    while max(weights) > (1 + 1e-9) * 0.25 * sum(weights):  # lower the highest until none has over a quarter
        limit = 0.25 * sum(weights)
        weights = [min(weight, limit) for weight in weights]
    return zip(places, weights, strict=True)


def slow_search(importance: ImportanceMap, share: float) -> tuple[float, float]:
    """Area of the smallest box that holds the share, by trying all, and the most that such a box holds."""
    found = list(tokens(importance))
    xs = sorted({round(edge, 9) for place, _ in found for edge in place[::2]})
    ys = sorted({round(edge, 9) for place, _ in found for edge in place[1::2]})
    wanted = share * sum(weight for _, weight in found) * (1 - 1e-9)
    best = (np.inf, 0.0)
    for x0, x1 in combinations(xs, 2):
        for y0, y1 in combinations(ys, 2):
            box = (x0, y0, x1, y1)
            held = sum(weight * overlap(place, box) / area(place) for place, weight in found)
            if held >= wanted:
                best = min(best, (round(area(box), 6), -held))
    return best[0], -best[1]


LAYOUTS: dict[str, list[tuple[tuple[int, int], Box]]] = {
    "one grid": [((5, 6), WHOLE)],
    "tiles and thumbnail": [
        ((3, 3), (0.0, 0.0, 0.5, 1.0)),
        ((3, 3), (0.5, 0.0, 1.0, 1.0)),
        ((3, 2), WHOLE),
    ],
    "tiles that do not line up": [((2, 3), (0.0, 0.0, 2 / 3, 1.0)), ((3, 2), (1 / 3, 0.0, 1.0, 1.0))],
}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_smaller_box_holds_the_share(layout: str, share: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        made = importance(*((rng.gamma(0.5, 1.0, grid), box) for grid, box in LAYOUTS[layout]))
        box = focus_box(made, share=share, margin=0.0)
        held = sum(weight * overlap(place, box) / area(place) for place, weight in tokens(made))
        smallest, most = slow_search(made, share)
        assert area(box) == pytest.approx(smallest, abs=1e-6)
        assert held == pytest.approx(most, rel=1e-4)


CLUSTER: Box = (0.2, 0.2, 0.4, 0.4)


def with_sink() -> ImportanceMap:
    """A cluster of four tokens, and one token far away that got more than all others together."""
    grid = np.ones((10, 10))
    grid[2:4, 2:4] = 20
    grid[9, 9] = 300
    return importance((grid, WHOLE))


def test_a_sink_neither_is_the_box_nor_stretches_it() -> None:
    assert focus_box(with_sink(), margin=0.0) == pytest.approx(CLUSTER)


def test_without_the_limit_the_sink_would_be_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas_module, "_MAX_TOKEN_SHARE", 0.9)
    assert focus_box(with_sink(), margin=0.0) == pytest.approx((0.9, 0.9, 1.0, 1.0))


def test_up_to_three_tokens_count_the_same() -> None:
    grid = np.zeros((1, 9))
    grid[0, 2:5] = 100, 1, 50
    assert focus_box(importance((grid, WHOLE)), share=1.0, margin=0.0) == pytest.approx((2 / 9, 0, 5 / 9, 1))
    assert area(focus_box(importance((grid, WHOLE)), share=0.5, margin=0.0)) == pytest.approx(2 / 9)


def test_where_nothing_stands_out_the_box_is_the_picture() -> None:
    rounded = 1 + 5e-4 * np.random.default_rng(0).uniform(-1, 1, (6, 6))
    for grid in (np.zeros((3, 3)), np.full((3, 3), 7.0), rounded):
        assert focus_box(importance((grid, WHOLE))) == WHOLE
    assert focus_box(importance((rounded**100, WHOLE))) != WHOLE


def test_the_margin_is_clipped_to_the_picture() -> None:
    grid = np.zeros((4, 4))
    grid[0, 1] = 1
    assert focus_box(importance((grid, WHOLE)), margin=0.1) == pytest.approx((0.15, 0.0, 0.6, 0.35))
    assert focus_box(importance((grid, WHOLE)), margin=1.0) == WHOLE


def test_each_picture_has_its_own_box() -> None:
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 0], second[3, 3] = 1, 1e-3
    both = importance((first, WHOLE), (second, WHOLE), images=(0, 1))
    assert focus_box(both, margin=0.0) == pytest.approx((0, 0, 0.25, 0.25))
    assert focus_box(both, image=1, margin=0.0) == pytest.approx((0.75, 0.75, 1, 1))


def test_numbers_that_are_none_count_as_nothing() -> None:
    grid = np.zeros((4, 4))
    grid[0, 0], grid[3, 3] = 1, np.nan
    assert focus_box(importance((grid, WHOLE)), margin=0.0) == pytest.approx((0, 0, 0.25, 0.25))


@pytest.mark.parametrize(
    "options", [{"share": 0.0}, {"share": 1.1}, {"share": float("nan")}, {"margin": -0.1}, {"margin": 2.0}]
)
def test_shares_and_margins_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match="does not exist"):
        focus_box(importance((np.eye(3), WHOLE)), **options)


def test_a_picture_that_the_map_does_not_cover_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"index 2; it covers \[0\]"):
        focus_box(importance((np.eye(3), WHOLE)), image=2)


def test_tokens_that_lie_nowhere_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="which part of picture 1"):
        focus_box(importance((np.eye(3), None)))


@pytest.fixture(scope="module")
def small_alone() -> SGLEngine:
    engine = demo_engine()
    return engine.with_config(engine.config.escalating("never"))


def test_the_box_holds_what_answers_are_read_from(small_alone: SGLEngine) -> None:
    """Over held-out questions; a box at a random place would hold as much of it as it has area."""
    rng = np.random.default_rng(0)
    found: list[tuple[float, float]] = []
    shuffled: list[tuple[float, float]] = []
    for page, question in heldout_pages(60, tiles=1):
        if not question.evidence:
            continue
        response = small_alone.run(Request.ask(question.text, Image.fromarray(page.pixels)))
        if response.text != question.answer:
            continue
        assert response.importance is not None
        mass = response.importance.grids()[0].numpy()
        for results, grid in ((found, mass), (shuffled, rng.permutation(mass.ravel()).reshape(mass.shape))):
            box = focus_box(importance((grid, WHOLE)), margin=0.0)
            evidence = [tuple(edge / 192 for edge in place) for place in question.evidence]
            held = sum(overlap(place, box) for place in evidence) / sum(area(place) for place in evidence)
            results.append((held, area(box)))
    assert len(found) >= 20
    held, size = np.mean(found, axis=0)
    assert held > 3 * size
    held, size = np.mean(shuffled, axis=0)
    assert held < 2 * size

"""Maps carried between grids: by hand, by properties, and between the tilings of real processors."""

from functools import cache
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import noise

from sgl_engine import VLM, EngineConfig, Request, SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.errors import IncompatiblePairError
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.prompt.encoded import Box, EncodedPrompt, VisualSpan
from sgl_engine.pruning import plan_pruning
from sgl_engine.testing import tiny_vlm

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def spans_of(*parts: tuple[int, tuple[int, int], Box | None]) -> tuple[VisualSpan, ...]:
    """Spans one after the other: (image, grid, box)."""
    found, position = [], 0
    for image, grid, box in parts:
        found.append(VisualSpan(image, position, position + grid[0] * grid[1], grid, box))
        position = found[-1].stop
    return tuple(found)


def carried(mass: list[float], source: tuple[VisualSpan, ...], target: tuple[VisualSpan, ...]) -> list[float]:
    return ImportanceMap(torch.tensor(mass), source, 3).resample(target).mass.tolist()


def test_halves_and_doubles_by_hand() -> None:
    two, four, three = (spans_of((0, (1, cols), WHOLE)) for cols in (2, 4, 3))
    assert carried([6.0, 2.0], two, four) == [3.0, 3.0, 1.0, 1.0]
    assert carried([3.0, 3.0, 1.0, 0.0], four, two) == [6.0, 1.0]
    assert carried([6.0, 2.0], two, three) == pytest.approx([4.0, 2 + 2 / 3, 1 + 1 / 3])


def test_a_thumbnail_shares_with_the_tiles() -> None:
    """Even importance gives every token the same mass; a hot half goes to what shows it."""
    tiled = spans_of((0, (2, 2), (0, 0, 0.5, 1)), (0, (2, 2), (0.5, 0, 1, 1)), (0, (2, 2), WHOLE))
    even = carried([6.0, 6.0], spans_of((0, (1, 2), WHOLE)), tiled)
    assert even == pytest.approx([1.0] * 12)
    right = carried([0.0, 12.0], spans_of((0, (1, 2), WHOLE)), tiled)
    assert right == pytest.approx([0.0] * 4 + [2.0] * 4 + [0.0, 2.0] * 2)


def test_a_crop_drops_what_it_does_not_show_and_invents_nothing() -> None:
    whole, middle = spans_of((0, (1, 4), WHOLE)), spans_of((0, (1, 2), (0.25, 0.0, 0.75, 1.0)))
    assert carried([8.0, 1.0, 2.0, 8.0], whole, middle) == [1.0, 2.0]
    assert carried([1.0, 2.0], middle, whole) == [0.0, 1.0, 2.0, 0.0]


def test_images_keep_to_themselves() -> None:
    source = spans_of((0, (1, 2), WHOLE), (1, (1, 2), WHOLE))
    target = spans_of((0, (1, 1), WHOLE), (1, (1, 4), WHOLE))
    assert carried([1.0, 2.0, 4.0, 8.0], source, target) == [3.0, 2.0, 2.0, 4.0, 4.0]


def test_what_cannot_be_carried_is_refused() -> None:
    one, other = spans_of((0, (1, 2), WHOLE)), spans_of((0, (1, 1), WHOLE), (1, (1, 1), WHOLE))
    with pytest.raises(IncompatiblePairError, match="1 images in 1 tiles of 1 x 2 .*2 images in 2 tiles"):
        carried([1.0, 2.0], one, other)
    with pytest.raises(IncompatiblePairError, match="image 1 .*unknown.*from a Request"):
        carried([1.0, 2.0], one, spans_of((0, (1, 3), None)))


def test_unknown_boxes_do_for_equal_grids() -> None:
    spans = spans_of((0, (1, 2), None), (0, (1, 2), None))
    assert carried([1.0, 2.0, 3.0, 4.0], spans, spans) == [1.0, 2.0, 3.0, 4.0]


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))
tilings = st.tuples(st.integers(1, 3), st.integers(1, 3), grids, st.booleans()).map(
    lambda t: spans_of(
        *(
            (0, t[2], (col / t[1], row / t[0], (col + 1) / t[1], (row + 1) / t[0]))
            for row, col in product(range(t[0]), range(t[1]))
        ),
        *([(0, t[2], WHOLE)] if t[3] else []),
    )
)


def masses(spans: tuple[VisualSpan, ...], seed: int) -> torch.Tensor:
    return torch.rand(sum(map(len, spans)), generator=torch.Generator().manual_seed(seed))


@given(source=tilings, target=tilings, seed=st.integers(0, 99))
def test_all_of_the_mass_arrives_and_none_is_added(
    source: tuple[VisualSpan, ...], target: tuple[VisualSpan, ...], seed: int
) -> None:
    mass = masses(source, seed)
    found = ImportanceMap(mass, source, 1).resample(target).mass
    assert float(found.min()) >= 0
    assert float(found.sum()) == pytest.approx(float(mass.sum()), rel=1e-5)


@given(spans=tilings, seed=st.integers(0, 99))
def test_equal_grids_are_the_identity(spans: tuple[VisualSpan, ...], seed: int) -> None:
    mass = masses(spans, seed)
    moved = tuple(VisualSpan(s.image, s.start + 7, s.stop + 7, s.grid, s.box) for s in spans)
    assert torch.equal(ImportanceMap(mass, spans, 1).resample(moved).mass, mass)


@given(grid=grids, factor=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 99))
def test_refining_keeps_the_order(grid: tuple[int, int], factor: tuple[int, int], seed: int) -> None:
    """Each cell's parts rank as the cell did, and going back gives the map again."""
    source = spans_of((0, grid, WHOLE))
    target = spans_of((0, (grid[0] * factor[0], grid[1] * factor[1]), WHOLE))
    mass = masses(source, seed)
    fine = ImportanceMap(mass, source, 1).resample(target)
    parts = (
        fine.mass.reshape(grid[0], factor[0], grid[1], factor[1]).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    )
    order = mass.argsort().tolist()
    for low, high in pairwise(order):
        assert float(parts[low].max()) <= float(parts[high].min()) + 1e-6
    assert torch.allclose(fine.resample(source).mass, mass, atol=1e-5)


# Between the tilings of real processors.

HOT: Box = (0.25, 0.32, 0.7, 0.66)
SIZES = {"wide": (180, 90), "square": (96, 96), "tall": (70, 150)}


@cache
def model(family: str, max_tiles: int) -> VLM:
    return tiny_vlm(family, max_tiles=max_tiles, side_tokens=6)


@cache
def encoded(family: str, max_tiles: int, size: str) -> EncodedPrompt:
    return model(family, max_tiles).encode(Request.ask("?", noise(*SIZES[size])))


@cache
def covered(span: VisualSpan) -> list[float]:
    """How much of each cell the hot box covers, in [0, 1]."""
    assert span.box is not None
    (rows, cols), (left, top, right, bottom) = span.grid, span.box
    width, height = (right - left) / cols, (bottom - top) / rows
    found = []
    for row, col in product(range(rows), range(cols)):
        x, y = left + col * width, top + row * height
        across = max(0.0, min(x + width, HOT[2]) - max(x, HOT[0]))
        down = max(0.0, min(y + height, HOT[3]) - max(y, HOT[1]))
        found.append(across * down / (width * height))
    return found


def hot_map(prompt: EncodedPrompt) -> ImportanceMap:
    """A map as attention makes it: high where tokens show the box, low, and not zero, elsewhere."""
    mass = [0.02 + share for span in prompt.spans for share in covered(span)]
    return ImportanceMap(torch.tensor(mass), prompt.spans, 1)


FAMILIES = [family for family in TINY_FAMILIES if family != "smolvlm"]
"""All but SmolVLM, which is Idefics3 under another name: `test_smolvlm_is_idefics3_to_the_bit`."""


@pytest.mark.parametrize("guide", FAMILIES)
@pytest.mark.parametrize("guided", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_hot_box_selects_the_tokens_that_cover_it(guide: str, guided: str, size: str) -> None:
    """In every pair of tilings, thumbnails included: what is kept touches the box."""
    importance = hot_map(encoded(guide, 4, size))
    prompt = encoded(guided, 6, size)
    share = [part for span in prompt.spans for part in covered(span)]
    inside = sum(part > 0.9 for part in share)
    assert inside > 0
    plan = plan_pruning(prompt, importance, layer=0, keep_ratio=(inside + 0.5) / len(share))
    kept = set(plan.keep.tolist())
    shares = [part for position, part in zip(prompt.visual_positions, share, strict=True) if position in kept]
    assert len(shares) == inside
    assert sum(part > 0 for part in shares) >= 0.85 * inside  # coarse grids blur the box's edge
    for span in prompt.spans:  # none of the layers is forgotten
        if sum(part > 0.9 for part in covered(span)) > 6:  # more than an edge
            assert kept & set(span.positions)


PAIRS = [
    ("smolvlm", "qwen2_5_vl"),
    ("qwen2_5_vl", "smolvlm"),
    ("internvl", "llava_onevision"),
    ("llava_onevision", "internvl"),
    ("gemma3", "mistral3"),
    ("qwen3_5", "llava_next"),
    ("llava", "qwen3_vl"),
]


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_any_pair_runs_end_to_end(small: str, large: str) -> None:
    engine = SGLEngine(
        tiny_vlm(small, size="small", max_tiles=4),
        tiny_vlm(large, size="large", max_tiles=4),
        EngineConfig().escalating("always"),
    )
    request = Request.ask("What?", noise(90, 44), noise(32, 32, 1), max_new_tokens=3)
    response = engine.run(request)
    assert response.importance is not None
    assert response.plan is not None
    prompt = engine.large.encode(request)
    assert response.plan.visual_tokens == prompt.num_visual_tokens
    assert response.report.kept_visual_tokens == int(prompt.num_visual_tokens * 0.2)
    # The map is followed: the opposite map keeps other tokens.
    opposite = ImportanceMap(
        response.importance.mass.max() - response.importance.mass, response.importance.spans, 1
    )
    assert engine.plan(prompt, response.importance).keep.tolist() == response.plan.keep.tolist()
    assert engine.plan(prompt, opposite).keep.tolist() != response.plan.keep.tolist()

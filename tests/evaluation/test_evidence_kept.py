"""The evidence of drawn pages, token by token, and the share of it that is kept."""

import numpy as np
import pytest
from PIL import Image

from sgl_engine.config import PRESETS
from sgl_engine.demo.pages import draw_page
from sgl_engine.demo.pages.cells import evidence_tokens
from sgl_engine.engine import SGLEngine
from sgl_engine.evaluation.dataset import HeldOut
from sgl_engine.evaluation.evidence import about_prompt, evidence_mask
from sgl_engine.evaluation.systems import Systems, plans_by
from sgl_engine.prompt.encoded import VisualSpan
from sgl_engine.rankers import RANKERS, RankingCase
from sgl_engine.request import Request


def test_tokens_are_those_that_the_generator_means(bundled: SGLEngine) -> None:
    """The generator counts squares of its raster; here, tokens of the model's grids."""
    checked = 0
    for seed in range(12):
        page = draw_page(seed)
        picture = Image.fromarray(page.pixels)
        spans = bundled.large.encode(Request.ask("x", picture)).spans
        for question in page.questions[::7]:
            expected = evidence_tokens(question.evidence, page.rows, page.columns)
            found = evidence_mask(question.evidence, picture.size, spans)
            assert np.flatnonzero(found).tolist() == expected.tolist()
            checked += len(expected) > 0
    assert checked > 50


def test_a_grid_of_part_of_the_picture_shows_what_lies_there() -> None:
    halves = [
        VisualSpan(0, 0, 4, (2, 2), (0.0, 0.0, 0.5, 1.0)),
        VisualSpan(0, 4, 8, (2, 2), (0.5, 0.0, 1.0, 1.0)),
    ]
    found = evidence_mask([(50, 0, 75, 50)], (100, 100), halves)
    assert found.tolist() == [False] * 4 + [True, False, False, False]
    assert not evidence_mask([(50, 0, 51, 24)], (100, 100), halves).any()  # less than a twentieth of a token


def test_the_share_that_is_kept(bundled: SGLEngine) -> None:
    sample = next(HeldOut(9)[n] for n in range(9) if HeldOut(9)[n].evidence)
    case = RankingCase.of(bundled, Request.ask(sample.row.question, *sample.images))
    systems = Systems({"100%": PRESETS["100%"], "9%": PRESETS["9%"]}, ())
    plans = plans_by(bundled, case, {name: RANKERS[name](case) for name in ("uniform", "random")}, systems)
    found = about_prompt(case.large_prompt, plans, sample.images, sample.evidence)
    assert found["grids"] == len(case.large_prompt.spans)
    assert found["evidence"]["uniform"]["100%"] == found["evidence"]["random"]["100%"] == 1.0
    assert 0.0 <= found["evidence"]["random"]["9%"] < 1.0
    for nothing in (None, ()):
        assert about_prompt(case.large_prompt, plans, sample.images, nothing)["evidence"] is None


@pytest.mark.parametrize("boxes", [[], [(0, 0, 0, 0)]])
def test_no_box_shows_nothing(boxes: list[tuple[int, int, int, int]]) -> None:
    assert not evidence_mask(boxes, (100, 100), [VisualSpan(0, 0, 4, (2, 2), None)]).any()

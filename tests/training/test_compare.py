"""Which of two models is better, on questions that are not packed."""

import numpy as np
import pytest
from PIL import Image

from sgl_engine import Request
from sgl_engine.demo import WEIGHTS, demo_engine
from sgl_engine.demo.pages.generator import heldout_pages
from training.compare import gain, hits


def test_right_answers_are_those_that_the_model_writes() -> None:
    count, start = 12, 400_000
    right, kinds, tiles = hits([WEIGHTS / "small", WEIGHTS / "small"], count, start)
    engine = demo_engine()
    engine = engine.with_config(engine.config.escalating("never"))
    pages = list(heldout_pages(count, start=start))
    written = [
        engine.run(Request.ask(asked.text, Image.fromarray(page.pixels))).text for page, asked in pages
    ]
    expected = [text == asked.answer for text, (_, asked) in zip(written, pages, strict=True)]
    assert any(expected)
    assert not all(expected)
    assert right[:, 0].tolist() == right[:, 1].tolist() == expected
    assert kinds == [asked.kind for _, asked in pages]
    assert tiles == [page.rows * page.columns for page, _ in pages]


def test_the_gain_has_the_interval_of_paired_differences() -> None:
    right = np.array([[True, True], [False, True], [False, False], [True, False]] * 25 + [[False, True]] * 10)
    points, error = gain(right)
    assert points == pytest.approx(100 * 10 / 110)
    differences = [1.0] * 35 + [-1.0] * 25 + [0.0] * 50
    assert error == pytest.approx(196 * np.std(differences, ddof=1) / 110**0.5)
    assert gain(right[:, ::-1])[0] == pytest.approx(-points)

"""A composed cascade is the one that would have run."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sgl_engine.config import PRESETS, ExitConfig
from sgl_engine.engine import SGLEngine
from sgl_engine.evaluation.dataset import HeldOut
from sgl_engine.evaluation.records import Scored
from sgl_engine.evaluation.systems import Systems, at, measure
from sgl_engine.evaluation.threshold_sweep import NEVER, Measured
from sgl_engine.request import Request

MakeRow = Callable[..., Scored]


def test_a_composed_cascade_is_what_the_engine_does(bundled: SGLEngine, no_studies: None) -> None:
    data, systems = HeldOut(3, start=6), Systems({"35%": PRESETS["35%"], "9%": PRESETS["9%"]}, ())
    rows = [Scored(row=data[n].row, outcome=measure(bundled, data[n], systems)) for n in range(len(data))]
    scores = sorted(row.outcome.score for row in rows)
    routes = set()
    for point in systems.points:
        for threshold in (scores[1], scores[2]):
            composed = Measured.of(rows, point).at(threshold)
            config = bundled.config.model_copy(
                update={"exit": ExitConfig(threshold=threshold, scorer=bundled.config.exit.scorer)}
            )
            engine = at(bundled.with_config(config.without_reuse()), systems.points[point])
            for number, row in enumerate(rows):
                response = engine.run(Request.ask(row.row.question, *data[number].images))
                report = response.report
                expected = row.outcome.guided[point] if composed.escalated[number] else row.outcome.small
                assert report.escalated == bool(composed.escalated[number])
                assert response.text == expected.text
                assert report.small_tflops + report.large_tflops == pytest.approx(composed.tflops[number])
                assert composed.value[number] == float(response.text.strip() in row.row.answers)
                routes.add(report.route)
    assert routes == {"small", "large"}


def test_milliseconds_add_up_and_large_alone_is_unpruned(make_row: MakeRow) -> None:
    rows = [make_row(0, score=0.9, small=1, large=1), make_row(1, score=0.2, small=0, large=1)]
    exits, never = Measured.of(rows, "35%").at(0.5), Measured.of(rows, None).at(NEVER)
    assert exits.ms.tolist() == [40, 40 + 60]
    assert exits.tflops.tolist() == pytest.approx([0.4, 0.4 + 0.5])
    assert never.ms.tolist() == [140, 140]
    assert never.tflops.tolist() == pytest.approx([1.4, 1.4])


def test_a_score_at_the_threshold_exits_and_no_number_never_does(make_row: MakeRow) -> None:
    rows = [make_row(n, score=score, small=0, large=1) for n, score in enumerate((0.5, 0.499, math.nan))]
    assert Measured.of(rows, "35%").at(0.5).escalated.tolist() == [0, 1, 1]
    assert Measured.of(rows, "35%").at(0.0).escalated.tolist() == [0, 0, 1]


def test_a_share_of_the_rows_escalates(make_row: MakeRow) -> None:
    rows = [make_row(n, score=score, small=0, large=1) for n, score in enumerate((0.9, 0.1, 0.5, 0.3, 0.7))]
    measured = Measured.of(rows, "35%")
    shares = [float(measured.escalating(share).escalated.mean()) for share in (0, 0.2, 0.5, 0.99, 1)]
    assert shares == [0.0, 0.2, 0.4, 0.8, 1.0]
    assert measured.escalating(0.2).escalated.tolist() == [0, 1, 0, 0, 0]  # the least sure first
    tied = Measured.of([make_row(n, score=0.5, small=0, large=1) for n in range(4)], "35%")
    assert [float(tied.escalating(share).escalated.mean()) for share in (0.5, 1)] == [0.0, 1.0]
    assert np.array_equal(measured.escalating(1.0).value, measured.large)

"""The report as a person reads it."""

from collections.abc import Callable

import pytest

from sgl_engine.cli import output
from sgl_engine.report.run_report import RunReport

MakeReport = Callable[..., RunReport]

ESCALATED = {
    "route": "large",
    "escalated": True,
    "score": 0.5,
    "kept_visual_tokens": 28,
    "prune_layer": 2,
    "keep_ratio": 0.2,
    "average_retention": 0.36,
    "large_tflops": 2.5,
    "large_alone_tflops": 2.0,
    "saved_fraction": -0.2505,
    "large_input_tokens": 160,
    "large_output_tokens": 4,
    "small_answer": "12.50",
    "large_agreed": False,
}


def test_the_report_of_an_early_exit(make_report: MakeReport) -> None:
    assert dict(output.rows(make_report())) == {
        "answered by": "small model, early exit",
        "score": "0.90 by mean_product, at least 0.80  (confidence 0.95, consistency 0.85)",
        "visual tokens": "144, seen by the small model only",
        "cost": "1 GFLOP, 75% less than the large model alone (4 GFLOP)",
        "time": "15 ms",
        "  small model": "encode 3, generate 12",
        "tokens": "small 160 in, 3 out",
        "models": "little, big",
    }


def test_the_report_of_an_escalation(make_report: MakeReport) -> None:
    lines = dict(output.rows(make_report(**ESCALATED)))
    assert lines["answered by"] == "large model, guided by the small one"
    assert lines["score"] == "0.50 by mean_product, below 0.80  (confidence 0.95, consistency 0.85)"
    assert lines["small answer"] == "12.50  (overruled)"
    assert lines["visual tokens"] == "28 of 144 kept from layer 2 on, 36% on average"
    tiled = make_report(**ESCALATED, tiles=7, kept_tiles=2, encoded_tiles=1)
    assert dict(output.rows(tiled))["visual tokens"].endswith("; 2 of 7 tiles given to the large model")
    assert lines["cost"] == "2.5 TFLOP, 25% more than the large model alone (2 TFLOP)"
    assert lines["tokens"] == "small 160 in, 3 out; large 160 in, 4 out"
    drafted = make_report(**ESCALATED, drafted_tokens=5, accepted_tokens=3)
    assert dict(output.rows(drafted))["tokens"] == (
        "small 160 in, 3 out; large 160 in, 4 out, 3 of 5 drafted ones accepted"
    )


def test_the_report_of_a_forced_route_says_so(make_report: MakeReport) -> None:
    lines = dict(output.rows(make_report(**ESCALATED | {"forced": True, "large_agreed": True})))
    assert lines["answered by"] == "large model, as --escalate says"
    assert lines["score"] == "0.50 by mean_product  (confidence 0.95, consistency 0.85)"
    assert lines["small answer"] == "12.50  (the large model agrees)"


@pytest.mark.parametrize(("tera", "text"), [(12.3456, "12.3 TFLOP"), (0.5, "500 GFLOP"), (2e-6, "2 MFLOP")])
def test_operations_come_in_a_readable_unit(tera: float, text: str) -> None:
    assert output.flops(tera) == text


def test_the_spinner_stays_out_of_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    with output.waiting("Loading"):
        pass
    assert capsys.readouterr() == ("", "")

"""The studies, on a tiny pair and on made-up outcomes whose right conclusions are known."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from sgl_engine import Request, SGLEngine
from sgl_engine.evaluation.better_maps import better_maps
from sgl_engine.evaluation.figures import save
from sgl_engine.evaluation.findings import findings
from sgl_engine.evaluation.intervals import Bootstrap
from sgl_engine.evaluation.likeness import likeness, overlap, spearman
from sgl_engine.evaluation.records import BenchAnswer, BenchOutcome, DataRow, Scored
from sgl_engine.evaluation.scorer_study import LOGISTIC, consistency, cross_validated, scorers
from sgl_engine.evaluation.sections import Section
from sgl_engine.exit.decision import CONSISTENCY
from sgl_engine.rankers import DEFAULT_RANKER, RankingCase
from sgl_engine.testing import tiny_vlm

POINTS = ("64%", "35%")
ROWS = 60


@pytest.fixture(scope="module")
def case() -> RankingCase:
    """Two models with different grids."""
    engine = SGLEngine(tiny_vlm(size="small", side_tokens=4), tiny_vlm(size="large", side_tokens=6))
    picture = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    return RankingCase.of(engine, Request.ask("What is it?", picture, max_new_tokens=5))


def answer(value: float, text: str = "yes") -> BenchAnswer:
    return BenchAnswer(text=text, value=value, tokens=3, tflops=1.0, ms=1.0)


def scored(index: int, *, small: float, pruned: dict[str, float], sure: float, study: Any = None) -> Scored:
    """A row: the large model is always right unpruned, and right when pruned as ``pruned`` says."""
    parts = {
        "confidence": sure,
        "answer_probability": sure**2,
        "min_token_probability": sure / 2,
        "mean_entropy": 1 - sure,
        "consistency_product": 0.5,
        "consistency_geometric_mean": 0.5,
    }
    outcome = BenchOutcome(
        small=answer(small, "yes" if small else "no"),
        large=answer(1.0, "Yes "),
        score=sure,
        parts=parts,
        small_pass_tflops=0.1,
        small_pass_ms=1.0,
        guided={point: answer(pruned[DEFAULT_RANKER]) for point in POINTS},
        pruned={name: {point: answer(value) for point in POINTS} for name, value in pruned.items()},
        study=study or {},
    )
    row = DataRow(
        index=index, id=str(index), kind="ab"[index % 2], metric="exact", question="?", answers=("yes",)
    )
    return Scored(row=row, outcome=outcome)


def made(
    pruned: Callable[[int], dict[str, float]], sure: Callable[[int], float] = lambda row: 0.5 + row / 200
) -> list[Scored]:
    """Rows whose small answer is wrong in the first third."""
    alike = {
        "spearman": 0.7,
        "overlap": {"20%": 0.6},
        "chance": {"20%": 0.2},
        **{
            name: {"spearman": [0.1, None], "overlap": [0.2, 0.3]}
            for name in ("small_layers", "large_layers", "same_depth")
        },
    }
    ratios = {ratio: {"product": 0.2, "geometric_mean": 0.4} for ratio in ("5%", "35%")}
    return [
        scored(
            row,
            small=float(row >= ROWS // 3),
            pruned=pruned(row),
            sure=sure(row),
            study={"likeness": alike, "consistency": ratios},
        )
        for row in range(ROWS)
    ]


def checked(section: Section | None, tmp_path: Any) -> Section:
    """A section that can be written: strict JSON, and figures that can be drawn."""
    assert section is not None
    json.dumps(section.data, allow_nan=False)
    for name, draw in section.figures.items():
        save(draw, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 2000
    return section


# --- likeness ----------------------------------------------------------------------------------------------


def test_likeness_is_measured_on_the_large_grid(case: RankingCase) -> None:
    found = likeness(case, None)  # type: ignore[arg-type]  # looks at the maps alone
    small = case.small_map(case.rows.plain.sum(dim=(0, 1))).resample(case.large_prompt.spans).mass
    large = case.large_rows.plain.sum(dim=(0, 1))
    assert found["spearman"] == pytest.approx(float(spearmanr(small, large).statistic), abs=1e-6)
    tops = [set(mass.topk(7).indices.tolist()) for mass in (small, large)]
    assert found["overlap"]["20%"] == pytest.approx(len(tops[0] & tops[1]) / 7)
    assert found["chance"] == {"5%": 1 / 36, "20%": 7 / 36, "40%": 14 / 36}
    assert [len(found[name]["spearman"]) for name in ("small_layers", "large_layers", "same_depth")] == [
        3,
        6,
        3,
    ]
    json.dumps(found, allow_nan=False)


def test_equal_maps_are_alike_and_reversed_ones_are_not() -> None:
    mass = np.random.default_rng(0).random(100)
    assert spearman(mass, mass**3) == pytest.approx(1.0)
    assert overlap(mass, mass**3, 0.2) == 1.0
    assert spearman(mass, -mass) == pytest.approx(-1.0)
    assert overlap(mass, -mass, 0.2) == 0.0
    assert spearman(mass, np.ones(100)) is None
    assert overlap(np.ones(3), np.ones(3), 0.05) == 1.0  # at least one token


def test_consistency_is_the_engines_at_its_ratio(case: RankingCase) -> None:
    found = consistency(case, None)  # type: ignore[arg-type]
    parts = case.small.parts
    assert found["5%"]["product"] == pytest.approx(parts["consistency_product"], rel=1e-3)
    assert found["5%"]["geometric_mean"] == pytest.approx(parts["consistency_geometric_mean"], rel=1e-3)
    assert found["35%"]["product"] != pytest.approx(found["5%"]["product"], rel=1e-3)


# --- sections ----------------------------------------------------------------------------------------------


def test_findings_say_what_holds_and_what_does_not(tmp_path: Any) -> None:
    rows = made(
        lambda row: {
            DEFAULT_RANKER: 1.0,
            "small-one-layer": float(row % 2),  # much worse
            "prompt-rows": float(row != 0),  # hardly worse
            "large-own": float(row % 2),
            "fastv": 1.0,  # better than the whole sum
        }
    )
    section = checked(findings(rows, Bootstrap(ROWS)), tmp_path)
    verdicts = {each["part"]: each["verdict"] for each in section.data["partial"]}
    assert verdicts == {
        "small-one-layer": "holds",
        "prompt-rows": "cannot be told apart",
        "fastv": "does not hold: the part is better",
    }
    assert section.data["kept"][DEFAULT_RANKER]["35%"]["value"] == 1.0
    assert section.data["kept"]["large-own"]["35%"]["value"] == 0.5
    assert "| finding (ii), small-guided | holds: 95% kept |" in section.markdown
    assert "| finding (ii), large-own | does not hold: under 95% |" in section.markdown
    assert section.data["likeness"]["verdict"] == "holds"
    layers = section.data["likeness"]["layers"]["small_layers"]
    assert layers[0]["spearman"]["value"] == pytest.approx(0.1)
    assert layers[1]["spearman"]["value"] is None  # constant maps have no rank correlation


def test_a_map_is_better_only_beyond_the_corrected_interval(tmp_path: Any) -> None:
    rows = made(
        lambda row: {
            DEFAULT_RANKER: float(row % 3 != 0),
            "value-norms": 1.0,  # a third better
            "capped": float(row % 3 != 0 or row < 4),  # two rows better
            "diverse": 0.0,
            "fastv": 1.0,  # no map of the small model's
            "tile-quota": float(row % 3 != 0),  # no row differs
        }
    )
    section = checked(better_maps(rows, Bootstrap(ROWS)), tmp_path)
    found = section.data["35%"]
    assert {name: each["verdict"] for name, each in found.items()} == {
        "value-norms": "better",
        "capped": "-",
        "diverse": "worse",
        "tile-quota": "-",
    }
    # A difference can be negative, so that of equal values is no share of hits, whose interval is one-sided.
    for name in ("difference", "where_right", "where_wrong"):
        assert found["tile-quota"][name] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["value-norms"]["difference"]["value"] == pytest.approx(1 / 3)
    wrong = [row for row in range(ROWS) if row < ROWS // 3]
    expected = np.mean([row % 3 == 0 for row in wrong])
    assert found["value-norms"]["where_wrong"]["value"] == pytest.approx(expected)
    assert "Better at one point or more and worse at none: value-norms." in section.markdown


def test_sections_keep_silent_where_nothing_was_measured() -> None:
    plain = made(lambda row: {DEFAULT_RANKER: 1.0})
    assert better_maps(plain, Bootstrap(ROWS)) is None
    bare = [
        each.model_copy(update={"outcome": each.outcome.model_copy(update={"study": {}})}) for each in plain
    ]
    assert findings(bare, Bootstrap(ROWS)) is None
    assert all(section([], Bootstrap(0)) is None for section in (findings, better_maps, scorers))


def test_scorers_that_know_more_are_found(tmp_path: Any) -> None:
    """Confidence rises with being right; consistency says nothing."""
    rows = made(lambda row: {DEFAULT_RANKER: 1.0})
    section = checked(scorers(rows, Bootstrap(ROWS, draws=300)), tmp_path)
    found = section.data["scorers"]
    assert found["confidence"]["auroc_right"]["value"] == 1.0
    assert found["consistency_product"]["auroc_right"]["value"] == 0.5
    assert found["entropy"]["auroc_same"]["value"] == 1.0  # "yes" is the large model's "Yes "
    assert found[LOGISTIC]["auroc_right"]["value"] > 0.95
    # A third is wrong, and the large model is always right: 40 % escalated by a perfect score is enough.
    for how in ("unpruned", "guided at 35%"):
        accuracy = {name: each["accuracy"][how]["40%"]["value"]["value"] for name, each in found.items()}
        assert accuracy["confidence"] == accuracy["(perfect)"] == 1.0
        assert accuracy["consistency_product"] == pytest.approx(2 / 3 + 0.4 / 3)
        assert accuracy["consistency_product"] == accuracy["(chance)"]
    assert section.data["consistency"]["product, 35%"]["auroc_right"]["value"] == 0.5


def test_without_consistency_there_is_nothing_to_hold_scorers_against() -> None:
    rows = made(lambda row: {DEFAULT_RANKER: 1.0})
    for each in rows:
        for name in CONSISTENCY:
            each.outcome.parts.pop(name)
    assert scorers(rows, Bootstrap(ROWS, draws=30)) is None


def test_the_logistic_score_never_sees_the_row_it_scores() -> None:
    """On noise, a fitted score looks good on its own rows, and like chance on others."""
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(60, 30)), (rng.random(60) < 0.5).astype(float)
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    held_out = cross_validated(features, target)
    assert held_out is not None
    fitted = LogisticRegression(max_iter=1000).fit(features, target).predict_proba(features)[:, 1]
    assert roc_auc_score(target, fitted) > 0.9
    assert roc_auc_score(target, held_out) < 0.7
    assert cross_validated(features, np.ones(60)) is None

"""Which score tells best when the small answer may be kept: AUROC, and the cascade at equal escalation.

Two targets: the small answer is right; the small answer is what the large model says, unpruned. Whoever has
labels cares for the first; the second can be measured without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgl_engine.evaluation.figures import forest_figure, rates_figure
from sgl_engine.evaluation.intervals import Bootstrap, Floats, Interval
from sgl_engine.evaluation.optional import extra
from sgl_engine.evaluation.records import BenchOutcome, Json, Scored
from sgl_engine.evaluation.sections import Section
from sgl_engine.evaluation.separation import CURVE, RATES, UNPRUNED, Targets, Worth, interval
from sgl_engine.evaluation.tables import Table
from sgl_engine.exit import DEFAULT_SCORER, SCORERS, geometric_mean, product
from sgl_engine.rankers import RankingCase

STUDY = "consistency"
"""What ``consistency`` is called among the studies."""
KEEP_RATIOS = (0.05, 0.1, 0.2, 0.35)
"""Of the consistency pass; the paper's is the first."""
LOGISTIC = "logistic, cross-validated"
CHANCE, PERFECT = "(chance)", "(perfect)"
FOLDS = 5
_LEAST_LOG = -30.0  # products of long answers reach 1e-300; what is left of them tells nothing more


def consistency(case: RankingCase, outcome: BenchOutcome) -> Json:
    """Runs the consistency pass at several keep ratios: ratio -> product and geometric mean."""
    del outcome
    found = {}
    for ratio in KEEP_RATIOS:
        logprobs = case.consistency_logprobs(ratio)
        found[f"{ratio:.0%}"] = {"product": product(logprobs), "geometric_mean": geometric_mean(logprobs)}
    return found


def scorers(rows: Sequence[Scored], bootstrap: Bootstrap) -> Section | None:
    """Compares the scorers of ``SCORERS``, a logistic combination, and consistency at several keep ratios."""
    targets = Targets.of(rows) if rows else None
    scores = {} if targets is None else _scores(rows, targets)
    if targets is None or DEFAULT_SCORER not in scores:  # what the others are held against: nothing to tell
        return None
    studied = {name: Worth.of(of_rows, targets, bootstrap) for name, of_rows in scores.items()}
    ratios = {name: Worth.of(of_rows, targets, bootstrap) for name, of_rows in _by_ratio(rows).items()}
    best = max((name for name in studied if name in SCORERS), key=lambda name: studied[name].right[0])
    text = [
        _areas_table("How well scores separate: AUROC (95 % interval)", studied).markdown(),
        *(_rates_table(how, studied).markdown() for how in targets.large),
        f"`{CHANCE}` escalates at random, `{PERFECT}` first where the unpruned large model is better.",
        _best(best, studied),
    ]
    if ratios:
        title = "The consistency pass at several keep ratios: AUROC (95 % interval)"
        text.append(_areas_table(title, ratios, base=studied[DEFAULT_SCORER]).markdown())
    curves = {how: {name: each.curves[how] for name, each in studied.items()} for how in targets.large}
    return Section(
        title="Scorers",
        markdown="\n\n".join(text),
        data={
            "scorers": {name: each.json(studied[DEFAULT_SCORER]) for name, each in studied.items()},
            "consistency": {name: each.json(studied[DEFAULT_SCORER]) for name, each in ratios.items()},
            "best": best,
        },
        figures={
            "scorers-auroc": lambda: _areas_figure(studied),
            "scorers-cascade": lambda: rates_figure(CURVE, curves, reference=(CHANCE, PERFECT)),
        },
    )


def _scores(rows: Sequence[Scored], targets: Targets) -> dict[str, Floats]:
    """Scores the rows by every scorer, by chance and perfectly: name -> float64 (rows,), higher = surer."""
    found: dict[str, Floats] = {}
    for name, scorer in SCORERS.items():
        try:
            found[name] = np.array([scorer(row.outcome.parts) for row in rows])
        except KeyError:  # a row without a picture has no consistency; nor has one where nobody read it
            continue
    combined = cross_validated(_features(rows), targets.right)
    if combined is not None:
        found[LOGISTIC] = combined
    found[CHANCE] = np.zeros(len(rows))
    found[PERFECT] = targets.small - targets.large[UNPRUNED]
    return found


def _by_ratio(rows: Sequence[Scored]) -> dict[str, Floats]:
    """Scores the rows by consistency, alone and averaged with others, at every ratio that was studied."""
    found: dict[str, Floats] = {}
    if not all(STUDY in row.outcome.study for row in rows):
        return found
    parts = {
        name: np.array([row.outcome.parts[name] for row in rows])
        for name in ("confidence", "answer_probability")
    }
    for form in ("product", "geometric_mean"):
        for ratio in rows[0].outcome.study[STUDY]:
            values = np.array([row.outcome.study[STUDY][ratio][form] for row in rows])
            found[f"{form}, {ratio}"] = values
            for name, others in parts.items():
                found[f"mean of {name} and {form}, {ratio}"] = (others + values) / 2
    return found


def _features(rows: Sequence[Scored]) -> Floats:
    """Stacks what a logistic score combines, float64 (rows, features): logs of parts, entropy, length."""
    columns = []
    for name in rows[0].outcome.parts:
        values = np.array([row.outcome.parts.get(name, 0.0) for row in rows])
        if name != "mean_entropy":
            with np.errstate(divide="ignore"):
                values = np.maximum(np.log(values), _LEAST_LOG)
        columns.append(values)
    columns.append(np.log([max(1, row.outcome.small.tokens) for row in rows]))
    return np.stack(columns, axis=1)


def cross_validated(features: Floats, target: Floats) -> Floats | None:
    """Predicts each row by a logistic regression that was fitted without it, in folds.

    Returns:
        Probabilities, float64 (rows,); None where there are too few rows of either kind for the folds.
    """
    if min(target.sum(), len(target) - target.sum()) < FOLDS:
        return None
    pipeline, linear = extra("sklearn.pipeline"), extra("sklearn.linear_model")
    selection, preprocessing = extra("sklearn.model_selection"), extra("sklearn.preprocessing")
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), linear.LogisticRegression(max_iter=1000))
    folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found: Floats = selection.cross_val_predict(
        model, features, target.astype(int), cv=folds, method="predict_proba"
    )[:, 1]
    return found


def _areas_table(title: str, scores: Mapping[str, Worth], base: Worth | None = None) -> Table:
    base = base or scores[DEFAULT_SCORER]
    shown = {name: each for name, each in scores.items() if name not in (CHANCE, PERFECT)}
    ordered = sorted(shown.items(), key=lambda item: -item[1].right[0])
    return Table(
        title,
        (
            "score",
            "small answer right",
            f"minus {DEFAULT_SCORER}",
            "within a kind",
            "large says the same",
            f"minus {DEFAULT_SCORER}",
        ),
        [
            (
                name,
                interval(each.right).plain(),
                _signed(interval(each.right - base.right)),
                interval(each.within).plain(),
                interval(each.same).plain(),
                _signed(interval(each.same - base.same)),
            )
            for name, each in ordered
        ],
    )


def _signed(difference: Interval) -> str:
    if np.isnan(difference.value):
        return "n/a"
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _rates_table(how: str, scores: Mapping[str, Worth]) -> Table:
    base = scores[DEFAULT_SCORER].rates[how]
    ordered = sorted(scores.items(), key=lambda item: -sum(each[0] for each in item[1].rates[how]))
    heads = [head for rate in RATES for head in (f"{rate:.0%} escalated", f"minus {DEFAULT_SCORER}")]
    return Table(
        f"Accuracy of the cascade in %, the large model {how}, when the least sure questions go there (95 % "
        "interval)",
        ("score", *heads),
        [
            (
                name,
                *(
                    cell
                    for ours, theirs in zip(score.rates[how], base, strict=True)
                    for cell in (interval(ours).percent(), interval(ours - theirs).percent(sign=True))
                ),
            )
            for name, score in ordered
        ],
    )


def _best(best: str, scores: Mapping[str, Worth]) -> str:
    """Says whether the best scorer is beyond the default one."""
    if best == DEFAULT_SCORER:
        return f"No scorer separates right from wrong better than the default, `{best}`."
    ours = [name for name in scores if name in SCORERS]
    gain = interval(scores[best].right - scores[DEFAULT_SCORER].right, comparisons=len(ours) - 1)
    beyond = "beyond" if gain.excludes_zero else "within"
    return (
        f"Best at separating right from wrong: `{best}`; its distance from the default, `{DEFAULT_SCORER}`, "
        f"is {_signed(gain)}, {beyond} an interval that allows for comparing {len(ours)} scorers."
    )


def _areas_figure(scores: Mapping[str, Worth]) -> Any:
    names = [name for name in scores if name not in (CHANCE, PERFECT)]
    names.sort(key=lambda name: -scores[name].right[0])
    return forest_figure(
        {
            "the small answer is right": [(name, interval(scores[name].right)) for name in names],
            "the large model says the same": [(name, interval(scores[name].same)) for name in names],
        },
        label="AUROC (95 % interval)",
        title="How well scores separate",
        at=None,
        percent=False,
    )

"""One half of the records -> a calibrator, by scikit-learn; what comes out are plain numbers.

A calibrator need not be good for the guarantee to hold: the other half certifies whatever it says. A good
one lets more questions exit at the same risk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgl_engine import ConfigError
from sgl_engine.evaluation.optional import extra
from sgl_engine.exit import ANSWER_TOKENS, SCORE, Feature, Isotonic, Logistic

Method: TypeAlias = Literal["isotonic", "logistic"]
_MAX_KNOTS = 256


def fit(
    method: Method, observations: Sequence[Mapping[str, float]], harmless: Sequence[float]
) -> Isotonic | Logistic:
    """Fits a calibrator.

    Args:
        method: "isotonic" on the score alone, or "logistic" on all that the observations have in common.
        observations: ``exit.calibrators.observe`` of each record.
        harmless: Whether keeping the small answer did no harm, by the chosen risk; or, for "isotonic", any
            number in [0, 1] that is to be expected.

    Raises:
        ConfigError: There is nothing to fit, a score is not a number, or scikit-learn is not installed.
    """
    if not observations:
        raise ConfigError("There is no record to fit on.", remedy="Collect at least two questions.")
    labels = np.asarray(harmless, dtype=np.float64)
    if method == "isotonic":
        return _isotonic(Feature(name=SCORE), observations, labels)
    return _logistic(logistic_features(observations), observations, labels)


def _matrix(features: Sequence[Feature], observations: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """Stacks the features of all observations: float64 (records, features).

    Raises:
        ConfigError: A value is missing or not a number.
    """
    rows: list[list[float]] = []
    for number, values in enumerate(observations):
        row = [feature.of(values) for feature in features]
        known = [value for value in row if value is not None]
        if len(known) < len(row):
            raise ConfigError(
                f"Record {number} has no usable {features[row.index(None)].name}.",
                remedy="Leave the record out; its small answer has no score.",
            )
        rows.append(known)
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(features))


def _isotonic(
    feature: Feature, observations: Sequence[Mapping[str, float]], labels: NDArray[np.float64]
) -> Isotonic:
    """Fits an isotonic regression, its flat steps tilted by one pseudo-observation.

    A plain isotonic fit gives a whole step one probability, so a threshold could only take all of it or none;
    the top step often holds most of the traffic. Here p = (n * step + rank) / (n + 1), rank the share of
    scores at most this one: the order of scores is kept, and no probability moves by more than 1 / (n + 1).
    """
    regression = extra("sklearn.isotonic").IsotonicRegression
    values = _matrix([feature], observations)[:, 0]
    steps = regression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(values, labels)
    distinct = np.unique(values)
    thinned = distinct[np.linspace(0, len(distinct) - 1, min(len(distinct), _MAX_KNOTS)).round().astype(int)]
    knots = np.union1d(thinned, steps.X_thresholds_)
    # Of the values' own kind: scikit-learn may return float32 knots, which lie between float64 scores.
    rank = np.searchsorted(np.sort(values), knots, side="right") / len(values)
    heights = (len(values) * steps.predict(knots) + rank) / (len(values) + 1)
    heights = np.maximum.accumulate(np.clip(heights, 0.0, 1.0))
    return Isotonic(feature=feature, x=tuple(knots.tolist()), y=tuple(heights.tolist()))


def _logistic(
    features: tuple[Feature, ...], observations: Sequence[Mapping[str, float]], labels: NDArray[np.float64]
) -> Logistic:
    """Fits an L2-regularised logistic regression (C = 1) on standardised features.

    Where only one outcome was seen there is nothing to separate: the probability is (k + 1) / (n + 2).
    """
    values = _matrix(features, observations)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    scale = np.where(spread > 1e-12 * (1 + np.abs(mean)), spread, 1.0)  # a constant's rounding is no spread
    coefficients = np.zeros(len(features))
    if 0 < labels.sum() < len(labels) and len(features):
        fitted = (
            extra("sklearn.linear_model")
            .LogisticRegression(max_iter=1000)
            .fit((values - mean) / scale, labels)
        )
        coefficients, intercept = fitted.coef_[0], float(fitted.intercept_[0])
    else:
        share = (labels.sum() + 1) / (len(labels) + 2)
        intercept = float(np.log(share / (1 - share)))
    return Logistic(
        inputs=features,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        coefficients=tuple(coefficients.tolist()),
        intercept=intercept,
    )


def logistic_features(observations: Sequence[Mapping[str, float]]) -> tuple[Feature, ...]:
    """Picks every number that all observations have, but for the score, which is made of the others.

    Numbers within [0, 1] are probabilities, and enter by their log-odds; others are counts or entropies.
    """
    names = _in_all(observations) - {SCORE}
    return tuple(Feature(name=name, transform=_transform(name, observations)) for name in sorted(names))


def _in_all(observations: Sequence[Mapping[str, float]]) -> set[str]:
    common: set[str] = set(observations[0]) if observations else set()
    for each in observations:
        common &= {name for name, value in each.items() if math.isfinite(value)}
    return common


def _transform(name: str, observations: Iterable[Mapping[str, float]]) -> Literal["logit", "log1p"]:
    # By what was seen, not by a table of names: a part that is added later has its transform, too.
    if name == ANSWER_TOKENS or "entropy" in name:
        return "log1p"
    return "logit" if all(0.0 <= each[name] <= 1.0 for each in observations) else "log1p"

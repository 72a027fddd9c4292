"""Measurements of an answer -> one score -> whether the small answer is kept (SGL, section 3.3, SEE). Pure.

Everything is computed in log space and float64: the product of 500 token probabilities is far below what
float32 can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from sgl_engine.config import ExitConfig, PruningConfig
from sgl_engine.errors import ConfigError
from sgl_engine.request import Request


def geometric_mean(logprobs: Sequence[float]) -> float:
    """Computes the geometric mean of tokens' probabilities, from their natural logs; in [0, 1]."""
    return math.exp(math.fsum(logprobs) / len(logprobs))


def product(logprobs: Sequence[float]) -> float:
    """Computes the probability of all tokens together, from natural logs; in [0, 1], 0 below 1e-323."""
    return math.exp(math.fsum(logprobs))


def measure_answer(
    answer: Sequence[float], entropies: Sequence[float], consistency: Sequence[float] | None
) -> dict[str, float]:
    """Measures how sure a model was of its answer.

    Args:
        answer: Natural log-probability of each answer token (T,) as generated, the end-of-sequence one too.
        entropies: Entropy of the distribution that each token was chosen from, in nats (T,).
        consistency: The same tokens' log-probabilities when only the most important visual tokens are seen;
            None when the prompt holds no image.

    Returns:
        "confidence", "answer_probability" and "min_token_probability", in [0, 1], and "mean_entropy", in
        nats; with consistency also "consistency_product" and "consistency_geometric_mean", in [0, 1].
    """
    parts = {
        "confidence": geometric_mean(answer),
        "answer_probability": product(answer),
        "min_token_probability": math.exp(min(answer)),
        "mean_entropy": math.fsum(entropies) / len(entropies),
    }
    if consistency is not None:
        parts["consistency_product"] = product(consistency)
        parts["consistency_geometric_mean"] = geometric_mean(consistency)
    return parts


@dataclass(frozen=True)
class Confidence:
    """How sure the small model is.

    Attributes:
        score: In [0, 1], higher = surer; what the exit decision compares with its threshold.
        parts: What it is made of (``sgl_engine.exit.decision``).
    """

    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class ChosenRung:
    """An operating point of the large model that a calibration has chosen for a question.

    Attributes:
        name: In the calibration.
        pruning: The operating point.
        probability: That the large model, so pruned, answers harmlessly.
    """

    name: str
    pruning: PruningConfig
    probability: float


@dataclass(frozen=True)
class ExitDecision:
    """Whether the small answer is kept.

    Attributes:
        exit: True: keep the small answer, the large model is not called.
        score: The small model's score; the calibrated probability where a calibration covers the request.
        threshold: What the score was compared with.
        policy: "threshold"; "forced" when the configuration says never or always, or the request's
            ``may_escalate`` said no; "uncovered" when the calibration says nothing about such a request.
        calibration: Identifier of the calibration that gave the threshold; None for a plain number.
        uncovered: Why the calibration does not cover the request; None where it does, or there is none.
        risk: The target risk that is certified for such requests; None where none is.
        rung: The operating point that the calibration chooses for an escalation; None where it chooses none.
    """

    exit: bool
    score: float
    threshold: float
    policy: Literal["threshold", "forced", "uncovered"]
    calibration: str | None = None
    uncovered: str | None = None
    risk: float | None = None
    rung: ChosenRung | None = None

    @property
    def calibrated_probability(self) -> float | None:
        """That keeping the small answer is harmless; None where no calibration says so."""
        return self.score if self.calibration is not None and self.uncovered is None else None

    def pruning(self, configured: PruningConfig) -> PruningConfig:
        """What the large model is to see: as the calibration says, where it chooses."""
        return configured if self.rung is None else self.rung.pruning


@dataclass(frozen=True)
class CalibratedScore:
    """What a calibration says of a small answer.

    Attributes:
        calibration: Its id.
        threshold: The certified one.
        probability: That keeping the answer is harmless; None where the request is not covered.
        uncovered: Why it is not: it is unlike those that were calibrated on.
        risk: The target risk.
        rung: What the large model is to be shown, if it is asked; None leaves that to the configuration.
    """

    calibration: str
    threshold: float
    probability: float | None
    uncovered: str | None = None
    risk: float | None = None
    rung: ChosenRung | None = None


def decide_exit(
    confidence: Confidence, config: ExitConfig, calibrated: CalibratedScore | None = None
) -> ExitDecision:
    """Keeps the small answer when its score reaches the threshold, or as the configuration forces.

    A score that is not a number never exits. Nor does a request that the calibration does not cover: nobody
    promised anything about it.

    Args:
        confidence: The small model's.
        config: What counts without a calibration, and what forces a route.
        calibrated: Takes the place of score and threshold; None is no calibration.
    """
    score, threshold = confidence.score, config.threshold
    if calibrated is not None:
        threshold = calibrated.threshold
        score = score if calibrated.probability is None else calibrated.probability
    decision = ExitDecision(
        exit=score >= threshold,
        score=score,
        threshold=threshold,
        policy="threshold",
        calibration=None if calibrated is None else calibrated.calibration,
        uncovered=None if calibrated is None else calibrated.uncovered,
        risk=None if calibrated is None else calibrated.risk,
        rung=None if calibrated is None else calibrated.rung,
    )
    if config.escalate != "auto":
        return replace(decision, exit=config.escalate == "never", policy="forced")
    return decision if decision.uncovered is None else replace(decision, exit=False, policy="uncovered")


def permitted(request: Request, decision: ExitDecision) -> ExitDecision:
    """The decision, or a forced exit where the request may not escalate."""
    if decision.exit or request.may_escalate is None or request.may_escalate():
        return decision
    return replace(decision, exit=True, policy="forced")


Scorer: TypeAlias = Callable[[Mapping[str, float]], float]
"""Parts of a Confidence, consistency included -> score in [0, 1], higher = surer."""

SCORERS: dict[str, Scorer] = {
    "mean_product": lambda parts: (parts["confidence"] + parts["consistency_product"]) / 2,
    "mean_geometric": lambda parts: (parts["confidence"] + parts["consistency_geometric_mean"]) / 2,
    "confidence": lambda parts: parts["confidence"],
    "answer_probability": lambda parts: parts["answer_probability"],
    "consistency_geometric_mean": lambda parts: parts["consistency_geometric_mean"],
    "consistency_product": lambda parts: parts["consistency_product"],
    "min_token_probability": lambda parts: parts["min_token_probability"],
    "entropy": lambda parts: math.exp(-parts["mean_entropy"]),
}
"""Add a scorer with one line; it is taken to read what the consistency pass measures. ``mean_product`` is
the paper's equation as its code computes it; ``answer_probability`` suits short answers, and falls with every
token of a long one. ``entropy`` is 1 where every token was certain, and 1 / n where each was a draw among n
equal ones."""

CONSISTENCY = "consistency_product", "consistency_geometric_mean"
"""Parts that the consistency pass measures; it runs where somebody reads one (``consistency_keep_ratio``)."""
_OF_THE_ANSWER = tuple(
    SCORERS[name] for name in ("confidence", "answer_probability", "min_token_probability", "entropy")
)

DEFAULT_SCORER = "mean_product"


def find_scorer(name: str | None) -> Scorer:
    """Looks a scorer up; None is the default one.

    Raises:
        ConfigError: There is no such scorer.
    """
    try:
        return SCORERS[DEFAULT_SCORER if name is None else name]
    except KeyError:
        raise ConfigError(
            f"There is no scorer {name!r}.", remedy=f"Use one of {', '.join(SCORERS)}, or add it to SCORERS."
        ) from None


def reads_consistency(scorer: str | None) -> bool:
    """Whether a scorer reads what the consistency pass measures; of one that was added it is assumed.

    Raises:
        ConfigError: There is no such scorer.
    """
    return find_scorer(scorer) not in _OF_THE_ANSWER


def consistency_keep_ratio(config: ExitConfig, *, calibration_reads: bool = False) -> float | None:
    """Fraction of the visual tokens that the consistency pass sees; None where there is to be none.

    Args:
        config: What is wanted.
        calibration_reads: Whether a calibration asks for what that pass measures.
    """
    if config.consistency == "always" or calibration_reads or reads_consistency(config.scorer):
        return config.consistency_keep_ratio
    return None


def score_parts(
    parts: Mapping[str, float], scorer: str | None = None, *, pictures: bool = False
) -> Confidence:
    """Turns measurements into one score.

    Args:
        parts: What ``measure_answer`` has measured. Without consistency, as for a prompt without images, the
            score is the confidence, whatever the scorer.
        scorer: Name in ``SCORERS``; None is ``DEFAULT_SCORER``.
        pictures: Whether the prompt is known to hold one: then consistency is missing because nobody reads
            it, and a scorer that does not is used.

    Raises:
        ConfigError: There is no such scorer.
    """
    score = find_scorer(scorer)
    if "consistency_product" not in parts and (not pictures or reads_consistency(scorer)):
        return Confidence(score=parts["confidence"], parts=parts)
    return Confidence(score=score(parts), parts=parts)


def counts_as_empty(text: str, config: ExitConfig) -> bool:
    """Whether an answer says nothing, and the configuration does not want such answers scored."""
    return config.empty_answers == "escalate" and not text.strip()


def score_answer(text: str, parts: Mapping[str, float], config: ExitConfig, *, pictures: bool) -> Confidence:
    """``score_parts`` by the configured scorer, but 0 for an answer that ``counts_as_empty``.

    Raises:
        ConfigError: There is no such scorer.
    """
    confidence = score_parts(parts, config.scorer, pictures=pictures)
    return replace(confidence, score=0.0) if counts_as_empty(text, config) else confidence


ANSWER_SHARE = "answer_share"
"""What reports call the score of ``decision_confidence``."""


def answer_shares(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities normalised to sum to 1, from their natural logs; answers of 1e-400 keep their order."""
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    return tuple(weight / math.fsum(weights) for weight in weights)


def decision_confidence(token_logprobs: Sequence[Sequence[float]]) -> Confidence:
    """How sure a model is of what its scores decide, to be compared with the exit threshold.

    The score is the best answer's share among the given ones: max(p, 1 - p) for two. A single answer of
    probability p is weighed against everything else that could be said, so it is max(p, 1 - p) there, too.

    Args:
        token_logprobs: Per answer, the natural log of each of its tokens' probability, its end last.
    """
    logprobs = [math.fsum(tokens) for tokens in token_logprobs]
    best = token_logprobs[logprobs.index(max(logprobs))]
    alone = math.exp(logprobs[0])
    score = max(alone, 1 - alone) if len(logprobs) == 1 else max(answer_shares(logprobs))
    return Confidence(
        score=score, parts={"confidence": geometric_mean(best), "answer_probability": product(best)}
    )

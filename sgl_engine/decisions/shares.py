"""Log-probabilities of texts -> probabilities of answers, and how concentrated these are. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from sgl_engine.decisions.forms import PutQuestion

LEAST = 1e-12
"""A probability of nothing else being said: rounding must not make it 0."""


def option_logits(put: PutQuestion, token_logprobs: Sequence[Sequence[float]]) -> list[float]:
    """The natural log of how likely each option is, not normalised.

    Args:
        put: The question; its options' texts were scored in order (``Option.texts``).
        token_logprobs: Of each of them, the log-probability of every token, its end last.
    """
    scored = iter(token_logprobs)
    logits: list[float] = []
    for option in put.options:
        ways = [_value(next(scored), whole=put.whole) for _ in option.says]
        # What begins an answer need not end it.
        ways += [math.fsum(next(scored)[:-1]) for _ in option.begins]
        logits.append(_log_sum(ways))
    said = min(math.fsum(map(math.exp, logits)), 1 - LEAST)
    return [
        math.log(1 - said) if option.rest else logit
        for option, logit in zip(put.options, logits, strict=True)
    ]


def _value(tokens: Sequence[float], *, whole: bool) -> float:
    return math.fsum(tokens) if whole else math.fsum(tokens) / len(tokens)


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs, default=-math.inf)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(log - top) for log in logs))


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities that sum to 1; a temperature above 1 makes them more alike."""
    top = max(logits)
    if top == -math.inf:
        return [1 / len(logits)] * len(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def tempered(probabilities: Sequence[float], temperature: float) -> list[float]:
    """Probabilities raised to 1 / temperature, normalised; above 1, they become more alike."""
    return softmax([math.log(max(each, LEAST)) for each in probabilities], temperature)


def mean(distributions: Sequence[Sequence[float]]) -> list[float]:
    """The average of several distributions over the same options."""
    return [math.fsum(column) / len(distributions) for column in zip(*distributions, strict=True)]


def concentration(probabilities: Sequence[float]) -> float:
    """1 - entropy / log(n), in [0, 1]: 1 where one option has it all, 0 where all are equal."""
    if len(probabilities) == 1:
        return 1.0
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))


def orders(count: int, wanted: int) -> Iterator[tuple[int, ...]]:
    """Up to ``wanted`` different orders of so many things, always the same: as given, backwards, then any."""
    most = math.factorial(count) if count < 6 else wanted
    drawn, seen = random.Random(count), set[tuple[int, ...]]()  # noqa: S311  # orders, no secrets
    following = tuple(range(count))
    while len(seen) < min(wanted, most):
        if following not in seen:
            seen.add(following)
            yield following
        following = (
            tuple(reversed(range(count)))
            if len(seen) == 1 and count > 1
            else tuple(drawn.sample(range(count), count))
        )

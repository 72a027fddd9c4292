"""The words and numbers of one page, each taken once, so that a question that names one means one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sgl_engine.demo.vocabulary import BARS, FIELDS, ITEMS

RECEIPTS = ("receipt", "invoice", "bill")
NOTES = ("note", "memo", "ticket", "list")
FILLERS = (
    "thank you",
    "open daily",
    "please keep this",
    "see you soon",
    "all goods new",
    "printed here",
    "main street",
    "copy for you",
)
"""What is printed about and never asked for: no word of it is in any question, and no digit."""

KINDS = {"items": ITEMS, "fields": FIELDS, "months": BARS, "receipts": RECEIPTS, "notes": NOTES}


@dataclass(frozen=True)
class Stock:
    """What has been taken already; ``words`` and ``numbers`` take more and never give the same twice."""

    taken: set[str]

    @classmethod
    def full(cls) -> Stock:
        """Nothing taken yet."""
        return cls(set())

    def copy(self) -> Stock:
        """One from which can be taken on trial."""
        return Stock(set(self.taken))

    def left(self, kind: str) -> list[str]:
        """Words of that kind (a key of ``KINDS``) that nobody took."""
        return [word for word in KINDS[kind] if word not in self.taken]

    def words(self, kind: str, count: int, rng: np.random.Generator) -> tuple[str, ...]:
        """``count`` words, or fewer where fewer are left."""
        left = self.left(kind)
        return self._take([left[int(i)] for i in rng.permutation(len(left))[:count]])

    def numbers(self, count: int, rng: np.random.Generator) -> tuple[str, ...]:
        """Numbers of two digits."""
        left = [str(number) for number in range(10, 100) if str(number) not in self.taken]
        return self._take([left[int(i)] for i in rng.permutation(len(left))[:count]])

    def prices(self, count: int, rng: np.random.Generator) -> tuple[str, ...]:
        """Prices from 1.00 to 9.99."""
        return self._draw(lambda: f"{int(rng.integers(1, 10))}.{int(rng.integers(0, 100)):02d}", count)

    def tags(self, count: int, rng: np.random.Generator) -> tuple[str, ...]:
        """What rooms and seats are called: "b4", "k27", "231"."""
        return self._draw(lambda: _tag(rng), count)

    def date(self, rng: np.random.Generator) -> tuple[str, str] | None:
        """A day and a month; None where no month is left."""
        months = self.words("months", 1, rng)
        return (self._draw(lambda: str(int(rng.integers(1, 29))), 1)[0], months[0]) if months else None

    def _draw(self, one: Callable[[], str], count: int) -> tuple[str, ...]:
        drawn: list[str] = []
        while len(drawn) < count:
            value = one()
            if value not in self.taken and value not in drawn:
                drawn.append(value)
        return self._take(drawn)

    def _take(self, words: Sequence[str]) -> tuple[str, ...]:
        self.taken.update(words)
        return tuple(words)


def _tag(rng: np.random.Generator) -> str:
    letter = "abcdefghkmnprtwxy"[int(rng.integers(17))]
    digits = str(int(rng.integers(100, 1000)))
    return digits if rng.random() < 0.4 else letter + digits[: int(rng.integers(1, 3))]

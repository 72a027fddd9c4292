"""How much a regular expression is, before anybody compiles it."""

from __future__ import annotations

import re

# An escape, a class, a count, or one character. Each alternative begins differently, so nothing is read
# twice but what follows a bracket that nobody closes.
_TOKEN = re.compile(
    r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?P<range>,(?P<most>\d*))?\}|.",
    re.DOTALL,
)


def written_out(pattern: str) -> int:
    """Characters and classes of ``pattern``, each counted as often as the counts around it allow at most.

    ``*`` and ``+``, and ``{3,}`` beyond the 3, count nothing more: they are loops, not copies.
    """
    totals, last = [0], 0  # of every open group, what stands before its last piece; and that piece
    for token in _TOKEN.finditer(pattern):
        if token["least"] is not None:
            last *= max(1, int(token["most"] or token["least"]))
        elif token[0] == "(":
            totals[-1] += last
            totals.append(0)
            last = 0
        elif token[0] == ")" and len(totals) > 1:
            last += totals.pop()
        elif token[0] not in "*+?|":
            totals[-1] += last
            last = 1
    return sum(totals) + last

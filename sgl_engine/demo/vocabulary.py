"""The words of the demo world."""

from __future__ import annotations

ITEMS = tuple(
    "milk bread tea coffee butter cheese apple banana rice pasta soup salad "
    "juice water sugar eggs fish cake lemon onion total tax tip change".split()
)
FIELDS = tuple("room gate seat code desk bus shelf box page level key table".split())
BARS = tuple("jan feb mar apr may jun jul aug sep oct nov dec".split())
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "black")
NONE = "none"
"""The answer where the page does not hold one."""
TRANSCRIBE = "transcribe the picture"
"""The question whose answer lists everything that a picture holds."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.:-#/*+="
VALUE_CHARACTERS = 4
"""Values have at most this many characters."""
SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Where a neighbour stands: (row, column) step."""

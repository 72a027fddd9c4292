"""The words of the demo world, and the class numbers under which the dense training loss knows them.

Class 0 of every fact means "nothing here"; real classes start at 1.
"""

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
"""The answer where the picture does not hold one."""
TRANSCRIBE = "transcribe the picture"
"""The question whose answer lists everything that a picture holds."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.:-#/*+="
VALUE_CHARACTERS = 4
"""Values have at most this many characters."""


def _classes(words: tuple[str, ...]) -> dict[str, int]:
    return {word: index + 1 for index, word in enumerate(words)}


CHARACTER_CLASSES = _classes(tuple(CHARACTERS))
END_OF_VALUE = len(CHARACTERS) + 1
LABEL_CLASSES = _classes(ITEMS + FIELDS + BARS)
NO_LABEL = len(LABEL_CLASSES) + 1
SHAPE_CLASSES = _classes(SHAPES)
NO_SHAPE = len(SHAPES) + 1
COLOR_CLASSES = _classes(COLORS)
NO_COLOR = len(COLORS) + 1
SIDES = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Where a neighbour stands: (row, column) step."""

FACTS: dict[str, int] = (
    {
        "glyph0": END_OF_VALUE,
        "glyph1": END_OF_VALUE,
        "label": NO_LABEL + 1,
        "below": NO_LABEL + 1,
        "order": 18,
    }
    | {f"value{i}": END_OF_VALUE + 1 for i in range(VALUE_CHARACTERS)}
    | {"shape": NO_SHAPE + 1, "color": NO_COLOR + 1, "centre": 3, "extreme": 5}
    | {f"{side}_shape": NO_SHAPE + 1 for side in SIDES}
    | {f"{side}_color": NO_COLOR + 1 for side in SIDES}
)
"""Number of classes of each fact about a patch, class 0 ("nothing here") included."""


def value_facts(value: str) -> dict[str, int]:
    """The facts ``value0``, ``value1``, ...: the characters of ``value``, then its end."""
    facts = {f"value{i}": CHARACTER_CLASSES[character] for i, character in enumerate(value)}
    if len(value) < VALUE_CHARACTERS:
        facts[f"value{len(value)}"] = END_OF_VALUE
    return facts

"""Metrics that first find the answer in a text: a letter, yes or no, a box.

As in ``metrics``, each takes an answer and everything that counts as right; its value is in [0, 1], higher =
better. What a benchmark's own evaluation does with odd answers is done here, too: it is part of its score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Corners: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom of a box, in one unit for both axes or one for each."""

IOU_THRESHOLD = 0.5
_LETTERS = "ABCDE"
# Written behind or around a letter, and how sure that makes it; of equals, the last in the text counts.
_MARKED = (("(", ")", 6), ("", ".", 5), ("", ":", 4), ("", ")", 3), ("", " ", 2))
_PHRASES = (
    *(f"{the}{thing} is" for the in ("the ", "", "my ") for thing in ("answer", "choice")),
    *(
        f"{the}{which} {thing} is"
        for the in ("the ", "")
        for which in ("correct", "best")
        for thing in ("answer", "option")
    ),
    "the correct choice is",
    "correct choice is",
    "i choose",
    "i select",
    "i pick",
)
_AROUND = (
    *(("", after) for after in (".", ",", ":", ")", ").")),
    *(("(", after) for after in (")", ").")),
    *((":", after) for after in ("", ",", ".", ")", ").")),
)
_BRACKETED = re.compile(r"\[" + r",".join([r"\s*(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")
_FOUR_NUMBERS = re.compile(r"\s*[,\s]\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4))
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)
_BOX_KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")


def first_letter(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where the answer's first character is the right letter (SEED-Bench as lmms-eval asks it)."""
    return float(answer.strip()[:1].lower() in {each.strip().lower() for each in right})


def choice(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where the answer chooses the right option (MMBench, Liu et al., 2024, 4.1, without GPT).

    A letter that stands alone, the text of one option, then a letter in any usual form, in this order. An
    answer that chooses nothing is wrong.

    Args:
        answer: The answer.
        right: The right letter, then the texts of all options, A first.
    """
    letter, *options = right
    return float(chosen_option(answer, options) == letter)


def chosen_option(answer: str, options: Sequence[str]) -> str:
    """Returns the letter of the option that an answer chooses; empty where it chooses none."""
    texts = dict(zip(_LETTERS[:4], options, strict=False))
    return _lone_letter(answer) or _named_text(answer, texts) or letter_in(answer, list(texts))


def _lone_letter(answer: str) -> str:
    """Finds a letter that is a word, or one with marks around it, where there is just one such letter."""
    words = answer.split()
    found = [letter for letter in _LETTERS if letter in words]
    # "A" among more than three words may be an article.
    if len(found) == 1 and not ("A" in words and len(words) > 3):
        return found[0]
    for before, after in _AROUND:
        found = [letter for letter in _LETTERS if before + letter + after in words]
        if len(found) == 1:
            return found[0]
    return ""


def _named_text(answer: str, texts: Mapping[str, str]) -> str:
    """Finds the option whose text stands in the answer, where there is just one such option."""
    found = [letter for letter, text in texts.items() if text.lower() in answer.lower()]
    return found[0] if len(found) == 1 else ""


def letter_in(answer: str, letters: Sequence[str]) -> str:
    """Finds the letter that an answer means, by the form in which it is written; empty where there is none.

    At the beginning is surest, then at the end, behind "the answer is" and the like, in brackets, before a
    mark, before a space, and last anywhere.
    """
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    if not answer.strip():
        return ""
    found = sorted(_letters_by_form(f" {text} ", letters), key=lambda each: each[:2], reverse=True)
    return found[0][2] if found else ""


def _letters_by_form(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yields how sure a form is, where it stands, and the letter; of text with a space on both sides."""
    forms = [
        (sure, text.rfind(before + letter + after), letter)
        for before, after, sure in _MARKED
        for letter in letters
    ]
    lower = text.lower()
    starts = [lower.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lower]
    forms += [(7, text.find(letter, start), letter) for start in starts for letter in letters]
    bare = text.strip()
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            forms.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            forms.append((9, len(text) - 1, letter))
    there = [form for form in forms if form[1] >= 0]
    yield from there or [(0, text.rfind(letter), letter) for letter in letters if letter in text]


def yes_no(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where the answer says yes, or no, as it should (MME, Fu et al., 2023, and lmms-eval).

    Full stops do not count. Of a longer answer, the first four characters are looked at, for yes first.
    """
    return float(said_yes_or_no(answer) == _bare(right[0]))


def said_yes_or_no(answer: str) -> str:
    """Returns "yes", "no", or "other"."""
    said = _bare(answer)
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, "other")
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def _bare(text: str) -> str:
    return text.lower().strip().replace(".", "")


def box(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where the first bracketed box of the answer has an IoU of at least 0.5 with a right one.

    RefCOCO as lmms-eval asks it (fractions of width and height), and InternVL's ``<box>[[...]]</box>``, in
    thousandths. Right boxes are written in the unit of the answer.
    """
    match = _BRACKETED.search(answer)
    return _hits([_corners(match.groups())] if match else [], right)


def any_box(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where a box of the answer has an IoU of at least 0.5 with a right one.

    RefCOCO as boxes in JSON (lmms-eval's refcoco_grounding): under any usual key, or four numbers in a row
    where there is no JSON. Right boxes are those in pixels, and in thousandths, which some models write.
    """
    found = list(_boxes_of(_json_in(answer))) or [
        _corners(match.groups()) for match in _FOUR_NUMBERS.finditer(answer)
    ]
    return _hits(found, right)


def _hits(found: Sequence[Corners], right: Sequence[str]) -> float:
    wanted = [_corners(json.loads(each)) for each in right]
    return float(any(iou(one, other) >= IOU_THRESHOLD for one in found for other in wanted))


def iou(one: Corners, other: Corners) -> float:
    """Divides what two boxes share by what they cover together; 0 where a box has no area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (one, other)]
    return shared / (sum(areas) - shared) if shared else 0.0


def _corners(numbers: Sequence[Any]) -> Corners:
    left, top, right, bottom = map(float, numbers)
    return left, top, right, bottom


def _json_in(text: str) -> Any:
    """Returns the JSON of a text: fenced, the whole text, or what lies between outer brackets; else None."""
    fenced = _FENCED.search(text)
    tried = [fenced[1]] if fenced else []
    tried.append(text.strip())
    for opened, closed in ("[]", "{}"):
        start, end = text.find(opened), text.rfind(closed)
        if -1 < start < end:
            tried.append(text[start : end + 1])
    for each in tried:
        try:
            return json.loads(each)
        except (ValueError, RecursionError):
            continue
    return None


def _boxes_of(data: Any) -> Iterator[Corners]:
    """Yields all boxes in what JSON has become, however it is nested."""
    if isinstance(data, list):
        if len(data) == 4 and all(isinstance(each, int | float) for each in data):
            yield _corners(data)
        else:
            for each in data:
                yield from _boxes_of(each)
    elif isinstance(data, dict):
        for key in _BOX_KEYS:
            numbers = data.get(key)
            if isinstance(numbers, list) and len(numbers) == 4 and all(map(_is_number, numbers)):
                yield _corners(numbers)
                return
        for each in data.values():
            yield from _boxes_of(each)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True

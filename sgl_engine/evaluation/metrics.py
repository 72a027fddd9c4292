"""What an answer is worth, by the definitions of the data sets that it is usually compared on.

Each metric takes an answer and everything that counts as right; its value is in [0, 1], higher = better.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import TypeAlias

from sgl_engine.evaluation.extracted import any_box, box, choice, first_letter, yes_no
from sgl_engine.evaluation.optional import extra

Metric: TypeAlias = Callable[[str, Sequence[str]], float]
"""Answer, what counts as right -> value in [0, 1], higher = better."""

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
FEWEST_VQA_ANSWERS = 4
"""With fewer, no answer can reach the full VQA score; the data sets have ten."""

_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NO_MARKS = str.maketrans("", "", string.punctuation)
_ARTICLES = frozenset(("a", "an", "the"))
# Where a space stands beside one of these it goes, elsewhere a space takes its place. Commas and question
# marks are not among them: they have gone before.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd
somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
you'd've you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    """Lists the ways to forget one apostrophe: "couldn't've" -> "couldnt've", "couldn'tve"."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_MENDED = {forgotten: word for word in _CONTRACTIONS for forgotten in _without_one_apostrophe(word)}


def exact(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where the answer equals one of the right ones, but for space around it."""
    return float(answer.strip() in {each.strip() for each in right})


def plain_exact(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where the answer equals one of the right ones, but for case and punctuation (GQA in lmms-eval).

    Marks are left out, not replaced: "T-shirt" is "tshirt", and not "t shirt".
    """
    return float(_unmarked(answer.strip()) in {_unmarked(each) for each in right})


def _unmarked(text: str) -> str:
    return text.lower().translate(_NO_MARKS)


def vqa_score(answer: str, right: Sequence[str]) -> float:
    """Scores agreement with people (VQA, Antol et al., 2015, section 5; TextVQA, Singh et al., 2019).

    An answer that three others gave is right: min(1, others / 3), averaged over leaving each person out.

    Args:
        answer: The answer.
        right: What each person said, one entry each; ten in VQA and TextVQA.
    """
    said = [normalise(each) for each in right]
    same = [each == normalise(answer) for each in said]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


def normalise(answer: str) -> str:
    """Evens out case, punctuation, number words, articles and contractions, as TextVQA's evaluation does."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = " ".join(text.split())
    cleaned = text
    # Whether a mark stands beside a space is looked up in the text as it was, as the reference code does.
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)  # a decimal point stays
    words = (_NUMBERS.get(word, word) for word in cleaned.split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def anls(answer: str, right: Sequence[str]) -> float:
    """Compares with the closest right answer (DocVQA, Mathew et al., 2021; Biten et al., 2019, equation 1).

    1 - edits / longer length; 0 below ``ANLS_THRESHOLD``. At the threshold it counts, as in the challenge's
    own evaluation; the paper's equation would give 0. Case and repeated space are no edits, but the lengths
    are those of the texts as they are written, as there.
    """
    distance = extra("rapidfuzz.distance").Levenshtein.distance
    answer = answer.strip()
    given = " ".join(answer.lower().split())
    best = 0.0
    for each in right:
        wanted = " ".join(each.lower().split())
        longer = max(len(answer.upper()), len(each.upper()))
        best = max(best, 1.0 - distance(given, wanted) / longer if longer else 1.0)
    return best if best >= ANLS_THRESHOLD else 0.0


def relaxed(answer: str, right: Sequence[str]) -> float:
    """Gives 1 where a number is within 5 %, or a text equal but for case (ChartQA, Masry et al., 2022, 5.1).

    "96%" is 0.96. A right answer of 0 has no 5 %: it has to be written the same.
    """
    return float(any(_close(answer.strip(), each.strip()) for each in right))


def _close(answer: str, wanted: str) -> bool:
    found, number = _number(answer), _number(wanted)
    if found is None or not number:
        return answer.lower() == wanted.lower()
    return abs(found - number) / abs(number) <= RELAXED_TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


METRICS: dict[str, Metric] = {
    "exact": exact,
    "plain_exact": plain_exact,
    "vqa_score": vqa_score,
    "anls": anls,
    "relaxed": relaxed,
    "first_letter": first_letter,
    "choice": choice,
    "yes_no": yes_no,
    "box": box,
    "any_box": any_box,
}
"""Add a metric with one line."""

JUDGED = "judged"
"""Stands in place of a metric where only another model can tell; values are not numbers until it has."""

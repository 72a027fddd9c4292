from collections import Counter

import numpy as np
import pytest

from sgl_engine.demo.charts import Chart
from sgl_engine.demo.documents import Document
from sgl_engine.demo.drawing import GRID, PATCH, SIZE, box_cells
from sgl_engine.demo.generator import (
    FAMILIES,
    Sample,
    draw_sample,
    heldout_questions,
    pick_questions,
    split_of,
)
from sgl_engine.demo.scenes import Scene, Thing
from sgl_engine.demo.vocabulary import CHARACTER_CLASSES, COLORS, NONE, SHAPES

KINDS = {
    "chart bar",
    "chart color",
    "chart compare",
    "chart extreme",
    "chart value",
    "document below",
    "document label",
    "document value",
    "none",
    "scene color",
    "scene count",
    "scene neighbor",
    "scene number",
    "scene shape",
    "scene two-step",
    "transcribe",
}


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [draw_sample(seed) for seed in range(60)]


def test_the_same_seed_gives_the_same_picture_and_questions() -> None:
    first, again, other = draw_sample(5), draw_sample(5), draw_sample(6)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.questions == again.questions
    assert not np.array_equal(first.pixels, other.pixels)


def test_no_held_out_content_can_be_drawn_for_training() -> None:
    for seed in range(40):
        train, heldout = draw_sample(seed, split="train"), draw_sample(seed, split="heldout")
        assert split_of(train.content) == "train"
        assert split_of(heldout.content) == "heldout"


def test_held_out_questions_are_of_every_kind() -> None:
    kinds = Counter(question.kind for _, question in heldout_questions(600))
    assert set(kinds) == KINDS
    assert min(kinds.values()) >= 10


def test_pictures_are_what_the_models_take(samples: list[Sample]) -> None:
    assert {sample.family for sample in samples} == set(FAMILIES)
    for sample in samples:
        assert sample.pixels.shape == (SIZE, SIZE, 3)
        assert sample.pixels.dtype == np.uint8


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="'poster'; use one of document, scene, chart"):
        draw_sample(0, family="poster")


def test_questions_are_unambiguous(samples: list[Sample]) -> None:
    for sample in samples:
        asked: dict[str, str] = {}
        for question in sample.questions:
            text = question.text.lower().rstrip("?")
            assert asked.setdefault(text, question.answer) == question.answer
            assert question.answer == question.answer.lower()


def test_evidence_is_where_the_answer_is(samples: list[Sample]) -> None:
    for sample in samples:
        for question in sample.questions:
            if question.answer == NONE or question.kind == "scene count":
                continue
            assert question.evidence
            for x0, y0, x1, y1 in question.evidence:
                assert 0 <= x0 < x1 <= SIZE
                assert 0 <= y0 < y1 <= SIZE
            if question.kind == "document value":
                written = _characters(sample, question.evidence[0])
                assert written.endswith(question.answer)


def _characters(sample: Sample, box: tuple[int, int, int, int]) -> str:
    inside = [m for m in sample.glyphs if box[0] <= m.x < box[2] and box[1] <= m.y < box[3]]
    return "".join(mark.character for mark in sorted(inside, key=lambda mark: mark.x)).lower()


def test_what_is_written_can_be_read_back_from_the_pixels(samples: list[Sample]) -> None:
    """Ink: a patch with characters varies more than the same picture's empty paper."""
    for sample in samples:
        if not isinstance(sample.content, Document):
            continue
        patches = sample.pixels.mean(axis=2).reshape(GRID, PATCH, GRID, PATCH).std(axis=(1, 3))
        written = {(int(mark.y) // PATCH, int(mark.x) // PATCH) for mark in sample.glyphs}
        filled = np.array([patches[cell] for cell in written])
        empty = np.array(
            [patches[r, c] for r in range(GRID) for c in range(GRID) if not _near(written, r, c)]
        )
        assert np.median(filled) > 2 * np.median(empty)


def _near(cells: set[tuple[int, int]], row: int, column: int) -> bool:
    return any((row + r, column + c) in cells for r in (-1, 0, 1) for c in (-1, 0, 1))


def test_document_answers_follow_from_the_lines(samples: list[Sample]) -> None:
    for sample in samples:
        if not isinstance(sample.content, Document):
            continue
        values = dict(sample.content.lines)
        order = list(values)
        for question in sample.questions:
            named = [word for word in question.text.lower().rstrip("?").split() if word in values]
            if question.kind == "document value":
                assert question.answer == values[named[0]]
            elif question.kind == "document label":
                assert values[question.answer] == question.text.lower().rstrip("?").split()[-1]
            elif question.kind == "document below":
                assert order.index(question.answer) == order.index(named[0]) + 1


def test_scene_answers_follow_from_the_things(samples: list[Sample]) -> None:
    for sample in samples:
        if not isinstance(sample.content, Scene):
            continue
        things = {thing.name: thing for thing in sample.content.things}
        numbers = {thing.number: thing for thing in sample.content.things}
        assert len(things) == len(numbers) == len(sample.content.things)
        for question in sample.questions:
            words = question.text.lower().rstrip("?").split()
            if question.kind == "scene color":
                assert numbers[words[-1]].color == question.answer
            elif question.kind == "scene shape":
                assert numbers[words[-1]].shape == question.answer
            elif question.kind == "scene count":
                assert question.answer == str(sum(_is_counted(thing, words) for thing in things.values()))
            elif question.kind == "scene neighbor":
                origin = things[" ".join(words[-2:])]
                _assert_beside(origin, things[question.answer], words)


def _is_counted(thing: Thing, words: list[str]) -> bool:
    plurals = {"crosses": "cross", **{f"{shape}s": shape for shape in SHAPES if shape != "cross"}}
    colors = [word for word in words if word in COLORS]
    shapes = [plurals[word] for word in words if word in plurals]
    return (not colors or thing.color in colors) and (not shapes or thing.shape in shapes)


def _assert_beside(origin: Thing, other: Thing, words: list[str]) -> None:
    if {"left", "right"} & set(words):
        assert other.row == origin.row
        assert (other.column < origin.column) == ("left" in words)
    else:
        assert other.column == origin.column
        assert (other.row < origin.row) == ("above" in words)


def test_chart_answers_follow_from_the_bars(samples: list[Sample]) -> None:
    for sample in samples:
        if not isinstance(sample.content, Chart):
            continue
        bars = {bar.label: bar for bar in sample.content.bars}
        for question in sample.questions:
            words = question.text.lower().rstrip("?").split()
            named = [bars[word] for word in words if word in bars]
            if question.kind == "chart value":
                assert question.answer == str(named[0].value)
            elif question.kind == "chart color":
                assert question.answer == named[0].color
            elif question.kind == "chart bar":
                assert bars[question.answer].color in words or str(bars[question.answer].value) in words
            elif question.kind == "chart extreme":
                pick = max if "highest" in words else min
                assert bars[question.answer].value == pick(bar.value for bar in bars.values())
            elif question.kind == "chart compare":
                assert question.answer == ("yes" if named[0].value > named[1].value else "no")


def test_transcriptions_hold_everything(samples: list[Sample]) -> None:
    for sample in samples:
        text = next(q.answer for q in sample.questions if q.kind == "transcribe")
        assert text == sample.content.transcription
        parts = len(
            vars(sample.content)[{"document": "lines", "scene": "things", "chart": "bars"}[sample.family]]
        )
        assert len(text.split(", ")) == parts


def test_questions_are_picked_evenly_over_kinds_and_never_twice(samples: list[Sample]) -> None:
    sample = next(sample for sample in samples if sample.family == "scene")
    rng = np.random.default_rng(0)
    picked = pick_questions(sample, rng, 12)
    assert len({question.text for question in picked}) == len(picked) == 12
    first = Counter(pick_questions(sample, rng, 1)[0].kind for _ in range(400))
    assert min(first.values()) > 400 / len(first) / 2
    assert len(pick_questions(sample, rng, 10_000)) == len(sample.questions)


def test_patches_of_a_box() -> None:
    assert box_cells((0, 0, PATCH, PATCH)) == (0,)
    assert box_cells((PATCH, PATCH, 3 * PATCH, 2 * PATCH)) == (GRID + 1, GRID + 2)
    # Too little of any patch is covered, but the one that holds the centre counts all the same.
    assert box_cells((4, 4, 8, 8)) == (0,)


def test_characters_have_classes() -> None:
    written = {m.character.lower() for seed in range(80) for m in draw_sample(seed).glyphs}
    assert written <= set(CHARACTER_CLASSES)

"""Answers about pages follow from what the pages say: worked out once more, in another way."""

from collections import Counter
from dataclasses import asdict

import pytest

from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages import Page, draw_page
from sgl_engine.demo.pages.bars import BarChart
from sgl_engine.demo.pages.documents import PageDocument
from sgl_engine.demo.pages.lines import LineChart
from sgl_engine.demo.pages.scenes import PageScene, PageThing
from sgl_engine.demo.pages.tables import Form, PageTable


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return [draw_page(seed) for seed in range(120)]


def of_kind(page: Page, *kinds: str) -> list[tuple[list[str], Question]]:
    """The page's questions of these kinds, each with its words."""
    return [(q.text.lower().rstrip("?").split(), q) for q in page.questions if q.kind in kinds]


def parts(page: Page, sort: type) -> list:  # type: ignore[type-arg]
    return [content for content in page.contents if isinstance(content, sort)]


def test_document_answers_follow_from_the_lines(pages: list[Page]) -> None:
    seen = Counter[str]()
    for page in pages:
        documents = {document.name: document for document in parts(page, PageDocument)}
        for words, question in of_kind(page, "document value", "document below", "document date"):
            named = [documents[word] for word in words if word in documents]
            document = named[0] if named else next(iter(documents.values()))
            assert len(documents) == 1 or named
            lines, labels = dict(document.lines), [label for label, _ in document.lines]
            label = next((word for word in words if word in lines), "")
            seen[question.kind] += 1
            if question.kind == "document date":
                assert question.answer.split() == list(document.date)
            elif question.kind == "document value":
                assert question.answer == lines[label]
            else:
                assert labels.index(question.answer) == labels.index(label) + 1
        for words, question in of_kind(page, "document label"):
            assert [words[-1]] == [
                dict(d.lines)[question.answer]
                for d in documents.values()
                if (question.answer, words[-1]) in d.lines
            ]
        for words, question in of_kind(page, "which document"):
            says = [d.name for d in documents.values() if any(words[-1] in line for line in d.lines)]
            assert says == [question.answer]
            seen[question.kind] += 1
    assert min(seen.values()) > 20
    assert len(seen) == 4


def test_second_receipts_name_some_of_the_same_goods(pages: list[Page]) -> None:
    shared = 0
    for page in pages:
        receipts = [document for document in parts(page, PageDocument) if document.is_receipt]
        if len(receipts) == 2:
            first, second = ({label for label, _ in receipt.lines} for receipt in receipts)
            shared += bool(first & second)
    assert shared >= 3


def test_table_and_form_answers_follow_from_the_cells(pages: list[Page]) -> None:
    seen = Counter[str]()
    for page in pages:
        for table in parts(page, PageTable):
            cells = {
                (row, column): value
                for row, values in zip(table.rows, table.values, strict=True)
                for column, value in zip(table.columns, values, strict=True)
            }
            kinds = ("table cell", "table look-up", "table compare", "sum")
            for words, question in of_kind(page, *kinds):
                rows = [word for word in words if word in table.rows]
                columns = [word for word in words if word in table.columns]
                if question.kind == "sum" and not rows:
                    continue  # a chart's
                seen[question.kind] += 1
                if question.kind == "table cell":
                    assert cells[rows[0], columns[0]] == question.answer
                elif question.kind == "sum":
                    assert sum(int(cells[rows[0], column]) for column in columns) == int(question.answer)
                elif question.kind == "table compare":
                    first, second = (int(cells[row, columns[0]]) for row in rows)
                    assert question.answer == ("yes" if first > second else "no")
                else:
                    assert words[-1] in [cells[cell] for cell in cells if question.answer in cell]
        for form in parts(page, Form):
            for words, question in of_kind(page, "form field"):
                seen[question.kind] += 1
                assert question.answer in [value for label, value in form.fields if label in words]
    assert min(seen.values()) > 20
    assert len(seen) == 5


def test_scene_answers_follow_from_the_things(pages: list[Page]) -> None:
    seen = Counter[str]()
    for page in pages:
        for scene in parts(page, PageScene):
            things = {thing.name: thing for thing in scene.things}
            numbers = {thing.number: thing for thing in scene.things}
            assert len(things) == len(numbers) == len(scene.things)
            kinds = ("scene color", "scene shape", "scene number", "scene neighbor", "scene two-step")
            for words, question in of_kind(page, *kinds):
                name = " ".join(words[:2] if words[-1] == "number" else words[-2:])
                thing = numbers[words[-1]] if words[-1] in numbers else things[name]
                seen[question.kind] += 1
                if question.kind in ("scene color", "scene shape", "scene number"):
                    assert question.answer == asdict(thing)[question.kind.split()[1]]
                    continue
                side = next(word for word in words if word in ("left", "right", "above", "below"))
                other = nearest(scene, thing, side)
                assert question.answer in (other.name, other.number, other.color)
    assert min(seen.values()) > 20


def nearest(scene: PageScene, thing: PageThing, side: str) -> PageThing:
    """By walking from the thing square by square."""
    step = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[side]
    places = {(other.row, other.column): other for other in scene.things}
    row, column = thing.row, thing.column
    for _ in range(40):
        row, column = row + step[0], column + step[1]
        if (row, column) in places:
            return places[row, column]
    raise AssertionError(f"nothing {side} of {thing}")


def test_chart_answers_follow_from_the_bars_and_points(pages: list[Page]) -> None:
    seen = Counter[str]()
    for page in pages:
        for chart in parts(page, BarChart):
            heights = {(bar.label, bar.color): bar.value for bar in chart.bars}
            labels = {bar.label for bar in chart.bars}
            for words, question in of_kind(page, "chart value", "chart series", "sum"):
                named = [
                    heights[a, b] for a, b in heights if a in words and (b in words or chart.style == "plain")
                ]
                if question.kind == "sum" and not set(words) & labels:
                    continue  # a table's
                seen[question.kind] += 1
                assert sum(named) == int(question.answer)
            for words, question in of_kind(page, "chart extreme"):
                edge = max if "highest" in words else min
                assert [a for (a, _), value in heights.items() if value == edge(heights.values())] == [
                    question.answer
                ]
                seen[question.kind] += 1
        for chart in parts(page, LineChart):
            points = {
                (color, label): value
                for color, values in chart.lines
                for label, value in zip(chart.labels, values, strict=True)
            }
            for words, question in of_kind(page, "line value", "line compare"):
                found = [points[color, word] for word in words for color in words if (color, word) in points]
                seen[question.kind] += 1
                if question.kind == "line value":
                    assert found == [int(question.answer)]
                else:
                    assert question.answer == ("yes" if found[0] > found[1] else "no")
    assert min(seen.values()) > 10
    assert len(seen) == 6

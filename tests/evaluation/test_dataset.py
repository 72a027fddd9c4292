"""What is asked: a file's lines, good and bad, and generated questions."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sgl_engine.demo.pages import heldout_pages
from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.dataset import HeldOut, JsonLines

GOOD = {"image": "page.png", "question": "what?", "answers": ["a"]}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def test_a_row_is_what_the_line_says(tmp_path: Path) -> None:
    line = {
        "image": ["a/b.png", "https://host.example/c.png"],
        "question": "which?",
        "answers": ["x", 12.5],
        "metric": "anls",
        "id": "q7",
        "kind": "total",
        "source": "anything else is not looked at",
    }
    data = JsonLines.read(write(tmp_path / "q.jsonl", GOOD, "", line))
    plain, full = data[0], data[1]
    assert plain.row.model_dump(exclude_defaults=True) == {
        "index": 0,
        "id": "line 1",
        "kind": "exact",
        "metric": "exact",
        "question": "what?",
        "answers": ("a",),
    }
    assert plain.images == (tmp_path / "page.png",)
    assert full.row.model_dump(exclude_defaults=True) == {
        "index": 1,
        "id": "q7",
        "kind": "total",
        "metric": "anls",
        "question": "which?",
        "answers": ("x", "12.5"),
    }
    assert full.images == (tmp_path / "a/b.png", "https://host.example/c.png")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "no JSON"),
        ("[1, 2]", "valid dictionary"),
        ({"question": "q", "answers": ["a"]}, "image: Field required"),
        ({**GOOD, "answers": []}, "answers: Tuple should have at least 1 item"),
        ({**GOOD, "question": ""}, "question: String should have at least 1 character"),
        ({**GOOD, "metric": "bleu"}, "there is no metric 'bleu'; use one of exact, plain_exact, vqa_score"),
        ({**GOOD, "metric": "vqa_score", "answers": ["a"] * 3}, "at least 4 people said, not 3"),
    ],
)
def test_bad_lines_are_left_out_with_number_and_reason(tmp_path: Path, line: object, said: str) -> None:
    data = JsonLines.read(write(tmp_path / "q.jsonl", GOOD, line, GOOD))
    assert len(data) == 2
    assert [row.id for row, _ in data.rows] == ["line 1", "line 3"]
    assert [bad.number for bad in data.bad] == [2]
    assert said in data.bad[0].problem
    assert "\n" not in data.bad[0].problem


def test_answers_and_pictures_may_be_left_out_where_that_is_said(tmp_path: Path) -> None:
    lines = [{"image": "a.png", "question": "q"}, {"question": "q"}, {"image": "a.png"}, GOOD]
    lines.append({"image": "a.png", "question": "q", "answers": None, "metric": "vqa_score"})
    path = write(tmp_path / "q.jsonl", *lines)
    data = JsonLines.read(path, answers="optional")
    assert [(data[row].row.answers, data[row].names) for row in range(len(data))] == [
        ((), ("a.png",)),
        ((), ()),
        (("a",), ("page.png",)),
        ((), ("a.png",)),
    ]
    assert [(bad.number, bad.problem) for bad in data.bad] == [(3, "question: Field required")]
    assert [row.id for row, _ in JsonLines.read(path).rows] == ["line 4"]
    with pytest.raises(ConfigError, match="answers may be left out"):
        JsonLines.read(write(path, "nonsense"), answers="optional")


def test_a_file_without_a_good_line_says_what_a_row_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no row that can be used. Line 1: no JSON.*A row is \{"image"'):
        JsonLines.read(write(tmp_path / "q.jsonl", "nonsense"))
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        JsonLines.read(tmp_path / "missing.jsonl")


def test_a_limit_takes_the_first_rows_of_the_same_data(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, GOOD, GOOD)
    assert [len(JsonLines.read(path, limit)) for limit in (1, 2, None)] == [1, 2, 3]
    assert JsonLines.read(path, 1).identity == JsonLines.read(path).identity
    before = JsonLines.read(path).identity
    write(path, GOOD, GOOD, {**GOOD, "question": "what else?"})
    assert JsonLines.read(path).identity != before


def test_held_out_questions_are_the_generators() -> None:
    data = HeldOut(3, start=5)
    for index, (page, question) in enumerate(heldout_pages(3, start=5)):
        row, (picture,) = data[index].row, data[index].images
        assert isinstance(picture, Image.Image)
        assert picture.tobytes() == page.pixels.tobytes()
        assert data[index].evidence == question.evidence
        assert (row.question, row.answers, row.kind, row.id) == (
            question.text,
            (question.answer,),
            question.kind,
            f"seed {page.seed}",
        )
    assert HeldOut(99, start=5).identity == data.identity != HeldOut(3).identity


def test_every_tenth_page_is_also_written_down_where_that_is_wanted() -> None:
    data, plain = HeldOut(21, start=5, transcriptions=True), HeldOut(21, start=5)
    rows = [data[index].row for index in range(len(data))]
    assert len(data) == 23
    assert [row.index for row in rows if row.kind == "transcribe"] == [10, 21]
    assert [rows[index].id for index in (10, 21)] == ["seed 5", "seed 15"]
    others = [row.model_copy(update={"index": 0}) for row in rows if row.kind != "transcribe"]
    assert others == [plain[index].row.model_copy(update={"index": 0}) for index in range(21)]
    # More of them begin with the same ones, so a run can go on.
    more = HeldOut(40, start=5, transcriptions=True)
    assert [more[index].row for index in (9, 10, 21)] == [rows[index] for index in (9, 10, 21)]
    assert more.identity == data.identity != plain.identity

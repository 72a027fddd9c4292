"""Files of JSON lines, as they are found: every line that can be read is read, every other one is named."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from sgl_engine.evaluation.dataset import JsonLines
from sgl_engine.evaluation.json_lines import mend_end, read_json_lines

GOOD = {"image": "page.png", "question": "what is it?", "answers": ["a page"]}
SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"


def as_it_is(value: Any) -> Any:
    return value


def line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def test_only_a_line_feed_ends_a_line() -> None:
    content = b"\n".join([line({"text": SEPARATORS}), b"", b"  \r", line({"n": 1}) + b"\r"])
    good, bad = read_json_lines(content, as_it_is)
    # Control characters of JSON have to be escaped; json.dumps does that, and leaves the others.
    assert good == [(1, {"text": SEPARATORS}), (4, {"n": 1})]
    assert bad == []


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_a_byte_order_mark_is_no_part_of_the_first_line(mark: bytes, encoding: str) -> None:
    content = mark + '{"a": "ä"}\n{"b": "\ufeff"}\n'.encode(encoding)
    assert read_json_lines(content, as_it_is) == ([(1, {"a": "ä"}), (2, {"b": "\ufeff"})], [])


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (b'{"a": "\xe2\x80', "no text in UTF-8 (byte 8 of 9)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"9" * 5_000, "no JSON"),
        (b"{", "no JSON"),
        (b"\x00", "no JSON"),
    ],
)
def test_a_bad_line_is_named_and_takes_no_other_along(between: bytes, reason: str) -> None:
    good, bad = read_json_lines(b"\n".join([line(GOOD), between, line(GOOD)]), as_it_is)
    assert [number for number, _ in good] == [1, 3]
    assert [each.number for each in bad] == [2]
    assert reason in bad[0].problem
    assert len(bad[0].problem) < 200


@pytest.mark.parametrize("value", [5, "text", None, True, [1]])
def test_what_is_no_object_is_no_row(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b"\n".join([line(GOOD), line(value), line(GOOD)]))
    data = JsonLines.read(path)
    assert [row.id for row, _ in data.rows] == ["line 1", "line 3"]
    assert [each.number for each in data.bad] == [2]


def test_a_question_keeps_its_separators(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(line({**GOOD, "question": SEPARATORS}) + b"\n" + line(GOOD))
    data = JsonLines.read(path)
    assert data[0].row.question == SEPARATORS
    assert (len(data), data.bad) == (2, ())


@pytest.mark.parametrize(
    ("content", "mended"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b"', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b": "\xe2\x80', b'{"a": 1}\n'),
        (b'{"b"', b""),
    ],
)
def test_a_file_is_mended_before_more_lines_come(tmp_path: Path, content: bytes, mended: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    mend_end(path)
    assert path.read_bytes() == mended

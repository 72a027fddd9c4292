"""Evidence: the importance map as JSON, and the box, the crop and the drawing that come out of it."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage
from PIL import Image

from langchain_sgl import image_block
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.evidence import Evidence, crop_box
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.demo import PICTURES
from sgl_engine.errors import InvalidRequestError
from sgl_engine.explain.heatmap import draw_importance
from sgl_engine.prompt.encoded import Box, VisualSpan

PLACES = json.loads((PICTURES / "places.json").read_text())
THE_VALUE: Box = tuple(PLACES["receipt"]["How much is the total?"])
"""Where 3.73 stands; ``training.make_pictures`` knows."""
"""Where the bundled receipt says 3.73, as docs/explain.png shows: two tokens in the row of "total"."""


def spans(box: Box | None = (0.0, 0.0, 1.0, 1.0)) -> tuple[VisualSpan, ...]:
    return (VisualSpan(0, 5, 11, (2, 3), box), VisualSpan(1, 20, 24, (2, 2), (0.0, 0.0, 1 / 3, 1.0)))


def importance(mass: list[float] | None = None, box: Box | None = (0.0, 0.0, 1.0, 1.0)) -> ImportanceMap:
    values = mass or [0.123456, 2.0, 30000.7, 0.0, 1e-9, 5.0, 1.0, 2.0, 3.0, 4.0]
    return ImportanceMap(mass=torch.tensor(values), spans=spans(box), num_queries=7)


def ask(question: str, picture: str, **options: Any) -> AIMessage:
    block = image_block(PICTURES / picture)
    message = HumanMessage([block, {"type": "text", "text": question}])
    return ChatSGL().invoke([message], evidence=True, **options)


def contains(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def test_json_and_back() -> None:
    evidence = Evidence.from_importance(importance())
    data = json.loads(json.dumps(evidence.to_json(), allow_nan=False))
    assert data["schema_version"] == "1"
    assert data["num_queries"] == 7
    assert data["spans"][0] == {
        "image": 0,
        "box": [0.0, 0.0, 1.0, 1.0],
        "grid": [2, 3],
        "mass": [0.1235, 2.0, 30000.0, 0.0, 1e-09, 5.0],
    }
    assert data["spans"][1]["box"] == [0.0, 0.0, 0.333333, 1.0]
    assert Evidence.from_json(data) == evidence


def test_the_map_comes_back_up_to_rounding() -> None:
    back = Evidence.from_importance(importance()).importance()
    torch.testing.assert_close(back.mass, importance().mass, rtol=5e-4, atol=0.0)
    assert [span.grid for span in back.spans] == [(2, 3), (2, 2)]
    assert [(span.start, span.stop) for span in back.spans] == [(0, 6), (6, 10)]
    assert back.num_queries == 7


def test_numbers_that_json_cannot_hold_become_nothing() -> None:
    mass = [float("nan"), float("inf"), 1.0] + [0.0] * 7
    assert Evidence.from_importance(importance(mass)).spans[0].mass[:3] == (0.0, 0.0, 1.0)


def test_later_fields_are_ignored() -> None:
    data = Evidence.from_importance(importance()).to_json()
    assert Evidence.from_json(data | {"layers": [1, 2]}).to_json() == data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "2"}, "at schema_version"),
        ({"spans": [{"image": 0, "box": None, "grid": [2, 2], "mass": [1.0]}]}, "2 x 2 tokens with 1 masses"),
        ({"spans": [{"image": 0, "box": [0, 0, 0, 1], "grid": [1, 1], "mass": [1.0]}]}, "without area"),
        ({"spans": None}, "at spans"),
    ],
)
def test_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    data = Evidence.from_importance(importance()).to_json()
    with pytest.raises(InvalidRequestError, match=message):
        Evidence.from_json(data | changes)


def test_a_message_without_evidence_says_how_to_get_it() -> None:
    with pytest.raises(InvalidRequestError, match=r"carries no evidence.*evidence=True"):
        Evidence.from_message(AIMessage("3.73"))


def test_evidence_of_a_crop_on_the_whole_picture() -> None:
    evidence = Evidence.from_importance(importance()).within((0.5, 0.0, 1.0, 0.5))
    assert evidence.spans[0].box == pytest.approx((0.5, 0.0, 1.0, 0.5))
    assert evidence.spans[1].box == pytest.approx((0.5, 0.0, 2 / 3, 0.5), abs=1e-6)
    unknown = Evidence.from_importance(importance(box=None)).within((0.5, 0.0, 1.0, 0.5))
    assert unknown.spans[0].box is None


def test_the_box_contains_what_was_looked_at() -> None:
    evidence = Evidence.from_message(ask("How much is the total?", "receipt.png"))
    box = evidence.box()
    assert contains(box, THE_VALUE)
    assert (box[2] - box[0]) * (box[3] - box[1]) < 0.3
    wider = evidence.box(share=0.9, margin=0.1)
    assert contains(wider, THE_VALUE)
    assert not contains(box, wider)


def test_another_question_looks_elsewhere() -> None:
    boxes = [
        Evidence.from_message(ask(question, "scene.png")).box()
        for question in ("What color is the shape with number 95?", "What color is the shape with number 46?")
    ]
    assert boxes[0] != boxes[1]
    assert not any(contains(one, other) for one, other in zip(boxes, boxes[::-1], strict=True))


def test_the_crop_is_cut_from_the_picture() -> None:
    evidence = Evidence.from_message(ask("How much is the total?", "receipt.png"))
    picture = Image.open(PICTURES / "receipt.png").convert("RGB")
    crop = evidence.crop(PICTURES / "receipt.png")
    x0, y0, x1, y1 = evidence.box()
    assert crop.width == pytest.approx((x1 - x0) * 192, abs=2)
    assert crop.height == pytest.approx((y1 - y0) * 192, abs=2)
    left, top = int(x0 * 192), int(y0 * 192)
    same = picture.crop((left, top, left + crop.width, top + crop.height))
    assert np.array_equal(np.asarray(crop), np.asarray(same))
    place = [round(192 * edge) for edge in THE_VALUE]
    value = picture.crop(tuple(place))
    inside = crop.crop((place[0] - left, place[1] - top, place[2] - left, place[3] - top))
    assert np.array_equal(np.asarray(value), np.asarray(inside))


def test_a_turned_photograph_is_cropped_upright() -> None:
    hot_top_left = Evidence.from_importance(importance([9.0] + [0.0] * 9))
    upright = Image.new("RGB", (90, 60), "white")
    upright.paste("red", (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; viewers turn it clockwise
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, format="PNG", exif=exif)
    crop = hot_top_left.crop(buffer.getvalue(), margin=0.0)
    assert crop.size == (30, 30)
    assert crop.getcolors() == [(900, (255, 0, 0))]


@pytest.mark.parametrize("box", [(0.2, 0.2, 0.4, 0.4), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)])
def test_a_crop_is_never_empty(box: Box) -> None:
    assert crop_box(Image.new("RGB", (1, 1)), box).size == (1, 1)


def test_the_drawing_is_the_engines() -> None:
    made = importance()
    pictures: list[Any] = [Image.new("RGB", (64, 48), "gray"), Image.new("RGB", (64, 64), "gray")]
    drawn = Evidence.from_importance(made).draw(pictures, question="what?", answer="that")
    expected = draw_importance(pictures, made, question="what?", answer="that")
    assert drawn.size == expected.size
    difference = np.abs(np.asarray(drawn, dtype=float) - np.asarray(expected, dtype=float))
    assert difference.max() <= 2  # the map was rounded
    even = Evidence.from_importance(importance([1.0] * 10)).draw(pictures, question="what?", answer="that")
    assert np.abs(np.asarray(even, dtype=float) - np.asarray(expected, dtype=float)).max() > 50


def test_a_single_picture_can_be_drawn_from_its_bytes() -> None:
    answer = ask("How much is the total?", "receipt.png")
    data = (PICTURES / "receipt.png").read_bytes()
    assert Evidence.from_message(answer).draw(data).width > 768


def test_evidence_is_the_same_through_a_stream() -> None:
    message = HumanMessage(
        [image_block(PICTURES / "receipt.png"), {"type": "text", "text": "How much is the total?"}]
    )
    chunks = list(ChatSGL().stream([message], evidence=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert Evidence.from_message(whole) == Evidence.from_message(ask("How much is the total?", "receipt.png"))

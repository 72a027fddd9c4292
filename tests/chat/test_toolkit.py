"""The tools: what the agent reads, what its program gets, and what the model is shown."""

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from bundled import OVERRULED
from langchain_core.messages import ToolMessage
from langchain_core.runnables import ConfigurableField
from PIL import Image
from recording_model import PNG, PNG_BASE64, QUESTION, RecordingModel, acall, call

from langchain_sgl.chat.image_blocks import image_block
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.evidence import Evidence
from langchain_sgl.tools.picture_tool import describe_run
from langchain_sgl.tools.toolkit import TRANSCRIBE_PROMPT, SGLToolkit, TranscribeTool, VisualQuestionTool
from sgl_engine import PRESETS, TRANSCRIPTION_PRESET, LimitsConfig
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.testing import FakeEngine, tiny_vlm


@pytest.fixture
def model(make_report: Any) -> RecordingModel:
    return RecordingModel(report=make_report().model_dump(mode="json"))


@pytest.fixture(scope="module")
def look() -> VisualQuestionTool:
    return VisualQuestionTool(model=ChatSGL(), root=PICTURES)


# What comes back


def test_the_agent_reads_answer_route_score_cost_and_place(look: VisualQuestionTool) -> None:
    message = call(look, question=QUESTION, picture="receipt.png")
    assert message.status == "success"
    assert re.fullmatch(
        r"3\.73\n\[answered by the small model, score \d\.\d\d >= 0\.80; "
        r"\d\d % of the large model's compute saved, \d+ ms; looked at "
        r"x \d\.\d\d-\d\.\d\d, y \d\.\d\d-\d\.\d\d\]",
        str(message.content),
    )


def test_the_program_gets_the_report_as_json(look: VisualQuestionTool) -> None:
    artifact = call(look, question=QUESTION, picture="receipt.png").artifact
    assert json.loads(json.dumps(artifact, allow_nan=False)) == artifact
    assert artifact["answer"] == "3.73"
    assert artifact["picture"] == "receipt.png"
    assert artifact["region"] is None
    assert artifact["report"]["route"] == "small"
    assert artifact["report"]["small_model"]["name"] == "sgl-demo-small"
    x0, y0, x1, y1 = artifact["evidence"]["box"]
    left, top, right, bottom = json.loads((PICTURES / "places.json").read_text())["receipt"][QUESTION]
    assert x0 <= left < right <= x1  # where "3.73" stands
    assert y0 <= top < bottom <= y1


async def test_the_asynchronous_call_is_the_same(look: VisualQuestionTool) -> None:
    for picture, question in (
        ("receipt.png", QUESTION),
        ("page.png", OVERRULED.question),
    ):
        call(look, question=question, picture=picture)  # the picture is known from here on
        plain = call(look, question=question, picture=picture)
        message = await acall(look, question=question, picture=picture)
        assert _without_ms(message) == _without_ms(plain)


def _without_ms(message: ToolMessage) -> tuple[str, Any]:
    artifact = {**message.artifact, "report": {**message.artifact["report"], "stage_ms": None}}
    return re.sub(r"\d+ ms", "ms", str(message.content)), artifact


def test_an_escalated_answer_names_the_overruled_one(look: VisualQuestionTool) -> None:
    message = call(look, question=OVERRULED.question, picture="page.png")
    assert re.match(
        re.escape(OVERRULED.answer) + r"\n\[answered by the large model; "
        rf"the small one answered '(?!{OVERRULED.answer}')\w+( \w+)?' with score "
        r"0\.\d\d < 0\.80; \d+ % ",
        str(message.content),
    )
    assert message.artifact["report"]["escalated"] is True


def test_the_agent_can_escalate(look: VisualQuestionTool) -> None:
    message = call(look, question=QUESTION, picture="receipt.png", escalate=True)
    assert re.match(
        r"3\.73\n\[answered by the large model, as asked; "
        r"the small one gave the same answer with score 0\.\d\d;",
        str(message.content),
    )


@pytest.mark.parametrize("layer", ["instance", "bound", "configured", "fallbacks"])
def test_the_agent_cannot_escalate_where_that_was_ruled_out(layer: str, model: RecordingModel) -> None:
    never: Any = model.model_copy(update={"escalate": "never"})
    if layer == "bound":
        never = model.bind(escalate="never").with_config(tags=["a"])
    if layer == "configured":
        never = never.configurable_fields(error=ConfigurableField(id="error"))
    if layer == "fallbacks":
        never = never.with_fallbacks([never.bind(temperature=0.5)]).with_retry()
    tool = VisualQuestionTool(model=never, root=PICTURES)
    message = call(tool, question=QUESTION, picture="receipt.png", escalate=True)
    assert message.status == "error"
    assert "Ask again without escalating." in str(message.content)
    assert call(tool, question=QUESTION, picture="receipt.png").status == "success"


REPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "exit": ({}, "answered by the small model, score 0.90 >= 0.80; 75 % of the large model's compute saved"),
    "forced": (
        {"forced": True, "score": 0.1},
        "by the small model alone, score 0.10 < 0.80, as the large model may not be asked; 75 %",
    ),
    "costly": ({"saved_fraction": -0.4}, "; 40 % more compute than the large model alone, 15 ms]"),
    "overruled": (
        {"escalated": True, "score": 0.3, "small_answer": "two", "large_agreed": False},
        "[answered by the large model; the small one answered 'two' with score 0.30 < 0.80; 75 %",
    ),
    "agreed": (
        {"escalated": True, "score": 0.3, "small_answer": "two", "large_agreed": True},
        "[answered by the large model; the small one gave the same answer with score 0.30 < 0.80; 75 %",
    ),
    "long": (
        {"escalated": True, "score": 0.3, "small_answer": "word " * 99, "large_agreed": False},
        "word wo...' with score",
    ),
}


@pytest.mark.parametrize("case", REPORTS)
def test_the_line_about_a_run(case: str, make_report: Any) -> None:
    changes, expected = REPORTS[case]
    report = make_report(**changes).model_dump(mode="json")
    assert expected in describe_run("2", {"sgl": report})


@pytest.mark.parametrize(
    ("score", "shown"),
    [(0.8, "score 0.800000 >= 0.800000"), (0.7996, "score 0.7996 < 0.8000"), (0.81, "score 0.81 >= 0.80")],
)
def test_a_score_near_the_threshold_has_the_digits_it_takes(
    score: float, shown: str, make_report: Any
) -> None:
    report = make_report(score=score).model_dump(mode="json")
    assert shown in describe_run("2", {"sgl": report})


def test_cut_and_empty_answers_say_so(make_report: Any) -> None:
    metadata = {"sgl": make_report().model_dump(mode="json"), "finish_reason": "length"}
    text = describe_run("", metadata, box=(0.0, 0.25, 1.0, 0.5))
    assert text.startswith("(no answer)\n[")
    assert text.endswith("; cut off at the token limit; looked at x 0.00-1.00, y 0.25-0.50]")


# What the model is shown


def test_a_files_bytes_go_on_as_they_are(model: RecordingModel) -> None:
    call(VisualQuestionTool(model=model, root=PICTURES), question=QUESTION, picture="receipt.png")
    assert base64.b64decode(model.block()["base64"]) == PNG
    assert model.block()["mime_type"] == "image/png"
    assert model.asked[-1][-1].text == QUESTION


def test_urls_are_not_fetched_by_the_tool(model: RecordingModel) -> None:
    url = "https://example.com/a.png"
    call(VisualQuestionTool(model=model), question=QUESTION, picture=url)
    assert model.block() == {"type": "image", "url": url}


def test_a_region_is_cut_out_and_its_evidence_lies_on_the_whole_picture(model: RecordingModel) -> None:
    tool = VisualQuestionTool(model=model, root=PICTURES, evidence="map")
    region = [0.5, 0.25, 1.0, 0.75]
    artifact = call(tool, question=QUESTION, picture="receipt.png", region=region).artifact
    shown = Image.open(_bytes(model.block()))
    expected = Image.open(PICTURES / "receipt.png").convert("RGB").crop((96, 48, 192, 144))
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert artifact["region"] == region
    # The hot token: x 0.5 to 0.75 and y 0.25 to 0.5 of the crop, and 0.05 around it.
    assert artifact["evidence"]["box"] == pytest.approx([0.725, 0.35, 0.9, 0.525])
    assert Evidence.from_json(artifact["evidence"]["map"]).box(margin=0.0) == pytest.approx(
        (0.75, 0.375, 0.875, 0.5)
    )


def _bytes(block: dict[str, Any]) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(block["base64"]))


@pytest.mark.parametrize(
    "region", [[0, 0, 1], [0.5, 0, 0.5, 1], [0, 0, 1.5, 1], [-0.1, 0, 1, 1], [0, 9, 4, 12]]
)
def test_a_region_that_is_none_is_explained(region: list[float], model: RecordingModel) -> None:
    tool = VisualQuestionTool(model=model, root=PICTURES)
    message = call(tool, question=QUESTION, picture="receipt.png", region=region)
    assert message.status == "error"
    assert "Give x0, y0, x1, y1 as fractions from 0 to 1" in str(message.content)
    assert model.asked == []


# Evidence in the artifact


def test_evidence_is_only_measured_where_it_is_asked_for(model: RecordingModel) -> None:
    tool = VisualQuestionTool(model=model, root=PICTURES, evidence="none")
    message = call(tool, question=QUESTION, picture="receipt.png")
    assert "evidence" not in message.artifact
    assert "looked at" not in str(message.content)
    assert model.options == [{}]
    call(VisualQuestionTool(model=model, root=PICTURES), question=QUESTION, picture="receipt.png")
    assert model.options[-1] == {"evidence": True}


@pytest.mark.parametrize("evidence", ["picture", "inline"])
@pytest.mark.parametrize("region", [None, [0.0, 0.0, 1.0, 0.5]])
def test_the_evidence_picture_can_be_shown(evidence: Any, region: list[float] | None) -> None:
    toolkit = SGLToolkit(model=ChatSGL(), root=PICTURES, evidence=evidence)
    tool = toolkit.get_tools()[0]
    found = call(tool, question=QUESTION, picture="receipt.png", region=region).artifact["evidence"]
    assert sorted(found) == ["box", "picture"]
    kept = found["picture"]
    drawing = Image.open(_bytes(kept) if evidence == "inline" else io.BytesIO(toolkit.drawings.get(kept)))  # type: ignore[arg-type]
    assert drawing.format == "PNG"
    assert drawing.width > 768
    assert drawing.height > (768 if region is None else 384)
    warmth = np.asarray(drawing, dtype=float)[..., 0] - np.asarray(drawing, dtype=float)[..., 2]
    assert warmth.max() > 100  # there is heat on it


def test_checkpoints_never_hold_the_pictures_bytes() -> None:
    for evidence in ("box", "map"):
        tool = VisualQuestionTool(model=ChatSGL(), evidence=evidence)
        for reference in (PNG_BASE64, f"data:image/png;base64,{PNG_BASE64}"):
            message = call(tool, question=QUESTION, picture=reference)
            assert message.artifact["answer"] == "3.73"
            kept = message.model_dump_json()
            assert PNG_BASE64[100:160] not in kept
            assert "sha256" in message.artifact["picture"]
            assert len(kept) < 4000


# Transcription


def test_a_transcription_has_a_preset_of_its_own() -> None:
    message = call(TranscribeTool(model=ChatSGL(escalate="always"), root=PICTURES), picture="receipt.png")
    answer = message.artifact["answer"]
    assert {"apple", "bread", "juice", "total", "water"} & set(answer.replace(",", "").split())
    assert str(message.content).startswith(f"{answer}\n[answered by the large model")
    assert message.artifact["report"]["keep_ratio"] == PRESETS[TRANSCRIPTION_PRESET].keep_ratio
    pruned = TranscribeTool(model=ChatSGL(escalate="always"), root=PICTURES, retention="9%")
    report = call(pruned, picture="receipt.png").artifact["report"]
    assert report["keep_ratio"] == PRESETS["9%"].keep_ratio


def test_the_question_for_a_transcription_fits_the_pair(model: RecordingModel) -> None:
    for chat, prompt, asked in (
        (ChatSGL(), None, "transcribe the picture"),
        (ChatSGL(engine=demo_engine()), None, "transcribe the picture"),
        (ChatSGL(small="a", large="b"), None, TRANSCRIBE_PROMPT),
        (ChatSGL(small="a", large="b").bind(temperature=0.0), None, TRANSCRIBE_PROMPT),
        (ChatSGL(), "Read it.", "Read it."),
    ):
        tool = TranscribeTool(model=chat, root=PICTURES, prompt=prompt)
        assert tool._question() == asked
    call(TranscribeTool(model=model, root=PICTURES, prompt="Read it.", max_tokens=9), picture="receipt.png")
    assert model.asked[-1][-1].text == "Read it."
    assert model.options[-1] == {"retention": TRANSCRIPTION_PRESET, "max_tokens": 9}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_that_the_model_takes_can_be_drawn_on() -> None:
    """Limits that were raised for the model hold for what comes after its answer, too."""
    long = Image.new("L", (33_000, 40), 255)
    assert image_block(long)["mime_type"] == "image/png"
    limits = LimitsConfig(max_image_side=40_000)
    chat = ChatSGL(engine=FakeEngine(lambda _: "yes", small=tiny_vlm(size="small")), limits=limits)
    toolkit = SGLToolkit(model=chat, store={"p": _png(long)}, evidence="picture")
    message = call(toolkit.get_tools()[0], question=QUESTION, picture="p", region=[0.0, 0.0, 0.5, 1.0])
    assert message.status == "success"
    assert "picture" in message.artifact["evidence"]

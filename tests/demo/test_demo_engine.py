"""The bundled pair: shipped whole, loaded like any other, and able to answer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from sgl_engine import Request, SGLEngine
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.demo import PICTURES, WEIGHTS, demo_engine
from sgl_engine.demo.pages import Page, Question, heldout_pages
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.exit.decision import score_parts
from sgl_engine.explain.heatmap import draw_importance
from sgl_engine.passes import SmallPassResult, run_small_pass

MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return demo_engine()


@pytest.fixture(scope="module")
def asked() -> list[tuple[Request, Page, Question]]:
    return [
        (Request.ask(question.text, Image.fromarray(page.pixels)), page, question)
        for page, question in heldout_pages(40)
    ]


@pytest.fixture(scope="module")
def passes(engine: SGLEngine, asked: list) -> list[SmallPassResult]:
    """The small model's, one per question."""
    return [run_small_pass(engine.small, AnswerTask(engine.small.encode(r), 80)) for r, *_ in asked]


def _files() -> Iterator[Path]:
    return (path for path in WEIGHTS.rglob("*") if path.is_file())


def test_weights_are_small_and_safe() -> None:
    assert sum(path.stat().st_size for path in _files()) <= MAX_BYTES
    assert {path.suffix for path in _files()} <= {".safetensors", ".json", ".jinja", ".md"}


def test_both_see_one_grid_and_the_large_one_is_deep(engine: SGLEngine) -> None:
    for size, tiles in {(192, 192): 1, (192, 384): 2, (192, 576): 3, (384, 384): 4, (576, 384): 6}.items():
        prompt = Request.ask("x", Image.new("RGB", size))
        spans = [vlm.encode(prompt).spans for vlm in (engine.small, engine.large)]
        assert spans[0] == spans[1]
        assert [len(span) for span in spans[0]] == [TOKENS] * tiles  # no thumbnail
    assert engine.large.num_layers >= 10
    assert engine.config.pruning.layer(engine.large.num_layers) >= 2


def test_transformers_own_generate_says_the_same(engine: SGLEngine, asked: list) -> None:
    """With the engine's processor: AutoProcessor wants torchvision for videos, and adds a thumbnail."""
    processor = engine.small.processor
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "small", dtype="float32").eval()
    for request, _, question in asked[:5]:
        conversation = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
        ]
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = processor(text=[text], images=[request.images[0].source], return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
        plain = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ours = run_small_pass(engine.small, AnswerTask(engine.small.encode(request), 80))
        assert ours.generation.text == plain


def test_the_pair_answers_and_uses_both_routes(engine: SGLEngine, asked: list) -> None:
    responses = [engine.run(request) for request, *_ in asked]
    right = [r.text == question.answer for r, (*_, question) in zip(responses, asked, strict=True)]
    assert sum(right) >= 0.6 * len(right)  # a floor, not the measurement: sgl bench
    assert {response.report.route for response in responses} == {"small", "large"}
    escalated = [response.report for response in responses if response.report.escalated]
    assert all(report.kept_visual_tokens == int(0.2 * report.visual_tokens) for report in escalated)
    # The control: where the answer stands on the page, it cannot be given about a blank one.
    blank = Image.new("RGB", (192, 192), "white")
    read = [(hit, question) for hit, (*_, question) in zip(right, asked, strict=True) if question.evidence]
    blind = [engine.run(Request.ask(question.text, blank)).text == question.answer for _, question in read]
    assert sum(blind) < 0.5 * sum(hit for hit, _ in read)


def test_the_score_tells_right_from_wrong(asked: list, passes: list[SmallPassResult]) -> None:
    right = [p.generation.text == question.answer for p, (*_, question) in zip(passes, asked, strict=True)]
    scores = torch.tensor([score_parts(p.parts).score for p in passes])
    mask = torch.tensor(right)
    assert 0 < mask.sum() < len(mask)
    assert scores[mask].mean() > scores[~mask].mean() + 0.1


def test_the_documentation_asks_what_the_pictures_hold() -> None:
    asked = json.loads((PICTURES / "questions.json").read_text())
    root = Path(__file__).parents[2]
    shown = re.findall(r'sgl \w+ \S+/(\w+)\.png "([^"]+)"', (root / "README.md").read_text())
    assert len(shown) == 2
    assert all(question in asked[picture] for picture, question in shown)


def test_every_bundled_picture_can_be_asked_and_explained(engine: SGLEngine) -> None:
    pictures = sorted(PICTURES.glob("*.png"))
    assert [path.stem for path in pictures] == ["chart", "page", "receipt", "scene"]
    asked = json.loads((PICTURES / "questions.json").read_text())
    for path in pictures:
        for question, answer in asked[path.stem].items():
            response = engine.run(Request.ask(question, path))
            assert response.text == answer
            assert response.importance is not None
            assert draw_importance(Image.open(path), response.importance).width > 192


def test_the_heat_lies_where_the_answer_is(asked: list, passes: list[SmallPassResult]) -> None:
    """Where the small answer is right, the tokens it was read from get far more attention than others."""
    ratios, elsewhere = [], []
    for result, (_, page, question) in zip(passes, asked, strict=True):
        if result.generation.text != question.answer or not question.evidence:
            continue
        assert result.importance is not None
        cells = evidence_tokens(question.evidence, page.rows, page.columns).tolist()
        mass = result.importance.mass
        ratios.append(float(mass[cells].mean() / mass.mean()))
        # The control: as many patches anywhere else.
        others = torch.randperm(len(mass), generator=torch.Generator().manual_seed(len(ratios)))
        others = [int(cell) for cell in others if int(cell) not in cells][: len(cells)]
        elsewhere.append(float(mass[others].mean() / mass.mean()))
    assert len(ratios) >= 10
    assert median(ratios) > 2
    assert median(ratios) > 2 * median(elsewhere)

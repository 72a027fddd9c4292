"""Prompts that are read side by side are those that would be read alone, to the last bit."""

import copy
import gc
import weakref
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import lifelike
import pytest
import torch
from repositories import LAYOUTS, write
from samples import noise

from sgl_engine import VLM, EngineConfig, Message, PromptTooLongError, Request, Response, SGLEngine
from sgl_engine.chat.sealed import Seal
from sgl_engine.config import NO_REUSE, LimitsConfig, PictureConfig, ReuseConfig, SchedulerConfig
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.model import siblings
from sgl_engine.model.siblings import Siblings
from sgl_engine.prompt import images
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import ImagePart
from sgl_engine.testing import tiny_vlm

PICTURE = ImagePart(noise(40, 30))
FEW = LimitsConfig(max_images=3)
TEXTS = (
    "What is it?",
    "What color is it?",
    "  \n Größe: 你好 😀 e\u0301 \u200b \n",
    "<|im_end|> </s> <image> [INST] x",
    "x \U0010abcd \U00100001",
    "\u0301y",
    "",
)


class Counted(Siblings):
    """Counts how many prompts were not read alone."""

    beside = 0


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    own = siblings._Read.sibling

    def counted(read: Any, request: Request) -> EncodedPrompt | None:
        prompt = own(read, request)
        Counted.beside += prompt is not None
        return prompt

    monkeypatch.setattr(siblings._Read, "sibling", counted)
    monkeypatch.setattr(Counted, "beside", 0)


def asking(text: str, *before: Any, **more: Any) -> Request:
    return Request((Message("user", (*before, text)),), **more)


def assert_same(ours: EncodedPrompt, theirs: EncodedPrompt) -> None:
    assert sorted(ours.inputs) == sorted(theirs.inputs)
    for name, value in theirs.inputs.items():
        assert torch.equal(ours.inputs[name], value), name
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert ours.spans == theirs.spans
    assert ours.picture_digests == theirs.picture_digests
    for one, other in ((ours.positions, theirs.positions), (ours.tiles, theirs.tiles)):
        assert (one is None) == (other is None)
    if theirs.positions is not None:
        assert torch.equal(ours.positions, theirs.positions)  # type: ignore[arg-type]
    if ours.tiles is not None and theirs.tiles is not None:
        assert torch.equal(ours.tiles.tokens, theirs.tiles.tokens)


def read_both(vlm: VLM, requests: list[Request]) -> int:
    """Compares with the oracle, the same request read alone; returns how many were read side by side."""
    together = Counted()
    Counted.beside = 0
    for request in requests:
        assert_same(
            together.encode(vlm, request, LimitsConfig(), NO_REUSE, PictureConfig()), vlm.encode(request)
        )
    return Counted.beside


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_of_every_family(family: str) -> None:
    vlm = tiny_vlm(family, max_tiles=4)
    requests = [asking(text, PICTURE, max_reasoning_tokens=0) for text in TEXTS[:4]]
    assert read_both(vlm, requests) == 2  # the first is read alone, and so is what spells control tokens


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_every_layout_of_repositories(name: str) -> None:
    vlm = VLM.from_pretrained(str(write(name, Path(mkdtemp()) / "model")))
    beside = read_both(vlm, [asking(text, PICTURE, max_reasoning_tokens=0) for text in TEXTS])
    # Some templates trim, and so tell texts with space around them from others; one changes case.
    assert beside == 0 if name == "smolvlm" else beside >= 3
    beside = read_both(vlm, [asking(text) for text in TEXTS[:3]])
    # Without a control token before the text, it cannot be cut off.
    assert beside == 0 if name in {"smolvlm", "llava", "llava_next"} else beside >= 1


@cache
def llava() -> VLM:
    return tiny_vlm("llava", max_tiles=4)


def with_processor(processor: Any) -> VLM:
    vlm = copy.copy(llava())
    vlm.model = copy.copy(vlm.model)
    vlm.model.config = copy.deepcopy(vlm.model.config)
    vlm.model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    vlm.processor = processor
    return vlm


@pytest.mark.parametrize(("kind", "template"), list(product(lifelike.TOKENIZERS, lifelike.TEMPLATES)))
def test_of_lifelike_tokenizers_and_templates(kind: str, template: str) -> None:
    vlm = with_processor(lifelike.processor(kind, template))
    read_both(vlm, [asking(text, "Look: ") for text in TEXTS])
    read_both(vlm, [asking(text, PICTURE) for text in TEXTS])


BEFORE = "<|im_start|>{% for part in messages[-1].content %}"
AFTER = "{% endfor %}<|im_end|>"
ASKING = "{% if 'color' in part.text %}<b>{% endif %}{{ part.text }}"
LOSING = (
    "{{ part.text | upper }}",
    "{{ part.text[:3] }}",
    "{{ part.text.split(' ')[0] }}",
    "{{ part.text }}{{ part.text }}",
    "{{ [part.text, 'x'] | join(' ') }}",
    "{{ '%s!' % part.text }}",
    "{{ part.text | tojson }}",
    "{{ part.text | wordcount }}{{ part.text }}",
    "{% for c in part.text %}{{ c }}{% endfor %}",
    "{% filter upper %}{{ part.text }}{% endfilter %}",
)


@pytest.mark.parametrize("inner", [ASKING, *LOSING])
def test_templates_that_look_into_a_text(inner: str) -> None:
    processor = copy.copy(lifelike.processor("bytes", next(iter(lifelike.TEMPLATES))))
    processor.chat_template = BEFORE + inner + AFTER
    requests = [asking(text) for text in (*TEXTS[:2], "Which color?", "Why?")]
    beside = read_both(with_processor(processor), requests)
    assert beside == (1 if inner is ASKING else 0)  # of the same answers: "Why?" alone


def test_answers_that_are_not_looked_at_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what holds for one text is taken to hold for all."""
    processor = copy.copy(lifelike.processor("bytes", next(iter(lifelike.TEMPLATES))))
    processor.chat_template = BEFORE + ASKING + AFTER
    monkeypatch.setattr(Seal, "holds_for", lambda *_: True)
    with pytest.raises(AssertionError):
        read_both(with_processor(processor), [asking(text) for text in TEXTS[:2]])


def test_what_else_differs_is_read_alone(small: VLM) -> None:
    other = ImagePart(noise(40, 30, 1))
    requests = [
        asking("What?", PICTURE),
        asking("Why?", other),
        asking("Why?", PICTURE, max_reasoning_tokens=0),
        asking("Why?", PICTURE, cache_salt="mine"),
        Request((Message("system", ("Be brief.",)), *asking("Why?", PICTURE).messages)),
        Request((Message("user", ("Why?", PICTURE)),)),
    ]
    assert read_both(small, requests) == 0
    assert read_both(small, [*requests, asking("Where?", PICTURE)]) == 1


def test_each_prompt_has_its_own_limits(small: VLM) -> None:
    together = Siblings()
    given = (LimitsConfig(max_text_chars=100), NO_REUSE, PictureConfig())
    together.encode(small, asking("What?", PICTURE), *given)
    with pytest.raises(PromptTooLongError, match="100 are allowed"):
        together.encode(small, asking("What?" * 50, PICTURE), *given)


def test_one_model_in_both_places_shows_each_its_own_pictures() -> None:
    vlm = tiny_vlm("qwen2_vl", max_tiles=4)
    config = EngineConfig(small_pictures=PictureConfig(max_visual_tokens=8)).escalating("always")
    both, apart = SGLEngine(vlm, vlm, config), SGLEngine(vlm, tiny_vlm("qwen2_vl", max_tiles=4), config)
    page = ImagePart(noise(96, 96))
    requests = [asking(text, page, max_new_tokens=2) for text in TEXTS[:2]]
    for ours, theirs in zip(both.run_batch(requests), apart.run_batch(requests), strict=True):
        assert isinstance(ours, Response)
        assert isinstance(theirs, Response)
        assert ours.report.small_input_tokens < (ours.report.large_input_tokens or 0)
        assert ours.report.large_input_tokens == theirs.report.large_input_tokens
        assert ours.text == theirs.text
    assert Counted.beside == 4  # the second one, for each role of both


def test_what_is_kept_of_pictures_is_asked_of_each(small: VLM) -> None:
    together = Siblings()
    for limits, reuse in ((LimitsConfig(), NO_REUSE), (LimitsConfig(), ReuseConfig()), (FEW, NO_REUSE)):
        together.encode(small, asking("What?", PICTURE), limits, reuse, PictureConfig())
    assert Counted.beside == 0


def test_a_batch_loads_its_pictures_once(small: VLM, large: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    own = images._upright_rgb
    monkeypatch.setattr(images, "_upright_rgb", lambda *a, **k: loaded.append(1) or own(*a, **k))
    engine = SGLEngine(small, large)
    engine.score_batch([asking(text, PICTURE) for text in TEXTS[:3]], [["yes", "no"]] * 3, model="large")
    assert len(loaded) == 3  # for both models, and by each for itself
    responses = engine.run_batch([asking(text, PICTURE, max_new_tokens=2) for text in TEXTS[:3]])
    assert len(loaded) == 6
    for text, response in zip(TEXTS, responses, strict=False):
        alone = engine.run(asking(text, PICTURE, max_new_tokens=2))
        assert response.text == alone.text  # type: ignore[union-attr]


@pytest.mark.parametrize("scored", [True, False])
def test_a_long_list_keeps_no_more_than_a_part_of_it(
    small: VLM, large: VLM, monkeypatch: pytest.MonkeyPatch, *, scored: bool
) -> None:
    made: list[Any] = []
    alive: list[int] = []
    own = Siblings.encode

    def encode(together: Siblings, vlm: VLM, request: Request, *rest: Any) -> EncodedPrompt:
        gc.collect()
        alive.append(sum(each() is not None for each in made))
        prompt = own(together, vlm, request, *rest)
        made.extend(map(weakref.ref, (prompt, request.images[0].source)))
        return prompt

    monkeypatch.setattr(Siblings, "encode", encode)
    config = EngineConfig(reuse=NO_REUSE, scheduler=SchedulerConfig(max_queue=2)).escalating("never")
    engine = SGLEngine(small, large, config)
    requests = [asking("What?", ImagePart(noise(30, 30, seed)), max_new_tokens=1) for seed in range(8)]
    if scored:
        engine.score_batch(requests, [["yes", "no"]] * 8)
    else:
        engine.run_batch(requests)
    assert len(alive) == 8
    assert max(alive) <= 6, "one of two, and the part before, which the worker may not have let go of yet"

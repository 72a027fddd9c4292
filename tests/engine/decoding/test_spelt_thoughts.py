"""Thoughts between tags that the tokenizer spells in several tokens."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from repositories import write
from test_thoughts import ASKED, SCHEMA, ids_of, say

from sgl_engine import VLM
from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.text_stream import ReasoningText
from sgl_engine.config import LimitsConfig
from sgl_engine.model.thoughts import SpeltTags


def with_spelt_tags(folder: Path, *, opens: bool) -> VLM:
    """A template with tags that are no tokens, which ends a prompt with the first one or not."""
    vlm = VLM.from_pretrained(write("qwen3_vl thinking", folder))
    template = vlm.processor.chat_template.replace("</think>", "◁/think▷").replace("<think>", "◁think▷")
    if not opens:
        before, opening, behind = template.rpartition("assistant\\n◁think▷\\n")
        assert opening
        # As templates name it that leave thoughts out of earlier turns.
        template = "{% set end = '◁/think▷' %}" + f"{before}assistant\\n{behind}"
    vlm.processor.chat_template = template
    assert isinstance(vlm.thought_tags, SpeltTags)
    assert len(ids_of(vlm, "◁think▷")) > 1
    return vlm


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return with_spelt_tags(tmp_path_factory.mktemp("models") / "opened", opens=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return with_spelt_tags(tmp_path_factory.mktemp("models") / "alone", opens=False)


def test_thoughts_are_apart(opened: VLM) -> None:
    said, pieces = say(opened, ASKED, "hm, a ◁ or\nthe fox\n◁/think▷\n\nBlue.<|im_end|>")
    assert (said.reasoning, said.text, said.finish_reason) == ("hm, a ◁ or\nthe fox", "Blue.", "stop")
    assert "".join(piece for piece in pieces if isinstance(piece, ReasoningText)) == said.reasoning
    assert "".join(piece for piece in pieces if not isinstance(piece, ReasoningText)) == said.text
    assert said.answer.token_ids.tolist() == ids_of(opened, "Blue.<|im_end|>")


def test_a_model_may_begin_them_itself(alone: VLM) -> None:
    request = replace(ASKED, max_new_tokens=40)
    said, pieces = say(alone, request, "◁think▷\nhm\n◁/think▷\n\nBlue.<|im_end|>")
    assert (said.reasoning, said.text) == ("hm", "Blue.")
    assert "".join(piece for piece in pieces if not isinstance(piece, ReasoningText)) == "Blue."


@pytest.mark.parametrize("text", ["◁thing▷ it is", "So ◁think▷ no", "◁", " "])
def test_what_only_begins_like_a_tag_is_the_answer(alone: VLM, text: str) -> None:
    said, pieces = say(alone, replace(ASKED, max_new_tokens=40), f"{text}<|im_end|>")
    assert (said.reasoning, said.reasoning_tokens, said.text) == ("", 0, text)
    assert "".join(pieces) == text


def test_a_limit_holds_for_what_might_have_become_a_tag(alone: VLM) -> None:
    tokens = ids_of(alone, "◁think▷")
    for most in range(1, len(tokens)):
        said, _ = say(alone, replace(ASKED, max_new_tokens=most), "◁think▷ and on and on")
        assert (len(said), said.finish_reason, said.reasoning_tokens) == (most, "length", 0)


def test_the_budget_ends_them(opened: VLM) -> None:
    text = "the quick brown fox is blue the quick brown fox " * 4
    said, _ = say(opened, replace(ASKED, max_new_tokens=4), text, max_reasoning_tokens=3)
    tags = opened.thought_tags
    assert tags is not None
    assert said.reasoning_tokens == 3 + len(tags.closing)
    assert said.token_ids[3 : said.reasoning_tokens].tolist() == list(tags.closing)
    assert (len(said.answer), said.finish_reason) == (4, "length")
    assert said.reasoning
    assert "◁" not in said.reasoning


def test_an_answer_with_a_form_begins_behind_them(opened: VLM) -> None:
    grammar = answer_grammar(replace(ASKED, response_schema=SCHEMA), LimitsConfig())
    request = replace(ASKED, max_new_tokens=30)
    said, _ = say(opened, request, "hm ◁/think▷" + "x" * 30, grammar=grammar)
    assert said.reasoning == "hm"
    assert json.loads(said.text)["a"] in {"yes", "no"}


def test_a_callers_tag_opens_nothing(alone: VLM) -> None:
    asked = replace(ASKED, messages=(replace(ASKED.messages[0], content=("What is ◁think▷",)),))
    said, _ = say(alone, asked, "Blue.<|im_end|>")
    assert (said.reasoning, said.text) == ("", "Blue.")

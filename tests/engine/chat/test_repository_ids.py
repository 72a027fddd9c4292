"""Laid out as real repositories are, with templates in their manner: a prompt's ids are transformers' own."""

import copy
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from repositories import LAYOUTS, write
from samples import noise

from sgl_engine import Message, Request
from sgl_engine.chat.template import render
from sgl_engine.families import find_family
from sgl_engine.model.encoding import process
from sgl_engine.model.loading import load_config, load_processor
from sgl_engine.request import ImagePart, ToolCall, ToolSpec

PICTURES = [ImagePart(noise(40, 30, seed)) for seed in range(4)]
ADD = ToolSpec("add_up", "Adds “numbers”.", {"type": "object", "properties": {"a": {"type": "integer"}}})
SUB = ToolSpec("subtract", "Subtracts.", {"type": "object", "properties": {}})


def talk(*turns: tuple[Any, ...], **more: Any) -> Request:
    return Request(tuple(Message(turn[0], tuple(turn[1]), *turn[2:]) for turn in turns), **more)


CALL = ("assistant", ["I add."], (ToolCall("c12345678", "add_up", {"a": 1, "b": 'é\n"q"'}),))
SILENT_CALL = ("assistant", [], (ToolCall("c12345678", "add_up", {"a": 1}),))
RESULT = ("tool", ['Sum: "3"\n'], (), "c12345678", "add_up")
CONVERSATIONS = {
    "a question": talk(("user", ["What is it?"])),
    "space around": talk(("user", ["  \n What is it? \t\n"])),
    "nothing": talk(("user", [""])),
    "unicode": talk(("user", ["Größe: 你好 😀 e\u0301 \u200b ﷽ \U0010abcd"])),
    "markup": talk(("user", ["a < b |> c <b>x</b> <|IM_END|> [inst] &lt; {{ x }} {% y %} \\n"])),
    "a picture": talk(("user", [PICTURES[0], "What is it?"])),
    "a picture last": talk(("user", ["What is it?", PICTURES[0]])),
    "only pictures": talk(("user", PICTURES[:2])),
    "pictures in several places": talk(("user", ["one", PICTURES[0], " two ", *PICTURES[1:3], "three"])),
    "system": talk(("system", ["Be brief."]), ("user", ["Hi"])),
    "system with space": talk(("system", [" Be brief.\n "]), ("user", [PICTURES[0], " Hi"])),
    "system in parts": talk(("system", ["Be brief.", " Be kind."]), ("user", ["Hi"])),
    "system, several turns, pictures": talk(
        ("system", ["Be brief. "]),
        ("user", ["one", PICTURES[0], " two ", PICTURES[1]]),
        ("assistant", ["Yes.\n\n"]),
        ("user", [PICTURES[2], "\nand this?"]),
        ("assistant", [" No."]),
        ("user", ["Why?"]),
    ),
    "several parts": talk(("user", ["one", "two ", " three"]), ("assistant", ["ok"]), ("user", ["go"])),
    "an empty turn": talk(("user", ["Hi"]), ("assistant", [""]), ("user", ["There?"])),
    "a turn without parts": talk(("user", ["Hi"]), ("assistant", []), ("user", ["There?"])),
    "two turns of one": talk(("user", ["First."]), ("user", ["Second."])),
    "system later": talk(
        ("user", ["Hi"]), ("assistant", ["Yes."]), ("system", ["Be kind."]), ("user", ["So?"])
    ),
    "tools": talk(("user", ["1 + 2 é?"]), tools=(ADD, SUB)),
    "tools and system": talk(("system", ["Be brief."]), ("user", [PICTURES[0], "1 + 2?"]), tools=(ADD,)),
    "a call": talk(("user", ["1 + 2?"]), CALL, RESULT, tools=(ADD,)),
    "a silent call": talk(("user", ["1 + 2?"]), SILENT_CALL, RESULT, tools=(ADD,)),
    "two calls": talk(("user", ["Both."]), (*CALL[:2], CALL[2] * 2), RESULT, RESULT, tools=(ADD, SUB)),
    "calls without tools": talk(("user", ["1?"]), CALL, RESULT, ("assistant", ["3."]), ("user", ["So?"])),
    "a picture as result": talk(("user", ["Crop."]), CALL, ("tool", ["Here:", PICTURES[3]], (), "c12345678")),
    "thoughts": talk(("user", ["Hi"]), ("assistant", ["<think>\nhm\n</think>\n\nHello."]), ("user", ["So?"])),
}
CALLS = {"tools", "tools and system", "a call", "a silent call", "two calls", "calls without tools"}
CALLS |= {"a picture as result"}
NO_PART = {"a turn without parts"}
ALTERNATE = {"two turns of one", "system later"}
OWN_WORDING: dict[str, set[str]] = {
    "qwen2_vl": CALLS,
    "qwen2_5_vl": CALLS,
    "qwen3_vl": set(),
    "qwen3_vl thinking": {"thoughts"},
    "qwen3_5": {"system later"},
    "internvl": CALLS,
    "llava": CALLS,
    "llava_next": CALLS | NO_PART | {"system in parts"},
    "llava_onevision": CALLS,
    "idefics3": CALLS | NO_PART,
    "idefics3 doctags": CALLS,
    "smolvlm": CALLS | NO_PART,
    "gemma3": CALLS | ALTERNATE,
    "mistral3": CALLS | NO_PART,
    "pixtral": CALLS | ALTERNATE,
}
"""Where transformers raises, or its template leaves calls, tools or parts out, or tags in a message would
become control tokens: there the wording is ours. Everywhere else ids are the same."""


@cache
def loaded(name: str) -> tuple[Any, str]:
    folder = str(write(name, Path(mkdtemp()) / name))
    config, processor = load_config(folder, {}), load_processor(folder)
    return processor, find_family(config, name).image_text(processor, config)


def as_transformers(processor: Any, request: Request, *, strings: bool) -> Any:
    """What transformers makes of the conversation; content without pictures as a string where it is asked."""
    turns: list[dict[str, Any]] = []
    for message in request.messages:
        content: Any = [
            {"type": "image", "image": part.source}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part}
            for part in message.content
        ]
        if strings and all(isinstance(part, str) for part in message.content):
            content = "".join(part for part in message.content if isinstance(part, str))
        turn = {"role": message.role, "content": content}
        turn |= {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
        turn |= {"name": message.name} if message.name else {}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": dict(c.arguments)}}
                for c in message.tool_calls
            ]
        turns.append(turn)
    tools = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
        }
        for t in request.tools
    ]
    return processor.apply_chat_template(
        turns,
        tools=tools or None,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **(request.chat_template_kwargs or {}),
    )


def same(ours: Any, theirs: Any) -> bool:
    return sorted(ours) == sorted(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def theirs_of(processor: Any, request: Request) -> list[Any]:
    """What transformers makes of it: with lists of parts, then with strings; nothing where it raises."""
    found = []
    for strings in (False, True):
        with suppress(TemplateError, TypeError, AttributeError):
            found.append(as_transformers(processor, request, strings=strings))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_those_of_transformers(name: str) -> None:
    processor, image = loaded(name)
    others = set()
    for title, request in CONVERSATIONS.items():
        ours = process(processor, request, image_token=image)
        if not any(same(ours, theirs) for theirs in theirs_of(processor, request)):
            others.add(title)
        bos = LAYOUTS[name].bos
        assert bos is None or (ours["input_ids"] == processor.tokenizer.convert_tokens_to_ids(bos)).sum() == 1
    assert others == OWN_WORDING[name]


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "mistral3", "pixtral"])
def test_the_control_a_template_and_a_tokenizer_would_give_two_first_tokens(name: str) -> None:
    processor, image = loaded(name)
    text = render(processor, CONVERSATIONS["a question"], image_token=image).shown
    bos = processor.tokenizer.convert_tokens_to_ids(LAYOUTS[name].bos)
    assert processor.tokenizer(text)["input_ids"].count(bos) == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_worded_here_is_whole_and_apart(name: str) -> None:
    """Everything that was said is in the prompt, in order, and no two texts run together."""
    processor, image = loaded(name)
    for title in OWN_WORDING[name] | {"system, several turns, pictures"}:
        request = CONVERSATIONS[title]
        text = render(processor, request, image_token=image).shown
        assert text.count(image) == len(request.images)
        for message in request.messages:
            for part in message.content:
                assert not isinstance(part, str) or part.strip() in text
            assert all(f'"name": "{call.name}"' in text for call in message.tool_calls)
        assert all(f'"name": "{tool.name}"' in text for tool in request.tools)
        for first, second in (("Be brief.", "You can call"), ("First.", "Second."), ("Be kind.", "So?")):
            if first in text and second in text:
                assert not text.split(first)[1].startswith(second)


@pytest.mark.parametrize("name", ["gemma3", "pixtral"])
def test_system_text_and_tools_are_paragraphs(name: str) -> None:
    processor, image = loaded(name)
    text = render(processor, CONVERSATIONS["tools and system"], image_token=image).shown
    assert "Be brief.\n\nYou can call these tools" in text
    assert "</tool_call>\n\n" in text


def test_parts_that_a_template_would_drop_are_joined() -> None:
    """As Mistral's shows the first part of an assistant's turn alone."""
    processor, image = loaded("mistral3")
    request = talk(("user", ["Hi"]), ("assistant", ["Yes,", " sir."]), ("user", ["So?"]))
    assert "Yes, sir.</s>" in render(processor, request, image_token=image).shown
    [dropped, _] = theirs_of(processor, request)
    assert "sir" not in processor.tokenizer.decode(dropped["input_ids"][0])


def test_a_template_in_the_tokenizers_settings_alone() -> None:
    """transformers refuses such a processor; the template is the model's all the same."""
    processor, image = loaded("gemma3")
    ours = process(processor, CONVERSATIONS["a picture"], image_token=image)
    alone = copy.copy(processor)
    alone.tokenizer = copy.copy(processor.tokenizer)
    alone.tokenizer.chat_template, alone.chat_template = processor.chat_template, None
    assert same(ours, process(alone, CONVERSATIONS["a picture"], image_token=image))
    with pytest.raises(ValueError, match="does not have a chat template"):
        as_transformers(alone, CONVERSATIONS["a picture"], strings=False)


@pytest.mark.parametrize("wish", [True, False])
def test_template_arguments_are_those_of_transformers(wish: bool) -> None:
    processor, image = loaded("qwen3_5")
    request = replace(
        CONVERSATIONS["pictures in several places"],
        chat_template_kwargs={"enable_thinking": wish, "add_vision_id": True},
    )
    ours = process(processor, request, image_token=image)
    assert same(ours, as_transformers(processor, request, strings=False))
    text = processor.tokenizer.decode(ours["input_ids"][0])
    assert text.endswith("<think>\n" if wish else "<think>\n\n</think>\n\n")
    assert "Picture 2: " in text


def test_a_caller_cannot_end_thoughts() -> None:
    """Qwen3-VL's template opens them, and leaves it to the model to end them: with a control token."""
    processor, image = loaded("qwen3_vl thinking")
    ids = process(processor, talk(("user", ["a</think>b"])), image_token=image)["input_ids"][0].tolist()
    end = processor.tokenizer.convert_tokens_to_ids("</think>")
    assert end not in ids
    assert end in processor.tokenizer("a</think>b")["input_ids"]

"""What reaches the model, under templates of every temper."""

from dataclasses import replace
from typing import Any

import pytest
from samples import noise
from templates import HERMES, TEMPLATES

from sgl_engine import VLM, Message, Request
from sgl_engine.chat.template import reads_natively, render
from sgl_engine.demo import demo_engine
from sgl_engine.errors import InvalidRequestError, ProcessorError
from sgl_engine.request import ImagePart, ToolCall, ToolSpec
from sgl_engine.testing import tiny_vlm

ADD = ToolSpec("add_up", "Adds “numbers”.", {"type": "object", "properties": {"a": {"type": "integer"}}})
SUB = ToolSpec("subtract", "Subtracts.", {"type": "object", "properties": {}})
TALK = Request(
    (
        Message("system", ("Be brief.",)),
        Message("user", ("What is ", ImagePart(noise(32, 32)), "in all?")),
        Message("assistant", ("I add.",), tool_calls=(ToolCall("c1", "add_up", {"a": 1234, "b": "é\n"}),)),
        Message("tool", ('Sum: "5"\nnext',), tool_call_id="c1", name="add_up"),
        Message("tool", ("Once more: 6",), tool_call_id="c1"),
    ),
    tools=(ADD, SUB),
)


def prepared(template: str | None, vlm: VLM | None = None) -> VLM:
    vlm = vlm or tiny_vlm()
    if template is not None:
        vlm.processor.chat_template = template
    return vlm


def prompt_text(vlm: VLM, request: Request) -> str:
    """What the model reads, from its tokens."""
    text: str = vlm.processor.tokenizer.decode(vlm.encode(request).input_ids[0])
    return text


@pytest.mark.parametrize("name", TEMPLATES)
def test_everything_reaches_the_prompt_in_order(name: str) -> None:
    text = prompt_text(prepared(TEMPLATES[name]), TALK)
    expected = ["What is ", "<IMG_CONTEXT>", "in all?", "I add.", "1234", "Sum: ", "next", "Once more: 6"]
    at = -1
    for part in expected:
        at = text.index(part, at + 1)
    assert text.index("Be brief.") < text.index("What is ")
    assert text.endswith("<|im_start|>assistant\n")
    for tool in (ADD, SUB):
        assert f'"name": "{tool.name}"' in text
    assert "“numbers”" in text
    assert "<tool_call>" in text
    assert "[{'type'" not in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_tools_nothing_is_said_of_them(name: str) -> None:
    text = prompt_text(prepared(TEMPLATES[name]), Request.ask("Hello?", noise(32, 32)))
    assert "tool" not in text.lower()
    assert text.index("<IMG_CONTEXT>") < text.index("Hello?")


def test_the_templates_own_format_is_used_where_it_has_one() -> None:
    text = prompt_text(prepared(HERMES), TALK)
    assert text.startswith("<|im_start|>system\nTools:")
    assert "You can call these tools" not in text
    assert text.count("<tool_response>\n") == 2
    assert '{"name": "add_up", "arguments": {"a": 1234' in text


def test_else_tools_are_described_in_the_system_turn() -> None:
    text = prompt_text(prepared(TEMPLATES["any role"]), TALK)
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call these tools")
    assert text.count("<|im_start|>system") == 1
    assert "<|im_start|>tool\nSum" in text
    alone = prompt_text(prepared(None), Request((Message("user", ("Hi",)),), tools=(ADD,)))
    assert alone.startswith("<|im_start|>system\nYou can call these tools")


def test_templates_that_want_turns_get_turns() -> None:
    text = prompt_text(prepared(TEMPLATES["user and assistant take turns"]), TALK)
    roles = [turn.split("\n")[0] for turn in text.split("<|im_start|>")[1:]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert "Result of add_up:\nSum" in text
    assert "Result of add_up:\nOnce more" in text  # named by the call that it answers


def test_formats_that_nobody_here_can_read_are_not_asked_for() -> None:
    vlm = prepared(TEMPLATES["tools in another format"])
    assert "<|tools|>" not in prompt_text(vlm, TALK)
    vlm.processor.tokenizer.response_template = {"fields": {"content": {"content": "text"}}}
    assert "<|tools|>" in prompt_text(vlm, TALK)
    assert reads_natively(vlm.processor, TALK)
    for held in ({"tool_choice": "any"}, {"response_schema": {"type": "object"}}, {"tools": ()}):
        request = replace(TALK, **held)
        assert not reads_natively(vlm.processor, request)
        assert "<|tools|>" not in prompt_text(vlm, request)


def test_only_what_may_be_called_is_shown() -> None:
    for template in (None, HERMES):
        vlm = prepared(template)
        question = replace(TALK, messages=TALK.messages[:2])
        assert "add_up" not in prompt_text(vlm, replace(question, tool_choice="none"))
        named = prompt_text(vlm, replace(question, tool_choice="any", tool_name="subtract"))
        assert "add_up" not in named
        assert "subtract" in named


def test_images_in_results_reach_the_model() -> None:
    pictures = [noise(32, 32, 1), noise(40, 30, 2)]
    request = Request(
        (
            Message("user", (ImagePart(pictures[0]), "Look closer.")),
            Message("assistant", (), tool_calls=(ToolCall("c", "crop", {}),)),
            Message("tool", ("Here:", ImagePart(pictures[1])), tool_call_id="c"),
        )
    )
    for template in TEMPLATES.values():
        vlm = prepared(template)
        prompt = vlm.encode(request)
        assert len(prompt.spans) == 2
        plain = vlm.encode(Request.ask("?", *pictures))
        assert prompt.inputs["pixel_values"].equal(plain.inputs["pixel_values"])


def test_the_bundled_pair_has_turns_for_tools() -> None:
    """Its tokenizer writes lower case; what is compared is the text before it."""
    processor = demo_engine().small.processor
    text = render(processor, TALK, image_token="<IMG_CONTEXT>").shown
    assert text.startswith("<|system|>Be brief.\n\nYou can call these tools")
    assert '<|tool|>Sum: "5"\nnext<|tool|>Once more: 6<|assistant|>' in text
    assert (
        'I add.\n<tool_call>\n{"name": "add_up", "arguments": {"a": 1234, "b": "é\\n"}}\n</tool_call>' in text
    )


def test_tags_of_calls_are_no_control_tokens() -> None:
    vlm = prepared(None)
    vlm.processor.tokenizer.add_tokens(["<tool_call>", "</tool_call>"])  # as Qwen's tokenizers have them
    assert "</tool_call>" in prompt_text(vlm, TALK)


def test_text_that_looks_like_a_printed_list_is_text() -> None:
    text = "[{'type': 'text'}] is what?"
    assert text in prompt_text(prepared(None), Request.ask(text))


# As Gemma's does: no system text, turns alternate, parts are trimmed.
TRIMS = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('No system text') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<img><IMG_CONTEXT></img>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def test_what_is_joined_here_stays_apart_where_a_template_trims() -> None:
    text = prompt_text(prepared(TRIMS), TALK)
    assert "user\nBe brief.\n\nYou can call these tools" in text
    assert "</tool_call>\n\nWhat is<img>" in text
    assert "assistant\nI add.\n<tool_call>\n" in text
    assert 'Result of add_up:\nSum: "5"\nnext\n\nResult of add_up:\nOnce more: 6<|im_end|>' in text
    turns = Request((Message("user", ("First.",)), Message("user", ("Second.",))))
    assert "user\nFirst.\n\nSecond.<|im_end|>" in prompt_text(prepared(TRIMS), turns)


def test_a_result_that_begins_with_a_picture_says_first_whose_it_is() -> None:
    result = Message("tool", (ImagePart(noise(32, 32)), "there"), name="crop")
    text = prompt_text(prepared(TEMPLATES["user and assistant take turns"]), Request((result,)))
    assert text.startswith("<|im_start|>user\nResult of crop:\n<img>")
    assert text.index("<IMG_CONTEXT>") < text.index("there")


# As SmolVLM's does, it looks at the first part of every turn.
FIRST_PART = (
    "{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}<IMG_CONTEXT>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}Assistant:"
)


@pytest.mark.parametrize("content", [(), ("",)], ids=["no part", "an empty part"])
@pytest.mark.parametrize("name", ["first part", *TEMPLATES])
def test_an_empty_turn_is_an_empty_turn(name: str, content: tuple[str, ...]) -> None:
    vlm = prepared({"first part": FIRST_PART, **TEMPLATES}[name])
    talk = Request((Message("user", ("Hi",)), Message("assistant", content), Message("user", ("There?",))))
    text = prompt_text(vlm, talk)
    assert text.index("Hi") < text.lower().index("assistant") < text.index("There?")


THINKS = TEMPLATES["any role"] + (
    "<think>{% if enable_thinking is defined and enable_thinking is false %}</think>{% endif %}"
    "{{ effort }}{{ '!' if effort == 'low' }}"
)


def test_arguments_reach_the_template() -> None:
    vlm = prepared(THINKS)

    def ends(**arguments: Any) -> str:
        request = replace(Request.ask("Hi"), chat_template_kwargs=arguments)
        return prompt_text(vlm, request).partition("assistant\n")[2]

    assert ends() == ends(enable_thinking=True, unknown=1) == "<think>"
    assert ends(enable_thinking=False) == "<think></think>"
    assert ends(effort="low") == "<think>low!"
    assert ends(effort="<|im_end|>") == "<think><|im_end|>"
    ids = vlm.encode(replace(Request.ask("Hi"), chat_template_kwargs={"effort": "<|im_end|>"})).input_ids[0]
    assert (ids == vlm.processor.tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_arguments_cannot_replace_the_conversation(name: str) -> None:
    request = replace(Request.ask("Hi"), chat_template_kwargs={name: []})
    with pytest.raises(InvalidRequestError, match=f"chat_template_kwargs sets {name}"):
        prepared(None).encode(request)


def test_arguments_that_nest_without_end_are_refused() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    call = ToolCall("c", "add_up", {"a": nested})
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        prepared(None).encode(Request((Message("assistant", ("Hm.",), tool_calls=(call,)),)))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{% endfor %}nothing", "left out: 'Be brief.'"),
        ("{{ raise_exception('I take nobody') }}", "TemplateError: I take nobody"),
        ("{{ raise_exception('No: ' + messages[0].content[0].text) }}", "TemplateError: No: Be brief."),
        ("{{ messages[0].content.nothing.at_all }}", "UndefinedError"),
        ("{% for m in messages %}", "cannot be read"),
        (None, "chat template"),
    ],
)
def test_templates_that_take_nothing_are_named(template: Any, reason: str) -> None:
    vlm = tiny_vlm()
    vlm.processor.chat_template = template
    with pytest.raises(ProcessorError) as caught:
        vlm.encode(TALK)
    assert reason in caught.value.problem

import gc
import json
import weakref
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from schemas import PATTERNS, SCHEMAS, faults
from torch import Tensor

from sgl_engine import VLM, Request
from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.tool_stream import ToolCallStream
from sgl_engine.decoding import compiled as module
from sgl_engine.decoding.constraint import TokenConstraint
from sgl_engine.demo import demo_engine
from sgl_engine.errors import InvalidRequestError, ProcessorError
from sgl_engine.request import ToolChoice, ToolSpec
from sgl_engine.testing import tiny_vlm

Name = Literal["tiny", "bundled"]
MODELS: dict[Name, VLM] = {"tiny": tiny_vlm(), "bundled": demo_engine().small}
WIDTHS: dict[Name, int] = {"tiny": 272, "bundled": 640}  # of the logits: more than the tokenizers have tokens
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def argmax(logits: Tensor) -> int:
    return int(logits.argmax())


def constraint(
    grammar: str | None, budget: int, model: Name = "tiny", *, eos: frozenset[int] | None = None
) -> TokenConstraint:
    assert grammar is not None
    vlm = MODELS[model]
    return TokenConstraint(
        vlm.processor.tokenizer,
        vocab_size=WIDTHS[model],
        eos_token_ids=vlm.eos_token_ids if eos is None else eos,
        grammar=grammar,
        max_new_tokens=budget,
    )


def wishes(model: Name, seed: int, eager_for: str = "") -> Callable[[], Tensor]:
    """Random logits; tokens made of `eager_for`'s characters alone are wanted most, the end least."""
    random = torch.Generator().manual_seed(seed)
    vlm, width = MODELS[model], WIDTHS[model]
    bias = torch.zeros(width)
    for token in range(len(vlm.processor.tokenizer)):
        text = vlm.processor.tokenizer.decode([token])
        if text and set(text) <= set(eager_for):
            bias[token] = 8.0
    bias[list(vlm.eos_token_ids)] = -8.0 if eager_for else 0.0
    return lambda: 3 * torch.randn(width, generator=random) + bias


def generate(held: TokenConstraint, wish: Callable[[], Tensor], budget: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < budget and not held.finished:
        token = held.choose(wish(), argmax)
        if token is None:
            break
        ids.append(token)
    return ids


def unclosed(held: TokenConstraint, wish: Callable[[], Tensor], budget: int) -> list[int]:
    """The control: held to the grammar, but not to the budget."""
    ids: list[int] = []
    while len(ids) < budget and not held.finished:
        ids.append(argmax(held.restrict(wish())))
        held.accept(ids[-1])
    return ids


def text_of(model: Name, ids: list[int]) -> str:
    vlm = MODELS[model]
    return vlm.text([token for token in ids if token not in vlm.eos_token_ids])


def parsed(text: str) -> Any:
    """The JSON value of `text`; None for text that is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


@settings(max_examples=70, deadline=None)
@given(
    schema=SCHEMAS,
    model=st.sampled_from(["tiny", "bundled"]),
    seed=st.integers(0, 2**31),
    eager_for=st.sampled_from(["", "[", '{"', "a", "1", '",', "\\", "é"]),
    budget=st.integers(1, 160),
)
def test_json_is_whole_and_valid_within_any_budget(
    schema: dict[str, Any], model: Name, seed: int, eager_for: str, budget: int
) -> None:
    try:
        grammar = answer_grammar(Request((), response_schema=schema))
    except InvalidRequestError as error:
        assume("nsatisfiable" not in error.problem)
        raise
    try:
        held = constraint(grammar, budget, model)
    except InvalidRequestError as error:
        refused_budget, budget = budget, int(error.remedy.split("max_new_tokens to ")[1].split()[0])
        held = constraint(grammar, budget, model)  # the least that is named is enough
    else:
        refused_budget = 0
    assert refused_budget < budget
    ids = generate(held, wishes(model, seed, eager_for), budget)
    assert len(ids) <= budget
    assert faults(json.loads(text_of(model, ids)), schema) == []


def test_the_control_a_grammar_alone_leaves_half_answers() -> None:
    """And without a grammar there is no JSON at all."""
    grammar = answer_grammar(Request((), response_schema=PERSON))
    budget = 40
    half = [unclosed(constraint(grammar, budget), wishes("tiny", seed), budget) for seed in range(10)]
    free = [[argmax(wishes("tiny", seed)()) for _ in range(budget)] for seed in range(10)]
    whole = [generate(constraint(grammar, budget), wishes("tiny", seed), budget) for seed in range(10)]
    assert all(parsed(text_of("tiny", ids)) is None for ids in free)
    assert sum(parsed(text_of("tiny", ids)) is None for ids in half) >= 5
    assert all(faults(parsed(text_of("tiny", ids)), PERSON) == [] for ids in whole)


def test_what_the_model_wants_is_taken_while_there_is_room() -> None:
    wanted = '{"name": "Zoë \\"Z\\"", "age": 42}'
    ids = list(MODELS["tiny"].processor.tokenizer(wanted).input_ids)
    held = constraint(answer_grammar(Request((), response_schema=PERSON)), len(ids))
    taken = []
    for token in ids:
        logits = torch.zeros(272)
        logits[token] = 1.0
        taken.append(held.choose(logits, argmax))
    assert taken == ids
    assert held.finished


TOOLS = (
    ToolSpec("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    ToolSpec('näh"x', "", {"properties": {"who": {"enum": ["Me", "you"]}, "n": {"type": "number"}}}),
)


def read(text: str) -> ToolCallStream:
    stream = ToolCallStream()
    stream.push(text)
    stream.flush()
    return stream


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from(["tiny", "bundled"]),
    choice=st.sampled_from(["any", "auto"]),
    name=st.sampled_from([None, "add", 'näh"x']),
    parallel=st.booleans(),
    seed=st.integers(0, 2**31),
    eager_for=st.sampled_from(["", "<tool_call>", "a1", "\n<"]),
    budget=st.integers(75, 300),
)
def test_calls_are_whole_and_valid_within_any_budget(
    model: Name, choice: ToolChoice, name: str | None, parallel: bool, seed: int, eager_for: str, budget: int
) -> None:
    request = Request((), tools=TOOLS, tool_choice=choice, tool_name=name, parallel_tool_calls=parallel)
    ids = generate(constraint(answer_grammar(request), budget, model), wishes(model, seed, eager_for), budget)
    answer = read(text_of(model, ids))
    assert len(ids) <= budget
    assert answer.invalid_tool_calls == []
    schemas = {tool.name: tool.parameters for tool in TOOLS if name in {None, tool.name}}
    for call in answer.tool_calls:
        assert faults(call.arguments, dict(schemas[call.name])) == []
    if choice == "any":
        assert answer.tool_calls
        assert answer.text == ""
    if not parallel:
        assert len(answer.tool_calls) <= 1


def begin(held: TokenConstraint, text: str) -> None:
    for token in MODELS["tiny"].processor.tokenizer(text).input_ids:
        held.choose(torch.nn.functional.one_hot(torch.tensor(token), 272).float(), argmax)


def test_auto_leaves_text_alone_and_holds_calls() -> None:
    grammar = answer_grammar(Request((), tools=TOOLS))
    free, inside = constraint(grammar, 200), constraint(grammar, 200)
    begin(free, "I say <tool_cal")
    assert int(torch.isfinite(free.restrict(torch.zeros(272))).sum()) > 100
    begin(inside, "I say <tool_call>")
    [only] = torch.isfinite(inside.restrict(torch.zeros(272))).nonzero()[:, 0].tolist()
    assert text_of("tiny", [only]) == "\n"


def test_auto_opens_no_call_that_cannot_be_closed() -> None:
    grammar = answer_grammar(Request((), tools=TOOLS))
    opened = []
    for budget in (60, 90):
        held = constraint(grammar, budget)
        begin(held, "<tool_call")
        closing_bracket = int(MODELS["tiny"].processor.tokenizer(">").input_ids[0])
        logits = torch.zeros(272)
        logits[closing_bracket], logits[closing_bracket + 1] = 2.0, 1.0
        opened.append(held.choose(logits, argmax) == closing_bracket)
    assert opened == [False, True]  # the shortest call is 10 for the tag, and 58 for the rest


def test_calls_end_when_no_other_one_fits() -> None:
    request = Request((), tools=TOOLS[:1], tool_choice="any")
    budget = 75
    ids = generate(constraint(answer_grammar(request), budget), wishes("tiny", 0, "\n<"), budget)
    assert len(read(text_of("tiny", ids)).tool_calls) == 1


def test_without_an_end_token_the_answer_ends_with_its_last_bracket() -> None:
    held = constraint(answer_grammar(Request((), response_schema=PERSON)), 60, eos=frozenset())
    ids = generate(held, wishes("tiny", 1), 60)
    assert held.finished or len(ids) == 60
    assert faults(json.loads(text_of("tiny", ids)), PERSON) == []


@pytest.mark.parametrize("model", ["tiny", "bundled"])
def test_no_control_or_padding_token_is_ever_allowed(model: Name) -> None:
    tokenizer = MODELS[model].processor.tokenizer
    refused = {*tokenizer.all_special_ids, *range(len(tokenizer), WIDTHS[model])}
    refused -= MODELS[model].eos_token_ids
    assert len(refused) > 10
    for request in (Request((), response_schema={"type": "object"}), Request((), tools=TOOLS)):
        held, wish = constraint(answer_grammar(request), 80, model), wishes(model, 3)
        for _ in range(70):
            if held.finished:
                break
            allowed = held.restrict(wish())
            assert not torch.isfinite(allowed[list(refused)]).any()
            held.choose(allowed, argmax)


def test_half_characters_are_allowed() -> None:
    held = constraint(answer_grammar(Request((), response_schema={"enum": ["é"]})), 4)
    assert generate(held, wishes("tiny", 0), 4) == MODELS["tiny"].processor.tokenizer('"é"').input_ids


def test_a_half_character_is_finished_when_the_budget_ends() -> None:
    held = constraint(answer_grammar(Request((), response_schema={"type": "string"})), 4)
    ids = generate(held, wishes("tiny", 0, "é"), 4)
    assert json.loads(text_of("tiny", ids)) is not None


def test_capitals_survive_a_tokenizer_that_lowers_them() -> None:
    """The bundled pair's would make "name" of the forced "Name"."""
    schema = {"type": "object", "properties": {"Name": {"enum": ["ÄB"]}}, "required": ["Name"]}
    ids = generate(
        constraint(answer_grammar(Request((), response_schema=schema)), 40, "bundled"),
        wishes("bundled", 0),
        40,
    )
    assert json.loads(text_of("bundled", ids)) == {"Name": "ÄB"}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_way_to_end_a_pattern_is_found(pattern: str) -> None:
    schema = {
        "type": "object",
        "properties": {"p": {"type": "string", "pattern": pattern}},
        "required": ["p"],
    }
    held = constraint(answer_grammar(Request((), response_schema=schema)), 30)
    assert faults(json.loads(text_of("tiny", generate(held, wishes("tiny", 0, "a1"), 30))), schema) == []


@pytest.mark.parametrize(
    "format_", ["date-time", "time", "date", "duration", "email", "ipv4", "ipv6", "uuid", "uri"]
)
def test_a_way_to_end_a_format_is_found(format_: str) -> None:
    schema = {"type": "array", "items": {"type": "string", "format": format_}, "minItems": 2}
    held = constraint(answer_grammar(Request((), response_schema=schema)), 120)
    assert len(json.loads(text_of("tiny", generate(held, wishes("tiny", 0), 120)))) >= 2


def test_endless_schemas_are_refused() -> None:
    schema = {
        "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}},
        "$ref": "#/$defs/N",
    }
    with pytest.raises(InvalidRequestError, match="endless"):
        constraint(answer_grammar(Request((), response_schema=schema)), 100)


def test_too_small_a_budget_is_named() -> None:
    needed = len('{"name":"","age":1}')
    grammar = answer_grammar(Request((), response_schema=PERSON))
    with pytest.raises(InvalidRequestError, match=rf"has {needed} tokens, but {needed - 1} .*to {needed} or"):
        constraint(grammar, needed - 1)
    assert generate(constraint(grammar, needed), wishes("tiny", 0), needed)


def test_a_grammar_that_is_none() -> None:
    with pytest.raises(InvalidRequestError, match="cannot be held"):
        constraint("start: nothing", 10)


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ProcessorError, match="object is not a fast one"):
        TokenConstraint(object(), vocab_size=3, eos_token_ids=(), grammar="", max_new_tokens=3)


def test_logits_are_left_as_they_are() -> None:
    held = constraint(answer_grammar(Request((), response_schema=PERSON)), 60)
    logits = torch.randn(272)
    before = logits.clone()
    held.choose(logits, argmax)
    assert torch.equal(logits, before)


def test_tokenizers_are_prepared_once_and_let_go() -> None:
    vlm = tiny_vlm()
    grammar = answer_grammar(Request((), response_schema=PERSON))
    assert grammar is not None

    def build(vlm: VLM) -> None:
        TokenConstraint(
            vlm.processor.tokenizer, vocab_size=272, eos_token_ids=(), grammar=grammar, max_new_tokens=50
        )

    build(vlm)
    [first] = module._TOKENIZERS[vlm.processor.tokenizer].values()
    build(vlm)
    assert list(module._TOKENIZERS[vlm.processor.tokenizer].values()) == [first]
    vlm.processor.tokenizer.add_tokens(["<new>"])
    build(vlm)
    assert len(module._TOKENIZERS[vlm.processor.tokenizer]) == 2
    gone = weakref.ref(vlm.processor.tokenizer)
    del vlm
    gc.collect()
    assert gone() is None

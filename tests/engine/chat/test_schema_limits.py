"""What schemas and patterns may cost. Times end a hang; nothing else depends on them."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_engine import EngineConfig, Request, SGLEngine
from sgl_engine.chat import grammar_trial
from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.grammar_probe import byte_tokenizer, grammar_problem
from sgl_engine.chat.grammar_trial import written_out
from sgl_engine.config import LimitsConfig
from sgl_engine.decoding import constraint
from sgl_engine.decoding.compiled import Grammars, grammars_of
from sgl_engine.decoding.constraint import TokenConstraint
from sgl_engine.decoding.ending import Allowance, SpentError, find_closings
from sgl_engine.decoding.example_text import hints
from sgl_engine.errors import DeadlineError, EngineError, InvalidRequestError, RequestCancelledError
from sgl_engine.request import ToolSpec
from sgl_engine.response import Response
from sgl_engine.testing import tiny_vlm

VLM = tiny_vlm()
ENDLESS = {"type": "integer", "multipleOf": 999_983}
"""41 characters that keep llguidance 1.9 busy for minutes."""
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def ask(schema: Any, **wishes: Any) -> Request:
    return replace(Request.ask("What is it?"), response_schema=schema, **wishes)


def run_within(code: str, seconds: float) -> str:
    """Runs a program that is killed when it hangs, and may have 3 GB."""
    memory = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
    return subprocess.run(
        [sys.executable, "-c", memory + code], capture_output=True, text=True, timeout=seconds, check=True
    ).stdout


@pytest.mark.parametrize(
    "pattern", ["^(a?){40}a{40}$", "^(([a-z])+.)+[A-Z]([a-z])+$", "((a{60000}){60000}){1}"]
)
@pytest.mark.parametrize("where", ["pattern", "examples"])
def test_no_pattern_is_run_by_a_matcher_that_goes_back(pattern: str, where: str) -> None:
    schema = {"pattern": pattern} if where == "pattern" else {"examples": [{"pattern": pattern}]}
    text = f"start: %json {json.dumps({'type': 'string', **schema})}"
    code = f"from sgl_engine.decoding.example_text import hints; print(len(b''.join(hints({text!r}))))"
    assert int(run_within(code, 120)) <= 600


def test_hints_are_bounded_together() -> None:
    many = json.dumps([{"pattern": f"^a{{{400 + index}}}$"} for index in range(100)])
    assert 0 < sum(map(len, hints(many))) < 20_000
    assert len(hints(json.dumps([{"pattern": f"^a{{{index}}}$"} for index in range(100)]))) == 100


@given(
    st.recursive(
        st.sampled_from([("a", 1), (r"\d", 1), ("[^]a-z{9}]", 1), (r"\p{L}", 1), (r"\{", 1), ("x+", 1)]),
        lambda parts: st.one_of(
            st.tuples(parts, parts).map(lambda two: (two[0][0] + two[1][0], two[0][1] + two[1][1])),
            st.tuples(parts, st.integers(1, 30)).map(
                lambda one: (f"({one[0][0]}){{{one[1]}}}", one[0][1] * one[1])
            ),
            st.tuples(parts, parts).map(lambda two: (f"({two[0][0]}|{two[1][0]})*", two[0][1] + two[1][1])),
        ),
    )
)
def test_a_pattern_is_as_large_as_its_repetitions_make_it(case: tuple[str, int]) -> None:
    pattern, size = case
    assert written_out(pattern) == size


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("a{3}", 3),
        ("(a{3}){10}", 30),
        ("(ab{2}){2,5}c", 16),
        ("a{3,}", 3),
        (")a", 2),
        ("((((", 0),
        ("{", 1),
    ],
)
def test_sizes_of_patterns(pattern: str, size: int) -> None:
    assert written_out(pattern) == size


@pytest.mark.parametrize("where", ["pattern", "patternProperties"])
def test_large_patterns_are_refused_before_they_are_compiled(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_engine.chat.grammar.first_problem", lambda *_: pytest.fail("compiled"))

    def schema(pattern: str) -> dict[str, Any]:
        if where == "pattern":
            return {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "null"}]}
        return {"type": "object", "patternProperties": {pattern: {}}}

    with pytest.raises(InvalidRequestError, match=r"written out 6,002 .*5,000 .*max_pattern_size"):
        answer_grammar(ask(schema("^((a{10}){60}){10}$")))
    with pytest.raises(InvalidRequestError, match=r"1,000,000,000,000 characters"):
        answer_grammar(ask(schema("(" * 99 + "a" + "{60000})" * 99)))
    with pytest.raises(InvalidRequestError, match=r"of 1001 characters; 1000 .*max_pattern_chars"):
        answer_grammar(ask(schema("a" * 1001)))
    roomy = LimitsConfig(max_pattern_size=6_002, max_pattern_chars=2_000)
    monkeypatch.setattr("sgl_engine.chat.grammar.first_problem", lambda *_: None)
    assert answer_grammar(ask(schema("^((a{10}){60}){10}$")), roomy)
    assert answer_grammar(ask(schema("a" * 1001)), roomy)


def test_schemas_are_bounded_together() -> None:
    tools = tuple(
        ToolSpec(f"t{index}", "", {"properties": {f"k{key}": {"type": "string"} for key in range(100)}})
        for index in range(3)
    )
    size = len(json.dumps({**tools[0].parameters, "type": "object"}))
    request = replace(Request.ask("Which?"), tools=tools)
    with pytest.raises(
        InvalidRequestError, match=rf"'t2' has {size} .*before it {3 * size}; .*max_schema_chars"
    ):
        answer_grammar(request, LimitsConfig(max_schema_chars=3 * size - 1))
    assert answer_grammar(request, LimitsConfig(max_schema_chars=3 * size))


def test_much_in_few_characters_is_counted() -> None:
    """The same schemas are refused on every machine: by count, not by time."""
    wide = {"enum": [f"v{index}" for index in range(60_000)]}
    limits = LimitsConfig(max_schema_chars=10**6, schema_process=False)
    with pytest.raises(InvalidRequestError, match=r"too big"):
        answer_grammar(ask(wide), limits)
    assert answer_grammar(ask({"enum": wide["enum"][:5_000]}), limits)
    long = {"type": "object", "properties": {f"k{index}": {"type": "string"} for index in range(5_000)}}
    with pytest.raises(InvalidRequestError, match=r"too big"):
        answer_grammar(ask(long), limits)


def test_what_never_ends_is_stopped() -> None:
    limits = LimitsConfig(max_schema_s=0.5)
    before = threading.active_count()
    for _ in range(2):  # and it is not taken for known
        with pytest.raises(InvalidRequestError, match=r"response schema, \d+ .*within 0.5 s .*max_schema_s"):
            answer_grammar(ask(ENDLESS), limits)
    tools = (ToolSpec("good", "", PERSON), ToolSpec("bad", "", {"properties": {"n": ENDLESS}}))
    with pytest.raises(InvalidRequestError, match="'bad', "):
        answer_grammar(replace(Request.ask("Which?"), tools=tools), limits)
    assert threading.active_count() == before


def test_a_deadline_and_a_cancellation_end_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(grammar_trial.subprocess, "Popen", noted)
    patient = LimitsConfig(max_schema_s=600)
    with pytest.raises(DeadlineError, match="while its schemas were compiled"):
        answer_grammar(ask(ENDLESS, deadline=time.monotonic() + 0.3), patient)
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    with pytest.raises(RequestCancelledError, match="while its schemas were compiled"):
        answer_grammar(ask(ENDLESS, cancel=cancel), patient)
    timer.join()
    assert [process.poll() is not None for process in started] == [True, True]


def test_schemas_are_tried_once_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"type": "object", "properties": {"tried once": {"type": "string"}}}
    answer_grammar(ask(first))
    monkeypatch.setattr(grammar_trial.subprocess, "Popen", lambda *_, **__: pytest.fail("tried again"))
    assert answer_grammar(ask(json.loads(json.dumps(first))))
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        answer_grammar(ask({**first, "required": ["tried once"]}))


def test_a_large_job_reaches_a_process_that_is_slow_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_trial, "_LOOK_UP_S", 1e-3)  # looked after before it reads anything
    schema = {"type": "string", "description": "d" * 300_000}
    assert answer_grammar(ask(schema), LimitsConfig(max_schema_chars=400_000))


def test_without_a_process_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "properties": {"never tried": {"type": "string"}}}
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError, match="No process can be started .*schema_process=False"):
        answer_grammar(ask(schema))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="No process can be started .*ended with 1"):
        answer_grammar(ask(schema))
    assert answer_grammar(ask(schema), LimitsConfig(schema_process=False))


def test_what_the_process_says_is_what_would_be_said_here() -> None:
    for schema in ({"type": "string"}, {"type": "alien"}, {"$ref": "#/nope"}, {"enum": []}):
        grammar = f"start: %json {json.dumps(schema)}\n"
        [found] = grammar_trial._try_out([grammar], 60, lambda: None)
        assert found == grammar_problem(grammar)


def test_grammars_are_compiled_outside_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    compile_ = Grammars._compile

    def noted(self: Grammars, *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return compile_(self, *args)

    monkeypatch.setattr(Grammars, "_compile", noted)
    small, large = tiny_vlm(size="small"), tiny_vlm(size="large")
    with SGLEngine(small, large, EngineConfig().escalating("always")) as engine:
        engine.run(ask(PERSON, max_new_tokens=40))
        engine.run(ask(PERSON, max_new_tokens=40))
    here = threading.current_thread().name
    assert threads == [here, here]  # once for each model's tokenizer


def test_a_bad_schema_fails_alone() -> None:
    good = ask(PERSON, max_new_tokens=40)
    with SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large")) as engine:
        want = engine.run(good)
        outcomes = engine.run_batch([good, ask({"type": "alien"}), ask({"enum": ["a" * 70_000]}), good])
    assert [isinstance(outcome, InvalidRequestError) for outcome in outcomes] == [False, True, True, False]
    assert [outcome.text for outcome in outcomes if isinstance(outcome, Response)] == [want.text] * 2


def test_compiled_grammars_are_kept_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm()
    grammars = grammars_of(vlm.processor.tokenizer, 272, vlm.eos_token_ids)
    texts = [
        answer_grammar(ask({"enum": [name]}), LimitsConfig(schema_process=False)) or "" for name in "abc"
    ]
    first = grammars.get(texts[0])
    assert grammars.get(texts[0]) is first
    monkeypatch.setattr("sgl_engine.decoding.compiled._MAX_CHARS", len(texts[0]) * 2 + 1)
    for text in texts[1:]:
        grammars.get(text)
    assert grammars.get(texts[2]) is grammars.get(texts[2])
    assert grammars.get(texts[0]) is not first


def test_an_allowance_ends_a_search() -> None:
    from llguidance import LLMatcher

    asked: list[int] = []
    matcher = LLMatcher(byte_tokenizer(), "start: /[a-z]{300}[0-9]/", log_level=0)
    with pytest.raises(SpentError):
        list(find_closings(matcher, max_steps=4000, allowance=Allowance(50, lambda: asked.append(1))))
    assert 40 <= len(asked) <= 60
    assert next(find_closings(matcher, max_steps=4000))[-1:].isdigit()


def test_a_long_list_of_properties_can_be_answered() -> None:
    schema = {"type": "object", "properties": {f"k{index}": {"type": "string"} for index in range(1_500)}}
    grammar = answer_grammar(ask(schema), LimitsConfig(schema_process=False)) or ""
    compiled = grammars_of(VLM.processor.tokenizer, 272, VLM.eos_token_ids).get(grammar)
    assert compiled.closings[-1] == b"{}"
    assert compiled.over_bytes.validate_tokens(list(b'{"k1499":"a"}')) == 13


@pytest.mark.parametrize("allowance", [0, 3, 10_000])
def test_answers_are_whole_whatever_the_allowance_is(allowance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "_ALLOWANCE", allowance)
    vlm = tiny_vlm()
    schema = {
        "type": "object",
        "properties": {"p": {"type": "string", "pattern": "^(ab|c){2,}x$"}},
        "required": ["p"],
    }
    for seed in range(5):
        held = TokenConstraint(
            vlm.processor.tokenizer,
            vocab_size=272,
            eos_token_ids=vlm.eos_token_ids,
            grammar=answer_grammar(ask(schema), LimitsConfig(schema_process=False)) or "",
            max_new_tokens=40,
        )
        random, ids = torch.Generator().manual_seed(seed), []
        while not held.finished:
            token = held.choose(torch.randn(272, generator=random), lambda logits: int(logits.argmax()))
            if token is None:
                break
            ids.append(token)
        assert set(json.loads(vlm.text([token for token in ids if token not in vlm.eos_token_ids]))) == {"p"}

"""What texts, stop strings and chat templates may cost. Times end a hang; nothing else depends on them."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_engine import Request
from sgl_engine.chat import interruptible as module
from sgl_engine.chat.interruptible import interruptible
from sgl_engine.chat.text_stream import _CALL, HALF, TextStream
from sgl_engine.config import LimitsConfig
from sgl_engine.errors import (
    DeadlineError,
    InvalidRequestError,
    ProcessorError,
    PromptTooLongError,
    RequestCancelledError,
)
from sgl_engine.prompt import texts as measured
from sgl_engine.prompt.texts import check_context, check_texts
from sgl_engine.request import Message, ToolSpec
from sgl_engine.testing import tiny_vlm

VLM = tiny_vlm()
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


class SlowStream:
    """The oracle: everything is looked for in everything, at every token."""

    def __init__(self, stop: Sequence[str], *, with_calls: bool) -> None:
        self.stop = [string for string in stop if string]
        self.with_calls = with_calls
        self.sent = 0
        self.text = ""
        self.stopped = False

    def push(self, text: str) -> str:
        self.text = text
        whole = text.rstrip(HALF)
        free = _CALL.sub(lambda call: "\0" * len(call[0]), whole) if self.with_calls else whole
        ends = [free.index(string) for string in self.stop if string in free]
        if ends:
            self.stopped = True
            self.text = text[: min(ends)]
            return self.send(len(self.text))
        starts = [string[:size] for string in self.stop for size in range(len(string))]
        return self.send(
            len(whole) - max((len(start) for start in starts if free.endswith(start)), default=0)
        )

    def send(self, upto: int) -> str:
        delta = self.text[self.sent : upto]
        self.sent = max(self.sent, upto)
        return delta


PIECES = st.sampled_from(["a", "b", "ab", "aab", "<tool_call>", "</tool_call>", "<tool_", HALF, "é", ""])


@settings(max_examples=300)
@given(
    pieces=st.lists(PIECES, max_size=12),
    stop=st.lists(st.text("ab<_té", max_size=5), max_size=4),
    with_calls=st.booleans(),
)
def test_stop_strings_are_found_where_a_search_of_everything_finds_them(
    pieces: list[str], stop: list[str], with_calls: bool
) -> None:
    texts = ["".join(pieces[:count]).replace(HALF + "é", "é") for count in range(1, len(pieces) + 1)]
    fast = TextStream(lambda ids: texts[len(ids) - 1], stop, with_calls=with_calls)
    slow = SlowStream(stop, with_calls=with_calls)
    for count, text in enumerate(texts, start=1):
        assert fast.push(range(count)) == slow.push(text)
        assert (fast.text, fast.stopped) == (slow.text, slow.stopped)
        if fast.stopped:
            break


class Counted(str):
    """Counts how often one of its characters is looked at."""

    __slots__ = ("looks",)
    looks: int

    def __getitem__(self, at: Any) -> str:
        self.looks = getattr(self, "looks", 0) + 1
        return super().__getitem__(at)


@pytest.mark.parametrize("tail", ["", "b"])
def test_a_character_is_compared_a_few_times_however_long_the_stop_string_is(tail: str) -> None:
    size = 20_000
    string = Counted("a" * size + tail)
    text = ("a" * (size - 1) + "c") * 3
    stream = TextStream(lambda ids: text[: 100 * len(ids)], (string,))
    for count in range(1, len(text) // 100 + 1):
        stream.push(range(count))
    assert not stream.stopped
    assert string.looks <= 4 * (len(text) + len(string))


def refused(match: str, limits: LimitsConfig | None = None, **wishes: Any) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        VLM.encode(replace(Request.ask("What?"), **wishes), limits)


def test_stop_strings_are_bounded() -> None:
    refused(r"65 stop strings; 64 .*max_stop_strings", stop=tuple(str(index) for index in range(65)))
    refused(r"'aaa.* has 1001 characters; 1000 .*max_stop_chars", stop=("b", "a" * 1001))
    refused(r"2 stop strings; 1 are", LimitsConfig(max_stop_strings=1), stop=("a", "b"))
    for wrong in ("abc", None, (5,)):
        refused(r"stop is ", stop=wrong)
    check_texts(replace(Request.ask("What?"), stop=("a" * 1000,) * 64), LimitsConfig())


def test_all_texts_are_bounded_together() -> None:
    tool = ToolSpec("t", "d" * 400, {})
    request = replace(Request.ask("a" * 500), tools=(tool,))
    with pytest.raises(PromptTooLongError, match=r"have 9\d\d characters; 900 .*max_text_chars"):
        check_texts(request, LimitsConfig(max_text_chars=900))
    check_texts(replace(request, tool_choice="none"), LimitsConfig(max_text_chars=900))


class CountedTokenizer:
    """A tokenizer that notes what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.chars = 0

    @property
    def backend_tokenizer(self) -> "CountedTokenizer":
        return self

    def encode(self, text: str, **options: Any) -> Any:
        self.chars += len(text)
        return self._tokenizer.backend_tokenizer.encode(text, **options)


def measure(text: str, context: int, tokenizer: Any, still_wanted: Callable[[], None] = lambda: None) -> None:
    request = Request.ask(text)
    check_context(request, tokenizer, context_tokens=context, name="m", still_wanted=still_wanted)


@pytest.mark.parametrize("text", ["word " * 400_000, "x" * 2_000_000, "👩‍👩‍👧‍👦" * 200_000])
def test_a_long_text_is_tokenized_as_far_as_it_fits(text: str) -> None:
    vlm = tiny_vlm()
    counted = CountedTokenizer(vlm.processor.tokenizer)
    with pytest.raises(
        PromptTooLongError, match=r"The first .* of [\d,]+ characters .*context of m is 4,096"
    ):
        measure(text, 4096, counted)
    assert counted.chars <= 40_000
    with pytest.raises(PromptTooLongError, match="The first"):
        vlm.encode(Request.ask(text))
    with pytest.raises(DeadlineError, match="while its texts were measured"):
        vlm.encode(Request.ask(text, deadline=time.monotonic() - 1))


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab é\n<|👩x1", min_size=200, max_size=1500), context=st.integers(20, 400))
def test_nothing_is_refused_that_fits(text: str, context: int) -> None:
    tokenizer = VLM.processor.tokenizer
    tokens = len(tokenizer(text, add_special_tokens=False).input_ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "_PIECE_CHARS", 64)
        try:
            measure(text, context, tokenizer)
            accepted = True
        except PromptTooLongError:
            accepted = False
    assert accepted or tokens >= context
    assert (
        not accepted or tokens < 3 * context + 64 or len(text) <= context
    )  # most of what is too long is refused


@pytest.mark.parametrize("state", ["padding", "truncation"])
def test_what_others_have_set_in_a_tokenizer_refuses_nothing_and_changes_no_text(state: str) -> None:
    """Padding and truncation are its state; measuring and decoding do not wait for those who change it."""
    vlm = tiny_vlm()
    tokenizer = vlm.processor.tokenizer
    text = tokenizer.eos_token * 100  # one token each, and more characters than the context has tokens
    ids = tokenizer(text, add_special_tokens=False).input_ids
    written = [*ids, *tokenizer("a b", add_special_tokens=False).input_ids]
    said = vlm.text(written), vlm.text(written, skip_special=False)
    backend = tokenizer.backend_tokenizer
    if state == "padding":
        backend.enable_padding(length=4096)
    else:
        backend.enable_truncation(8)
    assert len(backend.encode(text, add_special_tokens=False).ids) == {"padding": 4096}.get(
        state, 8
    )  # control
    measure(text, 400, tokenizer)
    assert said == (vlm.text(written), vlm.text(written, skip_special=False))
    assert "a b" in said[0]


def test_what_templates_leave_out_is_not_counted() -> None:
    vlm = tiny_vlm()
    thought = Message("assistant", ("word " * 20_000,))
    request = Request((Message("user", ("Hi" + " " * 50_000,)), thought, Message("user", ("And?",))))
    check_context(request, vlm.processor.tokenizer, context_tokens=4096, name="m", still_wanted=lambda: None)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "sgl-template"]


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm()
    vlm.processor.chat_template = ENDLESS
    with pytest.raises(DeadlineError, match="while the chat template ran"):
        vlm.encode(Request.ask("Hi", deadline=time.monotonic() + 0.3))
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    with pytest.raises(RequestCancelledError, match="while the chat template ran"):
        vlm.encode(replace(Request.ask("Hi"), cancel=cancel))
    timer.join()
    monkeypatch.setattr(module, "MAX_S", 0.2)
    with pytest.raises(ProcessorError, match=r"not done after 0.2 s"):
        vlm.encode(Request.ask("Hi"))
    assert threads() == []
    with vlm.processing():  # and nobody holds the processor
        pass


DOUBLING = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x {} n.x %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 10**10 }}", "10000000000 characters"),
        ("{{ [0] * 10**10 }}", "10000000000 characters"),
        (DOUBLING.replace("{}", "~"), "67108864 characters"),
        (DOUBLING.replace("{}", "+"), "67108864 characters"),
        ("{{ 10 ** (10 ** 10) }}", "more than 65536 bits"),
        (
            DOUBLING.replace("'a'", "2**65000").replace("{}", "*"),
            "more than 65536 bits",
        ),
        ("{{ '%9999999999d' % 1 }}", "a width that is too large"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without an end"),
    ],
)
def test_what_a_template_asks_for_is_bounded(template: str, reason: str) -> None:
    vlm = tiny_vlm()
    vlm.processor.chat_template = template
    with pytest.raises(ProcessorError, match=reason):
        vlm.encode(Request.ask("Hi"))


def test_a_template_that_runs_out_of_memory_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    def spend(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr("sgl_engine.chat.template.run_template", spend)
    with pytest.raises(ProcessorError, match="more memory than there is"):
        tiny_vlm().encode(Request.ask("Hi"))


def test_operators_of_a_bounded_template_are_those_of_any() -> None:
    vlm = tiny_vlm()
    vlm.processor.chat_template = "{{ 'ab' * 3 ~ 2 ** 10 ~ ('%s-%d' % ('x', 7)) ~ ('a' + 'b') ~ (3 * 4) }}"
    assert vlm.text(vlm.encode(Request.ask("Hi")).input_ids[0].tolist()) == "ababab1024x-7ab12"


def test_what_ends_comes_back_as_it_is() -> None:
    assert interruptible(lambda: 7, lambda: None) == 7

    def fails() -> int:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        interruptible(fails, lambda: None)
    assert threads() == []


def test_no_handler_of_the_work_catches_the_stop() -> None:
    caught: list[str] = []

    def stubborn() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception as error:  # noqa: BLE001
                caught.append(type(error).__name__)

    def unwanted() -> None:
        raise RuntimeError("unwanted")

    with pytest.raises(RuntimeError, match="unwanted"):
        interruptible(stubborn, unwanted)
    assert (caught, threads()) == ([], [])

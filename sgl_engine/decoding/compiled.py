"""Grammars as llguidance compiles them for a tokenizer: once for each content, and copied for each answer."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillBuilding
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sgl_engine.chat.grammar_probe import byte_tokenizer, parser_limits
from sgl_engine.decoding.ending import Allowance, SpentError, find_closings
from sgl_engine.decoding.example_text import hints
from sgl_engine.errors import InvalidRequestError, ProcessorError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_SEARCH_STEPS = 4_000
_ALLOWANCE = 20_000
_LOOK_UP_S = 0.02  # how soon somebody who waits notices that nobody waits for the answer
_MAX_CHARS = 1_000_000
_NO_END = {
    "content": "<no end of sequence>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
_TOKENIZERS: WeakKeyDictionary[Any, dict[tuple[int, ...], Grammars]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class CompiledGrammar:
    """A grammar before an answer's first token.

    Attributes:
        over_tokens: Over the model's tokens; to be copied, not advanced.
        over_bytes: The same over single bytes.
        hints: How values may go on and end that are hard to end.
        closings: Ways to satisfy it from the start, the quickly found first.
    """

    over_tokens: LLMatcher
    over_bytes: LLMatcher
    hints: tuple[bytes, ...]
    closings: tuple[bytes, ...]


class Grammars:
    """The compiled grammars of one tokenizer; of old ones, as many as have a million characters are kept.

    Args:
        tokenizer: The model's, as llguidance sees it.
    """

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self._compiled: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, grammar: str, still_wanted: Callable[[], None] = lambda: None) -> CompiledGrammar:
        """Looks a grammar up, or compiles it.

        Args:
            grammar: From ``sgl_engine.chat.grammar.answer_grammar``.
            still_wanted: Called now and then while it is compiled; what it raises ends the wait.

        Raises:
            InvalidRequestError: The grammar is none.
        """
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found
        compiled = self._compile(grammar, still_wanted)
        with self._lock:
            self._compiled[grammar] = compiled
            while sum(map(len, self._compiled)) > _MAX_CHARS and len(self._compiled) > 1:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, grammar: str, still_wanted: Callable[[], None]) -> CompiledGrammar:
        tokens = _matcher(self.tokenizer, grammar, still_wanted)
        spelt = _matcher(byte_tokenizer(), grammar, still_wanted)
        examples = hints(grammar)
        closings: list[bytes] = []
        search = find_closings(
            spelt,
            hints=examples,
            max_steps=_SEARCH_STEPS,
            allowance=Allowance(_ALLOWANCE, still_wanted),
        )
        with suppress(SpentError):  # those that were found are kept
            closings.extend(search)
        return CompiledGrammar(tokens, spelt, examples, tuple(closings))


def grammars_of(tokenizer: Any, vocab_size: int, eos_token_ids: Collection[int]) -> Grammars:
    """The grammars of a tokenizer, which is built for llguidance once: 150,000 tokens take a second.

    Args:
        tokenizer: The model's, a fast one of transformers.
        vocab_size: Width of the model's logits, which may be padded beyond the tokenizer's tokens.
        eos_token_ids: What ends an answer; may be empty.

    Raises:
        ProcessorError: It is not a fast one.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ProcessorError(
            f"The tokenizer {type(tokenizer).__name__} is not a fast one, so answers cannot be constrained.",
            remedy="Use a model that comes with a tokenizer.json.",
        )
    key = (vocab_size, len(tokenizer), *sorted(eos_token_ids))
    with _LOCK:
        built = _TOKENIZERS.setdefault(tokenizer, {})
        if key not in built:
            built[key] = Grammars(_build_tokenizer(tokenizer, vocab_size, frozenset(eos_token_ids)))
        return built[key]


def _build_tokenizer(tokenizer: Any, vocab_size: int, eos: frozenset[int]) -> LLTokenizer:
    from llguidance import LLTokenizer

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["padding"] = described["truncation"] = None
    if not eos:  # llguidance needs one
        described["added_tokens"].append(_NO_END | {"id": len(tokenizer)})
        return LLTokenizer(
            json.dumps(described), n_vocab=max(vocab_size, len(tokenizer) + 1), eos_token=len(tokenizer)
        )
    return LLTokenizer(json.dumps(described), n_vocab=max(vocab_size, len(tokenizer)), eos_token=sorted(eos))


def _matcher(tokenizer: LLTokenizer, grammar: str, still_wanted: Callable[[], None]) -> LLMatcher:
    """Builds a matcher in a thread of its own, which is left behind where nobody waits for it any more."""
    built: Future[LLMatcher] = Future()

    def build() -> None:
        from llguidance import LLMatcher

        try:
            built.set_result(LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits()))
        except Exception as error:  # noqa: BLE001  # is raised where it is waited for
            built.set_exception(error)

    still_wanted()
    threading.Thread(target=build, name="sgl-grammar", daemon=True).start()
    while True:
        try:
            matcher = built.result(timeout=_LOOK_UP_S)
        except StillBuilding as error:
            if built.done() and built.exception() is error:  # a time-out of its own
                raise
            still_wanted()
        else:
            check_matcher(matcher)
            return matcher


def check_matcher(matcher: LLMatcher) -> None:
    """Raises InvalidRequestError where a matcher has failed: it does not do so itself."""
    if matcher.is_error():
        reason = matcher.get_error().partition("<state>")[0].strip().replace("\n", " ")
        raise InvalidRequestError(
            f"The answer cannot be held to its grammar ({reason:.300}).",
            remedy="Use a simpler schema.",
        )

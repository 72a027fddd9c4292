"""What llguidance is allowed, and the program that tries a grammar out where it can be stopped.

llguidance counts its own work and gives up, but not everywhere: `{"type": "integer", "multipleOf": 999983}`
and the meeting of thirty patterns keep it busy for minutes. So it reads a caller's schema first in a process
that ends itself. This file is that process's program, and imports nothing but llguidance.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

END = 256
"""The end-of-sequence token of the byte grammar; its other tokens are the bytes."""

_MAX_BYTES = 2**30
WAIT_FACTOR = 10
"""How much longer than it may compute the process may be there, on a busy machine."""
PROGRAM = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job.pop('path'); "
    "from sgl_engine.chat.grammar_probe import probe; probe(**job)"
)
"""What the process is started with; the job comes on its standard input."""


@functools.cache
def parser_limits() -> LLParserLimits:
    """How much work a grammar may be, counted, so that every machine refuses the same ones.

    Building takes up to half a second, a step some milliseconds: a list of 2,000 properties or 10,000
    constants still passes.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_grammar_size=20_000,
        initial_lexer_fuel=250_000,
        max_items_in_row=10_000,  # of 2,000, the default, 500 properties are the most
        step_lexer_fuel=50_000,
        max_lexer_states=20_000,
    )


@functools.cache
def byte_tokenizer() -> LLTokenizer:
    """A tokenizer with one token per byte, and ``END``."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=END + 1, eos_token=END, slices=[])


class _Bytes:
    """What llguidance asks of a tokenizer."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def grammar_problem(grammar: str) -> str | None:
    """Why llguidance does not take a grammar; None where it does, up to the first byte of an answer."""
    from llguidance import LLMatcher

    problem: str = LLMatcher.validate_grammar(grammar, limits=parser_limits())
    if problem and not problem.startswith("WARNING"):
        return problem
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error() if matcher.is_error() else None


def probe(grammars: Sequence[str], seconds: float) -> None:
    """Tries grammars out; prints one line for each that is done, with its problem or null, as JSON.

    The first line says that it has begun. The process ends itself after ``seconds`` of computing, wherever it
    stands, and comes down where it takes more than a gibibyte.
    """
    print("null", flush=True)  # noqa: T201  # this is how it answers
    # Of the clock, which on a busy machine is something else; the only end where there are no timers.
    at_the_latest = seconds if sys.platform == "win32" else WAIT_FACTOR * seconds
    faulthandler.dump_traceback_later(at_the_latest, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123  # kept open
    if sys.platform != "win32":
        import resource
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)  # the signal ends the process
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for grammar in grammars:
        print(json.dumps(grammar_problem(grammar)), flush=True)  # noqa: T201

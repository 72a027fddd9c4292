"""Answers that are scored: their tokens, what a pass makes of them, and what it is given."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.chat.caller_text import Disguise
from sgl_engine.chat.template import control_tokens
from sgl_engine.errors import InvalidRequestError, PromptTooLongError, UnsupportedModelError
from sgl_engine.model.caller_tokens import CallerTokenizer
from sgl_engine.passes.pictures import NOTHING_REUSED, Reused
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.prompt.texts import check_context, is_text
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.request import Decoding, Request, check_wanted

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class ScoringTask:
    """What a scoring pass is given.

    Attributes:
        prompt: Encoded by the model that scores.
        answers: What could be said.
        decoding: Only its deadline and cancellation count.
        plan: What of the prompt is seen; None is everything.
        guide: Whether attention is recorded.
    """

    prompt: EncodedPrompt
    answers: tuple[str, ...]
    decoding: Decoding
    plan: PruningPlan | None = None
    guide: bool = False


def check_answers(answers: Any) -> Sequence[str]:
    """Returns the answers, if they can be scored.

    Raises:
        InvalidRequestError: There are none, or one is empty or no text, or they are one text.
    """
    several = isinstance(answers, Sequence) and not isinstance(answers, str | bytes)
    texts = several and all(map(is_text, answers))
    if not texts or not answers or not all(answer.strip() for answer in answers):
        raise InvalidRequestError(
            f"The answers to score are {answers!r:.200}; at least one is needed, and none may be empty.",
            remedy="Give a list of the texts that are to be compared.",
        )
    return list(answers)


def check_lists(lists: int, requests: int) -> None:
    """Raises InvalidRequestError where not each request has answers of its own."""
    if lists != requests:
        raise InvalidRequestError(
            f"{lists} lists of answers are given for {requests} requests; each needs one.",
            remedy="Give as many lists as requests, in their order.",
        )


def read_answers(
    vlm: VLM,
    prompt: EncodedPrompt,
    answers: Sequence[str],
    decoding: Decoding,
    known: MutableMapping[tuple[str, ...], list[list[int]]] | None = None,
) -> list[list[int]]:
    """Splits answers into tokens as text: what spells a control token is no control token.

    Args:
        vlm: The model.
        prompt: What they answer.
        answers: At least one.
        decoding: Only its deadline and cancellation count.
        known: What was read before, to which these are added.

    Raises:
        InvalidRequestError: As of ``stream_scoring_pass``; so are the others.
        PromptTooLongError: An answer does not fit the context.
        UnsupportedModelError: The model has no end-of-sequence token.
    """
    given, known = tuple(check_answers(answers)), {} if known is None else known
    if given not in known:
        known[given] = _tokens(vlm, given, decoding)
    _check_model(vlm, prompt, known[given])
    return known[given]


def _tokens(vlm: VLM, answers: Sequence[str], decoding: Decoding) -> list[list[int]]:
    waiting = partial(check_wanted, decoding, "while the answers were tokenized")
    processor = vlm.processor
    control = control_tokens(processor)
    disguise = Disguise(control, answers)
    reader = CallerTokenizer(
        processor.tokenizer, disguise, frozenset(control.values()), lambda: vlm.processing(waiting)
    )
    for answer in answers:
        check_context(
            Request.ask(answer),
            processor.tokenizer,
            context_tokens=vlm.context_tokens,
            name=vlm.name,
            still_wanted=waiting,
        )
    read = reader([disguise.hide(answer) for answer in answers], add_special_tokens=False)
    return [list(ids) for ids in read["input_ids"]]


def _check_model(vlm: VLM, prompt: EncodedPrompt, tokens: Sequence[Sequence[int]]) -> None:
    """Fails where the model names no end of an answer, or its context is too short for one of them."""
    if not vlm.eos_token_ids:
        raise UnsupportedModelError(
            f"{vlm.name} names no end-of-sequence token, so its answers have no end and no probability.",
            remedy="Set model.generation_config.eos_token_id.",
        )
    longest = len(prompt) + max(map(len, tokens))
    if longest > vlm.context_tokens:
        raise PromptTooLongError(
            f"Prompt and longest answer have {longest} tokens; the context of {vlm.name} is "
            f"{vlm.context_tokens}.",
            remedy="Shorten the text, or send fewer or smaller images.",
        )


@dataclass(frozen=True, eq=False)
class AnswerPath:
    """Where an answer stands in a trie.

    Attributes:
        nodes: Its nodes.
        ids: Their tokens.
        before: The node that it follows; -1 is none.
    """

    nodes: Sequence[int]
    ids: Sequence[int]
    before: int = -1


def path_logprobs(vlm: VLM, logs: Tensor, paths: Sequence[AnswerPath]) -> list[tuple[float, ...]]:
    """Reads off the natural logs of the probabilities of answers' tokens, and of their ends.

    Args:
        vlm: The model.
        logs: Log-probabilities (1 + N, vocab): those before all nodes, and those after each of N nodes.
        paths: The answers.
    """
    rows = [node + 1 for path in paths for node in (path.before, *path.nodes[:-1])]
    chosen = iter(logs[rows, [token for path in paths for token in path.ids]].tolist())
    # Whichever end token comes: all of them end the answer. Rounding must not make it likelier than certain.
    last = logs[[path.nodes[-1] + 1 for path in paths]][:, sorted(vlm.eos_token_ids)]
    ends = last.logsumexp(dim=-1).clamp(max=0.0).tolist()
    return [(*islice(chosen, len(path.ids)), end) for path, end in zip(paths, ends, strict=True)]


@dataclass(frozen=True, eq=False)
class ScoringPassResult:
    """How likely one model finds each of the answers.

    Attributes:
        token_logprobs: Per answer, the natural log of each of its tokens' probability, its end last.
        best: Index of the likeliest answer; the first of equals.
        importance: Attention to the visual tokens, by the prompt's rows and those of the best answer; None
            where it was not asked for, or the prompt holds no image.
        stage_ms: Milliseconds: "vision", "prefill", "score".
        reused: What was known before.
        forced_tokens: Tokens that each forward of answers was fed; with a map, the last fed the best answer
            once more.
    """

    token_logprobs: tuple[tuple[float, ...], ...]
    best: int
    importance: ImportanceMap | None
    stage_ms: dict[str, float]
    reused: Reused = NOTHING_REUSED
    forced_tokens: tuple[int, ...] = ()

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Natural log of the probability of each whole answer."""
        return tuple(math.fsum(tokens) for tokens in self.token_logprobs)

    @property
    def output_tokens(self) -> int:
        """Answer tokens that were scored, all answers together, their ends included."""
        return sum(len(tokens) for tokens in self.token_logprobs)

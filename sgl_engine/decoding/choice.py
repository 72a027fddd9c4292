"""How the next token is chosen: what a request wants, penalties, and the likeliest token or a draw.

What is done to logits before a token is chosen, by the model's generation_config.json and by the request, is
done as ``generate`` does it, with transformers' own processors in its order, on the prompt and the answer so
far. What is reported of an answer, log-probabilities, entropies and scores, comes from the logits before
that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers.generation import logits_process as process
from transformers.generation.logits_process import TopKLogitsWarper

from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.tool_calls import check_tools
from sgl_engine.config import GenerationConfig, LimitsConfig
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Decoding, Request

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


def resolve(request: Request, defaults: GenerationConfig) -> tuple[int, Decoding]:
    """The upper limit of answer tokens, and how they are chosen.

    Args:
        request: Its wishes come first.
        defaults: What counts where it has none.

    Raises:
        InvalidRequestError: A wish that the configuration would not take either, or wishes about tools
            that contradict each other.
    """
    check_tools(request)
    values = defaults.model_dump(exclude={"draft"})  # what that changes is no wish of a request's
    values |= {name: wish for name in values if (wish := getattr(request, name)) is not None}
    try:
        wanted = GenerationConfig(**values)
    except ValidationError as error:
        raise InvalidRequestError(
            f"The request cannot be answered with {_wrong_values(error)}.",
            remedy="Use values in the ranges of GenerationConfig; None is the engine's.",
        ) from error
    check_bias(request.logit_bias)
    decoding = Decoding(
        **wanted.model_dump(exclude={"max_new_tokens", "draft"}),
        logit_bias=request.logit_bias,
        skip_special_tokens=request.skip_special_tokens,
        top_logprobs=request.top_logprobs if request.logprobs else 0,
        seed=request.seed,
        stop=request.stop,
        deadline=request.deadline,
        cancel=request.cancel,
    )
    return wanted.max_new_tokens, decoding


def hold_to_form(request: Request, decoding: Decoding, limits: LimitsConfig) -> Decoding:
    """The decoding, held to what the request says an answer may look like.

    Args:
        request: What is asked.
        decoding: As the request wants it otherwise.
        limits: How much its schemas may be.

    Raises:
        InvalidRequestError: A schema is too much, or cannot be enforced.
        DeadlineError: The deadline passed while schemas were compiled.
        RequestCancelledError: The request was cancelled meanwhile.
    """
    if not request.tools and request.response_schema is None:
        return decoding  # free text
    whole = request.response_schema is not None or request.tool_choice == "any"
    return replace(decoding, grammar=answer_grammar(request, limits), stop=() if whole else decoding.stop)


def _wrong_values(error: ValidationError) -> str:
    """Each refused value and why: ``temperature=-1 (Input should be greater than or equal to 0)``."""
    return ", ".join(
        f"{'.'.join(map(str, wrong['loc']))}={wrong['input']!r} ({wrong['msg']})" for wrong in error.errors()
    )


Processor: TypeAlias = Callable[[Any, Any], Any]
"""Of ids (1, N) and scores (1, vocab), new scores."""

_logger = logging.getLogger(__name__)
_NOT_HONOURED = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "penalty_alpha": None,
    "dola_layers": None,
    "force_words_ids": None,
    "constraints": None,
    "stop_strings": None,
    "watermarking_config": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "max_time": None,
    "token_healing": False,
}
"""What may stand in a generation_config.json and is not done here, with the value that says nothing. What the
engine has settings for is missing: temperature and the like, greedy by default, and the longest answer."""
_WARNED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def check_bias(bias: Any) -> None:
    """Refuses biases that are none.

    Raises:
        InvalidRequestError: Something else than numbers in [-100, 100] by token id.
    """
    is_mapping = isinstance(bias, Mapping)
    wrong = [pair for pair in bias.items() if not _is_bias(*pair)] if is_mapping else [bias]
    if wrong:
        raise InvalidRequestError(
            f"logit_bias has {wrong[0]!r:.100}.",
            remedy="Use token ids as keys, and numbers from -100 to 100.",
        )


def _is_bias(token: Any, bias: Any) -> bool:
    return (
        isinstance(token, int)
        and isinstance(bias, int | float)
        and not isinstance(token, bool)
        and -100 <= bias <= 100
    )


class Penalties:
    """Changes the logits of one answer.

    Args:
        vlm: Whose answer it is.
        prompt_ids: int64 (1, S).
        decoding: The request's wishes.
        limit: Tokens that the answer may have at most.

    Raises:
        InvalidRequestError: A bias for a token that the model does not have, or a generation_config.json
            with values that transformers refuses.
    """

    def __init__(self, vlm: VLM, prompt_ids: Tensor, decoding: Decoding, limit: int) -> None:
        _warn(vlm)
        tokens = prompt_ids.shape[1]
        try:
            self._processors = [
                *_of_the_model(vlm, decoding, tokens, limit),
                *_of_the_request(vlm, decoding, tokens),
            ]
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(
                f"The generation_config.json of {vlm.name} cannot be used ({error}).", remedy="Correct it."
            ) from error
        self._tokens = self._known = tokens
        if self._processors:
            self._ids = torch.empty((1, tokens + max(0, limit)), dtype=torch.int64, device=vlm.device)
            self._ids[:, :tokens] = prompt_ids

    def __call__(self, answer_ids: Sequence[int], logits: Tensor) -> Tensor:
        """Logits (vocab,) -> changed ones; those given are left as they are.

        Args:
            answer_ids: The answer so far; it only grows.
            logits: Of what comes next.
        """
        if not self._processors:
            return logits
        grown = self._tokens + len(answer_ids)
        new = answer_ids[self._known - self._tokens :]
        self._ids[0, self._known : grown] = torch.tensor(new, dtype=torch.int64)
        self._known = grown
        scores = logits[None].clone()  # some processors write into what they are given
        for processor in self._processors:
            scores = processor(self._ids[:, :grown], scores)
        return scores[0]


def _of_the_model(vlm: VLM, decoding: Decoding, tokens: int, limit: int) -> Iterator[Processor]:
    """Makes what ``generate`` makes of the model's generation_config.json, in its order."""
    config, device = vlm.model.generation_config, str(vlm.device)
    penalty = decoding.repetition_penalty or config.repetition_penalty or 1.0
    if config.sequence_bias:
        yield process.SequenceBiasLogitsProcessor(config.sequence_bias)
    if penalty != 1.0:
        yield process.RepetitionPenaltyLogitsProcessor(float(penalty))
    if config.no_repeat_ngram_size:
        yield process.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size)
    yield from _about_the_end(vlm, tokens, limit)
    if config.suppress_tokens:
        yield process.SuppressTokensLogitsProcessor(config.suppress_tokens, device=device)
    if config.begin_suppress_tokens:
        first = config.begin_suppress_tokens
        yield process.SuppressTokensAtBeginLogitsProcessor(first, tokens, device=device)


def _about_the_end(vlm: VLM, tokens: int, limit: int) -> Iterator[Processor]:
    """Makes those that know the end tokens; without any, only the last one means something."""
    config, device, ends = vlm.model.generation_config, str(vlm.device), sorted(vlm.eos_token_ids)
    if config.bad_words_ids:
        yield process.NoBadWordsLogitsProcessor(config.bad_words_ids, ends or None)
    if config.min_length and ends:
        yield process.MinLengthLogitsProcessor(config.min_length, ends, device=device)
    if config.min_new_tokens and ends:
        yield process.MinNewTokensLengthLogitsProcessor(tokens, config.min_new_tokens, ends, device=device)
    if config.forced_eos_token_id is not None:
        forced = config.forced_eos_token_id
        yield process.ForcedEOSTokenLogitsProcessor(tokens + limit, forced, device=device)
    if config.remove_invalid_values:
        yield process.InfNanRemoveLogitsProcessor()
    if config.exponential_decay_length_penalty and ends:
        decay = config.exponential_decay_length_penalty
        yield process.ExponentialDecayLengthPenalty(decay, ends, tokens)


def _of_the_request(vlm: VLM, decoding: Decoding, tokens: int) -> Iterator[Processor]:
    """Makes penalties for what the answer has said, then biases: OpenAI's parameters, new to ``generate``."""
    if decoding.presence_penalty or decoding.frequency_penalty:
        yield _Counted(tokens, decoding.presence_penalty, decoding.frequency_penalty)
    if decoding.logit_bias:
        unknown = [token for token in decoding.logit_bias if not 0 <= token < vlm.vocab_size]
        if unknown:
            raise InvalidRequestError(
                f"logit_bias names the token {unknown[0]}; {vlm.name} has 0 to {vlm.vocab_size - 1}.",
                remedy="Use ids of the model's tokenizer.",
            )
        biases: Any = [[[token], float(bias)] for token, bias in decoding.logit_bias.items()]
        yield process.SequenceBiasLogitsProcessor(biases)


class _Counted:
    """Takes off one penalty for a token that the answer has, and another for each time it has it.

    Args:
        tokens: S; the prompt does not count.
        presence: Once for a token.
        frequency: For each time.
    """

    def __init__(self, tokens: int, presence: float, frequency: float) -> None:
        self._counted = tokens
        self._presence = presence
        self._frequency = frequency
        self._counts: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Ids (1, N), which only grow, and scores (1, vocab) -> scores."""
        if self._counts is None:
            self._counts = torch.zeros_like(scores)
        said = ids[:, self._counted :]
        self._counted = ids.shape[1]
        self._counts.scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))
        return scores - self._frequency * self._counts - self._presence * (self._counts > 0)


def _warn(vlm: VLM) -> None:
    """Says once of every model what of its generation_config.json is not done here."""
    config = vlm.model.generation_config
    found = {
        name: value
        for name, neutral in _NOT_HONOURED.items()
        if (value := getattr(config, name, None)) not in (None, neutral)
    }
    with _LOCK:
        new = found.keys() - _WARNED.setdefault(vlm.model, set())
        _WARNED[vlm.model] |= new
    if new:
        listed = ", ".join(f"{name}={found[name]!r:.60}" for name in sorted(new))
        _logger.warning("%s: not done of its generation_config.json: %s", vlm.name, listed)


# Where logits a hundredth apart are e^100 apart in likelihood, and lower temperatures leave float32.
_AS_GOOD_AS_GREEDY = 1e-4


class Chooser:
    """Chooses tokens: the likeliest, or a draw from the likeliest few.

    Args:
        decoding: Temperature, ``top_k``, nucleus, ``min_p`` and seed.
        device: Where logits will be.
    """

    def __init__(self, decoding: Decoding, device: torch.device) -> None:
        self._decoding = decoding
        self._random: torch.Generator | None = None
        if decoding.seed is not None:
            self._random = torch.Generator(device=device).manual_seed(int(decoding.seed))

    def __call__(self, logits: Tensor) -> int:
        """Logits (vocab,) -> token."""
        # Nothing can be drawn where the largest is NaN or infinite, as in half precision that overflows; -inf
        # among others is a token that is out.
        if self._decoding.temperature < _AS_GOOD_AS_GREEDY or not logits.max().isfinite():
            return int(logits.argmax())
        scores = logits / self._decoding.temperature
        if self._decoding.top_k is not None:
            no_ids: Any = None  # does not matter to it
            [scores] = TopKLogitsWarper(self._decoding.top_k)(no_ids, scores[None])
        probabilities = scores.softmax(dim=-1)
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token is in the nucleus when the likelier ones together do not reach top_p; the first always is.
        outside = ordered.cumsum(dim=-1) - ordered >= self._decoding.top_p
        outside |= ordered < self._decoding.min_p * ordered[0]
        outside[0] = False
        drawn = torch.multinomial(ordered.masked_fill(outside, 0.0), 1, generator=self._random)
        return int(order[drawn])

"""What a request wants of its answer, and what the configuration says where it wants nothing -> Decoding."""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.chat.tool_calls import check_tools
from sgl_engine.config import GenerationConfig, LimitsConfig
from sgl_engine.decoding.penalties import check_bias
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Decoding, Request


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

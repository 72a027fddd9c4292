"""What one call may set, whether on the instance, by ``bind``, or as keyword arguments; checked here.

A new option is written once, in ``CallFields``, and read in ``CallOptions.configure`` or ``.request``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_sgl.chat.fields import UnknownOptions, without_unknown
from langchain_sgl.structured.schemas import enforceable, to_json_schema
from sgl_engine import (
    Escalate,
    Fraction,
    InvalidRequestError,
    Message,
    Request,
    ToolChoice,
    ToolSpec,
)
from sgl_engine.exit import CallChoices

if TYPE_CHECKING:
    from threading import Event

    from sgl_engine import SGLEngine


class CallFields(BaseModel):
    """The options that both a chat model and one of its calls have. None is the engine's own setting.

    Attributes:
        model: The name of one of the pair, which then answers; None lets the score decide.
        escalate: "auto" lets the score decide, "never" keeps the small answer, "always" asks the large model.
        exit_threshold: The small answer is kept when its score is at least this, in [0, 1].
        retention: Operating point of the pruning: "64%", "35%", "9%", or "100%" for none;
            "auto" leaves it to the calibration, question by question.
        tiles: Tiles that the large model is given: those that hold one of so many of a picture's most
            important tokens, or "all".
        neutral: Whether the small model's map for a neutral question is taken off its map for this one before
            the large model's tokens are chosen.
        scorer: Name in ``sgl_engine.exit.decision.SCORERS``.
        temperature: 0 is greedy.
        max_tokens: Upper limit of answer tokens.
        max_completion_tokens: OpenAI's other name of ``max_tokens``.
        top_p: Nucleus, in (0, 1].
        top_k: Draws from so many of the likeliest tokens.
        min_p: Draws from tokens at least so likely as a fraction of the likeliest, in [0, 1].
        repetition_penalty: Makes tokens of the prompt and the answer less likely where it is above 1.
        presence_penalty: Taken off the logit of a token that the answer has, in [-2, 2].
        frequency_penalty: Taken off it for each time that the answer has it, in [-2, 2].
        logit_bias: Token id -> what is added to its logit, in [-100, 100]; for pairs with one vocabulary.
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        timeout: Seconds for the whole call, waiting for the model included.
        logprobs: Put the tokens' log-probabilities into ``response_metadata["logprobs"]``.
        top_logprobs: How many of the likeliest tokens to put beside each, 0 to 20; any sets ``logprobs``.
        max_reasoning_tokens: Thoughts before an answer, in tokens; 0 has thinking models answer at once.
        skip_special_tokens: False keeps special tokens in the text, for models that mark up with them.
        chat_template_kwargs: Further variables for the models' chat templates, as {"enable_thinking": False}.
        cache_salt: Calls of one salt share what is known of pictures and prompts, and nothing with calls of
            another or of none: one salt per tenant, where tenants must not learn what others ask about.
        evidence: Put the small model's importance map into ``response_metadata["sgl_evidence"]``.
        unknown_options: What becomes of options that only other providers have (``reasoning_effort``, ...):
            "refuse" is an error, "warn" leaves them out with a warning, "ignore" without one.
    """

    model: str | None = None
    escalate: Escalate | None = None
    exit_threshold: Fraction | None = None
    retention: str | None = None
    tiles: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    neutral: bool | None = None
    scorer: str | None = None
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None  # what torch takes
    stop: list[str] | None = None
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_reasoning_tokens: Annotated[int, Field(ge=0)] | None = None
    skip_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    evidence: bool = False
    unknown_options: UnknownOptions = "refuse"


class CallOptions(CallFields):
    """Everything that may differ from call to call: ``CallFields``, and what belongs to a single call.

    Attributes:
        tools: In OpenAI's format, as ``bind_tools`` writes them.
        tool_choice: As ``bind_tools`` takes it.
        parallel_tool_calls: Whether one answer may hold several calls.
        response_format: OpenAI's ``{"type": "json_schema", "json_schema": {...}}``, ``{"type":
            "json_object"}`` or ``{"type": "text"}``, or a schema by itself.
        stream: LangChain's own switch; it does not change the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    stream: bool | None = None

    @classmethod
    def of(cls, **options: Any) -> CallOptions:
        """Checks options; one that is None counts as not given.

        Raises:
            InvalidRequestError: There is no such option, or a value is out of its range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        try:
            checked = cls(**without_unknown(given, cls.model_fields, given.get("unknown_options")))
        except ValidationError as error:
            wrong = error.errors()[0]
            name = ".".join(map(str, wrong["loc"]))
            raise InvalidRequestError(
                f"The option {name}={wrong['input']!r:.100} cannot be used ({wrong['msg']}).",
                remedy=f"Options of a call are {', '.join(cls.model_fields)}; "
                'unknown_options="warn" leaves out others.',
            ) from error
        if None not in {checked.max_tokens, checked.max_completion_tokens}:
            raise InvalidRequestError(
                f"Both max_tokens={checked.max_tokens} and "
                f"max_completion_tokens={checked.max_completion_tokens} are given.",
                remedy="Give one of them: they mean the same.",
            )
        return checked

    def configure(self, engine: SGLEngine) -> SGLEngine:
        """Returns an engine on the same models, set as these options want it.

        Raises:
            InvalidRequestError: ``model`` is not one of the pair.
            ConfigError: There is no such preset or scorer.
        """
        update = self.changes(engine)
        return engine.with_config(engine.config.model_copy(update=update)) if update else engine

    def changes(self, engine: SGLEngine) -> dict[str, Any]:
        """Returns the parts of the engine's configuration that these options want otherwise.

        Raises:
            InvalidRequestError: ``model`` is not one of the pair.
            ConfigError: There is no such preset.
        """
        return CallChoices(
            escalate=self._route(engine),
            threshold=self.exit_threshold,
            scorer=self.scorer,
            retention=self.retention,
            tiles=self.tiles,
            neutral=self.neutral,
        ).changes(engine.config)

    def _route(self, engine: SGLEngine) -> Escalate | None:
        """Turns the name of a model into the route to it."""
        if self.model is None:
            return self.escalate
        large = (engine.hosted or engine.large).name
        routes: dict[str, Escalate] = {engine.small.name: "never", large: "always"}
        if self.model not in routes:
            raise InvalidRequestError(
                f"The pair has no model {self.model!r}.",
                remedy=f"Name {' or '.join(map(repr, routes))}, or leave model out to let the score decide.",
            )
        return routes[self.model]

    def request(
        self,
        messages: tuple[Message, ...],
        *,
        since: float | None = None,
        cancel: Event | None = None,
        may_escalate: Callable[[], bool] | None = None,
        origin: object = None,
    ) -> Request:
        """Writes the engine's request.

        Args:
            messages: What is asked.
            since: When the call began, for its timeout: a ``time.monotonic()`` value; None is now.
            cancel: Once set, the call fails within one token.
            may_escalate: Asked before the large model is called.
            origin: The call as a hosted model is given it.

        Raises:
            InvalidRequestError: A tool choice or response format that cannot be followed.
        """
        choice, name = self._tool_choice()
        return Request(
            messages=messages,
            max_new_tokens=self.max_tokens or self.max_completion_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
            stop=tuple(self.stop or ()),
            seed=self.seed,
            deadline=self._deadline(since),
            cancel=cancel,
            may_escalate=may_escalate,
            tools=tuple(_tool_spec(tool) for tool in self.tools),
            tool_choice=choice,
            tool_name=name,
            parallel_tool_calls=self._parallel(),
            logprobs=self.with_logprobs,
            top_logprobs=self.top_logprobs or 0,
            chat_template_kwargs=self.chat_template_kwargs,
            max_reasoning_tokens=self.max_reasoning_tokens,
            skip_special_tokens=self.skip_special_tokens,
            cache_salt=self.cache_salt,
            response_schema=enforceable(_response_schema(self.response_format)),
            origin=origin,
        )

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self.logprobs or bool(self.top_logprobs)

    def _deadline(self, since: float | None) -> float | None:
        if self.timeout is None:
            return None
        return (time.monotonic() if since is None else since) + self.timeout

    def _tool_choice(self) -> tuple[ToolChoice, str | None]:
        """Reads every spelling in use: the engine's choice, and the only tool that may be called or None."""
        choice = self.tool_choice
        if isinstance(choice, Mapping):  # OpenAI: {"type": "function", "function": {"name"}}; Anthropic: flat
            function = choice.get("function")
            inner = function if isinstance(function, Mapping) else choice
            if inner.get("name") is not None:  # even where that is "any" or "none"
                return "any", self._known(inner["name"])
            if choice.get("type") is None:
                return "any", self._known(choice)  # raises: it names nothing
            choice = choice["type"]
        if choice is None or choice == "auto":
            return "auto", None
        if choice is False or choice == "none":
            return "none", None
        if choice is True or choice in ("any", "required"):
            return "any", None
        return "any", self._known(choice)

    def _known(self, name: Any) -> str:
        """Passes the name of a bound tool, and raises for any other."""
        names = [_tool_spec(tool).name for tool in self.tools]
        if name not in names:
            raise InvalidRequestError(
                f"The tool choice {name!r:.100} names no tool.",
                remedy=f"Use auto, any, none, or one of the tools: {', '.join(names) or 'there are none'}.",
            )
        return str(name)

    def _parallel(self) -> bool:
        """Tells whether several calls are allowed: by OpenAI's option, or Anthropic's part of the choice."""
        choice = self.tool_choice if isinstance(self.tool_choice, Mapping) else {}
        return self.parallel_tool_calls is not False and not choice.get("disable_parallel_tool_use")


def _tool_spec(tool: Mapping[str, Any]) -> ToolSpec:
    function = tool.get("function", tool)
    # ``bind`` takes anything; ``bind_tools`` has converted it.
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(
            f"The tool {tool!r:.100} has no name.",
            remedy='Use bind_tools, or write {"type": "function", "function": {"name": ..., ...}}.',
        )
    return ToolSpec(
        name=function["name"],
        description=function.get("description") or "",
        parameters=enforceable(function.get("parameters")) or {"type": "object", "properties": {}},
    )


def _response_schema(response_format: Any) -> Mapping[str, Any] | None:
    """Reads the JSON schema that an answer has to satisfy; None is any text."""
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        # OpenAI's three forms; every other mapping is a schema by itself.
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object" and not response_format.get("properties"):
            schema: Mapping[str, Any] = response_format.get("schema") or {"type": "object"}
            return schema
        if kind == "json_schema":
            inner = response_format.get("json_schema", response_format)
            if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
                raise InvalidRequestError(
                    f"The response format {response_format!r:.100} holds no schema.",
                    remedy='Write {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
                )
            schema = inner["schema"]
            return schema
    return to_json_schema(response_format)

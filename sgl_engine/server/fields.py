"""What clients send: OpenAI's fields, vLLM's that mean something here, and ``sgl``. Others are refused.

OpenAI refuses a field that it does not know, and so does this server: a misspelt setting is not ignored. What
clients send for accounting, caching and tracing does not change an answer, and is taken without effect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sgl_engine import Escalate, Fraction
from sgl_engine.exit import CallChoices

NO_EFFECT = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention prediction "
    "verbosity priority moderation".split()
)
"""OpenAI's and vLLM's fields on which no answer depends here."""


class PassFields(BaseModel):
    """Settings of one request that only this server has, as ``extra_body={"sgl": {...}}``; whatever it asks.

    Attributes:
        escalate: "auto" lets the score decide, "never" keeps the small answer, "always" asks the large model.
        threshold: The small answer is kept when its score is at least this.
        retention: "64%", "35%", "9%", "100%" or "auto": visual tokens that the large model sees.
        tiles: Tiles that it is given.
        neutral: Whether a neutral question's map is taken off the small model's first.
        timeout_s: Seconds for the answer, waiting included.
        max_pixels: Larger pictures are scaled down to this area.
        max_visual_tokens: The same in visual tokens of one picture.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    escalate: Escalate | None = None
    threshold: Fraction | None = None
    retention: str | None = None
    tiles: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    neutral: bool | None = None
    timeout_s: Annotated[float, Field(gt=0.0)] | None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    max_visual_tokens: Annotated[int, Field(ge=1)] | None = None

    def choices(self, escalate: Escalate | None) -> CallChoices:
        """What the call wants otherwise than its engine; a route that the model's name says comes first."""
        return CallChoices(
            escalate=escalate or self.escalate,
            threshold=self.threshold,
            retention=self.retention,
            tiles=self.tiles,
            neutral=self.neutral,
        )


class SGLFields(PassFields):
    """Those of a request that is answered in words.

    Attributes:
        scorer: What computes the score.
        max_reasoning_tokens: Thoughts before the answer, in tokens.
    """

    scorer: str | None = None
    max_reasoning_tokens: Annotated[int, Field(ge=0)] | None = None

    def choices(self, escalate: Escalate | None) -> CallChoices:
        """As of ``PassFields``, and the scorer."""
        return replace(super().choices(escalate), scorer=self.scorer)


class StreamOptions(BaseModel):
    """OpenAI's ``stream_options``; ``include_obfuscation`` pads chunks there, and does nothing here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Body(BaseModel):
    """What every request may say.

    Attributes:
        model: The pair, or one of its models.
        sgl: Settings of this server's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    sgl: PassFields = PassFields()

    @model_validator(mode="before")
    @classmethod
    def _drop_what_has_no_effect(cls, given: Any) -> Any:
        """Leaves out fields without effect, and null, which clients send for "not given"."""
        if not isinstance(given, dict):
            return given
        return {k: v for k, v in given.items() if k not in NO_EFFECT and v is not None}


class Conversation(Body):
    """What a prompt is made of.

    Attributes:
        messages: As OpenAI's.
        tools: The same.
        chat_template_kwargs: Further variables for the chat templates (vLLM's).
    """

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] = []
    chat_template_kwargs: dict[str, Any] | None = None
    sgl: SGLFields = SGLFields()


class ChatBody(Conversation):
    """``POST /v1/chat/completions``; what is not described has OpenAI's meaning.

    Attributes:
        n: Answers; only 1 can be had.
        top_k: Draws from so many of the likeliest tokens (vLLM's, as the next two and the last).
        min_p: Draws from tokens at least so likely as a fraction of the likeliest.
        repetition_penalty: Makes tokens of prompt and answer less likely where it is above 1.
        reasoning_effort: "none" has thinking models answer at once; other values change nothing.
        cache_salt: Requests of one salt share what is known of pictures, and nothing with others.
    """

    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    stop: str | list[str] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100.0, le=100.0)]] = {}
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    modalities: list[Literal["text"]] = ["text"]
    reasoning_effort: str | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0)] | None = None
    skip_special_tokens: bool | None = None
    cache_salt: Annotated[str, Field(min_length=1)] | None = None


class TokenizeBody(Conversation):
    """``POST /tokenize``: a conversation, or a text by itself as ``prompt``."""

    @model_validator(mode="before")
    @classmethod
    def _prompt_is_a_message(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("prompt"), str):
            rest = {key: value for key, value in given.items() if key != "prompt"}
            return {"messages": [{"role": "user", "content": given["prompt"]}], **rest}
        return given

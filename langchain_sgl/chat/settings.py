"""The settings of a chat model over a pair: fields, environment, identity; everything but the calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from typing_extensions import override

from langchain_sgl.chat.call_options import CallFields, CallOptions
from langchain_sgl.chat.fields import (
    TorchName,
    environment,
    file_identity,
    hosted_identity,
    hosted_label,
    is_hosted,
    send_config,
    told_settings,
    without_unknown,
)
from langchain_sgl.chat.pair import Pair, is_bundled, model_profile, shared_engine
from langchain_sgl.errors import as_langchain_errors
from sgl_engine import (
    ConfigError,
    ExitConfig,
    Fraction,
    LimitsConfig,
    OnLargeError,
    PictureConfig,
    Price,
    ReuseConfig,
    SchedulerConfig,
    SendConfig,
    SendMode,
    __version__,
    pruning_preset,
)
from sgl_engine.exit import find_scorer

if TYPE_CHECKING:
    from sgl_engine import SGLEngine


_OF_BOTH = (
    *("dtype", "device", "device_map", "trust_remote_code"),
    *("attn_implementation", "quantization", "quantization_config", "model_kwargs"),
)
_ENGINE_PARTS = "limits small_pictures large_pictures reuse scheduler send on_large_error prices".split()
_MAY_HOLD_KEYS = ("model_kwargs", "small_settings", "large_settings")
_LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
_NOT_IN_ANSWERS = frozenset(
    "streaming max_retries api_key timeout ready_engine reuse scheduler prices unknown_options".split()
)
"""Fields on which no answer depends."""


class ChatSettings(CallFields, BaseChatModel):
    """The fields of ``ChatSGL``, and the engine that they describe; ``CallFields`` has those of calls.

    Attributes:
        small: Path or hub id of the small model; environment: SGL_SMALL.
        large: Path or hub id of the large model; environment: SGL_LARGE. Or one on another machine: a
            LangChain chat model, a name like "openai:gpt-..." for ``init_chat_model``, or ``OpenAIModel``.
            Then without ``small`` the bundled small model answers first.
        ready_engine: A ready ``SGLEngine``, instead of ``small`` and ``large``; ``engine=`` in the
            constructor.
        dtype: What the models compute in, a name or a ``torch.dtype``; environment: SGL_DTYPE.
        device: Where both models go, "cuda" for example; environment: SGL_DEVICE.
        device_map: As in transformers, instead of ``device``.
        trust_remote_code: Run code that comes with the models.
        attn_implementation: As in transformers: "sdpa", "eager", "flash_attention_2", ...
        quantization: "int8" stores weights in eight bits (``pip install "langchain-sgl[quantized]"``).
        quantization_config: Any other format, as in transformers, an object or a dict.
        model_kwargs: What else ``from_pretrained`` of both models takes.
        small_settings: Of the small model alone: any of the eight above, and "revision" on the hub, as
            ``{"device": "cuda:1"}``. They count before those of both.
        large_settings: Of the large model alone.
        small_pictures: How large the small model sees pictures; None is the engine's.
        large_pictures: How large the large model sees them.
        send: What a hosted large model is sent of pictures: "full", "crop", "mask" or "auto", or a
            ``SendConfig``; None is the engine's.
        on_large_error: "raise", or "keep" for the small answer where a hosted large model fails.
        prices: What models cost, by the names that reports call them.
        reuse: What is kept of a picture for the next question about it; None is the engine's.
        scheduler: How calls share the models; None is the engine's.
        image_root: The only folder from which image paths in messages are read; None refuses paths.
        limits: What a request may bring (image sizes and counts, URL policy); None is the engine's.
        exit_threshold: As in ``CallFields``; environment: SGL_EXIT_THRESHOLD.
        retention: As in ``CallFields``; environment: SGL_RETENTION.
        calibration: File of ``sgl calibrate``: the small answer is kept from its certified probability on;
            environment: SGL_CALIBRATION. A call that sets another ``exit_threshold`` goes by that; a call
            with another ``retention`` or ``scorer`` goes to the large model, as nothing was certified for it.
        risk: Which of the calibration's target risks; None is the smallest that is certified.
        share: Instead of a risk: which of its shares of questions may go to the large model.
        streaming: LangChain's switch: True makes ``invoke`` stream internally, False makes ``stream`` wait.
        max_retries: Accepted for code that sets it on every model; local models have nothing to retry.
        api_key: Accepted for the same reason; never used.

    Raises:
        ConfigError: Only one of ``small`` and ``large`` is given, or ``engine`` together with them; or
            ``calibration`` together with ``exit_threshold``.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=()
    )

    small: str | Path | None = Field(default_factory=environment("SGL_SMALL"))
    large: Any = Field(default_factory=environment("SGL_LARGE"))
    ready_engine: Any = Field(default=None, alias="engine", exclude=True)
    dtype: TorchName = Field(default_factory=environment("SGL_DTYPE"), validate_default=True)
    device: TorchName = Field(default_factory=environment("SGL_DEVICE"), validate_default=True)
    device_map: str | dict[str, Any] | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    quantization: Literal["int8"] | None = None
    quantization_config: Any = None
    model_kwargs: dict[str, Any] | None = Field(default=None, repr=False)  # may hold a key of the hub
    small_settings: dict[str, Any] | None = Field(default=None, repr=False)
    large_settings: dict[str, Any] | None = Field(default=None, repr=False)
    small_pictures: PictureConfig | None = None
    large_pictures: PictureConfig | None = None
    send: Annotated[SendMode | SendConfig | None, BeforeValidator(send_config)] = None
    on_large_error: OnLargeError | None = None
    prices: dict[str, Price] | None = None
    reuse: ReuseConfig | None = None
    scheduler: SchedulerConfig | None = None
    image_root: Path | None = None
    limits: LimitsConfig | None = None

    exit_threshold: Fraction | None = Field(
        default_factory=environment("SGL_EXIT_THRESHOLD"), validate_default=True
    )
    retention: str | None = Field(default_factory=environment("SGL_RETENTION"))
    calibration: Path | None = Field(default_factory=environment("SGL_CALIBRATION"), validate_default=True)
    risk: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    streaming: bool | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_unknown(cls, given: Any) -> Any:
        """Leaves out what other providers' models have, where ``unknown_options`` says so."""
        if not isinstance(given, dict):
            return given
        names = {field.alias for field in cls.model_fields.values() if field.alias} | cls.model_fields.keys()
        return without_unknown(given, names, given.get("unknown_options"))

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        """Checks that the models, and the exit, are set in one way each; loads nothing."""
        with as_langchain_errors():
            # What only the environment names is no contradiction: an engine that is given comes first.
            # None is nothing: LangChain hands on all fields where it makes a model anew from another one.
            named = [getattr(self, name) for name in ("small", "large") if name in self.model_fields_set]
            if self.ready_engine is not None and any(name is not None for name in named):
                raise ConfigError(
                    f"Both engine= and a pair, {self.small!r} and {self.large!r}, are given.",
                    remedy="Give one of them.",
                )
            if self.ready_engine is None:
                _ = self._pair  # refuses half a pair
            else:
                # What the environment names is not asked, so no copy of this model may be given it.
                self.__dict__.update(small=None, large=None)
            if None not in (self.calibration, self.exit_threshold):
                if {"calibration", "exit_threshold"} <= self.model_fields_set:
                    raise ConfigError(
                        f"Both exit_threshold={self.exit_threshold} and a calibration are given.",
                        remedy="Give one of them: a calibration has a threshold of its own.",
                    )
                weaker = "calibration" if "exit_threshold" in self.model_fields_set else "exit_threshold"
                self.__dict__[weaker] = None  # only the environment names it
            self._options()  # refuses values out of their range
            alone = self.calibration is None and self.ready_engine is None
            if self.retention is not None and pruning_preset(self.retention).auto and alone:
                raise ConfigError(
                    "retention='auto' leaves the choice to a calibration, and none is given.",
                    remedy="Make one with sgl calibrate --retention auto: ChatSGL(calibration=...).",
                )
            if self.scorer is not None:
                find_scorer(self.scorer)
            if self.calibration is not None and not self.calibration.expanduser().is_file():
                raise ConfigError(
                    f"There is no calibration file {str(self.calibration)!r}.",
                    remedy="Make one with sgl calibrate, or leave calibration out.",
                )
        return self

    @override
    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copies the settings; the copy uses the same weights."""
        memo = {} if memo is None else memo
        for shared in (self.ready_engine, self.large):  # a hosted model's connections are shared, too
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    @override
    def __getstate__(self) -> dict[Any, Any]:
        """Lets pickle have the names of the models, and never their weights.

        Raises:
            ConfigError: The models have no names: a ready engine was given.
        """
        if self.ready_engine is not None:
            with as_langchain_errors():
                raise ConfigError(
                    "A chat model around a ready engine cannot be pickled.",
                    remedy="Name the models, ChatSGL(small=..., large=...), or pickle what builds it.",
                )
        return super().__getstate__()

    @property
    def _pair(self) -> Pair:
        return Pair(
            small=None if self.small is None else str(self.small),
            large=str(self.large) if isinstance(self.large, Path) else self.large,
            settings={name: getattr(self, name) for name in _OF_BOTH},
            small_settings=self.small_settings,
            large_settings=self.large_settings,
        )

    @property
    def engine(self) -> SGLEngine:
        """The engine, as this instance's options set it; loads the weights if nobody in the process has.

        Raises:
            ModelError: A model cannot be loaded, or the two do not fit.
            ConfigError: There is no such retention preset or scorer, or the calibration is of another pair or
                other settings.
        """
        return self.configured()

    def configured(self, **options: Any) -> SGLEngine:
        """The engine as these options of a call set it, laid over the instance's own; ``engine`` has none."""
        with as_langchain_errors():
            return self._options(**options).configure(self._base_engine())

    @property
    def is_bundled(self) -> bool:
        """Whether the models are those that come with the package."""
        if self.ready_engine is None:
            return self._pair.bundled
        engine = self.ready_engine
        return engine.hosted is None and is_bundled(engine.small) and is_bundled(engine.large)

    @property
    def _limits(self) -> LimitsConfig | None:
        """What a request may bring, as far as that is known without loading; None is the default."""
        if self.limits is not None or self.ready_engine is None:
            return self.limits
        limits: LimitsConfig = self.ready_engine.config.limits
        return limits

    def _base_engine(self) -> SGLEngine:
        """Returns the engine with what no call can change: limits, pictures' sizes, calibration, ..."""
        engine: SGLEngine = self.ready_engine or shared_engine(self._pair)
        parts = {name: getattr(self, name) for name in _ENGINE_PARTS}
        update: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}
        # A calibration is checked against pruning and scorer, so they are set with it.
        if self.calibration is not None:
            options = CallOptions.of(retention=self.retention, tiles=self.tiles, scorer=self.scorer)
            changes = options.changes(engine)
            leaving = changes.get("exit", engine.config.exit)
            own = {"calibration": self.calibration, "risk": self.risk, "share": self.share}
            update |= changes | {"exit": ExitConfig(**{**leaving.model_dump(), **own})}
        return engine.with_config(engine.config.model_copy(update=update)) if update else engine

    def _options(self, stop: Sequence[str] | str | None = None, **overrides: Any) -> CallOptions:
        """Lays a call's options over the instance's own."""
        own = {name: getattr(self, name) for name in CallFields.model_fields}
        given = {name: value for name, value in overrides.items() if value is not None}
        if given.keys() & set(_LIMIT_NAMES):
            own = {name: value for name, value in own.items() if name not in _LIMIT_NAMES}
        ends = stop or given.get("stop") or self.stop or ()
        given["stop"] = [ends] if isinstance(ends, str) else list(ends)
        return CallOptions.of(**{**own, **given})

    @property
    def _llm_type(self) -> str:
        return "sgl"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on: traces show it, and LangChain's cache uses it as its key."""
        skipped = _NOT_IN_ANSWERS | set(BaseChatModel.model_fields)
        fields = {name: getattr(self, name) for name in type(self).model_fields if name not in skipped}
        params = {name: value for name, value in fields.items() if value is not None}
        params["model_name"] = self._model_name
        params |= {name: told_settings(params[name]) for name in _MAY_HOLD_KEYS if name in params}
        engine, large, calibration = self.ready_engine, self.large, self.calibration
        if engine is not None:
            large, calibration = engine.hosted, calibration or engine.config.exit.calibration
        if is_hosted(large):
            params["large"] = hosted_identity(large)
        if calibration is not None:
            params["calibration_content"] = file_identity(calibration)
        if engine is None and self._pair.bundled:
            params["version"] = __version__  # the bundled weights may change with it
        if engine is not None:
            params["engine"] = engine.config.model_dump(mode="json", exclude=set(_NOT_IN_ANSWERS))
        return {
            name: value if isinstance(value, str | int | float | list | dict) else str(value)
            for name, value in params.items()
        }

    @property
    def _model_name(self) -> str:
        """What traces call the model: both names, because both may answer."""
        if self.model is not None:
            return self.model
        if (engine := self.ready_engine) is not None:
            return f"{_label(engine.small)}+{_label(engine.hosted or engine.large)}"
        if is_hosted(self.large):
            return f"{self.small or 'sgl-demo-small'}+{hosted_label(self.large)}"
        return "sgl-demo" if self._pair.bundled else f"{self.small}+{self.large}"

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="sgl", ls_model_type="chat", ls_model_name=kwargs.get("model") or self._model_name
        )
        temperature = kwargs.get("temperature", self.temperature)
        if temperature is not None:
            params["ls_temperature"] = temperature
        limits = [kwargs.get(name) for name in _LIMIT_NAMES] + [getattr(self, name) for name in _LIMIT_NAMES]
        max_tokens = next((limit for limit in limits if limit is not None), None)
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stop or self.stop:
            params["ls_stop"] = stop or self.stop or []
        return params

    @override
    def _resolve_model_profile(self) -> ModelProfile | None:
        name, engine = self._model_name, self.ready_engine
        return model_profile(self._pair.large if engine is None else None, engine, name=name)


def _label(vlm: Any) -> str:
    revision = getattr(vlm, "revision", None)
    return f"{vlm.name}@{revision}" if revision else str(vlm.name)

"""What can be set: one frozen, validated object per concern, and ``EngineConfig``, which holds them.

Unknown names are refused (``extra="forbid"``), so a misspelt option fails when it is written, not when it is
silently ignored. Everything has a default; ``EngineConfig()`` is the recommended operating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, model_validator

from sgl_engine.config.hosted import Fraction as Fraction
from sgl_engine.config.hosted import OnLargeError as OnLargeError
from sgl_engine.config.hosted import PatchTokens as PatchTokens
from sgl_engine.config.hosted import PictureTokens as PictureTokens
from sgl_engine.config.hosted import SendConfig as SendConfig
from sgl_engine.config.hosted import SendMode as SendMode
from sgl_engine.config.limits import ImageFormat as ImageFormat
from sgl_engine.config.limits import LimitsConfig as LimitsConfig
from sgl_engine.config.limits import Pages as Pages
from sgl_engine.config.limits import UrlPolicy as UrlPolicy
from sgl_engine.config.prices import Price as Price
from sgl_engine.errors import ConfigError

Escalate: TypeAlias = Literal["auto", "never", "always"]


class _Config(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    pass


class PruningConfig(_Config):
    """Where the large model is pruned, and how much it keeps (SGL, section 3.2).

    Attributes:
        layer_fraction: The first pruned layer is K = int(L * layer_fraction), so less than 1.
        keep_ratio: Fraction of visual tokens kept from K on; 1 keeps all, bit for bit.
        tiles: Tiles of a picture that the large model sees at all: those with one of so many of its most
            important visual tokens, a small picture of the whole among them where there is one; "all" leaves
            none out. Others do not go through the vision tower; pictures in one piece are always whole.
        neutral: What the small model would look at if nothing in particular were asked is taken off its map
            before anything is chosen: one more small pass per picture, of escalated questions alone. For
            models that look at places rather than at what is asked (docs/log.md).
        auto: A calibration (``ExitConfig``) chooses for each question; the rest is for where it cannot.
    """

    layer_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    keep_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    tiles: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    neutral: bool = False
    auto: bool = False

    @property
    def top_tokens(self) -> int | None:
        """How many tokens of a picture tiles are chosen by; None chooses all."""
        return None if self.tiles == "all" else self.tiles

    @property
    def needs_map(self) -> bool:
        """Whether the large model may be shown less than everything, chosen by the small model's map."""
        return self.auto or self.leaves_out

    @property
    def leaves_out(self) -> bool:
        """Whether it says itself that the large model is shown less than everything."""
        return self.keep_ratio < 1.0 or self.tiles != "all"

    def layer(self, num_layers: int) -> int:
        """K for a decoder of ``num_layers`` layers."""
        return int(num_layers * self.layer_fraction)


PRESETS: dict[str, PruningConfig] = {
    "64%": PruningConfig(layer_fraction=0.4, keep_ratio=0.4),
    "35%": PruningConfig(layer_fraction=0.2, keep_ratio=0.2),
    "9%": PruningConfig(layer_fraction=0.05, keep_ratio=0.05),
    "100%": PruningConfig(layer_fraction=0.0, keep_ratio=1.0),
}
"""The paper's operating points, by average retention of visual tokens; "100%" prunes nothing."""

TRANSCRIPTION_PRESET = "100%"
"""Which of them transcribing uses where nothing else is said: it needs all of a page, not the little that a
question needs. What each of them makes of transcriptions is in a table of ``sgl bench``."""


UNCALIBRATED: Mapping[str, None] = {"calibration": None, "risk": None, "share": None}
"""All fields of ``ExitConfig`` that are of a calibration, unset."""


class ExitConfig(_Config):
    """When the small answer is kept (SGL, section 3.3).

    Attributes:
        escalate: "auto" lets the score decide; "never" always keeps the small answer; "always" always calls
            the large model (for studies, and for callers who know better).
        threshold: The small answer is kept when its score is at least this.
        scorer: Name in ``sgl_engine.exit.decision.SCORERS``; None is that module's default.
        consistency_keep_ratio: Visual tokens that the small model sees in its consistency pass.
        consistency: "auto" leaves that pass out where neither the scorer nor the calibration reads what
            it measures; "always" runs it for the report alone.
        calibration: A file of ``sgl calibrate``; its certified threshold counts instead of ``threshold``, on
            calibrated probabilities instead of scores. Engines of another pair or other settings refuse it.
        risk: Which of the file's target risks; None is the smallest that could be certified.
        share: Instead of a risk: which of the file's shares of questions the large model may be asked.
        empty_answers: "escalate" scores a small answer of white space at most 0, calibrated or not: a model
            that ends at once was sure of its end, not of an answer. "score" scores it like any other.
    """

    escalate: Escalate = "auto"
    threshold: Fraction = 0.8
    scorer: str | None = None
    consistency_keep_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    consistency: Literal["auto", "always"] = "auto"
    calibration: Path | None = None
    risk: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    empty_answers: Literal["escalate", "score"] = "escalate"

    def uncalibrated(self) -> Self:
        """Returns it without what is of a calibration."""
        return self.model_copy(update=UNCALIBRATED)

    @model_validator(mode="after")
    def _risk_of_a_calibration(self) -> Self:
        for name in ("risk", "share"):
            if getattr(self, name) is not None and self.calibration is None:
                raise ValueError(f"{name} chooses among the operating points of a calibration; none is given")
        if self.risk is not None and self.share is not None:
            raise ValueError("risk and share choose an operating point each; give one of them")
        return self


class GenerationConfig(_Config):
    """How answers are generated where the request does not say.

    The default is greedy, whatever the ``do_sample``, ``temperature``, ``top_k``, ``top_p`` and ``min_p`` of
    a model's generation_config.json say: the same question has the same answer. The rest of that file counts
    as it does in transformers' ``generate``: penalties, end tokens, shortest length, suppressed tokens, bad
    words; of what is not done, a warning is logged. An answer that has to satisfy a schema satisfies it all
    the same. Scores and log-probabilities are those of the model, before anything of this.

    Attributes:
        max_new_tokens: Upper limit of answer tokens, thoughts apart.
        max_reasoning_tokens: Upper limit of thoughts; then they are ended. 0 answers at once.
        temperature: 0 is greedy.
        top_p: Nucleus; only used when the temperature is above 0.
        top_k: Draws from so many of the likeliest tokens, at a temperature above 0; None from all.
        min_p: Draws from tokens at least so likely as a fraction of the likeliest, at a temperature above 0.
        repetition_penalty: Makes tokens of prompt and answer less likely, above 1; None is the model's own.
        presence_penalty: Taken off the logit of a token that the answer has.
        frequency_penalty: Taken off it for each time that the answer has it.
        draft: Whether the large model checks the small answer in one forward, and writes only what it would
            not have said itself. Its answers are the same; in half precision, equals may change places.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    max_reasoning_tokens: Annotated[int, Field(ge=0)] = 1024
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Fraction = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    draft: bool = True


class PictureConfig(_Config):
    """How large a model sees a picture; None leaves that to its processor.

    A setting of one model: the two of a pair may see a picture at different sizes.

    Attributes:
        min_pixels: Smaller pictures are enlarged to about this area, by models that have a range (Qwen).
        max_pixels: Larger ones are scaled down to at most this area, or cut into fewer tiles.
        max_visual_tokens: The same in visual tokens of one picture; a picture that its model cannot show in
            so few is refused.
    """

    min_pixels: Annotated[int, Field(ge=1)] | None = None
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    max_visual_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_pixels={low} is above max_pixels={high}")
        return self


class ReuseConfig(_Config):
    """What of a request each model keeps for the next one about the same pictures.

    It is kept where it is computed (on a GPU, in its memory), in one store per model that all engines
    on that model share. Answers do not depend on it.

    Attributes:
        max_bytes: Bytes that a model's store may hold after this engine has put something into it; the least
            recently used goes first. 0 keeps nothing for another call, and looks nothing up.
        pixels: Whether scaled and cut pictures are kept, in main memory.
        features: Whether visual features are kept, so that a known picture does not run the vision tower.
        prefixes: Whether keys and values of a prompt up to its last picture are kept, so that only what
            follows is run: all layers of the small model, those before the pruning of the large one; and
            whether maps of neutral questions are.
        min_prefix_tokens: Shorter prefixes are not kept: a first question runs its prompt in two forwards for
            it, which one further question makes up for from about 100 tokens on (docs/performance.md).
    """

    max_bytes: Annotated[int, Field(ge=0)] = 512 * 2**20
    pixels: bool = True
    features: bool = True
    prefixes: bool = True
    min_prefix_tokens: Annotated[int, Field(ge=1)] = 128

    @property
    def keeps_pixels(self) -> bool:
        """Whether processed pictures are kept and looked up."""
        return self.pixels and self.max_bytes > 0

    @property
    def keeps_features(self) -> bool:
        """Whether features are kept and looked up."""
        return self.features and self.max_bytes > 0

    @property
    def keeps_prefixes(self) -> bool:
        """Whether prefixes of prompts are kept and looked up."""
        return self.prefixes and self.max_bytes > 0


NO_REUSE = ReuseConfig(max_bytes=0)  # every request is computed from scratch


class SchedulerConfig(_Config):
    """How requests share the models. The worker is the pair's; every request brings its own numbers.

    Attributes:
        max_queue: Requests under way at once, waiting ones included; one more fails with ``OverloadedError``.
        max_wait_ms: How long a batch waits for the next request on its way to it; one alone never waits.
        max_batch_size: Prompts that run side by side at most.
    """

    max_queue: Annotated[int, Field(ge=1)] = 256
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 5.0
    max_batch_size: Annotated[int, Field(ge=1)] = 32


class EngineConfig(_Config):
    """Everything the engine can be told. ``EngineConfig()`` prunes to 35 % and exits at a score of 0.8.

    Attributes:
        pruning: What the large model sees.
        exit: When the small answer is kept.
        generation: How answers are generated.
        limits: What a request may bring.
        reuse: What is kept for the next request.
        scheduler: How requests share the models.
        small_pictures: How large the small model sees pictures.
        large_pictures: How large the large model sees them.
        send: What leaves the machine where the large model is a hosted one.
        on_large_error: "raise" passes an error of a hosted model on; "keep" answers with the small model
            after all, and says so in the report (``RunReport.large_error``). To be able to, a stream then
            shows a hosted answer when it is whole: what was shown cannot be taken back.
        prices: What models cost, by their names; then reports say what a request cost (``RunReport.cost``).
    """

    pruning: PruningConfig = PruningConfig()
    exit: ExitConfig = ExitConfig()
    generation: GenerationConfig = GenerationConfig()
    limits: LimitsConfig = LimitsConfig()
    reuse: ReuseConfig = ReuseConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    small_pictures: PictureConfig = PictureConfig()
    large_pictures: PictureConfig = PictureConfig()
    send: SendConfig = SendConfig()
    on_large_error: OnLargeError = "raise"
    prices: dict[str, Price] = Field(default_factory=dict)

    @classmethod
    def preset(cls, retention: str) -> EngineConfig:
        """A configuration at one of the paper's operating points.

        Args:
            retention: "64%", "35%", "9%" or "100%".

        Raises:
            ConfigError: There is no such preset.
        """
        return cls(pruning=pruning_preset(retention))

    def without_reuse(self) -> EngineConfig:
        """This configuration for measurements: every request costs what it costs on pictures never seen."""
        return self.model_copy(update={"reuse": NO_REUSE})

    def escalating(self, escalate: Escalate) -> EngineConfig:
        """This configuration with another rule for calling the large model; for ``SGLEngine.with_config``.

        Raises:
            pydantic.ValidationError: There is no such rule.
        """
        # Constructed, because model_copy(update=...) takes any value.
        leaving = ExitConfig(**{**self.exit.model_dump(), "escalate": escalate})
        return self.model_copy(update={"exit": leaving})

    def scored_by(self, model: str) -> EngineConfig:
        """This configuration with the last word given to "small" or "large".

        Raises:
            ConfigError: There is no such model.
        """
        if model not in ("small", "large"):
            raise ConfigError(f"There is no model {model!r}.", remedy='Use "auto", "small" or "large".')
        return self.escalating("never" if model == "small" else "always")

    def with_batch_size(self, max_batch_size: int) -> EngineConfig:
        """This configuration with at most so many prompts side by side.

        Raises:
            ConfigError: ``max_batch_size`` is below 1.
        """
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}.", remedy="Use 1 or more.")
        scheduler = self.scheduler.model_copy(update={"max_batch_size": max_batch_size})
        return self.model_copy(update={"scheduler": scheduler})


def pruning_preset(retention: str) -> PruningConfig:
    """Looks an operating point up by its name in ``PRESETS``; "auto" leaves it to a calibration.

    Raises:
        ConfigError: There is no such preset.
    """
    if retention == "auto":
        return PruningConfig(layer_fraction=0.0, keep_ratio=1.0, auto=True)
    if retention not in PRESETS:
        raise ConfigError(
            f"There is no retention preset {retention!r}.",
            remedy=f"Use one of {', '.join((*PRESETS, 'auto'))}, or a PruningConfig(...) of your own.",
        )
    return PRESETS[retention]

"""What one call may set otherwise than its engine, applied to the engine's configuration. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sgl_engine.config import (
    UNCALIBRATED,
    EngineConfig,
    Escalate,
    ExitConfig,
    PruningConfig,
    pruning_preset,
)


@dataclass(frozen=True)
class CallChoices:
    """Choices of one call; None is the engine's own.

    Attributes:
        escalate: "auto" lets the score decide, "never" keeps the small answer, "always" asks the large model.
        threshold: The small answer is kept when its score is at least this, in [0, 1].
        scorer: Name in ``sgl_engine.exit.decision.SCORERS``.
        retention: Operating point of the pruning; "auto" leaves it to the calibration.
        tiles: Tiles that the large model is given (``PruningConfig.tiles``).
        neutral: Whether a neutral question's map is taken off the small model's (``PruningConfig.neutral``).
    """

    escalate: Escalate | None = None
    threshold: float | None = None
    scorer: str | None = None
    retention: str | None = None
    tiles: int | Literal["all"] | None = None
    neutral: bool | None = None

    def changes(self, config: EngineConfig) -> dict[str, Any]:
        """Returns the parts of ``config`` that these choices want otherwise, by name.

        Raises:
            ConfigError: There is no such preset.
        """
        exits = {"escalate": self.escalate, "threshold": self.threshold, "scorer": self.scorer}
        given = {name: value for name, value in exits.items() if value is not None}
        beyond = self._beyond_calibration(config)
        if "escalate" in beyond and self.escalate == "auto":
            del given["escalate"]  # the score is not calibrated, so it cannot decide
        given = {**beyond, **given}
        update: dict[str, Any] = {}
        if given:
            # Constructed, because model_copy(update=...) takes any value.
            update["exit"] = ExitConfig(**{**config.exit.model_dump(), **given})
        pruning = self._pruning(config)
        if pruning != config.pruning:
            update["pruning"] = pruning
        return update

    def _beyond_calibration(self, config: EngineConfig) -> dict[str, Any]:
        """Says how the exit changes where these choices differ from what the calibration was made with."""
        if config.exit.calibration is None:
            return {}
        without: dict[str, Any] = dict(UNCALIBRATED)
        # A threshold of the call's own takes the place of the certified one.
        if self.threshold is not None:
            return without
        if self._pruning(config) == config.pruning and self.scorer in {None, config.exit.scorer}:
            return {}
        # Nothing was certified for other pruning or another score, so the small answer is never kept.
        return {**without, "escalate": "always"}

    def _pruning(self, config: EngineConfig) -> PruningConfig:
        """Returns the pruning that these choices want."""
        point = config.pruning if self.retention is None else pruning_preset(self.retention)
        # A preset says nothing of these, so it leaves them as they are.
        tiles = config.pruning.tiles if self.tiles is None else self.tiles
        neutral = config.pruning.neutral if self.neutral is None else self.neutral
        return point.model_copy(update={"tiles": tiles, "neutral": neutral})

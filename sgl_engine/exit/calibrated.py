"""A calibration at work: which requests it covers, and how probable it is that the small answer will do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_engine.config import GenerationConfig, PictureConfig
from sgl_engine.errors import ConfigError
from sgl_engine.exit.binding import Conditions, bind, digest
from sgl_engine.exit.calibration_file import Calibration, load_calibration
from sgl_engine.exit.calibrators import observe
from sgl_engine.exit.decision import CalibratedScore, ChosenRung, Confidence
from sgl_engine.request import Decoding, Message, Request

if TYPE_CHECKING:
    from sgl_engine.config import EngineConfig
    from sgl_engine.model.vlm import VLM

_CHOOSING = GenerationConfig.model_fields.keys() - {"max_new_tokens", "draft"}
"""What a ``Decoding`` has of a configuration."""


@dataclass(frozen=True)
class ExitRule:
    """One operating point of a calibration.

    Attributes:
        calibration: The whole file.
        threshold: The certified one.
        risk: The target risk for which it is; None where it bounds the share that escalates.
    """

    calibration: Calibration
    threshold: float
    risk: float | None

    def judge(
        self,
        request: Request,
        decoding: Decoding,
        max_new_tokens: int,
        confidence: Confidence,
        answer_tokens: int,
        seen: Mapping[str, float] | None = None,
    ) -> CalibratedScore:
        """Gives the calibrated probability that a small answer will do, or says why there is none.

        Args:
            request: What was asked.
            decoding: How the answer's tokens were chosen.
            max_new_tokens: The limit that it had.
            confidence: The small model's, in the answer.
            answer_tokens: Tokens of the answer, its end included.
            seen: Where the small model looked (``ImportanceMap.describe``).
        """
        how = {name: getattr(decoding, name) for name in _CHOOSING}
        asked = self.calibration.conditions.generation.model_copy(
            update={"max_new_tokens": max_new_tokens, **how}
        )
        gap = not_covered(self.calibration.conditions, request, asked)
        if gap is not None:
            return self.uncovered(gap)
        values = observe(confidence.score, confidence.parts, answer_tokens, seen)
        probability = self.calibration.calibrator.probability(values)
        if probability is None:
            return self.uncovered("the small answer has no score, or not every part of it")
        return CalibratedScore(
            self.calibration.id, self.threshold, probability, risk=self.risk, rung=self._rung(values)
        )

    def _rung(self, values: Mapping[str, float]) -> ChosenRung | None:
        """Chooses the least that the large model may be shown; None where only everything will do."""
        for rung in self.calibration.rungs:
            probability = rung.calibrator.probability(values)
            if probability is not None and probability >= self.threshold:
                return ChosenRung(rung.name, rung.pruning, probability)
        return None

    def uncovered(self, reason: str) -> CalibratedScore:
        """Makes the score of a request about which the calibration says nothing: no probability, a reason."""
        return CalibratedScore(self.calibration.id, self.threshold, probability=None, uncovered=reason)


def exit_rule(small: VLM, large: VLM | None, config: EngineConfig) -> ExitRule | None:
    """Loads the rule that the configuration names; None where it names none.

    Args:
        small: The small model.
        large: The large model; None is a hosted one.
        config: The configuration.

    Raises:
        ConfigError: The file cannot be used, is of another pair or other settings, or certifies nothing at
            the risk or the share that is asked for.
    """
    path = config.exit.calibration
    if path is None and config.pruning.auto:
        raise ConfigError(
            "pruning.auto lets a calibration choose what the large model is shown, and there is none.",
            remedy="Make one with sgl calibrate --retention auto, and name it: ExitConfig(calibration=...).",
        )
    if path is None:
        return None
    if large is None:
        raise ConfigError(
            f"The calibration {path} is of two models, and the large one is hosted: nobody can tell whether "
            "it is the same.",
            remedy="Set ExitConfig(threshold=...) instead.",
        )
    calibration = load_calibration(path)
    differences = calibration.differences(bind(small, large, config))
    if differences:
        raise ConfigError(
            f"The calibration {path} was made for something else: {'; '.join(differences)}.",
            remedy="Use the pair and the settings that it was made with, or calibrate again with these.",
        )
    if config.exit.share is not None:
        share = calibration.share_point(config.exit.share)
        assert share.threshold is not None, "share_point() returns certified ones only"
        return ExitRule(calibration, share.threshold, risk=None)
    point = calibration.point(config.exit.risk)
    assert point.threshold is not None, "point() returns certified ones only"
    return ExitRule(calibration, point.threshold, point.target_risk)


def not_covered(conditions: Conditions, request: Request, asked: GenerationConfig) -> str | None:
    """Says why a request is unlike those that were calibrated on; None where it is like them.

    What can be told from its form alone: that it is about the same kind of pictures is for the drift check.
    """
    expected, images = conditions.generation, len(request.images)
    span = " to ".join(map(str, sorted({conditions.min_images, conditions.max_images})))
    system, turns = _system(request.messages)
    gaps = {
        f"{name} is {getattr(asked, name)}, calibrated with {getattr(expected, name)}": (
            getattr(asked, name) != getattr(expected, name)
        )
        for name in GenerationConfig.model_fields
    } | {
        "the answer has stop strings": bool(request.stop),
        "tokens have a logit_bias": bool(request.logit_bias),
        "its pictures are shown at a size of their own": (
            any(getattr(request, name) is not None for name in PictureConfig.model_fields)
        ),
        "its chat template is given arguments": bool(request.chat_template_kwargs),
        "tools may be called": bool(request.tools),
        "the answer has to satisfy a schema": request.response_schema is not None,
        f"it has {images} images, calibrated with {span}": not (
            conditions.min_images <= images <= conditions.max_images
        ),
        "the system prompt is another one": system != conditions.system,
        "it is a longer conversation": [turn.role for turn in turns] != ["user"],
    }
    return next((gap for gap, there in gaps.items() if there), None)


def _system(messages: tuple[Message, ...]) -> tuple[str | None, list[Message]]:
    """Splits a conversation into the hash of its system text and the other turns."""
    texts = [part for message in messages if message.role == "system" for part in message.content]
    words = "\n".join(text for text in texts if isinstance(text, str)).strip()
    return system_hash(words), [message for message in messages if message.role != "system"]


def system_hash(text: str | None) -> str | None:
    """Hashes a system prompt, which may be private, for a file. None and "" are no prompt: None."""
    return digest(text.strip()) if text and text.strip() else None

"""A calibration as a file: versioned JSON that says what is promised, for what, and from which data.

The schema is versioned: a field is never given another meaning under the same ``schema_version``. A report
that names a calibration's ``id`` names exactly this file (``sealed_file``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from sgl_engine.config import PruningConfig
from sgl_engine.errors import ConfigError
from sgl_engine.exit.binding import Binding, Conditions
from sgl_engine.exit.calibrators import ANSWER_TOKENS, Calibrator
from sgl_engine.exit.decision import CONSISTENCY
from sgl_engine.exit.points import OperatingPoint, SharePoint
from sgl_engine.exit.sealed_file import SealedFile, load_sealed

SCHEMA_VERSION: Literal["1"] = "1"

Risk: TypeAlias = Literal["disagreement", "regression", "error"]
Agreement: TypeAlias = Literal["text", "metric"]
"""How answers agree: as ``RunReport.large_agreed`` says, or by the row's metric, were the large one right."""

RISKS: Mapping[Risk, str] = {
    "disagreement": "the small model's answer is final, and the large model would have answered differently",
    "regression": "the small model's answer is final and wrong, and the large model's would have been right",
    "error": "the small model's answer is final and wrong",
}
"""What a target risk bounds the probability of, over all questions, where exits alone are certified."""

WHOLE_RISKS: Mapping[Risk, str] = {
    "disagreement": "the answer is not what the large model alone, shown everything, would have given",
    "regression": "the answer is wrong, and that of the large model alone, shown everything, would have been "
    "right",
    "error": "the answer is wrong, and the large model was not shown everything",
}
"""The same where all that the cascade does is certified: exits, tiles and tokens."""


class _FilePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Samples(_FilePart):
    """Where the numbers come from.

    Attributes:
        data: Name of the data.
        fitting: Records that the calibrator and the thresholds were made from.
        certifying: Records that the thresholds were tested on.
        failed: Rows that could not be answered, and are in neither half.
        pictures: Different (sets of) pictures; of each in the certifying half, at most one record was tested.
        seed: Of the split.
    """

    data: str
    fitting: int
    certifying: int
    failed: int
    pictures: int
    seed: int


class Reference(_FilePart):
    """The certifying half's scores, for the drift check.

    Attributes:
        records: How many.
        scores: Their quantiles at (i + 0.5) / m, ascending; all of them where there are few.
    """

    records: int
    scores: tuple[float, ...]


class Rung(_FilePart):
    """An operating point of the large model that may be chosen for an escalation.

    Attributes:
        name: For people, such as "35%".
        pruning: The operating point.
        calibrator: Observation -> probability that the answer at this point is harmless.
    """

    name: str
    pruning: PruningConfig
    calibrator: Calibrator


class Calibration(SealedFile):
    """The whole file.

    Attributes:
        schema_version: Version of this schema.
        created: UTC, ISO 8601.
        package_version: Of the package that made it.
        binding: What a request cannot change, and an engine has to agree with.
        conditions: What requests were like.
        risk: What is bounded; ``RISKS`` says it in words.
        agreement: How answers were compared, where the risk is "disagreement".
        confidence_level: P(the risk is within its target) is at least this, for each target by itself.
        calibrator: Observation -> probability that keeping the small answer is harmless.
        rungs: What the large model may be shown, the least first; where there are any, the promise is about
            all that the cascade does, and else about exits alone.
        points: What can be promised, by target risk, ascending.
        shares: What can be promised about how many go to the large model, by target share, ascending.
        samples: Where the numbers come from.
        reference: Scores, for the drift check.
    """

    kind_of_file: ClassVar[str] = "a calibration"
    made_by: ClassVar[str] = "sgl calibrate --data FILE --out calibration.json"

    schema_version: Literal["1"] = SCHEMA_VERSION
    created: str
    package_version: str
    binding: Binding
    conditions: Conditions
    risk: Risk
    agreement: Agreement = "text"
    confidence_level: float
    calibrator: Calibrator
    rungs: tuple[Rung, ...] = ()
    points: tuple[OperatingPoint, ...]
    shares: tuple[SharePoint, ...] = ()
    samples: Samples
    reference: Reference

    @property
    def reads_consistency(self) -> bool:
        """Whether it asks for what the consistency pass measures, beside the score."""
        every = (self.calibrator, *(rung.calibrator for rung in self.rungs))
        return any(feature.name in CONSISTENCY for each in every for feature in each.features)

    def differences(self, other: Binding) -> list[str]:
        """Lists what an engine has otherwise (``Binding.differences``), as far as it matters here."""
        every = (self.calibrator, *(rung.calibrator for rung in self.rungs))
        by_length = any(feature.name == ANSWER_TOKENS for each in every for feature in each.features)
        return [*self.binding.differences(other), *(self.binding.lengths_differ(other) if by_length else ())]

    def point(self, target_risk: float | None) -> OperatingPoint:
        """Picks the operating point to run at.

        Args:
            target_risk: One of those in the file; None is the smallest that could be certified.

        Raises:
            ConfigError: It is not among them, or nothing could be certified for it.
        """
        certified = [point for point in self.points if point.threshold is not None]  # by risk, ascending
        choices = f"certified are {', '.join(f'{point.target_risk:g}' for point in certified) or 'none'}"
        if target_risk is None:
            if certified:
                return certified[0]
            needed = [point.summary(self.confidence_level) for point in self.points[-1:]]
            raise ConfigError(
                f"The calibration {self.id} certifies no threshold. {' '.join(needed)}",
                remedy="Calibrate with more records or a larger risk, or leave it out.",
            )
        for point in self.points:
            if point.target_risk == target_risk and point.threshold is not None:
                return point
            if point.target_risk == target_risk:  # it was tried, and nothing could be certified
                raise ConfigError(
                    point.summary(self.confidence_level),
                    remedy=f"Use another risk ({choices}), calibrate with more records, or choose "
                    'escalate="always" without a calibration.',
                )
        raise ConfigError(
            f"The calibration {self.id} says nothing about a risk of {target_risk:g}.",
            remedy=f"Use one that it has ({choices}), or calibrate with --target {target_risk:g}.",
        )

    def share_point(self, target_share: float) -> SharePoint:
        """Picks the operating point that keeps the large model's share within a target.

        Raises:
            ConfigError: The share is not among those in the file, or could not be certified.
        """
        certified = [f"{point.target_share:g}" for point in self.shares if point.threshold is not None]
        choices = f"certified are {', '.join(certified) or 'none'}"
        for point in self.shares:
            if point.target_share == target_share and point.threshold is not None:
                return point
            if point.target_share == target_share:
                raise ConfigError(
                    point.summary(self.confidence_level),
                    remedy=f"Use another share ({choices}), or calibrate with more records.",
                )
        raise ConfigError(
            f"The calibration {self.id} says nothing about a share of {target_share:g}.",
            remedy=f"Use one that it has ({choices}), or calibrate with --share {target_share:g}.",
        )

    def describe(self) -> str:
        """Says what the risk is, and in one line each what the operating points promise."""
        points = [point.summary(self.confidence_level) + self._rungs_of(point) for point in self.points]
        shares = [point.summary(self.confidence_level) for point in self.shares]
        return "\n".join([f"The risk: {self.risk_in_words}.", *points, *shares])

    @property
    def risk_in_words(self) -> str:
        """What a target risk bounds the probability of, over all questions."""
        return (WHOLE_RISKS if self.rungs else RISKS)[self.risk]

    def _rungs_of(self, point: OperatingPoint) -> str:
        if not self.rungs or point.threshold is None:
            return ""
        shares = [
            f"{rung.name} {n / point.records:.1%}" for rung, n in zip(self.rungs, point.rungs, strict=True)
        ]
        whole = point.records - point.exits - sum(point.rungs)
        return f" The large model sees: {', '.join(shares)}, everything {whole / point.records:.1%}."


def load_calibration(path: str | Path) -> Calibration:
    """Reads and checks a calibration; raises as ``load_sealed`` does."""
    return load_sealed(Calibration, path)

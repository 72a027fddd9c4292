"""What a calibration promises at one threshold: how often harm is done, or how many go to the large model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class OperatingPoint(BaseModel):
    """What can be promised at one target risk; "nothing" is a result like any other.

    Attributes:
        target_risk: P(exits and harms) that is to be kept.
        threshold: Probability from which on the small answer is kept; None where none could be certified.
        records: Records that it was tested on.
        exits: Of them, how many exit.
        harmful_exits: Of those, how many did harm.
        p_value: Of the threshold, or of the strictest one where none was certified.
        records_needed: Where none was certified: about how many records would do, if the strictest
            threshold's errors stay as frequent; None where no number would.
        rungs: Of those that do not exit, how many are answered at each of the calibration's rungs; the rest
            is shown everything.
        harmful_rungs: Of the answers at rungs, how many did harm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_risk: Annotated[float, Field(gt=0.0, lt=1.0)]
    threshold: float | None
    records: int
    exits: int
    harmful_exits: int
    p_value: float
    records_needed: int | None = None
    rungs: tuple[int, ...] = ()
    harmful_rungs: int = 0

    @property
    def exit_share(self) -> float:
        """Share of the records that never reach the large model."""
        return self.exits / self.records if self.records else 0.0

    @property
    def observed_risk(self) -> float:
        """Share of all records that were answered, by either model, so that it did harm."""
        return (self.harmful_exits + self.harmful_rungs) / self.records if self.records else 0.0

    @property
    def harm_among_exits(self) -> float:
        """Share of the exits that did harm; not what is certified."""
        return self.harmful_exits / self.exits if self.exits else 0.0

    def summary(self, confidence_level: float) -> str:
        """Says in a sentence what is promised, or why nothing is."""
        if self.threshold is not None:
            return (
                f"At most {self.target_risk:.1%} risk, with {confidence_level:.0%} confidence: keep the "
                f"small answer from a probability of {self.threshold:.4f} on; {self.exit_share:.1%} of "
                f"{self.records} questions exit."
            )
        sentence = (
            f"No threshold can be certified for {self.target_risk:.1%} risk with {confidence_level:.0%} "
            f"confidence and n = {self.records}"
        )
        if self.records_needed is None:
            return f"{sentence}; even the surest answers do harm too often, so more records would not help."
        return f"{sentence}; you need about {self.records_needed}, each about another picture."


class SharePoint(BaseModel):
    """What can be promised about how many questions go to the large model.

    Attributes:
        target_share: P(escalates) that is not to be exceeded.
        threshold: Probability from which on the small answer is kept, the strictest that could be certified;
            None where none could.
        records: Records that it was tested on.
        escalated: Of them, how many go to the large model.
        harmed: Of all, how many were answered, by either model, so that it did harm; nothing is promised
            about it.
        p_value: Of the threshold, or of the loosest one where none was certified.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    threshold: float | None
    records: int
    escalated: int
    harmed: int
    p_value: float

    @property
    def escalated_share(self) -> float:
        """Share of the records that go to the large model."""
        return self.escalated / self.records if self.records else 0.0

    @property
    def observed_risk(self) -> float:
        """Share of the records whose answer did harm."""
        return self.harmed / self.records if self.records else 0.0

    def summary(self, confidence_level: float) -> str:
        """Says in a sentence what is promised, or that nothing is."""
        if self.threshold is None:
            return (
                f"No threshold can be certified to send at most {self.target_share:.1%} of the questions to "
                f"the large model, with {confidence_level:.0%} confidence and n = {self.records}."
            )
        return (
            f"At most {self.target_share:.1%} of the questions go to the large model, with "
            f"{confidence_level:.0%} confidence: keep the small answer from a probability of "
            f"{self.threshold:.4f} on; {self.escalated_share:.1%} of {self.records} went there, and the risk "
            f"was {self.observed_risk:.1%} (nothing is promised about it)."
        )

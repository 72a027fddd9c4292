"""The report page: what the small model may answer alone, what that saves, and what it costs in quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sgl_engine import ConfigError
from sgl_engine.calibration import figures
from sgl_engine.calibration.outcomes import CascadeOutcome, outcome, outcomes_by_kind, share_interval
from sgl_engine.calibration.records import CalibrationRecord, halves, one_of_each_picture
from sgl_engine.calibration.ways import Ways
from sgl_engine.evaluation.tables import Table
from sgl_engine.exit import reads_consistency

if TYPE_CHECKING:
    from sgl_engine.exit import Calibration, ModelIdentity, OperatingPoint

PAGE = "report.md"


def write_page(calibration: Calibration, records: Sequence[CalibrationRecord], folder: Path) -> Path:
    """Writes ``report.md`` and its figures.

    Args:
        calibration: What was made of the records.
        records: All of them; what the page says is measured on those that were certified on.
        folder: Made where it does not exist.

    Raises:
        ConfigError: It cannot be written, or matplotlib is not installed.
    """
    seed = calibration.samples.seed
    page = _Page(calibration, one_of_each_picture(halves(records, seed)[1], seed))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = page.write(folder)
        (folder / PAGE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The report cannot be written to {folder} ({error.strerror or error}).",
            remedy="Name another folder with --report.",
        ) from error
    return folder / PAGE


class _Page:
    """The page as it is written: one method per section."""

    def __init__(self, calibration: Calibration, records: Sequence[CalibrationRecord]) -> None:
        self.calibration = calibration
        reads = calibration.reads_consistency or reads_consistency(calibration.binding.scorer)
        # Asked were all questions with the consistency pass; who uses the calibration may never run it.
        self.records = records if reads else [record.without_consistency() for record in records]
        self.ways = Ways.under(calibration, self.records)
        self.rungs = tuple(rung.name for rung in calibration.rungs)
        self.certified = [point for point in calibration.points if point.threshold is not None]

    def write(self, folder: Path) -> str:
        """Draws the figures, and returns the text."""
        figures.risk_curve(folder / "risk.png", self.ways, self.calibration.points)
        leaves = np.isfinite(self.ways.probabilities[:, 0])  # the others have no probability
        scores = np.array([record.score for record in self.records])[leaves].tolist()
        leaving = self.ways.probabilities[leaves, 0].tolist()
        harmless = (~self.ways.harmful[leaves, 0]).tolist()
        sections = [self._head(), self._summary(), self._table(), "![Risk against exits](risk.png)"]
        if self.certified:
            sections.append(self._kinds(folder))
        if leaves.any():
            errors = figures.reliability_figure(folder / "reliability.png", scores, leaving, harmless)
            sections.append(self._reliability(*errors))
        sections += [self._promise(), self._origin()]
        return "\n\n".join(sections) + "\n"

    def _outcome(self, point: OperatingPoint) -> CascadeOutcome:
        return outcome(self.records, self.ways, self.rungs, point.threshold)

    def _head(self) -> str:
        small, large = self.calibration.binding.small.name, self.calibration.binding.large.name
        return (
            f"# Which questions does {large} need to see?\n\n"
            f"{small} answers first; this page says when that is enough."
        )

    def _summary(self) -> str:
        level = self.calibration.confidence_level
        promised = [
            point.summary(level) if point.threshold is None else self._sentence(point)
            for point in self.calibration.points
        ]
        promised += [share.summary(level) for share in self.calibration.shares]
        return "\n".join(f"- {sentence}" for sentence in promised)

    def _table(self) -> str:
        if not self.certified:
            return "Nothing could be certified, so every question goes to the large model."
        asked = "shown everything" if self.rungs else "as the cascade asks it"
        about = _paragraph(f"""
            Measured on {len(self.records)} questions that the calibration was not fitted on; 95 % intervals
            in brackets. Saved is meant against the large model alone, which sees all of the picture; "large,
            guided" is the large model, {asked}, if it were asked every time.
        """)
        rows = [
            (
                f"{point.target_risk:.1%}",
                _share(result.exits, result.questions),
                *self._seen(result),
                _share(result.harmed, result.questions),
                f"{result.tflops_saved:.0%}",
                _percent(result.ms_saved),
                " / ".join(
                    _percent(accuracy, 1)
                    for accuracy in (
                        result.accuracy,
                        result.guided_accuracy,
                        result.large_accuracy,
                        result.small_accuracy,
                    )
                ),
            )
            for point, result in ((point, self._outcome(point)) for point in self.certified)
        ]
        names = (
            "risk allowed",
            "never reach the large model",
            *([f"large model sees {', '.join(self.rungs)} / everything"] if self.rungs else []),
            "risk observed",
            "operations saved",
            "time saved",
            "right answers: cascade / large, guided / large alone / small alone",
        )
        return f"{about}\n\n{Table('What each risk buys', names, rows).markdown()}"

    def _seen(self, result: CascadeOutcome) -> list[str]:
        """Shares of all questions that the large model answers at each rung, and shown everything."""
        if not self.rungs:
            return []
        counts = [*result.rungs, result.questions - result.exits - sum(result.rungs)]
        shares = [f"{count / result.questions:.0%}" for count in counts]
        return [f"{', '.join(shares[:-1])} / {shares[-1]}"]

    def _kinds(self, folder: Path) -> str:
        by_risk = {
            f"At {point.target_risk:.1%} risk": outcomes_by_kind(
                self.records, self.ways, self.rungs, point.threshold
            )
            for point in self.certified
        }
        figures.exits_by_kind(folder / "kinds.png", by_risk)
        about = _paragraph("""
            The promise is about all questions together, not about each kind: a kind may take more than its
            share of the risk. Harm is counted among all questions of the kind.
        """)
        parts = ["## Kinds of questions", about, "![Kinds](kinds.png)"]
        for label, outcomes in by_risk.items():
            rows = [
                (
                    kind,
                    str(each.questions),
                    f"{each.exit_share:.0%}",
                    f"{each.harmed} ({each.harmed / each.questions:.1%})",
                    f"{each.tflops_saved:.0%}",
                    f"{_percent(each.accuracy)} / {_percent(each.large_accuracy)}",
                )
                for kind, each in outcomes.items()
            ]
            names = (
                "kind",
                "questions",
                "exit",
                "harmed",
                "operations saved",
                "right: cascade / large alone",
            )
            parts.append(Table(label, names, rows).markdown())
        return "\n\n".join(parts)

    def _reliability(self, before: float, after: float) -> str:
        about = _paragraph(f"""
            Where it says 90 %, 90 of 100 small answers should do no harm. The small model's score is off by
            {100 * before:.1f} points on average, the calibrated probability
            ({self.calibration.calibrator.method}) by {100 * after:.1f}. The promise does not rest on this:
            thresholds were tested, whatever the probabilities are worth.
        """)
        return f"## Are the probabilities true?\n\n![Reliability](reliability.png)\n\n{about}"

    def _promise(self) -> str:
        made, samples = self.calibration, self.calibration.samples
        among = [
            f"{point.harm_among_exits:.1%} at {point.target_risk:.1%} risk"
            for point in self.certified
            if point.exits
        ]
        about = "what final small answers do, not about what pruning the large model costs"
        if self.rungs:
            about = "all that the cascade does, against the large model that is shown everything"
        text = _paragraph(f"""
            The risk of an operating point is the share of all questions of which it is true that
            {made.risk_in_words}. If the calibration were repeated with other questions of the same sort, the
            risk would be within its target in at least {made.confidence_level:.0%} of the repetitions. Each
            target is promised by itself, so choose one before you look at the table. The promise is about
            {about}, and about questions like these; run `sgl calibrate --check` on newer ones from time to
            time. It is about all
            questions, not about the exits alone, among which harm is more frequent
            ({", ".join(among) or "there are none"}), and not about single kinds. The test takes what it
            counts for independent, so it counts {samples.certifying} questions about as many pictures, drawn
            so that all questions count alike; {samples.pictures} pictures there are in all.
        """)
        return f"## What is promised\n\n{text}"

    def _origin(self) -> str:
        made, samples = self.calibration, self.calibration.samples
        binding, asked = made.binding, made.conditions.generation
        thresholds = ", ".join(f"{point.threshold:.4f} ({point.target_risk:.1%})" for point in self.certified)
        lines = [
            f"calibration {made.id}, made {made.created} by langchain-sgl {made.package_version}",
            f"data: {samples.data}; {samples.fitting} questions to fit, {samples.certifying} to certify",
            f"rows that could not be answered: {samples.failed}",
            f"small model: {_model(binding.small)}",
            f"large model: {_model(binding.large)}",
            f"pruning: {binding.pruning}",
            f"score: {binding.scorer}; keep the small answer from a probability of {thresholds or 'none'} on",
            f"answers of at most {asked.max_new_tokens} tokens, temperature {asked.temperature}",
        ]
        return "## Where it comes from\n\n" + "\n".join(f"- {line}" for line in lines)

    def _sentence(self, point: OperatingPoint) -> str:
        """Says what a hurried reader takes away."""
        result = self._outcome(point)
        words = _saved(point, result)
        if result.accuracy_lost is None:
            return words
        lost = 100 * result.accuracy_lost
        words += (
            f" Of 100 questions, {abs(lost):.1f} {'fewer' if lost >= 0 else 'more'} are answered right "
            f"than by the large model alone ({_percent(result.accuracy, 1)} against "
            f"{_percent(result.large_accuracy, 1)})"
        )
        if result.lost_by_exits is None or self.rungs:
            return f"{words}."
        exits = 100 * result.lost_by_exits
        return (
            f"{words}: {exits:.1f} because small answers are kept, {lost - exits:.1f} because the large "
            "model is shown fewer visual tokens."
        )


def _saved(point: OperatingPoint, result: CascadeOutcome) -> str:
    share = f"{result.exit_share:.0%} of the questions never reach the large model"
    saved = f"That saves {result.tflops_saved:.0%} of its operations"
    if result.ms_saved is not None:
        saved += (
            f" and {result.ms_saved:.0%} of its time"
            if result.ms_saved >= 0
            else f", and takes {-result.ms_saved:.0%} longer"
        )
    return f"**At {point.target_risk:.1%} risk, {share}.** {saved}."


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _model(model: ModelIdentity) -> str:
    revision = f" at {model.revision}" if model.revision else ""
    return f"{model.name}{revision}, {model.dtype}, fingerprint {model.fingerprint}"


def _share(hits: int, count: int) -> str:
    low, high = share_interval(hits, count)
    return f"{hits / count:.1%} ({low:.1%} to {high:.1%})"


def _percent(value: float | None, digits: int = 0) -> str:
    return "not known" if value is None else f"{value:.{digits}%}"

"""The report: tables for people, JSON and CSV for programs, figures; one folder holds them all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sgl_engine import ConfigError
from sgl_engine.demo.pages.generator import TRANSCRIPTION
from sgl_engine.evaluation.figures import save
from sgl_engine.evaluation.intervals import Interval
from sgl_engine.evaluation.json_lines import BadLine
from sgl_engine.evaluation.records import BenchRecord, Json, Scored
from sgl_engine.evaluation.report_figures import charts
from sgl_engine.evaluation.sections import Section
from sgl_engine.evaluation.store import Manifest
from sgl_engine.evaluation.studies import SECTIONS
from sgl_engine.evaluation.summary import Summary, SystemSummary
from sgl_engine.evaluation.tables import Table, apart_table, tables
from sgl_engine.evaluation.threshold_sweep import NEVER
from sgl_engine.rankers import DEFAULT_RANKER

_SHOWN_ERRORS = 10


@dataclass(frozen=True, eq=False)
class Report:
    """What is said about a run.

    Attributes:
        manifest: What was run.
        summary: The numbers.
        failed: Records of rows that failed.
        bad: Lines of the data that are no rows.
        sections: What studies add, by name.
        apart: The same numbers of rows that are in nothing of the above; None where there are none.
    """

    manifest: Manifest
    summary: Summary
    failed: Sequence[BenchRecord]
    bad: Sequence[BadLine]
    sections: Mapping[str, Section]
    apart: Summary | None = None

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        summary: Summary,
        records: Sequence[BenchRecord],
        bad: Sequence[BadLine],
        apart: Summary | None = None,
    ) -> Report:
        """Makes all sections; leaves out those whose studies did not take part."""
        studied = summary.compared
        made = {name: make(studied.rows, studied.draws) for name, make in SECTIONS.items()}
        return cls(
            manifest=manifest,
            summary=summary,
            failed=[each for each in records if each.error is not None],
            bad=bad,
            sections={name: section for name, section in made.items() if section is not None},
            apart=apart,
        )

    def tables(self) -> list[Table]:
        """Makes the tables, most important first."""
        return [*tables(self.summary), *([apart_table(self.apart)] if self.apart else [])]

    def notes(self) -> list[str]:
        """Says what one has to know before one believes the tables."""
        summary = self.summary
        lines = [
            f"{len(summary.rows)} questions; intervals are 95 %, by {summary.draws.draws} resamples of them.",
            "Guided and cascade rows include the small model's pass. Milliseconds are those of this machine.",
            (
                f"The score tells right from wrong small answers with AUROC {summary.auroc.plain()}, "
                f"within a kind of question {summary.auroc_within:.3f} on average; "
                f"its expected calibration error is {100 * summary.calibration_error:.1f} %."
            ),
        ]
        if self.apart is not None:
            lines.append(
                f"{len(self.apart.rows)} transcriptions are in a table of their own, and in no other."
            )
        compared = summary.compared
        if compared is not summary:
            lines.append(
                f"Rankers and studies took part in the first {len(compared.rows)} of these questions only."
            )
        if DEFAULT_RANKER in compared.rankers:
            same, of = compared.same_side_by_side(DEFAULT_RANKER)
            lines.append(
                f"Rankers' passes ran side by side; {same} of {of} answers under {DEFAULT_RANKER} are to the "
                "letter those of the engine's single runs."
            )
        if self.failed:
            lines.append(f"Rows that failed, and are in no table: {len(self.failed)}.")
            lines += [f"- {each.row.id}: {each.error}" for each in self.failed[:_SHOWN_ERRORS]]
        if self.bad:
            lines.append(f"Lines of the data that are no rows: {len(self.bad)}.")
            lines += [f"- line {each.number}: {each.problem}" for each in self.bad[:_SHOWN_ERRORS]]
        return lines

    def write(self, folder: Path) -> list[Path]:
        """Writes everything; returns what was written.

        Raises:
            ConfigError: The folder cannot be written, or a library for figures is missing.
        """
        figures = {**charts(self.summary), **self._section_figures()}
        texts = {
            "results.md": self.markdown(),
            "results.json": json.dumps(self.json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            "results.csv": self.csv(),
        }
        try:
            for name, text in texts.items():
                (folder / name).write_text(text)
            for name, draw in figures.items():
                save(draw, folder / f"{name}.png")
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror or error}).", remedy="Name another folder."
            ) from error
        return [folder / name for name in (*texts, *(f"{name}.png" for name in figures))]

    def _section_figures(self) -> dict[str, Callable[[], Any]]:
        return {name: draw for section in self.sections.values() for name, draw in section.figures.items()}

    def markdown(self) -> str:
        """Writes the whole report as Markdown."""
        small, large = self.manifest.small, self.manifest.large
        notes = "\n".join(line if line.startswith("-") else f"\n{line}" for line in self.notes())
        parts = [
            f"# {small.name} and {large.name}",
            f"Data: {self.manifest.data}. Engine {self.manifest.engine_version}.",
            notes.strip(),
            *(table.markdown() for table in self.tables()),
            *(f"![{name}]({name}.png)" for name in charts(self.summary)),
        ]
        for section in self.sections.values():
            pictures = [f"![{name}]({name}.png)" for name in section.figures]
            parts += [f"## {section.title}", section.markdown.strip(), *pictures]
        return "\n\n".join(parts) + "\n"

    def json(self) -> Json:
        """Returns everything that the tables show, and more, as numbers."""
        summary, compared = self.summary, self.summary.compared
        return _plain(
            {
                "run": self.manifest.model_dump(mode="json"),
                "rows": len(summary.rows),
                "compared_rows": len(compared.rows),
                "failed": [{"id": each.row.id, "error": each.error} for each in self.failed],
                "bad_lines": [asdict(each) for each in self.bad],
                "point": summary.point,
                "threshold": summary.threshold,
                "retention": {point: summary.retention(point) for point in summary.points},
                "systems": [_system(each) for each in summary.systems],
                "cascade": [_system(each) for each in summary.sweep],
                "rankers": {
                    ranker: {
                        point: compared.draws.mean(compared.ranked(ranker, point))
                        for point in compared.points
                    }
                    for ranker in compared.rankers
                },
                "evidence": {
                    ranker: {point: compared.evidence(ranker, point) for point in compared.points}
                    for ranker in compared.rankers
                },
                "kinds": _groups(summary, summary.kinds),
                "tiles": _groups(summary, summary.grids),
                "apart": _groups(self.apart, self.apart.kinds) if self.apart else {},
                "score": {
                    "auroc": summary.auroc,
                    "auroc_within_kinds": summary.auroc_within,
                    "calibration_error": summary.calibration_error,
                    "bins": [asdict(each) for each in summary.bins],
                },
                "studies": {name: section.data for name, section in self.sections.items()},
            }
        )

    def csv(self) -> str:
        """Writes one line per system, threshold, and ranker at a point, for spreadsheets."""
        out = io.StringIO()
        names = ["system", "ranker", "point", "threshold", "rows", "retention", "escalated"]
        names += ["value", "value_low", "value_high", "tflops", "ms"]
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        for line in self._lines():
            writer.writerow({"rows": len(self.summary.rows), **line})
        return out.getvalue()

    def _lines(self) -> Iterator[dict[str, Any]]:
        summary = self.summary
        for system in [*summary.systems[: 2 + len(summary.points)], *summary.sweep]:
            yield {
                "system": system.name,
                "point": system.point,
                "threshold": system.threshold,
                "retention": system.retention,
                "escalated": None if system.escalated is None else system.escalated.value,
                "tflops": system.tflops,
                "ms": system.ms,
                **_bounds(system.value),
            }
        compared = summary.compared
        for ranker in compared.rankers:
            for point in compared.points:
                value = compared.draws.mean(compared.ranked(ranker, point))
                yield {
                    "system": f"large, {ranker} at {point}",
                    "ranker": ranker,
                    "point": point,
                    "rows": len(compared.rows),
                    "retention": compared.retention(point),
                    **_bounds(value),
                }


def _groups(summary: Summary, groups: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    return {
        name: {
            "rows": sum(where),
            "small": summary.draws.mean(summary.small, where),
            "large": summary.draws.mean(summary.large, where),
            "guided": {
                point: summary.draws.mean(summary.measured(point).at(NEVER).value, where)
                for point in summary.points
            },
            "cascade": summary.draws.mean(summary.chosen.value, where),
            "escalated": summary.draws.mean(summary.chosen.escalated, where),
            "auroc": summary.auroc_where(where),
        }
        for name, where in groups.items()
    }


def _bounds(value: Interval) -> dict[str, float]:
    return {"value": value.value, "value_low": value.low, "value_high": value.high}


def _system(system: SystemSummary) -> dict[str, Any]:
    return {each.name: getattr(system, each.name) for each in fields(system)}


def _plain(value: Any) -> Json:
    """Turns intervals into objects, and what is not a number, which JSON cannot say, into None."""
    if isinstance(value, Interval):
        return value.json()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value - value != 0.0:  # NaN and the infinities
        return None
    return value


def make_report(
    manifest: Manifest,
    records: Sequence[BenchRecord],
    bad: Sequence[BadLine],
    summarise: Callable[[Sequence[Scored]], Summary],
) -> Report:
    """Makes the report of what is recorded; rows of the kind "transcribe" stand apart in it.

    Raises:
        ConfigError: Not one row has an outcome.
    """
    rows = Scored.of(list(records))
    if not rows:
        said = next((each.error for each in records if each.error), "none was run")
        raise ConfigError(
            f"No row has an outcome; the first error: {said}",
            remedy="Mend what it names; the same command then goes on.",
        )
    apart = [row for row in rows if row.row.kind == TRANSCRIPTION]
    others = [row for row in rows if row.row.kind != TRANSCRIPTION]
    if not others:  # nothing to be apart from
        others, apart = apart, []
    return Report.of(manifest, summarise(others), records, bad, summarise(apart) if apart else None)

"""Which studies a benchmark run takes part in. Add one line to each."""

from __future__ import annotations

from sgl_engine.evaluation import better_maps, findings, likeness, scorer_study
from sgl_engine.evaluation.sections import RowStudy, SectionMaker

STUDIES: dict[str, RowStudy] = {
    likeness.STUDY: likeness.likeness,
    scorer_study.STUDY: scorer_study.consistency,
}
"""Name -> what is measured on a row; stands in ``BenchOutcome.study[name]``."""

SECTIONS: dict[str, SectionMaker] = {
    "findings": findings.findings,
    "maps": better_maps.better_maps,
    "scorers": scorer_study.scorers,
}
"""Name -> a part of the report; its data stand in ``results.json`` under that name."""

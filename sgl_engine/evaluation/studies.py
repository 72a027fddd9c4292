"""Which studies a benchmark run takes part in. Add one line to each."""

from __future__ import annotations

from sgl_engine.evaluation.sections import RowStudy, SectionMaker

STUDIES: dict[str, RowStudy] = {}
"""Name -> what is measured on a row; stands in ``Outcome.study[name]``."""

SECTIONS: dict[str, SectionMaker] = {}
"""Name -> a part of the report; its data stand in ``results.json`` under that name."""

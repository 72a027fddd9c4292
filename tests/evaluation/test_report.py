"""Tables, JSON, CSV and figures say what the rows say."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from sgl_engine.errors import ConfigError
from sgl_engine.evaluation import report as report_module
from sgl_engine.evaluation.dataset import BadLine
from sgl_engine.evaluation.figures import new_figure
from sgl_engine.evaluation.intervals import Bootstrap
from sgl_engine.evaluation.records import BenchRecord, Scored
from sgl_engine.evaluation.report import Report, make_report
from sgl_engine.evaluation.sections import Section
from sgl_engine.evaluation.store import BenchModel, Manifest
from sgl_engine.evaluation.summary import Summary
from sgl_engine.evaluation.tables import Table

MakeRow = Callable[..., Scored]
MODEL = BenchModel(name="m", revision=None, weights="0", dtype="float32", device="cpu")
MANIFEST = Manifest(engine_version="1", small=MODEL, large=MODEL, data="made up", settings={})


def summarise(rows: Sequence[Scored]) -> Summary:
    return Summary(rows=rows, draws=Bootstrap(len(rows), draws=200), point="35%", threshold=0.5)


@pytest.fixture
def records(make_row: MakeRow) -> list[BenchRecord]:
    """Forty rows: scores 0, 1/40, ...; small right in the upper half, large always but in every eighth."""
    rows = [
        make_row(
            n,
            score=n / 40,
            small=float(n >= 20),
            large=float(n % 8 > 0),
            guided=(float(n % 4 > 0), float(n % 2)),
            kind="b" if n % 2 else "a",
        )
        for n in range(40)
    ]
    return [BenchRecord(row=row.row, outcome=row.outcome) for row in rows]


@pytest.fixture
def report(records: list[BenchRecord], monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr(report_module, "SECTIONS", {})
    failed = BenchRecord(row=records[0].row.model_copy(update={"index": 99}), error="ImageError: gone | lost")
    return make_report(MANIFEST, [*records, failed], [BadLine(7, "no JSON")], summarise)


def test_systems_are_what_the_rows_say(report: Report) -> None:
    systems = {each.name: each for each in report.summary.systems}
    assert systems["small alone"].value.value == 0.5
    assert systems["large alone"].value.value == 35 / 40
    assert systems["large alone"].tflops_share.value == 1.0
    assert systems["large, guided 35%"].value.value == 0.75
    assert systems["large, guided 35%"].tflops_share.value == pytest.approx(0.9)  # the small pass included
    assert systems["large, guided 35%"].ms == pytest.approx(100.0)
    cascade = systems["cascade 35%, exit 0.5"]  # the upper half exits, and is right
    assert cascade.escalated is not None
    assert (cascade.value.value, cascade.escalated.value) == (0.5 + 15 / 40, 0.5)
    assert cascade.tflops == pytest.approx(0.4 + 0.5 * 0.5)
    assert cascade.versus_large.value == pytest.approx(0.5 + 15 / 40 - 35 / 40)
    assert report.summary.auroc.value == 1.0
    assert list(systems)[2:4] == ["large, guided 35%", "large, guided 9%"]  # what shows more comes first


def test_json_holds_the_numbers_and_is_json(report: Report) -> None:
    found = json.loads(json.dumps(report.json(), allow_nan=False))
    assert (found["rows"], found["run"]["data"], found["point"]) == (40, "made up", "35%")
    assert found["rankers"]["random"]["9%"]["value"] == 0.5
    assert found["kinds"]["b"]["rows"] == 20
    assert found["kinds"]["b"]["large"] == {"value": 1.0, "low": pytest.approx(0.839, abs=1e-3), "high": 1.0}
    assert found["failed"] == [{"id": "row 0", "error": "ImageError: gone | lost"}]
    assert found["bad_lines"] == [{"number": 7, "problem": "no JSON"}]
    assert len(found["score"]["bins"]) == 10
    assert found["cascade"][0]["threshold"] == 0.0


def test_csv_has_a_line_for_each_system_threshold_and_ranker(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(report.csv())))
    assert len(lines) == 4 + len(report.summary.sweep) + 2 * 2
    by_name = {line["system"]: line for line in lines}
    assert float(by_name["cascade 35%, exit 0.5"]["value"]) == 0.875
    assert by_name["large, random at 9%"]["ranker"] == "random"
    assert by_name["large, random at 9%"]["ms"] == ""


def test_markdown_says_what_failed(report: Report) -> None:
    text = report.markdown()
    assert "| small alone | 50.0 (" in text
    assert "Rows that failed, and are in no table: 1.\n- row 0: ImageError: gone | lost" in text
    assert "Lines of the data that are no rows: 1.\n- line 7: no JSON" in text
    assert "80 of 80 answers under small-guided are to the letter" in text


def test_rankers_that_took_part_in_the_first_rows_only(
    records: list[BenchRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "SECTIONS", {"seen": _seen})
    few = [
        record.model_copy(
            update={"outcome": record.outcome.model_copy(update={"compared": False, "pruned": {}})}
        )
        if record.outcome and record.row.index >= 30
        else record
        for record in records
    ]
    found, first, every = (
        make_report(MANIFEST, each, [], summarise) for each in (few, records[:30], records)
    )
    got, of_first, of_all = (each.json() for each in (found, first, every))
    assert (got["rows"], got["compared_rows"]) == (40, 30)
    for name in ("rankers", "studies"):
        assert got[name] == of_first[name] != of_all[name]
    for name in ("systems", "cascade", "kinds", "score", "retention"):
        assert got[name] == of_all[name] != of_first[name]
    titles = {table.title: table for table in found.tables()}
    [rankers] = [title for title in titles if "under each ranker" in title]
    assert "on 30 questions" in rankers
    assert [titles[rankers].rows] == [each.rows for each in first.tables() if each.title == rankers]
    assert any("first 30 of these questions only" in note for note in found.notes())
    lines = {line["system"]: line["rows"] for line in csv.DictReader(io.StringIO(found.csv()))}
    assert (lines["large alone"], lines["large, random at 9%"]) == ("40", "30")


def _seen(rows: Sequence[Scored], draws: Bootstrap) -> Section:
    return Section("Seen", "", {"rows": len(rows), "draws": draws.rows})


def test_everything_is_written_and_figures_are_pictures(report: Report, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    written = report.write(tmp_path)
    assert dict(mpl.rcParams) == before  # its own settings are left alone
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert {path.stem for path in written if path.suffix == ".png"} == {
        "retention",
        "cascade",
        "reliability",
        "kinds",
    }
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 300
                assert len(picture.convert("RGB").getcolors(2**24) or []) > 20  # something is drawn
    for name in ("retention", "cascade", "reliability", "kinds"):
        assert f"![{name}]({name}.png)" in (tmp_path / "results.md").read_text()
    with pytest.raises(ConfigError, match=r"cannot be written \(No such file"):
        report.write(tmp_path / "nowhere")


def test_without_rankers_there_is_no_figure_of_them(
    make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "SECTIONS", {})
    rows = [make_row(n, score=0.5, small=1, large=1, pruned={}) for n in range(3)]
    found = make_report(
        MANIFEST, [BenchRecord(row=row.row, outcome=row.outcome) for row in rows], [], summarise
    )
    assert "retention.png" not in found.markdown()
    assert "n/a" in found.markdown()  # AUROC, where all are right
    json.dumps(found.json(), allow_nan=False)


def test_studies_add_sections(
    records: list[BenchRecord], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def make(rows: Sequence[Scored], draws: Bootstrap) -> Section:
        assert [row.row.index for row in rows] == list(range(40))
        assert draws.rows == 40
        return Section("Findings", "It holds.", {"x": math.nan, "y": draws.mean([1.0] * 40)}, {"extra": draw})

    def draw() -> object:
        figure = new_figure(4, 4)
        figure.subplots().plot([0, 1])
        return figure

    monkeypatch.setattr(report_module, "SECTIONS", {"mine": make, "silent": lambda _rows, _draws: None})
    found = make_report(MANIFEST, records[::-1], [], summarise)
    found.write(tmp_path)
    assert "## Findings\n\nIt holds.\n\n![extra](extra.png)" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "extra.png").exists()
    studies = json.loads((tmp_path / "results.json").read_text())["studies"]
    assert studies["mine"]["x"] is None
    assert studies["mine"]["y"]["value"] == 1.0
    assert "silent" not in studies


def test_transcriptions_and_tiles_have_tables_of_their_own(
    make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "SECTIONS", {})

    def row(index: int, kind: str, *, right: float) -> Scored:
        kept = {"small-guided": {"35%": 0.75, "9%": 0.5}, "random": {"35%": 0.2, "9%": 0.0}}
        study = {"prompt": {"grids": 1 + index % 2, "evidence": kept if index else None}}
        return make_row(index, score=0.5, small=right, large=right, kind=kind, study=study)

    rows = [row(n, "transcribe" if n == 9 else "sum", right=float(n != 9)) for n in range(10)]
    found = make_report(
        MANIFEST, [BenchRecord(row=each.row, outcome=each.outcome) for each in rows], [], summarise
    )
    assert len(found.summary.rows) == 9
    assert found.summary.large.mean() == 1.0
    numbers = found.json()
    assert numbers["apart"]["transcribe"]["large"]["value"] == 0.0
    assert {name: group["rows"] for name, group in numbers["tiles"].items()} == {"1 tile": 5, "2 tiles": 4}
    assert numbers["evidence"]["small-guided"]["35%"]["value"] == 0.75
    text = found.markdown()
    assert "1 transcriptions are in a table of their own" in text
    assert "| random | 20.0 (20.0 to 20.0) | 0.0 (" in text
    alone = make_report(MANIFEST, [BenchRecord(row=rows[9].row, outcome=rows[9].outcome)], [], summarise)
    assert (len(alone.summary.rows), alone.apart) == (1, None)


def test_a_run_without_outcomes_names_its_first_error(records: list[BenchRecord]) -> None:
    bad = BenchRecord(row=records[0].row, error="ImageError: gone")
    with pytest.raises(ConfigError, match=r"No row has an outcome; the first error: ImageError: gone"):
        make_report(MANIFEST, [bad], [], summarise)


def test_a_table_in_markdown_keeps_its_columns() -> None:
    table = Table("T", ("a", "b"), [("x|y", "1\n2")])
    assert table.markdown().splitlines() == ["**T**", "", "| a | b |", "| --- | ---: |", "| x\\|y | 1 2 |"]

"""Pages of docs/ run block by block, and show what really comes out."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import walkthrough  # noqa: E402  # a script's folder is on the path only now
from walkthrough import Cell, agrees  # noqa: E402


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    folder = tmp_path_factory.mktemp("walkthrough")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = list(walkthrough.run_cells(walkthrough.PAGE.read_text()))
    assert {path.name for path in (folder / "walkthrough").iterdir()} == pictures_in_docs()
    return found


def pictures_in_docs() -> set[str]:
    return {path.name for path in (walkthrough.DOCS / "walkthrough").iterdir()}


def test_every_block_runs_and_shows_what_came(cells: list[Cell]) -> None:
    assert len(cells) >= 10
    for cell in cells:
        assert agrees(cell), f"shown:\n{cell.shown}\ncame:\n{cell.printed}"


def test_the_page_on_langchain_runs_and_shows_what_came() -> None:
    found = list(walkthrough.run_cells((walkthrough.DOCS / "langchain.md").read_text()))
    assert len(found) >= 6
    for cell in found:
        assert agrees(cell), f"shown:\n{cell.shown}\ncame:\n{cell.printed}"


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_the_page_on_hosted_models_runs_and_shows_what_came() -> None:
    found = list(walkthrough.run_cells((walkthrough.DOCS / "hosted.md").read_text()))
    assert len(found) >= 1
    for cell in found:
        assert agrees(cell), f"shown:\n{cell.shown}\ncame:\n{cell.printed}"


def test_writing_changes_nothing_but_outputs(cells: list[Cell]) -> None:
    page = walkthrough.PAGE.read_text()
    shown = [Cell(cell.code, cell.shown, cell.shown) for cell in cells]
    assert walkthrough.rewrite(page, shown) == page
    lost = [Cell(cell.code, cell.shown, "") for cell in cells]
    assert "```text" not in walkthrough.rewrite(page, lost)


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", walkthrough.PAGE.read_text())
    assert len(targets) >= 5
    for target in targets:
        assert (walkthrough.DOCS / target).exists(), target
    assert sum(path.stat().st_size for path in (walkthrough.DOCS / "walkthrough").iterdir()) < 200_000


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("score 0.38, 5 % saved, 158 ms\n", "score 0.39, 5 % saved, 70 ms\n", True),
        ("score 0.38\n", "score 0.48\n", False),
        ("28 of 144\n", "29 of 144\n", False),
        ("3 by the large model\n", "3 by the small model\n", False),
        ("3.73\n", "", False),
    ],
)
def test_agreement(shown: str, printed: str, *, same: bool) -> None:
    assert agrees(Cell("", shown, printed)) is same

"""Put a benchmark's tables into the pages that show them: README.md, docs/results.md.

    sgl bench --questions 2000 --compare-on 240 --processes 2 --out runs/bench
    python -m training.tables runs/bench README.md docs/results.md

A page says where: what stands between ``<!-- bench: NAME -->`` and ``<!-- /bench -->`` is replaced. Names are
those of ``TITLES`` and ``SECTIONS``, and ``readme`` for the two short tables. Figures that a page shows from
``results/`` are copied there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

TITLES = {
    "systems": "Systems on the same",
    "rankers": "The large model's accuracy % under each ranker",
    "differences": "The same, minus",
    "evidence": "Share of the evidence",
    "kinds": "Accuracy % by kind of question",
    "tiles": "Accuracy % by number of tiles",
    "transcriptions": "Accuracy % by kind, of questions that need all",
    "sweep": "The cascade at",
}
"""Name -> how the title of a table in ``results.md`` begins."""
SECTIONS = {"findings": "The paper's three findings", "scorers": "Scorers"}
"""Name -> heading of a whole part of ``results.md``, which is taken without its figures."""
BLOCK = re.compile(r"(<!-- bench: (?P<name>\w+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
SHOWN = ("small alone", "cascade {point}, exit {threshold:g}", "large, guided {point}", "large alone")


def fill(page: str, results: str, numbers: dict[str, Any]) -> str:
    """The page with every block replaced."""

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        if name == "readme":
            text = readme(numbers)
        else:
            text = table(results, TITLES[name]) if name in TITLES else section(results, SECTIONS[name])
        return f"{found[1]}{text}\n{found[3]}"

    return BLOCK.sub(block, page)


def table(results: str, title: str) -> str:
    """A table of ``results.md``, without its title."""
    found = re.search(rf"^\*\*{re.escape(title)}.*\*\*\n\n((?:\|.*\n)+)", results, re.MULTILINE)
    return found[1].strip() if found else f"(this run has no table of that: {title})"


def section(results: str, title: str) -> str:
    """A part of ``results.md``, one level of headings deeper and without figures."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", results, re.MULTILINE | re.DOTALL)
    if found is None:
        return f"(this run has no part of that name: {title})"
    text = re.sub(r"^!\[.*\)\n", "", found[1], flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def readme(numbers: dict[str, Any]) -> str:
    """The two tables of the README: systems, and rankers at every point."""
    names = [name.format(**numbers) for name in SHOWN]
    systems = {each["name"]: each for each in numbers["systems"] + numbers["cascade"]}
    lines = [
        f"| {numbers['rows']} questions | accuracy % (95 %) | minus large alone | operations | time |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        each = systems[name]
        difference = "" if name == "large alone" else percent(each["versus_large"], "+.1f")
        costs = (f"{each[cost]['value']:.2f}" for cost in ("tflops_share", "ms_share"))
        lines.append(f"| {name} | {percent(each['value'])} | {difference} | {' | '.join(costs)} |")
    points, count = list(numbers["retention"]), numbers["compared_rows"]
    kept_at = f"evidence kept at {numbers['point']}"
    lines += [
        "",
        f"| who chooses the tokens, {count} questions | {' | '.join([*points, kept_at])} |",
        "|---" * (2 + len(points)) + "|",
    ]
    for ranker, values in numbers["rankers"].items():
        kept = numbers["evidence"][ranker][numbers["point"]]["value"]
        cells = [f"{100 * values[point]['value']:.1f}" for point in points]
        cells.append("-" if kept is None else f"{100 * kept:.0f} %")
        lines.append(f"| {ranker} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(interval: dict[str, float], form: str = ".1f") -> str:
    """An interval of shares, in percent."""
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    """Rewrite the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", type=Path, help="folder of sgl bench")
    parser.add_argument("pages", type=Path, nargs="+")
    options = parser.parse_args()
    results = (options.bench / "results.md").read_text()
    numbers = json.loads((options.bench / "results.json").read_text())
    for page in options.pages:
        text = page.read_text()
        page.write_text(fill(text, results, numbers))
        for name in re.findall(r"\]\(results/([\w-]+\.png)\)", text):
            if (options.bench / name).exists():
                shutil.copy(options.bench / name, page.parent / "results" / name)
        print(f"{page}: {len(BLOCK.findall(text))} blocks")


if __name__ == "__main__":
    main()

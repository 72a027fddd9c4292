"""How the source is built, in numbers: `python -m benchmarks.structure [CHECKOUT ...]` (seconds for each).

Each checkout is a column; without any, this one. Where figures have limits, ``tests/test_house.py`` holds
this checkout to them. Before the engine was cut into folders, one escalated request crossed 41 modules, and
the longest import chain had 18 names.

- A chain is counted by import statements, those inside functions as well; imports for annotations alone
  (``TYPE_CHECKING``) are left out, and so are names that a package loads on first use. "Followed" counts
  the modules behind such names as well.
- A deep import names a file of ``sgl_engine``, where a folder or ``sgl_engine`` itself could be named.
- A body is what follows the docstring of a function; classes are counted wherever they stand.
- The request is asked twice of two tiny models that are not sure; the second time, every module in which
  a Python function is entered counts, on every thread. A call runs upward where its layer, by ``ORDER`` in
  the checkout's ``tests/test_house.py``, is above that of the nearest caller of ours. It can be there by a
  value that was passed down, such as a generator; by name where the caller imports it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from benchmarks.source import (
    body_lines,
    classes_with_one_name,
    comments_per_thousand,
    deep_imports,
    door_files,
    file_lines,
    files_by_folder,
    followed_graph,
    import_graph,
    longest_chain,
    read_modules,
)

Triple: TypeAlias = tuple[str, str, str]
"""A call: the caller's module, the callee's, and the function that was entered."""
MAX_DOOR, MAX_FLAT, MAX_CHAIN, MAX_CROSSED = 8, 12, 12, 30
MAX_FILE_LINES, MAX_BODY_LINES = 350, 40


def layer_order(root: Path) -> list[str] | None:
    """``ORDER`` of the checkout's ``tests/test_house.py``, lowest first; None where there is none."""
    tree = ast.parse((root / "tests/test_house.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return str(ast.literal_eval(node.value.func.value)).split()  # type: ignore[attr-defined]
    return None


def layer_of(module: str, order: list[str]) -> int:
    """A module's number, by its folder or file under ``sgl_engine``; ``__init__`` is the package itself."""
    return order.index([*module.split("."), "__init__"][1])


def cross(root: Path) -> dict[str, Any]:
    """Runs ``benchmarks/crossing.py`` on the checkout's own engine."""
    script = Path(__file__).with_name("crossing.py")
    done = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, "-P", str(script)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"The request could not be asked of {root}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    if Path(found["root"]) != root:
        raise SystemExit(f"{found['root']} was measured instead of {root}; run this from another folder.")
    return found


def upward_calls(calls: Iterable[Triple], order: list[str]) -> list[Triple]:
    """Calls whose caller stands in a lower layer than what is called."""
    return [call for call in calls if call[0] and layer_of(call[0], order) < layer_of(call[1], order)]


def by_name(calls: Iterable[Triple], graph: Mapping[str, set[str]]) -> list[Triple]:
    """Calls whose caller imports what it calls, by a graph of imports."""
    return [call for call in calls if call[1] in graph[call[0]]]


@dataclass(frozen=True)
class Structure:
    """What is counted of one checkout; names where there is something to mend.

    Attributes:
        modules: How many files there are.
        door: Files in ``sgl_engine/`` itself.
        most_flat: The fullest folder that mixes kinds, and how many files stand in it.
        chain: The longest import chain.
        followed_chain: The same, through names that packages load on first use.
        median_lines: Of a file.
        max_lines: Of a file.
        long_files: Files over the limit, and their lines.
        long_bodies: Functions over the limit, and the lines of their bodies.
        comments: Per 1,000 lines.
        same_names: Classes that share a name within a package.
        deep_imports: Of ``langchain_sgl``.
        crossed: Modules that one escalated request crosses; empty where it was not asked.
        upward: Calls in it that run upward; None where the checkout has no order of layers.
        upward_by_name: Those of them whose caller imports what it calls.
    """

    modules: int
    door: list[str]
    most_flat: tuple[str, int]
    chain: tuple[str, ...]
    followed_chain: tuple[str, ...]
    median_lines: float
    max_lines: int
    long_files: dict[str, int]
    long_bodies: dict[str, int]
    comments: float
    same_names: list[str]
    deep_imports: list[str]
    crossed: list[str]
    upward: list[str] | None
    upward_by_name: list[str] | None


def measure(root: Path, *, run: bool = True) -> Structure:
    """Counts everything; ``run`` False asks no request."""
    trees = read_modules(root)
    lines = file_lines(root)
    order = layer_order(root)
    crossing = cross(root) if run else {"modules": [], "calls": []}
    graph = import_graph(trees)
    upward = None if order is None or not run else upward_calls(crossing["calls"], order)
    return Structure(
        modules=len(trees),
        door=door_files(root),
        most_flat=files_by_folder(root).most_common(1)[0],
        chain=longest_chain(graph),
        followed_chain=longest_chain(followed_graph(root)),
        median_lines=median(lines.values()),
        max_lines=max(lines.values()),
        long_files=over(lines, MAX_FILE_LINES),
        long_bodies=over(body_lines(trees), MAX_BODY_LINES),
        comments=round(comments_per_thousand(root), 1),
        same_names=classes_with_one_name(trees),
        deep_imports=deep_imports(trees),
        crossed=crossing["modules"],
        upward=None if upward is None else _arrows(upward),
        upward_by_name=None if upward is None else _arrows(by_name(upward, graph)),
    )


def over(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """What is larger than the limit, largest first."""
    return {name: n for name, n in sorted(sizes.items(), key=lambda item: -item[1]) if n > limit}


def _arrows(calls: Iterable[Triple]) -> list[str]:
    return sorted({f"{caller} -> {callee}.{function}" for caller, callee, function in calls})


def rows(found: Structure) -> Iterator[tuple[str, str, str]]:
    """Label, limit and figure of each row of the table."""

    def count(items: Sequence[str] | Mapping[str, int] | None) -> str:
        return "-" if items is None else str(len(items))

    yield "modules of both packages", "", str(found.modules)
    yield "modules at the door of sgl_engine", str(MAX_DOOR), count(found.door)
    yield "most modules flat in a folder", str(MAX_FLAT), f"{found.most_flat[1]} ({found.most_flat[0]})"
    yield "longest import chain", str(MAX_CHAIN), count(found.chain)
    yield "  names loaded on first use followed", "", count(found.followed_chain)
    yield "lines of a file, median", "", f"{found.median_lines:g}"
    yield "lines of a file, most", str(MAX_FILE_LINES), str(found.max_lines)
    yield f"files over {MAX_FILE_LINES} lines", "0", count(found.long_files)
    yield f"function bodies over {MAX_BODY_LINES} lines", "0", count(found.long_bodies)
    yield "comments per 1,000 lines", "", f"{found.comments:g}"
    yield "class names that are not unique", "0", count(found.same_names)
    yield "deep imports of langchain_sgl", "0", count(found.deep_imports)
    yield "modules crossed by a request", str(MAX_CROSSED), count(found.crossed or None)
    yield "calls that run upward", "", count(found.upward)
    yield "  by name", "0", count(found.upward_by_name)


def details(found: Structure) -> Iterator[tuple[str, list[str]]]:
    """What the figures consist of, where that is worth reading."""
    yield "Longest import chain", [" -> ".join(found.chain)]
    yield "The same, followed", [" -> ".join(found.followed_chain)]
    yield f"Files over {MAX_FILE_LINES} lines", [f"{name}: {n}" for name, n in found.long_files.items()]
    yield f"Bodies over {MAX_BODY_LINES} lines", [f"{name}: {n}" for name, n in found.long_bodies.items()]
    yield "Class names that are not unique", found.same_names
    yield "Deep imports of langchain_sgl", found.deep_imports
    yield "Modules crossed by a request", [" ".join(found.crossed)] if found.crossed else []
    yield "Calls that run upward", found.upward or []


def main() -> None:
    """Measures the checkouts, prints a table and what it consists of, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="default: this one")
    parser.add_argument("--no-run", action="store_true", help="read the source only; ask no request")
    parser.add_argument("--json", type=Path, help="write the figures and names here")
    arguments = parser.parse_args()
    roots = [path.resolve() for path in arguments.checkouts] or [Path(__file__).resolve().parents[1]]
    found = {str(root): measure(root, run=not arguments.no_run) for root in roots}
    columns = [list(rows(each)) for each in found.values()]
    table = Table(Column(no_wrap=True), "limit", *(Path(root).name for root in found), box=SIMPLE_HEAD)
    for same in zip(*columns, strict=True):
        table.add_row(same[0][0], same[0][1], *(figure for _, _, figure in same))
    console = Console(highlight=False)
    console.print(table)
    for root, each in found.items():
        console.print(f"{root}\n", style="bold")
        for heading, lines in details(each):
            if lines:
                console.print(heading, *(f"  {line}" for line in lines), "", sep="\n", markup=False)
    if arguments.json:
        arguments.json.write_text(json.dumps({root: asdict(each) for root, each in found.items()}, indent=2))


if __name__ == "__main__":
    main()

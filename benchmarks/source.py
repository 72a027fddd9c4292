"""Reads both packages: modules, what they import, how long they are; for ``structure`` and house tests."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGES = ("sgl_engine", "langchain_sgl")
KIND_FOLDERS = ("sgl_engine/families", "sgl_engine/demo", "sgl_engine/evaluation")
"""Folders of one kind of file each, which may grow."""

Trees = Mapping[str, ast.Module]
Graph = Mapping[str, set[str]]


def source_files(root: Path) -> list[Path]:
    """Python files of both packages."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


@functools.cache
def parsed(source: str) -> ast.Module:
    """The tree of a source, which nobody may change: one for all who ask."""
    return ast.parse(source)


def read_modules(root: Path, *, stubs: bool = False) -> dict[str, ast.Module]:
    """Dotted name -> parsed source; with ``stubs``, what a package's ``__init__.pyi`` says as well."""
    found = {}
    for path in source_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        tree = parsed(path.read_text())
        if stubs and (stub := path.with_suffix(".pyi")).exists():
            tree = ast.Module([*tree.body, *parsed(stub.read_text()).body], tree.type_ignores)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    return found


def imports(name: str, tree: ast.Module, known: Iterable[str], *, annotations: bool = True) -> set[str]:
    """The project's modules that ``name`` imports, inside functions as well.

    Args:
        name: Its dotted name.
        tree: Its source.
        known: All modules: `from package import module` imports the module, not the package's names.
        annotations: Whether imports under ``TYPE_CHECKING`` count.
    """
    found = set()
    for node in _statements(tree, annotations=annotations):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Only stubs import from "." and below.
            source = f"{name}.{node.module}" if node.level else node.module or ""
            # The version is free.
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            found |= {full if (full := f"{source}.{each}") in known else source for each in names}
    return {target for target in found if target.partition(".")[0] in PACKAGES}


def _statements(tree: ast.Module, *, annotations: bool) -> Iterator[ast.AST]:
    """Every node, outermost first, with or without what stands under ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not annotations:
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def import_graph(trees: Trees, *, annotations: bool = False) -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    return {
        name: imports(name, tree, trees, annotations=annotations) & set(trees) - {name}
        for name, tree in trees.items()
    }


def followed_graph(root: Path) -> dict[str, set[str]]:
    """``import_graph``, with the module behind each name that a package loads on first use."""
    trees = read_modules(root)
    homes = {name: _loaded_on_first_use(name, tree) for name, tree in read_modules(root, stubs=True).items()}
    graph = import_graph(trees)
    for name, tree in trees.items():
        for node in _statements(tree, annotations=False):
            if isinstance(node, ast.ImportFrom):
                lazy = homes.get(node.module or "", {})
                graph[name] |= {lazy[alias.name] for alias in node.names if alias.name in lazy}
    return graph


def _loaded_on_first_use(package: str, tree: ast.Module) -> dict[str, str]:
    """Name -> module, of what a stub re-exports."""
    return {
        alias.name: f"{package}.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }


def longest_chain(graph: Graph) -> tuple[str, ...]:
    """The longest way along imports, from the importing end; of equals, the first by name.

    Raises:
        ValueError: The imports run in a circle.
    """
    longest: dict[str, tuple[str, ...]] = {}

    def walk(name: str, above: tuple[str, ...]) -> tuple[str, ...]:
        if name in above:
            raise ValueError(f"Imports run in a circle: {' -> '.join((*above, name))}")
        if name not in longest:
            chains = [walk(target, (*above, name)) for target in sorted(graph[name])]
            longest[name] = (name, *max(chains, key=len, default=()))
        return longest[name]

    return max((walk(name, ()) for name in sorted(graph)), key=len, default=())


def door_files(root: Path) -> list[str]:
    """Modules that stand in ``sgl_engine/`` itself."""
    return sorted(path.name for path in (root / PACKAGES[0]).glob("*.py"))


def files_by_folder(root: Path) -> Counter[str]:
    """Folder -> modules that stand in it, folders of one kind left out."""
    folders = Counter(path.parent.relative_to(root).as_posix() for path in source_files(root))
    return Counter({name: n for name, n in folders.items() if name not in KIND_FOLDERS})


def file_lines(root: Path) -> dict[str, int]:
    """File -> its lines."""
    return {
        path.relative_to(root).as_posix(): len(path.read_text().splitlines()) for path in source_files(root)
    }


def body_lines(trees: Trees) -> dict[str, int]:
    """Function, with its module -> lines of its body, from what follows the docstring to the last one."""
    found = {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
                if body:
                    found[f"{module}.{node.name}"] = (node.end_lineno or 0) - body[0].lineno + 1
    return found


def comments_per_thousand(root: Path) -> float:
    """Lines with a comment for people, per 1,000 lines; instructions to tools are none."""
    comments = lines = 0
    for path in source_files(root):
        source = path.read_text()
        lines += len(source.splitlines())
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            comments += token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:)", token.string)
    return 1000 * comments / lines


def classes_with_one_name(trees: Trees) -> list[str]:
    """Classes whose name another class of the same package has, as "name: modules"."""
    homes: dict[tuple[str, str], list[str]] = {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault((module.partition(".")[0], node.name), []).append(module)
    return [f"{name}: {', '.join(found)}" for (_, name), found in sorted(homes.items()) if len(found) > 1]


def deep_imports(trees: Trees) -> list[str]:
    """Import statements of ``langchain_sgl`` that name a file of the engine, not a folder."""
    packages = {name.rpartition(".")[0] for name in trees} | {PACKAGES[0]}
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            statement = isinstance(node, (ast.Import, ast.ImportFrom)) and name.startswith(PACKAGES[1])
            if statement and ast.unparse(node).split()[1].startswith(f"{PACKAGES[0]}."):
                target = ast.unparse(node).split()[1]
                found += [] if target in packages else [f"{name}: {target}"]
    return found

"""What README and docs name can be imported, and what public names take and return is public too.

A public name is one that `sgl_engine`, `langchain_sgl` or one of their folders shows. Sources and stubs are
read, not run; every checker is also run on something that breaks its rule.
"""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.source import PACKAGES, read_modules

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]


class Definition(NamedTuple):
    """Where something is defined, and the statement that defines it."""

    module: str
    node: ast.stmt


class Names:
    """Where every name of a tree's modules comes from."""

    def __init__(self, root: Path) -> None:
        self.trees = read_modules(root, stubs=True)
        self._sources: dict[str, dict[str, Definition | tuple[str, str]]] = {
            module: dict(_names_of(module, tree)) for module, tree in self.trees.items()
        }

    def find(self, module: str, name: str) -> Definition | None:
        """Follows imports and re-exports to the definition; None for what is not ours."""
        source = self._sources.get(module, {}).get(name)
        if source is None or isinstance(source, Definition):
            return source
        return self.find(*source)

    def public(self) -> dict[str, Definition]:
        """Everything that a package shows: "package.name" -> its definition."""
        found = {}
        for module, tree in self.trees.items():
            for name in shown_by(tree):
                definition = self.find(module, name)
                if definition:
                    found[f"{module}.{name}"] = definition
        return found


def _names_of(module: str, tree: ast.Module) -> Iterator[tuple[str, Definition | tuple[str, str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = f"{module}.{node.module}" if node.level else node.module or ""
            yield from ((alias.asname or alias.name, (source, alias.name)) for alias in node.names)
    for node in tree.body:
        for name in _defined(node):
            yield name, Definition(module, node)


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def shown_by(tree: ast.Module) -> list[str]:
    """What a stub re-exports, or `__all__` of a package that is written out."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in _defined(node) and isinstance(node.value, ast.List):
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    relative = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    return [alias.asname for node in relative for alias in node.names if alias.asname]


def annotations(node: ast.stmt, names: Names, module: str) -> Iterator[tuple[str, ast.expr]]:
    """Module and expression of every annotation that a user of this definition meets."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = node.args
        taken = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        taken += [each for each in (arguments.vararg, arguments.kwarg) if each]
        for annotation in [*(argument.annotation for argument in taken), node.returns]:
            if annotation is not None:
                yield module, annotation
    elif isinstance(node, ast.ClassDef):
        for part in node.body:
            if not any(re.match(r"_(?!_)", name) for name in _defined(part)):
                yield from annotations(part, names, module)
        for base in node.bases:
            origin = isinstance(base, ast.Name) and names.find(module, base.id)
            if origin:  # what is inherited is public, whether or not its class is
                yield from annotations(origin.node, names, origin.module)
    elif isinstance(node, ast.AnnAssign):
        alias = node.value if ast.unparse(node.annotation) == "TypeAlias" else None
        yield module, alias or node.annotation


def type_names(annotation: ast.expr) -> Iterator[str]:
    """The names in an annotation, in quoted ones as well; not the values of a Literal."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return
    if isinstance(annotation, ast.Name):
        yield annotation.id
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from type_names(ast.parse(annotation.value, mode="eval").body)
    else:
        for part in ast.iter_child_nodes(annotation):
            if isinstance(part, ast.expr):
                yield from type_names(part)


def hidden_types(root: Path) -> list[str]:
    """Classes that annotate a public name, and that no package shows, as "public name: class (module)"."""
    names = Names(root)
    public = names.public()
    shown = {(each.module, name.rpartition(".")[2]) for name, each in public.items()}
    faults = {
        f"{name}: {used} ({origin})"
        for name, definition in public.items()
        for module, annotation in annotations(definition.node, names, definition.module)
        for origin, used in classes_in(annotation, module, names)
        if (origin, used) not in shown
    }
    return sorted(faults)


def classes_in(annotation: ast.expr, module: str, names: Names) -> Iterator[tuple[str, str]]:
    """Module and name of our classes in an annotation; an alias stands for what it is made of."""
    for used in type_names(annotation):
        origin = names.find(module, used)
        if origin and isinstance(origin.node, ast.ClassDef):
            yield origin.module, used
        elif origin and isinstance(origin.node, (ast.Assign, ast.AnnAssign)) and origin.node.value:
            if ast.unparse(origin.node.value).startswith(("TypeVar", "ParamSpec")):
                continue
            yield from classes_in(origin.node.value, origin.module, names)


def test_what_public_names_take_and_return_is_public() -> None:
    assert hidden_types(ROOT) == []


def test_hidden_types_are_reported(tmp_path: Path) -> None:
    sources = {
        "sgl_engine/__init__.py": "",
        "sgl_engine/__init__.pyi": "from .engine import Engine as Engine, Event as Event\n"
        "from .request import ask as ask\n",
        "sgl_engine/engine.py": """
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar
if TYPE_CHECKING:
    from sgl_engine.request import Answer, Question
T = TypeVar("T")
Pair = tuple["Question", T]
Event: TypeAlias = "int | Answer"
class _Base:
    def inherited(self) -> "Answer": ...
class Engine(_Base):
    _kept: "Hidden"
    def __call__(self, pair: Pair, form: Literal["Answer"]) -> T: ...
    def _private(self, hidden: "Hidden") -> None: ...
class Hidden: ...
""",
        "sgl_engine/request.py": """
from pathlib import Path
class Answer: ...
class Question: ...
def ask(path: Path, *, more: list[Question] | None = None) -> None: ...
""",
        "langchain_sgl/__init__.py": "",
    }
    for path, source in sources.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(source)
    assert hidden_types(tmp_path) == [
        "sgl_engine.Engine: Answer (sgl_engine.request)",
        "sgl_engine.Engine: Question (sgl_engine.request)",
        "sgl_engine.Event: Answer (sgl_engine.request)",
        "sgl_engine.ask: Question (sgl_engine.request)",
    ]
    stub = tmp_path / "sgl_engine/__init__.pyi"
    stub.write_text(stub.read_text() + "from .request import Answer as Answer, Question as Question\n")
    assert hidden_types(tmp_path) == []


def shown_names(packages: Iterable[str]) -> dict[str, Any]:
    """Name -> object, of everything that these packages show."""
    modules = [importlib.import_module(package) for package in packages]
    return {name: getattr(module, name) for module in modules for name in module.__all__}


@cache
def our_packages() -> list[str]:
    return [name for name, tree in read_modules(ROOT, stubs=True).items() if shown_by(tree)]


@cache
def our_functions() -> set[str]:
    """Names of our functions that no page can mean by accident: those of several words."""
    return {
        node.name
        for tree in read_modules(ROOT).values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and re.fullmatch(r"[a-z]\w*_\w+", node.name)
    }


def import_faults(page: str) -> list[str]:
    """Imports in the Python blocks of a page that name one of our files instead of a package, or nothing."""
    faults = []
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
                shown = getattr(importlib.import_module(node.module or ""), "__all__", ())
                names = [alias.name for alias in node.names]
                faults += [f"{node.module}: {name}" for name in names if name not in shown]
    return faults


def word_faults(page: str, public: Mapping[str, Any], ours: set[str]) -> list[str]:
    """Names in backticks that nobody can import, or that their owner does not have."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    spans = [re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", span) for span in re.findall(r"`([^`]+)`", text)]
    words = {span[1] for span in spans if span}
    return sorted(word for word in words if not _resolves(word, public, ours))


def _resolves(word: str, public: Mapping[str, Any], ours: set[str]) -> bool:
    head, *rest = word.split(".")
    if head in PACKAGES:
        try:
            pkgutil.resolve_name(word)
        except (ImportError, AttributeError):
            return False
        return True
    if head in public:
        return not rest or hasattr(public[head], rest[0]) or rest[0] in _fields(public[head])
    is_class = re.fullmatch(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", head)
    return not is_class and head not in ours


def _fields(value: Any) -> set[str]:
    return {name for kind in getattr(value, "__mro__", ()) for name in getattr(kind, "__annotations__", {})}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_can_be_imported(page: str) -> None:
    text = (ROOT / page).read_text()
    assert import_faults(text) == []
    # The README is for users, who know the two packages and nothing behind them.
    public = shown_names(PACKAGES if page == "README.md" else our_packages())
    assert word_faults(text, public, our_functions()) == []


def test_names_that_cannot_be_imported_are_reported() -> None:
    page = """
`ReuseConfig` and `SGLEngine.run_batch(requests)` are there, `run_small_pass` and `SGLEngine.fly` are not,
nor are `AnswerTask` here and `sgl_engine.nowhere` anywhere; `create_agent` and `some.path` are not ours.
```python
from sgl_engine import Request, run_small_pass
from sgl_engine.passes import run_small_pass
from sgl_engine.request import Request
from pathlib import Path
```
"""
    assert import_faults(page) == ["sgl_engine: run_small_pass", "sgl_engine.request: Request"]
    assert word_faults(page, shown_names(PACKAGES), our_functions()) == [
        "AnswerTask",
        "SGLEngine.fly",
        "run_small_pass",
        "sgl_engine.nowhere",
    ]

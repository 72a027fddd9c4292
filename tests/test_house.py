"""The house rules that can be read off the source: import direction, single owners, cheap imports, names.

Every checker is also run on a small tree that breaks its rule: a checker that never complains proves nothing.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

# A folder imports only from those left of it; inside a folder, in any direction without a cycle.
ORDER = (
    "errors config request chat prompt serving families model attention pruning decoding passes exit report "
    "response cascade engine explain testing rankers demo evaluation calibration cli"
).split()
LAYERS = {f"sgl_engine.{name}": number for number, name in enumerate(ORDER)}
LAYERS["sgl_engine"] = len(ORDER)  # re-exports, lazily; nothing inside it may import from there
LAYERS["langchain_sgl"] = len(ORDER) + 1
OWNERS_OF_HOOKS = {
    "sgl_engine.attention.capture",
    "sgl_engine.pruning.patch",
    "sgl_engine.passes.exactness",
    "sgl_engine.model.vlm",  # reads which attention runs, and changes nothing
}
OWNER_OF_ARCHITECTURES = "sgl_engine.families"

HOOKS = re.compile(
    r"register_(forward|full_backward|state_dict|load_state_dict|module)\w*hook|register_hook"
    r"|Attention(Mask)?Interface|ALL_(MASK_)?ATTENTION_FUNCTIONS|set_attn_implementation|_attn_implementation"
)
ARCHITECTURES = re.compile(
    r"intern_?vl|qwen|llava|smol_?vlm|idefics|gemma|pixtral|got_?ocr|clip_?(image|vision|model)",
    re.IGNORECASE,
)


def modules(root: Path) -> dict[str, ast.Module]:
    """Dotted name -> parsed source, of both packages under `root`."""
    found = {}
    for package in ("sgl_engine", "langchain_sgl"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """The project's modules that `name` imports, inside functions and under TYPE_CHECKING as well."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add(f"{name}: relative import")  # never used here; unknown, hence reported
                continue
            source = node.module or ""
            # `from package import module` imports the module, not the package's names. The version is free.
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            found |= {full if (full := f"{source}.{name}") in known else source for name in names}
    ours = re.compile(r"(sgl_engine|langchain_sgl)\b")
    return {target for target in found if ours.match(target)}


def owner(module: str) -> str:
    """The entry of LAYERS that a module belongs to; KeyError where nobody assigned one."""
    package, _, rest = module.partition(".")
    head = f"{package}.{rest.partition('.')[0]}" if rest and package == "sgl_engine" else package
    if head not in LAYERS:
        raise KeyError(module)
    return head


def direction_faults(root: Path) -> list[str]:
    """Modules without a number, and imports that point upwards."""
    trees = modules(root)
    faults = []
    for name, tree in trees.items():
        for target in {name} | imports(name, tree, set(trees)):
            try:
                low, high = owner(target), owner(name)
            except KeyError:
                faults.append(f"{name}: no number in LAYERS for {target}")
                continue
            if LAYERS[low] > LAYERS[high]:
                faults.append(f"{name} ({LAYERS[high]}) imports {target} ({LAYERS[low]})")
    return faults


def cycles(root: Path) -> list[str]:
    """Modules that import themselves by way of others. A package's parts may import its __init__."""
    trees = modules(root)
    graph = {name: imports(name, tree, set(trees)) & set(trees) - {name} for name, tree in trees.items()}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for target in graph[stack.pop()] - seen:
                seen.add(target)
                stack.append(target)
        return seen

    return sorted(name for name in graph if name in reachable(name))


def words(tree: ast.Module) -> Iterator[str]:
    """Identifiers and identifier-like strings. Prose, so docstrings, comments and messages, is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.alias, ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value.strip():
            yield node.value


def mentions(root: Path, pattern: re.Pattern[str], owners: set[str]) -> list[str]:
    """Words that match `pattern` in modules that none of `owners` contains."""
    return [
        f"{name}: {word}"
        for name, tree in modules(root).items()
        if not any(name == owner or name.startswith(f"{owner}.") for owner in owners)
        for word in sorted(set(words(tree)))
        if pattern.search(word)
    ]


@pytest.fixture
def bad_tree(tmp_path: Path) -> Path:
    """A tree that breaks every rule once."""
    sources = {
        "sgl_engine/__init__.py": "",
        "sgl_engine/request.py": "def late():\n    from sgl_engine.engine import SGLEngine\n",
        "sgl_engine/engine.py": "import langchain_sgl\n",
        "sgl_engine/report/cost.py": "from sgl_engine.report import make\n",
        "sgl_engine/report/make.py": "import sgl_engine.report.cost\n",
        "sgl_engine/utils.py": "",
        "sgl_engine/model/store.py": '"""Runs InternVL."""\nname = "internvl"\nx.register_hook(print)\n',
        "langchain_sgl/__init__.py": "from sgl_engine import request\n",
    }
    for path, source in sources.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(source)
    return tmp_path


def test_imports_point_downwards() -> None:
    assert direction_faults(ROOT) == []


def test_upward_imports_and_unnumbered_modules_are_reported(bad_tree: Path) -> None:
    assert sorted(direction_faults(bad_tree)) == [
        "sgl_engine.engine (16) imports langchain_sgl (25)",
        "sgl_engine.request (2) imports sgl_engine.engine (16)",
        "sgl_engine.utils: no number in LAYERS for sgl_engine.utils",
    ]


def test_no_import_cycles() -> None:
    assert cycles(ROOT) == []


def test_cycles_are_reported(bad_tree: Path) -> None:
    assert cycles(bad_tree) == [
        "langchain_sgl",  # -> request -> engine -> langchain_sgl
        "sgl_engine.engine",
        "sgl_engine.report.cost",
        "sgl_engine.report.make",
        "sgl_engine.request",
    ]


def test_only_attention_and_pruning_touch_hooks() -> None:
    assert mentions(ROOT, HOOKS, OWNERS_OF_HOOKS) == []


def test_only_families_name_architectures() -> None:
    assert mentions(ROOT, ARCHITECTURES, {OWNER_OF_ARCHITECTURES}) == []


def test_foreign_hooks_and_architectures_are_reported(bad_tree: Path) -> None:
    (bad_tree / "sgl_engine/utils.py").unlink()
    assert mentions(bad_tree, HOOKS, OWNERS_OF_HOOKS) == ["sgl_engine.model.store: register_hook"]
    assert mentions(bad_tree, ARCHITECTURES, {OWNER_OF_ARCHITECTURES}) == ["sgl_engine.model.store: internvl"]


IMPORT_PROBE = """
import sys
before = len(sys.modules)
import {package}
print(len(sys.modules) - before, *sorted({{"torch", "transformers", "numpy"}} & set(sys.modules)))
"""
MODULES = 100
"""Most that an import may load; each has to be found and read."""


def probe_import(package: str) -> tuple[int, list[str]]:
    """How many modules a fresh interpreter loads for `package`, and which heavy ones are among them."""
    code = IMPORT_PROBE.format(package=package)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules, *heavy = done.stdout.split()
    return int(modules), heavy


@pytest.mark.parametrize("package", ["sgl_engine", "langchain_sgl"])
def test_importing_is_cheap(package: str) -> None:
    modules, heavy = probe_import(package)
    assert heavy == []
    assert modules < MODULES


def test_expensive_imports_are_noticed() -> None:
    modules, heavy = probe_import("torch")
    assert heavy == ["numpy", "torch"]
    assert modules > MODULES


def surface_faults(module: ModuleType) -> list[str]:
    """What `dir(module)` shows but `__all__` does not name, and public names that are missing or modules."""
    shown = [name for name in dir(module) if not name.startswith("_") and name not in module.__all__]
    broken = [name for name in module.__all__ if isinstance(getattr(module, name, module), ModuleType)]
    return shown + broken


@pytest.mark.parametrize("package", ["sgl_engine", "langchain_sgl"])
def test_public_names_are_flat(package: str) -> None:
    assert surface_faults(importlib.import_module(package)) == []


def test_leaks_and_missing_names_are_reported() -> None:
    module = ModuleType("leaky")
    module.__dict__.update(__all__=["promised", "nested"], nested=ast, helper=len)
    assert surface_faults(module) == ["helper", "promised", "nested"]

"""The house rules that can be read off the source: import direction, owners, sizes, cheap imports, names.

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

from benchmarks import structure
from benchmarks.source import (
    PACKAGES,
    body_lines,
    classes_with_one_name,
    deep_imports,
    door_files,
    file_lines,
    files_by_folder,
    import_graph,
    imports,
    longest_chain,
    read_modules,
)

ROOT = Path(__file__).parents[1]

# A folder imports only from those left of it; inside a folder, in any direction without a cycle. `__init__`
# is `sgl_engine` itself: its names load on first use, for whoever stands above the engine.
ORDER = (
    "errors config request chat prompt serving families model attention pruning decoding exit passes hosted "
    "report response finished cascade engine planning __init__ explain decisions testing rankers demo "
    "evaluation calibration relevance server cluster batch playground lmms cli"
).split()
LAYERS = {f"sgl_engine.{name}".removesuffix(".__init__"): number for number, name in enumerate(ORDER)}
LAYERS["langchain_sgl"] = len(ORDER)
OWNERS_OF_HOOKS = {
    "sgl_engine.attention.capture",
    "sgl_engine.pruning.patch",
    "sgl_engine.passes.exactness",
    "sgl_engine.passes.prefill",  # reads which attention runs, and changes nothing
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


def owner(module: str) -> str:
    """The entry of LAYERS that a module belongs to; KeyError where nobody assigned one."""
    package, _, rest = module.partition(".")
    head = f"{package}.{rest.partition('.')[0]}" if rest and package == "sgl_engine" else package
    if head not in LAYERS:
        raise KeyError(module)
    return head


def direction_faults(root: Path) -> list[str]:
    """Modules without a number, and imports that point upwards."""
    trees = read_modules(root, stubs=True)
    faults = []
    for name, tree in trees.items():
        for target in {name} | imports(name, tree, trees):
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
    trees = read_modules(root, stubs=True)
    graph = import_graph(trees, annotations=True)

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
        for name, tree in read_modules(root).items()
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
        "sgl_engine/cascade.py": "",
        "sgl_engine/engine.py": "import langchain_sgl\n",
        "sgl_engine/exit/__init__.py": "",
        "sgl_engine/exit/__init__.pyi": "from .decision import ExitDecision as ExitDecision\n",
        "sgl_engine/exit/decision.py": "from sgl_engine import ConfigError\n",
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
        "sgl_engine.engine (18) imports langchain_sgl (35)",
        "sgl_engine.exit.decision (11) imports sgl_engine (20)",
        "sgl_engine.request (2) imports sgl_engine.engine (18)",
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


def test_folders_and_files_keep_their_sizes() -> None:
    assert len(door_files(ROOT)) <= structure.MAX_DOOR
    assert structure.over(files_by_folder(ROOT), structure.MAX_FLAT) == {}
    assert structure.over(file_lines(ROOT), structure.MAX_FILE_LINES) == {}
    assert structure.over(body_lines(read_modules(ROOT)), structure.MAX_BODY_LINES) == {}


def test_import_chains_are_short() -> None:
    chain = longest_chain(import_graph(read_modules(ROOT)))
    assert len(chain) <= structure.MAX_CHAIN, " -> ".join(chain)


def test_one_class_for_each_name() -> None:
    assert classes_with_one_name(read_modules(ROOT)) == []


def test_langchain_sgl_imports_what_is_public() -> None:
    assert deep_imports(read_modules(ROOT)) == []


def test_sizes_over_the_limits_are_reported(tmp_path: Path) -> None:
    lines = structure.MAX_BODY_LINES + 1
    sources = {f"sgl_engine/chat/file{n}.py": f"from sgl_engine.chat import file{n + 1}\n" for n in range(13)}
    sources |= {f"sgl_engine/door{n}.py": "class Twice: ...\n" for n in range(2)}
    sources["sgl_engine/demo/long.py"] = "# more\n" * (structure.MAX_FILE_LINES + 1)
    sources["langchain_sgl/deep.py"] = 'def f():\n    """Docstring."""\n' + "    print()\n" * lines
    sources["langchain_sgl/deep.py"] += "from sgl_engine.chat.file1 import x\nfrom sgl_engine.chat import x\n"
    for path, source in sources.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    trees = read_modules(tmp_path)
    assert door_files(tmp_path) == ["door0.py", "door1.py"]
    assert structure.over(files_by_folder(tmp_path), structure.MAX_FLAT) == {"sgl_engine/chat": 13}
    assert structure.over(file_lines(tmp_path), structure.MAX_FILE_LINES) == {"sgl_engine/demo/long.py": 351}
    assert structure.over(body_lines(trees), structure.MAX_BODY_LINES) == {"langchain_sgl.deep.f": lines}
    assert longest_chain(import_graph(trees)) == (
        "langchain_sgl.deep",
        *(f"sgl_engine.chat.file{n}" for n in range(1, 13)),
    )
    assert classes_with_one_name(trees) == ["Twice: sgl_engine.door0, sgl_engine.door1"]
    assert deep_imports(trees) == ["langchain_sgl.deep: sgl_engine.chat.file1"]


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
    modules, heavy = probe_import("numpy")
    assert heavy == ["numpy"]
    assert modules > MODULES


def surface_faults(module: ModuleType) -> list[str]:
    """What `dir(module)` shows but `__all__` does not name, and public names that are missing or modules."""
    shown = [name for name in dir(module) if not name.startswith("_") and name not in module.__all__]
    broken = [name for name in module.__all__ if isinstance(getattr(module, name, module), ModuleType)]
    return shown + broken


STUBS = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob("*/**/__init__.pyi"))
FACADES = [".".join(path.parts) for path in STUBS if path.parts[0] in PACKAGES]


def test_both_packages_are_among_those_with_public_names() -> None:
    assert set(PACKAGES) < set(FACADES)


@pytest.mark.parametrize("package", FACADES)
def test_public_names_are_flat(package: str) -> None:
    assert surface_faults(importlib.import_module(package)) == []


def test_leaks_and_missing_names_are_reported() -> None:
    module = ModuleType("leaky")
    module.__dict__.update(__all__=["promised", "nested"], nested=ast, helper=len)
    assert surface_faults(module) == ["helper", "promised", "nested"]

"""What pyproject.toml promises is what constraints.txt pins, and so what these tests run with."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def promised(pyproject: str) -> dict[str, Version]:
    """The lower bound of every requirement but those of the project on itself."""
    project = tomllib.loads(pyproject)["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {
        requirement.name: Version(specifier.version)
        for requirement in requirements
        if requirement.name != project["name"]
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }


def pinned(constraints: str) -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in constraints.splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): Version(of) for name, of in pairs}


def untested(pyproject: str, constraints: str) -> list[str]:
    """Requirements whose lower bound is not the version that is pinned."""
    pins = pinned(constraints)
    return [name for name, bound in promised(pyproject).items() if pins.get(name) != bound]


def test_lower_bounds_are_the_versions_that_are_tested() -> None:
    pyproject, constraints = (ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text()
    assert untested(pyproject, constraints) == []
    assert len(promised(pyproject)) > 20
    older = pyproject.replace('"transformers>=', '"transformers>=4.')  # the control
    assert untested(older, constraints) == ["transformers"]

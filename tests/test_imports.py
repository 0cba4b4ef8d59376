"""Imports run one way, the library knows no Prefect, and importing it is light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "numba", "scipy", "skimage", "trimesh", "prefect", "PIL"}

FORBIDDEN = {
    "reconflow": {"prefect", "tasks", "flows", "blocks", "deployments", "samples", "benchmarks"},
    "blocks": {"tasks", "flows", "deployments", "samples", "benchmarks"},
    "tasks": {"flows", "deployments", "samples", "benchmarks"},
    "flows": {"samples", "benchmarks"},
}
"""Package -> top-level packages that none of its modules may import."""


def imported_packages(module: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level packages that a module imports anywhere, with the line."""
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_against_the_arrows(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    wrong = [
        f"{module.relative_to(ROOT)}:{line} imports {name}"
        for module in modules
        for name, line in imported_packages(module)
        if name in FORBIDDEN[package]
    ]
    assert not wrong


def modules_after(statement: str) -> set[str]:
    """Return the top-level packages loaded by one statement in a fresh interpreter."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(finished.stdout))


def test_a_bare_import_loads_nothing_heavy() -> None:
    assert not modules_after("import reconflow") & (HEAVY | {"numpy", "pydantic"})


def test_the_command_starts_without_the_heavy_packages() -> None:
    assert not modules_after("import flows.cli") & (HEAVY | {"numpy"})


def test_every_public_name_can_be_had() -> None:
    import reconflow

    for name in reconflow.__all__:
        assert getattr(reconflow, name) is not None
    with pytest.raises(AttributeError):
        _ = reconflow.no_such_name

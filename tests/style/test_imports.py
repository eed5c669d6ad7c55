"""Imports point the way a request walks. The contracts stand in pyproject.toml."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.style.source import ROOMS, ROOT, files, shown, tree

YAML_LOADS = re.compile(r"\byaml\.\w*load|SafeLoader\b")


@pytest.mark.invariant("Imports point one way.")
def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.invariant("The router never awaits and does no I/O.")
def test_the_router_has_no_coroutine() -> None:
    awaiting = [
        shown(path, getattr(node, "lineno", 1))
        for path in files("router")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert not awaiting, f"the router decides, never awaits: {awaiting}"


def test_no_file_imports_another_ones_private_names() -> None:
    private = [
        f"{shown(path, node.lineno)} {node.module}.{alias.name}"
        for path in files(*ROOMS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not private, f"make it public, with a docstring: {private}"


def test_one_module_reads_yaml_so_that_no_key_stands_twice_in_any() -> None:
    product = [path for path in files("gateway", "router", "serving", "monitoring") if path.name != "plain_yaml.py"]
    reading = [shown(path) for path in product if YAML_LOADS.search(path.read_text(encoding="utf-8"))]
    assert not reading, f"serving/adapters/plain_yaml.py reads YAML: {reading}"


@pytest.mark.invariant("Only the settings read the environment.")
def test_only_the_settings_read_the_environment() -> None:
    """`os.environ` may be passed on whole to a process that is started; no variable of it is read by name."""
    allowed = {"gateway/configuration/settings.py", "serving/training/remote_trainer.py"}  # this one runs elsewhere
    reading = [
        shown(path, node.lineno)
        for path in files(*ROOMS)
        if shown(path) not in allowed
        for node in ast.walk(tree(path))
        if reads_a_variable(node)
    ]
    assert not reading, f"only gateway/configuration/settings.py reads the environment: {reading}"


def reads_a_variable(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        return called in ("os.getenv", "getenv", "os.environ.get", "environ.get", "os.environ.pop")
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) in ("os.environ", "environ")
    return False


def test_metrics_and_records_import_nothing_of_ours() -> None:
    for path in files("monitoring"):
        others = {name for name in imported(path) if name.split(".")[0] in ("gateway", "router", "serving")}
        assert not others, shown(path)

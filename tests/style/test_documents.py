"""Documents: links lead somewhere, files that they name exist, and facts in them are those of the code."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest

from gateway.access import OBJECTS_MAX
from gateway.endpoints import FEEDBACK_BATCH_MAX
from gateway.features.rules.dry_run import REQUESTS_MAX
from monitoring.feedback import FEEDBACK_PER_REQUEST_MAX
from router.overrides import ADDED_MAX, Override, OverrideAction
from tests.style.source import ROOT, SOURCES, files, shown, tracked, tree
from tests.style.tables import code, table

DOCUMENTS = sorted(path for path in tracked() if path.endswith(".md"))


def test_every_condition_and_action_of_a_rule_is_in_the_document() -> None:
    conditions = {code(row[0]) for row in table("docs/overrides.md", "Condition", "Holds where")}
    fields = {field.name for field in dataclasses.fields(Override) if field.init}
    assert conditions == fields - {"id", "action", "version", "message", "system", "starts_at", "expires_at", "mode"}
    actions = table("docs/overrides.md", "Action", "What becomes of the request", "With")
    assert [code(row[0]) for row in actions] == list(typing.get_args(OverrideAction))
    text = (ROOT / "docs" / "overrides.md").read_text()
    assert f"At most {ADDED_MAX} are added" in text
    assert f"the last {REQUESTS_MAX:,} requests" in text
    assert f"at most {OBJECTS_MAX:,} rules" in text


def test_the_limits_of_feedback_are_the_ones_in_the_document() -> None:
    text = (ROOT / "docs" / "feedback.md").read_text()
    assert f"up to {FEEDBACK_BATCH_MAX:,} of them" in text
    assert f"has {FEEDBACK_PER_REQUEST_MAX} judgements" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            there = folder / name if name else ROOT / document
            assert there.exists(), f"{document} leads to {target}"
            assert not anchor or anchor in anchors(there), f"{document} leads to {target}"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    """Paths in `code` that begin with one of our folders."""
    text = (ROOT / document).read_text(encoding="utf-8")
    folders = "|".join((*SOURCES, "tests", "docs", "k8s"))
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
        assert (ROOT / path).exists() or (ROOT / (document.rpartition("/")[0] or ".") / path).exists(), path


def test_every_runtime_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = sorted(re.split(r"[<>=~!\[]", line)[0] for line in project["dependencies"])
    text = (ROOT / "docs" / "adr" / "0001-dependencies.md").read_text()
    assert re.findall(r"(?m)^## (.*)$", text) == needed


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_checks_that_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tests = {
        node.name
        for path in files("tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named
    assert not named - tests, f"{shown(ROOT / 'ARCHITECTURE.md')} names {named - tests}"

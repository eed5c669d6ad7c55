"""Documents: links lead somewhere, files that they name exist, and facts in them are those of the code."""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest

from gateway.endpoint_parts import OBJECTS_MAX
from gateway.features.feedback.endpoints import FEEDBACK_BATCH_MAX
from gateway.features.rules.dry_run import REQUESTS_MAX
from monitoring.feedback import FEEDBACK_PER_REQUEST_MAX
from monitoring.metric_table import METRICS
from router.contract import ANSWER_LENGTH_MAX
from router.overrides import ADDED_MAX, Override, OverrideAction
from router.tool_arguments import PARAMETERS_BYTES_MAX
from tests.style.source import ROOT, SOURCES, files, shown, tracked, tree
from tests.style.tables import code, table
from tools.reference.settings import keys

DOCUMENTS = sorted(path for path in tracked() if path.endswith(".md"))
NOT_COUNTED = ("CHANGELOG.md", "LICENCES.md")
WORDS_MAX = 30_000


def test_every_condition_and_action_of_a_rule_is_in_the_document() -> None:
    conditions = {code(row[0]) for row in table("docs/guides/rules.md", "Condition", "Holds where")}
    fields = {field.name for field in dataclasses.fields(Override) if field.init}
    assert conditions == fields - {"id", "action", "version", "message", "system", "starts_at", "expires_at", "mode"}
    actions = table("docs/guides/rules.md", "Action", "Effect", "With")
    assert [code(row[0]) for row in actions] == list(typing.get_args(OverrideAction))
    text = (ROOT / "docs" / "guides" / "rules.md").read_text()
    assert f"At most {ADDED_MAX} messages are added" in text
    assert f"the last {REQUESTS_MAX:,} requests" in text
    assert f"at most {OBJECTS_MAX:,} rules" in text


def test_the_bounds_of_checked_answers_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "guides" / "contracts-and-checks.md").read_text()
    assert f"over {ANSWER_LENGTH_MAX:,} characters" in text
    assert f"over {PARAMETERS_BYTES_MAX:,} bytes" in text


def test_the_limits_of_feedback_are_the_ones_in_the_document() -> None:
    text = (ROOT / "docs" / "guides" / "feedback.md").read_text()
    assert f"up to {FEEDBACK_BATCH_MAX:,} entries" in text
    assert f"at most {FEEDBACK_PER_REQUEST_MAX} judgements" in text


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


def test_metrics_that_documents_name_exist() -> None:
    known = {metric.name for metric in METRICS}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`(apprentice_[a-z_]+)", text) if document != "CHANGELOG.md" else ():
            assert re.sub(r"_(bucket|count|sum)$", "", name) in known, f"{document}: {name}"


def test_settings_that_documents_name_exist() -> None:
    known = set(keys())
    sections = "|".join(key for key in known if any(other.startswith(f"{key}.") for other in known) and "." not in key)
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(rf"`((?:{sections})\.[\w.]+)[`:]", text) if document != "CHANGELOG.md" else ():
            assert name in known, f"{document}: {name}"


def test_every_runtime_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = sorted(re.split(r"[<>=~!\[]", line)[0] for line in project["dependencies"])
    reasons = table("docs/adr/0001-dependencies.md", "Dependency", "Reason")
    assert [code(name) for name, _ in reasons] == needed
    assert all(reason for _, reason in reasons)


def test_decisions_are_short_and_numbered_without_gaps() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    assert not [path.name for path in decisions if len(path.read_text(encoding="utf-8").split()) > 150]


def test_architecture_is_one_page() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split()) <= 600


def test_architecture_names_each_feature() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = text.split("HTTP/1.1")[1].split("|`limits/`")[0]
    folders = {path.parent.name for path in (ROOT / "gateway" / "features").glob("*/*.py")}
    assert folders
    assert not {folder for folder in folders if not re.search(rf"\b{folder}\b", named)}


def test_all_documents_together_are_short() -> None:
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in DOCUMENTS if not path.endswith(NOT_COUNTED)]
    assert sum(len(text.split()) for text in texts) <= WORDS_MAX


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

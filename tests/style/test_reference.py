"""docs/reference/ is what `python -m tools.reference` makes of the code, and what the pages rest on holds."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator
from functools import cache

import pytest

from gateway.errors import ERRORS
from gateway.features.requests.explanation import REASON_WORDS
from gateway.formats.format_table import FORMATS
from gateway.formats.hot_schemas import ANSWER_HEADERS
from gateway.roles import Role
from monitoring.archive.tables import FeedbackRow
from monitoring.metric_table import METRICS
from monitoring.records import OUTCOMES, AttemptRecord, FindingRecord, PairRecord, Record
from router.checks import CHECKS
from router.findings import FallbackName
from router.routing_data import REASONS, RefusalCode
from tests.document import load_document
from tests.router.situations import ACTIVE, RESERVED
from tests.style.source import ROOT, files, tree
from tools.reference.__main__ import FOLDER
from tools.reference.api import MORE_HEADERS, ROLES, operations, who
from tools.reference.cli import commands
from tools.reference.pages import PAGES
from tools.reference.reasons import FALLBACKS
from tools.reference.records import comments

WORDS_MAX = 9_800


@cache
def page(name: str) -> str:
    """A page's text, made where a test asks for it: collecting, each process would make them all."""
    return PAGES[name]()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_code_makes(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == page(name), "run python -m tools.reference"


def test_no_page_is_left_over_and_all_are_short() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == set(PAGES)
    assert sum(len(page(name).split()) for name in PAGES) <= WORDS_MAX


def test_every_error_in_the_table_is_raised_somewhere() -> None:
    named = {
        node.value
        for path in files("gateway")
        if path.name != "errors.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    never = set(ERRORS) - named - set(typing.get_args(RefusalCode))
    assert not never, f"take them out of ERRORS or raise them: {never}"


def test_reasons_checks_fallbacks_and_roles_have_their_words() -> None:
    assert tuple(REASON_WORDS) == REASONS
    assert set(ACTIVE) | set(RESERVED) == set(REASONS)
    assert all(check.fired and check.kept for check in CHECKS)
    assert tuple(FALLBACKS) == typing.get_args(FallbackName)
    assert tuple(ROLES) == typing.get_args(Role)


@pytest.mark.parametrize("struct", [Record, AttemptRecord, FindingRecord, PairRecord, FeedbackRow])
def test_every_field_of_a_record_has_its_meaning(struct: type) -> None:
    assert not [name for name, words in comments(struct).items() if not words.endswith(".")]


def test_every_metric_says_what_it_means() -> None:
    assert not [spec.name for spec in METRICS if not spec.help.endswith(".")]


def test_every_outcome_that_the_gateway_assigns_has_its_meaning() -> None:
    assert set(assigned_outcomes()) == set(OUTCOMES)


def assigned_outcomes() -> Iterator[str]:
    """All texts that the gateway assigns to a record's outcome."""
    for path in files("gateway"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("record.outcome"):
                values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
                yield from (ast.literal_eval(value) for value in values)


def test_every_address_says_what_it_does() -> None:
    assert not [path for _, path, operation in operations(load_document()) if not operation["description"].strip()]
    assert {path for _, path, _ in operations(load_document())} >= set(FORMATS)


def test_every_endpoint_of_the_admins_asks_for_a_role() -> None:
    needed = {(method, path): who(operation) for method, path, operation in operations(load_document())}
    of_admins = {role for (_, path), role in needed.items() if path.startswith("/admin/")}
    assert of_admins == {"admin", "operator", "reviewer", "sidecar"}
    changing = [path for (method, path), role in needed.items() if role in ("operator", "reviewer") and method != "GET"]
    own = {"/v1/evaluations/{evaluation}/pair", "/v1/reviews/{request_id}/skip"}
    asking = {"/admin/v1/overrides/{name}/dry-run"}  # it has a body, and sets nothing
    assert {*changing} == own | asking, "reviewers change nothing but their own leases and words"


def test_every_header_that_is_sent_has_its_meaning() -> None:
    names = ("path/answer_headers.py", "path/relay.py", "errors.py", "path/ledger.py")
    source = "".join((ROOT / "gateway" / name).read_text() for name in names)
    sent = set(re.findall(r'b"(x-apprentice-[a-z-]+|x-request-id|x-should-retry|traceparent|retry-after)"', source))
    assert {*ANSWER_HEADERS, *MORE_HEADERS} == sent


ASK_NO_GATEWAY = {"serve", "check", "doctor", "keygen", "replay", "sidecar", "records"}


def test_every_command_of_the_admin_api_takes_the_same_options_of_the_gateway() -> None:
    for name, command in commands():
        if name.split()[1] not in ASK_NO_GATEWAY:
            options = [parameter.opts[0] for parameter in command.params]
            assert options[-5:] == ["--gateway", "--key-file", "--key", "--ca", "--json"], name

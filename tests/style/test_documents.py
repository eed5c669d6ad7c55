"""Tables in the documents are compared with the code, both ways: what is in one is in the other."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway import audit, endpoints
from gateway.access import OBJECTS_MAX, Body
from gateway.admin import fleet, keys, state
from gateway.admin import reload_endpoints as reload
from gateway.app import HOT, build_app
from gateway.callers import Role
from gateway.configuration.settings import load_settings
from gateway.configuration.tasks import RungSettings
from gateway.endpoints import FEEDBACK_BATCH_MAX, FeedbackIn
from gateway.errors import ERRORS
from gateway.features.evaluations import endpoints as evaluations
from gateway.features.fitting import endpoints as prompts
from gateway.features.quality import baseline_endpoints as baselines
from gateway.features.quality import endpoints as health
from gateway.features.quality import task_change_endpoints as changed
from gateway.features.releases import adapter_endpoints as adapters
from gateway.features.releases import alias_endpoints as aliases
from gateway.features.releases import store_files
from gateway.features.reported import endpoints as reporting
from gateway.features.reported.reports import REPORTS_MAX, Report
from gateway.features.requests import model_list
from gateway.features.requests import route as routing
from gateway.features.requests.explanation import REASON_WORDS, RUNG_WORDS
from gateway.features.retraining import endpoints as retraining
from gateway.features.reviews import endpoints as reviews
from gateway.features.reviews import reviewer_endpoints as reviewers
from gateway.features.rules import endpoints as overrides
from gateway.features.rules.dry_run import REQUESTS_MAX
from gateway.formats.parameters import ALLOWABLE, GATEWAY_ALONE, HINTS, KEPT_HERE, KNOWN
from monitoring.feedback import FEEDBACK_PER_REQUEST_MAX
from monitoring.records import AttemptRecord, FindingRecord, PairRecord, Record
from router.decision import REASONS, WITHOUT_EXITS, RefusalCode
from router.overrides import ADDED_MAX, Override, OverrideAction
from router.rungs import AFTER_THE_ANSWER, RUNGS, Exit
from serving.view import FaultKind
from tests.router.situations import ACTIVE, RESERVED
from tests.style import settings_rows
from tests.style.source import ROOT, SOURCES, files, shown, tracked, tree
from tests.style.tables import Row, code, differences, table

DOCUMENTS = sorted(path for path in tracked() if path.endswith(".md"))
RECORD_HEADER = ("Field", "Type", "Unit", "Meaning", "Null means")
ROUTERS = (
    endpoints,
    model_list,
    routing,
    reporting,
    reviewers,
    reviews,
    overrides,
    keys,
    audit,
    adapters,
    prompts,
    aliases,
    evaluations,
    health,
    changed,
    baselines,
    retraining,
    fleet,
    state,
    store_files,
    reload,
)
"""In the order of docs/api.md."""


def test_every_setting_is_in_the_document_and_nothing_else() -> None:
    found = table("docs/settings.md", *settings_rows.HEADER)
    assert not differences("docs/settings.md", settings_rows.rows(), found)


def test_every_error_is_in_the_document_and_nothing_else() -> None:
    wanted = [(f"`{code}`", str(spec.status), f"`{spec.type}`", spec.meaning) for code, spec in ERRORS.items()]
    found = table("docs/errors.md", "Code", "Status", "Type", "When")
    assert not differences("docs/errors.md", wanted, found)


def test_every_error_in_the_table_is_raised_somewhere() -> None:
    said = {
        node.value
        for path in files("gateway")
        if path.name != "errors.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    never = set(ERRORS) - said - set(typing.get_args(RefusalCode))
    assert not never, f"take them out of ERRORS or raise them: {never}"


NEVER_YET: tuple[str, ...] = ()
"""Reasons that nothing in the gateway gives by itself."""


def test_every_reason_is_in_the_document_with_what_is_active() -> None:
    found = table("docs/reasons.md", "Reason", "In this version", "Meaning", "How it comes about")
    wanted = [
        (f"`{reason}`", "never yet" if reason in NEVER_YET else "active", REASON_WORDS[reason]) for reason in REASONS
    ]
    assert not differences("docs/reasons.md", wanted, [row[:3] for row in found])
    assert set(ACTIVE) | set(RESERVED) == set(REASONS)
    assert all(row[3].endswith(".") for row in found)


def test_every_rung_is_in_the_document_with_its_number_and_its_words() -> None:
    wanted = []
    for rung in RUNGS:
        (kind,) = [RungSettings.model_fields[rung].annotation]
        shares = [name for name, field in kind.model_fields.items() if field.annotation is float]  # type: ignore[union-attr]
        number = f"`{shares[0]}`" if shares else "none"
        looks_at = "the answer" if rung in AFTER_THE_ANSWER else "the request"
        wanted.append((f"`{rung}`", looks_at, number, RUNG_WORDS[rung].fired, RUNG_WORDS[rung].kept))
    found = table("docs/reasons.md", "Rung", "Looks at", "Its number", "Fires where", "Else")
    assert not differences("docs/reasons.md", wanted, found)


def test_every_exit_is_in_the_document_and_which_reasons_have_none() -> None:
    assert [code(row[0]) for row in table("docs/reasons.md", "Exit", "What answers")] == list(typing.get_args(Exit))
    (told,) = re.findall(r"for each reason but (.*?) where", (ROOT / "docs" / "reasons.md").read_text())
    assert set(re.findall(r"`(\w+)`", told)) == WITHOUT_EXITS


def type_of(annotation: typing.Any) -> tuple[str, bool]:
    """How a document calls a field's type, and whether it may be null."""
    kinds = [one for one in typing.get_args(annotation) or (annotation,) if one is not types.NoneType]
    if typing.get_origin(annotation) is list:
        return "list", False
    names = {str: "text", float: "float", int: "integer", bool: "boolean", PairRecord: "object"}
    return names[kinds[0]], len(typing.get_args(annotation)) > len(kinds)


def unit_of(name: str) -> str | None:
    """The unit that stands last in a field's name, where one does."""
    units = {"seconds": "seconds", "usd": "US dollars", "tokens": "tokens"}
    return "Unix seconds" if name == "at" else units.get(name.rpartition("_")[2])


@pytest.mark.parametrize(("kind", "number"), [(Record, 0), (AttemptRecord, 1), (FindingRecord, 2), (PairRecord, 3)])
def test_every_field_of_a_record_is_in_the_document(kind: type[msgspec.Struct], number: int) -> None:
    found = [rows for rows in all_tables("docs/records.md") if rows[0] == RECORD_HEADER][number][1:]
    fields = {field.name: type_of(field.type) for field in msgspec.structs.fields(kind)}
    assert [code(row[0]) for row in found] == list(fields)
    for name, told, unit, meaning, null in found:
        type_name, may_be_null = fields[code(name)]
        assert told == type_name + (" or null" if may_be_null else ""), name
        assert bool(null) == may_be_null, f"{name}: what null means stands where it can be null"
        assert unit_of(code(name)) in (None, unit), name
        assert meaning.endswith("."), name


def all_tables(document: str) -> list[list[Row]]:
    from tests.style.tables import tables

    return tables(document)


def test_every_fault_of_an_attempt_is_in_the_document() -> None:
    text = (ROOT / "docs" / "records.md").read_text()
    (row,) = re.findall(r"\| `fault` .*", text)
    named = set(re.findall(r"`(\w+)`", row)) - {"fault"}
    assert named == {*typing.get_args(FaultKind), "cancelled", *AFTER_THE_ANSWER}


def test_every_outcome_of_a_request_is_in_the_document() -> None:
    found = table("docs/records.md", "Outcome", "Meaning")
    assert {code(row[0]) for row in found} == set(outcomes())


def outcomes() -> Iterator[str]:
    """All texts that the gateway assigns to a record's outcome."""
    for path in files("gateway"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("record.outcome"):
                values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
                yield from (ast.literal_eval(value) for value in values)


def test_every_address_is_in_the_document_with_who_may_use_it() -> None:
    found = table("docs/api.md", "Method", "Path", "Who", "What")
    wanted = [("POST", f"`{path}`", "any key") for path in HOT]
    wanted += [(method, f"`{path}`", who) for method, path, who, _ in routes()]
    wanted += [("GET", "`/openapi.json`", "anyone")]
    assert not differences("docs/api.md", wanted, [row[:3] for row in found])
    said = {(method, f"`{path}`"): what for method, path, _, what in routes()}
    assert not [row for row in found if said.get(row[:2], row[3]) != row[3]], "as the function's docstring says it"


def test_no_address_of_the_application_is_left_out() -> None:
    app = build_app(load_settings(ROOT / "apprentice.yaml"))
    served = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert {(method, path) for method, path, *_ in routes()} == served - {("POST", path) for path in HOT}


WHO = {"Admin": "admin", "Operator": "operator, admin", "Sidecar": "sidecar, operator, admin", "Identified": "any key"}


def routes() -> Iterator[Row]:
    for module in ROUTERS:
        for route in module.router.routes:
            endpoint, (method,) = route.endpoint, route.methods  # type: ignore[attr-defined]
            kinds = [WHO[p.annotation] for p in inspect.signature(endpoint).parameters.values() if p.annotation in WHO]
            what = " ".join((inspect.getdoc(endpoint) or "").split())
            yield method, route.path, kinds[0] if kinds else "anyone", what  # type: ignore[attr-defined]


def test_every_body_that_admins_send_is_in_the_document_with_its_fields() -> None:
    found = {code(row[0]): row[1] for row in table("docs/api.md", "Call", "Fields")}
    for module in ROUTERS:
        for route in module.router.routes:
            endpoint, (method,) = route.endpoint, route.methods  # type: ignore[attr-defined]
            hints = typing.get_type_hints(endpoint).values()
            for body in (kind for hint in hints for kind in (hint, *typing.get_args(hint)) if is_body(kind)):
                call = f"{method} {route.path}"  # type: ignore[attr-defined]
                assert call in found, call
                fields = set() if "state file" in found[call] else set(body.model_fields)
                assert not [name for name in fields if f"`{name}`" not in found[call]], call


def is_body(kind: typing.Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Body)


def test_the_roles_of_keys_are_in_the_document() -> None:
    assert [code(row[0]) for row in table("docs/api.md", "Role", "May")] == list(typing.get_args(Role))


def test_every_endpoint_of_the_admins_asks_for_a_role() -> None:
    assert {who for _, path, who, _ in routes() if path.startswith("/admin/")} <= {
        "admin",
        "operator, admin",
        WHO["Sidecar"],
    }
    changing = [path for method, path, who, _ in routes() if who == "operator, admin" and method != "GET"]
    assert changing == ["/v1/reviews/{request_id}/skip"], "reviewers change nothing but their own leases"


def test_every_header_of_an_answer_is_in_the_document() -> None:
    _, rows = [rows for rows in all_tables("docs/api.md") if rows[0] == ("Header", "Meaning")]
    told = {code(row[0]) for row in rows[1:]}
    source = "".join((ROOT / "gateway" / name).read_text() for name in ("path/relay.py", "errors.py", "path/ledger.py"))
    sent = set(re.findall(r'b"(x-apprentice-[a-z-]+|x-request-id|x-should-retry|traceparent|retry-after)"', source))
    assert told == sent


def test_every_field_of_a_body_is_in_the_document() -> None:
    found = table("docs/api.md", "Fields", "What becomes of them")
    both = KNOWN["chat"] & KNOWN["completions"]
    chat, completions = KNOWN["chat"] - both, KNOWN["completions"] - both
    wanted = [both - KEPT_HERE - HINTS, chat, completions, KEPT_HERE, HINTS, ALLOWABLE, GATEWAY_ALONE]
    for row, names in zip(found, wanted, strict=True):
        assert row[0] == ", ".join(f"`{name}`" for name in sorted(names))


def test_every_field_of_a_feedback_is_in_the_document() -> None:
    found = table("docs/feedback.md", "Field", "Meaning")
    assert [code(row[0]) for row in found] == list(FeedbackIn.model_fields)


def test_every_field_of_a_report_is_in_the_document() -> None:
    found = table("docs/records.md", "Field of a report", "Bounds", "Meaning")
    named = [name for row in found for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(field.name for field in msgspec.structs.fields(Report))
    assert f"up to {REPORTS_MAX:,} as" in (ROOT / "docs" / "records.md").read_text()


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

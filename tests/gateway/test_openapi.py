"""The document at /openapi.json says what is raised: each endpoint's errors are those that its code can come to."""

from __future__ import annotations

import ast
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import ROUTERS
from gateway.errors import ERRORS, Problem
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import GATEWAY_ALONE, ON_REQUEST
from gateway.formats.format_table import FORMATS
from gateway.formats.hot_schemas import IN_STREAMS
from gateway.formats.request_body import read_body
from gateway.formats.responses import UNTAKEN_FIELDS
from gateway.formats.wire_format import WireFormat
from gateway.openapi import ANYWHERE, KEY_ERRORS, STATE_ERRORS, UNREADABLE_ERRORS
from gateway.openapi_parts import JSON_ERRORS
from gateway.path.request_path import walk
from router.policy import TaskPolicy
from router.routing_data import RefusalCode
from tests.document import load_document
from tests.style.source import ROOT, files, tree

BY_THE_FRAME = {*ANYWHERE, *KEY_ERRORS, *JSON_ERRORS, *STATE_ERRORS, *UNREADABLE_ERRORS}
"""Errors of FastAPI, Redis or the connection at any endpoint: its own code need not raise them."""
OF_ADDRESSES = {"method_not_allowed", "not_found"}
"""The errors of an address without an operation."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return load_document()


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def codes_of(operation: Mapping[str, Any]) -> set[str]:
    """All error codes that an operation's answers name, each under its own status."""
    found: set[str] = set()
    for status, answer in operation["responses"].items():
        told = _codes_in(answer["content"]) if status >= "400" else set()
        assert {ERRORS[code].status for code in told} <= {int(status)}
        found |= told
    return found


def _codes_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        if list(value) == ["code"]:
            return set(value["code"]["enum"])
        return set().union(*map(_codes_in, value.values()))
    return set().union(*map(_codes_in, value)) if isinstance(value, list) else set()


@dataclass
class Part:
    """A function, a class or a module's name: the codes that it has, and what it uses."""

    codes: set[str] = field(default_factory=set)
    names: set[tuple[str, str]] = field(default_factory=set)


class Code:
    """The gateway's code as a graph of names: who uses a name can come to what that raises.

    A method is found by what it is called on: `services.control.adapters.uploads.receive` is the one of Uploads.
    """

    def __init__(self) -> None:
        self.parts: dict[tuple[str, str], Part] = {}
        for path in files("gateway"):
            module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            if module not in ("gateway.openapi", "gateway.openapi_parts", "gateway.errors"):
                self._read(module, tree(path))

    def _read(self, module: str, parsed: ast.Module) -> None:
        imported: dict[str, tuple[str, str]] = {}
        for node in ast.walk(parsed):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gateway"):
                imported |= {each.asname or each.name: (node.module or "", each.name) for each in node.names}
        for node in parsed.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._add(module, node.name, node, imported)
            elif isinstance(node, ast.ClassDef):
                names = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                for each in names:
                    self._add(module, f"{node.name}.{each.name}", each, imported)
                special = {(module, f"{node.name}.{each.name}") for each in names if each.name.startswith("__")}
                self.parts[module, node.name] = Part(names=special)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._add(module, node.targets[0].id, node.value, imported)

    def _add(self, module: str, name: str, node: ast.AST, imported: Mapping[str, tuple[str, str]]) -> None:
        part = self.parts[module, name] = Part()
        nodes = list(ast.walk(node))
        for decorator in getattr(node, "decorator_list", ()):  # a route's decorator names errors, and raises none
            within = {id(each) for each in ast.walk(decorator)}
            nodes = [each for each in nodes if id(each) not in within]
        used = {each.id for each in nodes if isinstance(each, ast.Name)}
        if "Problem" in used:
            constants = {each.value for each in nodes if isinstance(each, ast.Constant)}
            part.codes = {each for each in constants if isinstance(each, str) and each in ERRORS}
        part.names = {imported.get(each, (module, each)) for each in used - {"Problem"}}
        for each in nodes:
            if isinstance(each, ast.Attribute):
                of = each.value.attr if isinstance(each.value, ast.Attribute) else getattr(each.value, "id", "")
                of = name.partition(".")[0] if of == "self" else of
                part.names.add((of.strip("_").lower().removesuffix("s"), each.attr))

    def raised(self, module: str, name: str) -> set[str]:
        """All codes that it can come to."""
        methods: dict[str, list[tuple[str, str]]] = {}
        for at in self.parts:
            if "." in at[1]:
                methods.setdefault(at[1].partition(".")[2], []).append(at)
        seen: set[tuple[str, str]] = set()
        left, found = [(module, name)], set[str]()
        while left:
            at = left.pop()
            if at in seen:
                continue
            seen.add(at)
            part = self.parts.get(at)
            if part is not None:
                found |= part.codes
                left += part.names
            elif at[0] and not at[0].startswith("gateway."):
                left += [each for each in methods.get(at[1], ()) if at[0] in each[1].partition(".")[0].lower()]
        return found


@pytest.fixture(scope="module")
def written() -> Code:
    return Code()


FUNCTIONS = {
    (method, route.path): (route.endpoint.__module__, route.endpoint.__name__)
    for router in ROUTERS
    for route in router.routes
    for method in route.methods  # type: ignore[attr-defined]
} | {("POST", path): (walk.__module__, walk.__name__) for path in FORMATS}


def test_every_endpoint_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == set(FUNCTIONS)


@pytest.mark.invariant("Every answer is one that /openapi.json names, and nothing else is named.")
@pytest.mark.parametrize(("method", "path"), sorted(FUNCTIONS))
def test_an_endpoint_names_the_errors_that_its_code_can_come_to_and_no_others(
    document: dict[str, Any], written: Code, method: str, path: str
) -> None:
    told = codes_of(document["paths"][path][method.lower()])
    raised = written.raised(*FUNCTIONS[method, path])
    if path in (*FORMATS, "/v1/route", "/v1/messages/count_tokens"):
        raised = (raised | {*typing.get_args(RefusalCode)}) - {"stream_broken"}
    assert not raised - told, "the document leaves them out"
    assert not told - raised - BY_THE_FRAME, "nothing raises them there"


def test_all_errors_of_the_table_are_told_somewhere(document: dict[str, Any]) -> None:
    told = set().union(*(codes_of(operation) for *_, operation in operations(document)))
    wanted = set(ERRORS)
    assert wanted == told | {*IN_STREAMS} | OF_ADDRESSES
    assert (
        set(document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]) == wanted
    )


def test_every_status_from_400_on_has_an_error_or_says_what_else(document: dict[str, Any]) -> None:
    other = {(path, status) for _, path, each in operations(document) for status in each["responses"] if status >= "400"
             and "anyOf" in each["responses"][status]["content"]["application/json"]["schema"]}  # fmt: skip
    assert other == {("/health", "503"), ("/health/ready", "503")}
    schema = document["components"]["schemas"]["Error"]
    for name in ERRORS:
        jsonschema_rs.validate(schema, {"error": Problem(name, "A sentence.", "a field").content()})


def test_every_operation_says_who_may_use_it(document: dict[str, Any]) -> None:
    roles = {path: set(*each["security"][0].values()) for _, path, each in operations(document) if "security" in each}
    assert {path for _, path, _ in operations(document)} - set(roles) == {
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    of_roles = {path for path in roles if path.startswith(("/admin/", "/v1/reviews/", "/v1/evaluations"))}
    assert {path for path, names in roles.items() if names} == of_roles
    assert not [one for *_, each in operations(document) for one in each.get("parameters", ())
                if one["name"].lower() == "authorization"]  # fmt: skip


@pytest.mark.parametrize(("path", "wire_format"), FORMATS.items())
def test_the_body_of_a_hot_endpoint_has_the_fields_that_the_gateway_reads(
    document: dict[str, Any], path: str, wire_format: WireFormat
) -> None:
    schema = body_schema(document, path)
    on_request = ON_REQUEST if wire_format.request_type is None else frozenset[str]()
    assert set(schema["properties"]) == (wire_format.known_fields | on_request) - {"media"}
    assert not schema["properties"].keys() & GATEWAY_ALONE
    bounded = [name for name, told in schema["properties"].items() if not told.keys() - {"description"}]
    assert set(bounded) <= ON_REQUEST | UNTAKEN_FIELDS.keys(), "fields whose types the code has are told"


def body_schema(document: Mapping[str, Any], path: str) -> dict[str, Any]:
    name = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: dict[str, Any] = document["components"]["schemas"][name.rpartition("/")[2]]
    return found


values = st.none() | st.booleans() | st.integers(-3, 600) | st.floats(-3, 3) | st.text(max_size=3)
anything = st.recursive(
    values, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "json", "7"]), inner)
)
fields = st.sampled_from(sorted((CHAT.known_fields | COMPLETIONS.known_fields) - {"model"}))


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"50256": -100}, True),
        (None, True),
        ({"word": 1}, False),
        ({"-1": 1}, False),
        ({"7": 101}, False),
        ({str(number): 1 for number in range(1025)}, False),
    ],
    ids=["token", "null", "word", "negative", "too large", "too many"],
)
def test_the_document_bounds_logit_bias_as_the_gateway_does(document: dict[str, Any], value: Any, fits: bool) -> None:
    body = {"model": "returns", "messages": [{"role": "user", "content": "x"}], "logit_bias": value}
    schema = {**body_schema(document, "/v1/chat/completions"), "components": document["components"]}
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(body) == fits
    try:
        read_body(CHAT, json.dumps(body).encode())
    except Problem:
        assert not fits


@given(st.sampled_from(sorted(FORMATS)), st.dictionaries(fields, anything, max_size=3))
def test_a_body_that_the_gateway_reads_is_one_that_the_document_allows(
    document: dict[str, Any], path: str, chosen: dict[str, Any]
) -> None:
    needed = {FORMATS[path].required: [{"role": "user", "content": "x"}] if FORMATS[path].has_template else "x"}
    body = {"model": "returns", **needed, **chosen}
    try:
        read_body(FORMATS[path], json.dumps(body).encode()).check(
            None, TaskPolicy("", None, max_tokens_max=500, n_max=500)
        )
    except Problem:
        return
    checked = jsonschema_rs.Draft202012Validator({**body_schema(document, path), "components": document["components"]})
    assert not [error.message for error in checked.iter_errors(body)]

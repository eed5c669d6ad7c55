"""docs/reference/api.md, from the document at /openapi.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from gateway.app import build_app
from gateway.configuration.settings import load_settings
from gateway.formats.fields import (
    ALLOWABLE,
    GATEWAY_ALONE,
    HINTS,
    KEPT_HERE,
    ON_REQUEST,
)
from gateway.formats.format_table import FORMATS
from gateway.formats.hot_schemas import ANSWER_HEADERS, HOT_HEADERS
from gateway.roles import Role
from tools.reference.markdown import Row, code, codes, page, sentence, table
from tools.reference.schema import without_null

ROOT = Path(__file__).parents[2]
INTRODUCTION = """
Point any OpenAI client at `http://HOST:8080/v1`, with a key of ours, and put a task's name into `model`. Keys look
like `sk-app-<public12>-<secret>`; only the public part is shown or logged. `/openapi.json` has every field's bounds.
Unknown fields are refused by name; query parameters too, except on `/v1/models` and the wire formats, whose clients add
some. `expected_generation` refuses a change (409) to an object that has moved since it was read.
"""
MODELS: Mapping[str, str] = {
    "TASK": "The version that the task's alias leads to, or the task's fallback.",
    "TASK@vN": "That version and nothing else; an error where no replica has it. Only an admin's rule overrules it.",
    "POOL": "The base model of a pool that is `callable`, without a general prompt.",
    "auto": "The task in whose scope the request is, of those that the key names; else general.",
}
ROLES: Mapping[Role, str] = {
    "caller": "Ask, judge, and read its own requests and usage.",
    "operator": "That for anybody's requests, and read what admins have set, the fleet, the audit and the store.",
    "admin": "That, and change it.",
    "reviewer": "Judge what is drawn for review, alone.",
    "sidecar": "Fetch adapters' bytes alone.",
}
ROUTE_ANSWER = (
    "object",
    "task",
    "version",
    "pool",
    "model",
    "reason",
    "explanation",
    "findings",
    "probability",
    "general_prompt",
    "override_id",
    "fallback_capped",
    "fallbacks",
)
ROUTE_WORDS = """
`model` is the model's name at the engine, `explanation` the reason in words, `fallbacks` the task's by reason. The
others are as in a [record](records.md).
"""
MORE_HEADERS: Mapping[str, str] = {
    "retry-after": "Seconds to wait, with a 429 or 503.",
    "x-should-retry": "`false` where a repetition is of no use.",
}
FIELD_NOTES = """
`max_tokens`, `max_completion_tokens` and `min_tokens` are bounded by `max_tokens_max` of the task; `n`, `best_of` and
prompts times `n` by its `n_max`. A pool named as the model has its own. A body has at most 256 fields. Null and
neutral values (`echo: false`) are taken everywhere. *permit*: `parameters_allowed` of the task or pool must name the
field. What is unknown or not allowed is refused, or left out where `unknown_fields` is `drop`. The version's sampling
applies where the caller sets none.

- `media` permits message parts other than text, `roles` roles of one's own. `regex`, `grammar`, `structural_tag`,
  `whitespace_pattern` and `pattern` (inside JSON schemas) permit what an engine compiles. At most 16 patterns of
  RE2, with 4,096 characters and 8,000 compiled steps together. Such a request is sent to no other engine after a
  failure.
- `prompt_logprobs`, `echo` with `logprobs`, and `echo` in a chat end vLLM processes with adapters: only pools without
  adapters can allow them.
- Never allowed: `kv_transfer_params.prompt_token_ids`, and keys of `chat_template_kwargs` with a field of their own.
- [Engines other than vLLM](../guides/engines.md) get OpenAI's fields only.
- guidellm and `vllm bench serve` need `parameters_allowed: [ignore_eos]`; lm-eval needs `tokenized_requests=False`
  and an `n_max` of its batch size, for likelihoods `parameters_allowed: [echo]` of a pool without adapters.
- Codex and Claude Code need `unknown_fields: drop`.
"""
ADMIN_CALLS = """
`/openapi.json` has what each does, with bodies and queries; the [command line](cli.md) calls most of them. A `GET`
needs an operator's key, all else an admin's, unless it names another role.
"""
TITLES: Mapping[str, str] = {"callers": "Callers", "reviewers": "Reviewers", "admins": "Admins", "probes": "Probes"}


def api_page() -> str:
    """The page: every address, values of `model`, headers, fields of a body, and roles."""
    document = build_app(load_settings(ROOT / "apprentice.yaml")).openapi()
    parts = []
    for tag, title in TITLES.items():
        rows = [_operation_row(document, *each) for each in operations(document) if tag in each[2]["tags"]]
        if tag == "admins":
            parts += [f"## {title}", ADMIN_CALLS, table(("Address", "Methods"), _admin_rows(document))]
        else:
            parts += [f"## {title}", table(("Call", "Who", "What", "Body, query"), rows)]
    answer_headers = [(code(name), words) for name, words in {**ANSWER_HEADERS, **MORE_HEADERS}.items()]
    headers = [
        ("`authorization`", "`Bearer` and the key."),
        *((code(n), words) for n, (words, _) in HOT_HEADERS.items()),
    ]
    return page(
        "API",
        INTRODUCTION,
        "*Who* is the least role that may call it; *any* a caller's, *open* needs none.",
        table(("Role", "May"), [(code(role), ROLES[role]) for role in get_args(Role)]),
        "## `model`",
        table(("`model`", "Who answers"), [(code(name), words) for name, words in MODELS.items()]),
        *parts,
        "## Request headers",
        table(("Header", "Meaning"), headers),
        "## Response headers",
        "They describe the choice at commit, on streams and errors too. Continuations and unreadable events are in the "
        "`apprentice` object of a stream's last chunk. Keys with limits also get OpenAI's `x-ratelimit-…` headers.",
        table(("Header", "Meaning"), answer_headers),
        "## Fields of a body",
        FIELD_NOTES,
        table(("Format", "Fields"), _fields_by_format()),
        f"Refused always, since they are the gateway's alone: {codes(sorted(GATEWAY_ALONE))}. Permissions without a "
        f"field of that name: {codes(sorted(ALLOWABLE - ON_REQUEST))}.",
        "## The answer of `POST /v1/route`",
        f"{codes(ROUTE_ANSWER)}. {ROUTE_WORDS.strip()}",
    )


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, path and description of every address."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _operation_row(document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> Row:
    takes = ", ".join(_body_fields(document, operation))
    query = [f"`{each['name']}`" for each in operation.get("parameters", ()) if each["in"] == "query"]
    asked = f"{takes}{'; ' if takes and query else ''}{'? ' + ', '.join(query) if query else ''}"
    return f"`{method} {path}`", who(operation), sentence(operation.get("description", "")), asked


def _admin_rows(document: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each address of the admin API, with its methods, and their roles if they are not the usual ones."""
    for path, methods in document["paths"].items():
        told = []
        for method, operation in methods.items():
            role, usual = who(operation), "operator" if method == "get" else "admin"
            told.append(code(method.upper()) + ("" if role == usual else f" ({role})"))
        if any("admins" in operation["tags"] for operation in methods.values()):
            yield code(path), " ".join(told)


def who(operation: Mapping[str, Any]) -> str:
    """The least role that may call an operation."""
    roles = [role for each in operation.get("security", ()) for role in each["key"]]
    return roles[0] if roles else "any" if "security" in operation else "open"


def _body_fields(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    """The fields of an operation's body, required ones in bold; for a body with its own table, a link to that."""
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = without_null(content["schema"])
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        fields = schema.get("properties", {})
        if fields.keys() & {"messages", "prompt", "input"}:
            yield "[fields](#fields-of-a-body)"
        elif fields:
            needed = schema.get("required", ())
            yield ", ".join(f"**`{name}`**" if name in needed else f"`{name}`" for name in fields)
        else:
            yield OTHER_BODIES.get(operation["operationId"].partition("_v1_")[0], media)


OTHER_BODIES: Mapping[str, str] = {
    "give_feedback": "[feedback](records.md#feedback)",
    "report_records": "[reports](records.md#reports)",
    "route": "[fields](#fields-of-a-body)",
}


def _fields_by_format() -> Iterator[Row]:
    """The fields that all wire formats share, those of each format, and those with special treatment."""
    known = {each.name: each.known_fields for each in FORMATS.values()}
    shared = frozenset.intersection(*known.values())
    yield "all", codes(sorted(shared))
    both = (known["chat"] & known["completions"]) - shared
    yield "chat and completions", codes(sorted(both))
    for name, fields in known.items():
        yield name, codes(sorted(fields - shared - (both if name in ("chat", "completions") else set())))
    yield "*permit*", codes(sorted(ON_REQUEST))
    yield "not forwarded", codes(sorted(KEPT_HERE))
    yield "not to vLLM", codes(sorted(HINTS))

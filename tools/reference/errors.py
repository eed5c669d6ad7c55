"""docs/reference/errors.md, from the table of errors."""

from __future__ import annotations

from gateway.errors import ERRORS, FINAL
from tools.reference.markdown import code, page, table

INTRODUCTION = """
Every error has OpenAI's form, `{"error": {"message", "type", "param", "code"}}`. `message` says what to do, `param`
names the field at fault or is null; programs read `code`.

- A 503 and a 429 carry `Retry-After` (seconds), but not `feedback_full`. OpenAI's clients repeat a 409, 429 or 5xx;
  `x-should-retry: false` stops them for a *final* error (below) and for a wait of over 60 s.
- An error inside a stream is its last event; no `[DONE]` follows.
- An engine's refusal (400, 409, 422, 451) is passed on in its words, with its code in `engine_code`. Only a prompt that
  is too long is tried again, once, at a fallback that takes more.
- Every request whose body was read has a record: `GET /v1/requests/{id}` with the answer's `x-request-id`.
"""


def errors_page() -> str:
    """The page: every code with its status, its type and when a caller gets it."""
    rows = [
        (code(name), f"{spec.status}{' final' if name in FINAL else ''}", code(spec.type), spec.meaning)
        for name, spec in ERRORS.items()
    ]
    return page("Errors", INTRODUCTION, table(("Code", "Status", "Type", "When"), rows))

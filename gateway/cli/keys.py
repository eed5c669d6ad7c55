"""`apprentice keys`: who may call, what for, how much, and for how long."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.callers import LIMIT_NAMES, Role
from gateway.cli.admin_client import AdminClient, Unusable, asks_gateway
from gateway.cli.tables import Printer, Row, moment, tell_warnings

keys = typer.Typer(help="Make, list, change, rotate and revoke API keys.", no_args_is_help=True)
LIMITS = "Limits"
UNIT_SECONDS: Mapping[str, int] = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
SPAN = re.compile(r"([0-9]{1,9})(s|min|h|d)")
NONE = "none"


def _limit(text: str) -> Any:
    return typer.Option(rich_help_panel=LIMITS, metavar="N", help=f"{text} `none` takes the limit away.")


Public = Annotated[str, typer.Argument(metavar="KEY", help="A key's public part: the 12 letters after sk-app-.")]
RequestsPerMinute = Annotated[str | None, _limit("Requests a minute, over all gateways.")]
TokensPerMinute = Annotated[str | None, _limit("Tokens a minute, of prompts and answers.")]
UsdPerDay = Annotated[str | None, _limit("US dollars a day of UTC.")]
UsdPerMonth = Annotated[str | None, _limit("US dollars a month of UTC.")]


@keys.command()
@asks_gateway
def make(
    client: AdminClient,
    out: Printer,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who holds it, for people.")],
    role: Annotated[
        Role,
        typer.Option(help="caller asks and judges, operator also reads, admin also changes; sidecar fetches adapters."),
    ] = "caller",
    model: Annotated[
        list[str] | None, typer.Option(help="A name that it may put into `model`; again for more. Unset: all.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="NAME", help="The person who answers for it. Unset: whose key makes it.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long it works: 90d, 12h, 30min. Unset: until it is revoked.")
    ] = None,
    unknown_fields: Annotated[
        Literal["refuse", "drop"] | None,
        typer.Option(help="What becomes of fields that are not known or allowed. Unset: as tasks have it."),
    ] = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    usd_per_day: UsdPerDay = None,
    usd_per_month: UsdPerMonth = None,
) -> None:
    """Make a key. It is printed this once, and kept nowhere."""
    given = _limits(requests_per_minute, tokens_per_minute, usd_per_day, usd_per_month)
    expires_at = None if expires_in is None else time.time() + span_seconds(expires_in)
    body = {"name": name, "role": role, "models": model or ["*"], "expires_at": expires_at, "limits": given}
    named = {"owner": owner, "unknown_fields": unknown_fields}
    told = client.post("/callers", body | {field: value for field, value in named.items() if value})
    if not out.answer(told):
        out.say(told["key"])
        out.note(f"{told['public']} is {name!r}, {role}. This key is shown once: keep it.")
        tell_warnings(out, told)
        if told["pending"]:
            out.note(f"It works once another owner's admin has approved it: apprentice keys approve {told['public']}")


@keys.command("list")
@asks_gateway
def list_keys(client: AdminClient, out: Printer) -> None:
    """List the keys by their public part. Secrets are not kept."""
    told = client.get("/callers")
    if not out.answer(told):
        columns = ("key", "name", "owner", "role", "models", "expires", "limits")
        out.table(columns, (_key_row(one) for one in told["callers"]))


def _key_row(told: dict[str, Any]) -> Row:
    limits = ", ".join(f"{value:g} {_words(name)}" for name, value in (told.get("limits") or {}).items())
    models = ", ".join(told["models"]).replace("*", "all")
    role = f"{told['role']}, not approved" if told["pending"] else told["role"]
    return told["public"], told["name"], told["owner"], role, models, moment(told["expires_at"]), limits or "-"


@keys.command()
@asks_gateway
def approve(client: AdminClient, out: Printer, public: Public) -> None:
    """Approve an admin key that an admin of another owner has made."""
    told = client.post(f"/callers/{_quoted(public)}/approve")
    if not out.answer(told):
        out.say(f"{told['public']} works from now on: {told['name']!r} of {told['owner']}, {told['role']}.")


@keys.command()
@asks_gateway
def rotate(
    client: AdminClient,
    out: Printer,
    public: Public,
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the old secret works beside the new one; 0s: not at all.")
    ] = "1h",
) -> None:
    """Give a key a new secret, printed once. The old one works beside it for a while."""
    told = client.post(f"/callers/{_quoted(public)}/rotate", {"overlap_seconds": span_seconds(overlap)})
    if not out.answer(told):
        out.say(told["key"])
        until = told["former_until"]
        out.note(f"The old secret works until {moment(until)}." if until else "The old secret works no more.")


@keys.command()
@asks_gateway
def revoke(client: AdminClient, out: Printer, public: Public) -> None:
    """Revoke a key on every gateway."""
    told = client.delete(f"/callers/{_quoted(public)}")
    if not out.answer(told):
        out.say(f"{told['public']} is revoked.")


@keys.command()
@asks_gateway
def limits(
    client: AdminClient,
    out: Printer,
    public: Public,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    usd_per_day: UsdPerDay = None,
    usd_per_month: UsdPerMonth = None,
) -> None:
    """Show a key's limits and what is spent; options change the limits."""
    given = _limits(requests_per_minute, tokens_per_minute, usd_per_day, usd_per_month)
    path = f"/callers/{_quoted(public)}"
    if given:
        client.patch(path, {"limits": given})
    told = client.get(path)
    if out.answer(told):
        return
    rows = list(_usage_rows(told["usage"]))
    if rows:
        out.table(("limit", "of", "spent", "left", "until"), rows)
    else:
        out.say(f"{told['public']} has no limits.")


def _usage_rows(usage: dict[str, Any]) -> Iterator[Row]:
    for name, told in usage.items():
        figures = (f"{told[part]:.6g}" for part in ("limit", "spent", "left"))
        limit, spent, left = figures
        yield limit, _words(name), spent, left, moment(told["resets_at"])


def _words(name: str) -> str:
    return name.replace("_per_", " a ").replace("usd", "USD")


def _limits(*given: str | None) -> dict[str, float | None]:
    """The limits that were given, null for those to be taken away. Raises Unusable for what is no number."""
    found: dict[str, float | None] = {}
    for name, text in zip(LIMIT_NAMES, given, strict=True):
        if text is None:
            continue
        try:
            number = None if text == NONE else float(text)
        except ValueError:
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise Unusable(f"--{name.replace('_', '-')} is a number, or `none`; not {text[:40]!r}.")
        whole = number is not None and not name.startswith("usd") and number.is_integer()
        found[name] = int(number) if whole and number is not None else number
    return found


def span_seconds(text: str) -> int:
    """A span such as 90d in seconds. Raises Unusable."""
    found = SPAN.fullmatch(text)
    if found is None:
        raise Unusable(f"{text[:40]!r} is no span of time: write 90d, 12h, 30min or 45s.")
    return int(found[1]) * UNIT_SECONDS[found[2]]


def _quoted(public: str) -> str:
    """A key's public part within an address. Raises Unusable where a whole key was given: it does not belong here."""
    if public.startswith("sk-app-"):
        raise Unusable("Give the public part alone, the 12 letters after sk-app-: a whole key is a secret.")
    return quote(public, safe="")

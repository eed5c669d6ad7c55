"""`apprentice keys`: API keys with their roles, limits and expiry."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Api, Yes, add_command, as_body, make_sure
from gateway.cli.tables import Row, format_time, tell_warnings
from gateway.roles import Role

keys = typer.Typer(help="Make, list, change, rotate and revoke API keys.", no_args_is_help=True)
LIMITS = "Limits"
UNIT_SECONDS: Mapping[str, int] = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
SPAN = re.compile(r"([0-9]{1,9})(s|min|h|d)")
NONE = "none"


def _limit(text: str) -> Any:
    return typer.Option(rich_help_panel=LIMITS, metavar="N", help=f"{text} `none` takes the limit away.")


Public = Annotated[str, typer.Argument(metavar="KEY", help="A key's public part: the 12 letters after sk-app-.")]


@dataclass(frozen=True)
class LimitOptions:
    """A key's limits as options: numbers, or `none`."""

    requests_per_minute: Annotated[str | None, _limit("Requests a minute, over all gateways.")] = None
    tokens_per_minute: Annotated[str | None, _limit("Tokens a minute, of prompts and answers.")] = None
    usd_per_day: Annotated[str | None, _limit("US dollars a day of UTC.")] = None
    usd_per_month: Annotated[str | None, _limit("US dollars a month of UTC.")] = None

    def body(self) -> dict[str, float | None]:
        """The given limits; null removes a limit. Raises Unusable for a text that is not a number."""
        return {name: _number(name, text) for name, text in as_body(self).items()}


def _number(name: str, text: str) -> float | None:
    if text == NONE:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"--{name.replace('_', '-')} is a number, or `none`; not {text[:40]!r}.")
    return int(number) if number.is_integer() and not name.startswith("usd") else number


@add_command(keys)
def make(
    api: Api,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who holds it, for people.")],
    role: Annotated[
        Role,
        typer.Option(
            help="caller asks and judges, operator also reads, admin also changes; reviewer only judges what is drawn "
            "for review; sidecar fetches adapters."
        ),
    ] = "caller",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that it may put into `model`, or a task that it reviews; again for more. Unset: all."
        ),
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
    limits: LimitOptions = LimitOptions(),
) -> None:
    """Make a key. It is printed this once, and kept nowhere."""
    expires_at = None if expires_in is None else time.time() + parse_span(expires_in, least=1)
    body = as_body(name=name, role=role, models=model or ["*"], expires_at=expires_at, limits=limits.body())
    answer = api.post("/callers", body | as_body(owner=owner or None, unknown_fields=unknown_fields))
    if not api.out.print_json(answer):
        public = answer["public"]
        api.out.say(answer["key"])
        api.out.note(f"{public} is {name!r}, {role}. This key is shown once: keep it.")
        tell_warnings(api.out, answer)
        if answer["pending"]:
            api.out.note(f"It works once another owner's admin has approved it: apprentice keys approve {public}")


@add_command(keys, "list")
def list_keys(api: Api) -> None:
    """List the keys by their public part. Secrets are not kept."""
    columns = ("key", "name", "owner", "role", "models", "expires", "limits")
    empty = "No key is listed. Make one: apprentice keys make NAME"
    api.out.tell_list(api.get("/callers"), "callers", columns, _key_row, empty)


def _key_row(key: dict[str, Any]) -> Row:
    limits = ", ".join(f"{value:g} {_words(name)}" for name, value in (key.get("limits") or {}).items())
    models = ", ".join(key["models"]).replace("*", "all")
    role = f"{key['role']}, not approved" if key["pending"] else key["role"]
    return key["public"], key["name"], key["owner"], role, models, format_time(key["expires_at"]), limits or "-"


@add_command(keys)
def approve(api: Api, public: Public) -> None:
    """Approve an admin key of another owner."""
    answer = api.post(f"/callers/{_quoted(public)}/approve")
    holder = f"{answer['name']!r} of {answer['owner']}, {answer['role']}"
    api.out.tell(answer, f"{answer['public']} works from now on: {holder}.")


@add_command(keys)
def rotate(
    api: Api,
    public: Public,
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the old secret works beside the new one; 0s: not at all.")
    ] = "1h",
) -> None:
    """Give a key a new secret, printed once. The old one works beside it for a while."""
    answer = api.post(f"/callers/{_quoted(public)}/rotate", {"overlap_seconds": parse_span(overlap)})
    if not api.out.print_json(answer):
        api.out.say(answer["key"])
        until = answer["former_until"]
        api.out.note(
            f"The old secret works until {format_time(until)}." if until else "The old secret no longer works."
        )
        tell_warnings(api.out, answer)


@add_command(keys)
def revoke(api: Api, public: Public, yes: Yes = False) -> None:
    """Revoke a key on every gateway. Asks before it does."""
    path = f"/callers/{_quoted(public)}"
    make_sure(f"Every gateway refuses {public} from then on, permanently. Revoke it?", yes)
    answer = api.delete(path)
    api.out.tell(answer, f"{answer['public']} is revoked.")


@add_command(keys)
def limits(api: Api, public: Public, limits: LimitOptions) -> None:
    """Show a key's limits and what is spent; options change the limits."""
    path = f"/callers/{_quoted(public)}"
    if changes := limits.body():
        api.patch(path, {"limits": changes})
    answer = api.get(path)
    if api.out.print_json(answer):
        return
    rows = list(_usage_rows(answer["usage"]))
    if rows:
        api.out.table(("limit", "of", "spent", "left", "until"), rows)
    else:
        api.out.say(f"{answer['public']} has no limits.")


def _usage_rows(usage: dict[str, Any]) -> Iterator[Row]:
    for name, limit in usage.items():
        bound, spent, left = (f"{limit[part]:.6g}" for part in ("limit", "spent", "left"))
        yield bound, _words(name), spent, left, format_time(limit["resets_at"])


def _words(name: str) -> str:
    return name.replace("_per_", " a ").replace("usd", "USD")


def parse_span(text: str, least: int = 0) -> int:
    """A span such as 90d in seconds. Raises Unusable."""
    match = SPAN.fullmatch(text)
    if match is None or int(match[1]) < least:
        raise Unusable(
            f"{text[:40]!r} is not a span of time{' above 0' if least else ''}: write 90d, 12h, 30min or 45s."
        )
    return int(match[1]) * UNIT_SECONDS[match[2]]


def _quoted(public: str) -> str:
    """A key's public part within an address. Raises Unusable for a whole key, which is a secret."""
    if public.startswith("sk-app-"):
        raise Unusable("Give the public part alone, the 12 letters after sk-app-: a whole key is a secret.")
    return quote(public, safe="")

"""Names of fields at the gateway and in commands, so that errors name the command's own options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import get_args

from typer.models import ArgumentInfo, OptionInfo

NAMED_OTHERWISE: Mapping[str, tuple[str, ...]] = {
    "effective_at": ("effective",),
    "expires_at": ("until", "expires_in"),
    "starts_at": ("starts_in",),
    "models": ("model",),
    "overlap_seconds": ("overlap",),
    "demonstration": ("right",),
    "past_gate": ("past_gate", "force"),
    "calibration": ("calibrate",),
    "since": ("since", "since_time"),
}
"""Fields whose option has another name. The first option that the command has counts. Other fields have equal names."""
WORD = re.compile(r"`([a-z_]+)`|\b([a-z]+(?:_[a-z]+)+)\b")
FIRST_WORD = re.compile(r"[a-z_]+(?=\b)")


def options_of(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """A command's options as typed, by the names of its parameters."""
    options: dict[str, str] = {}
    for parameter in parameters:
        info = next((info for info in get_args(parameter.annotation)[1:] if isinstance(info, OptionInfo)), None)
        if info is not None:
            names = (info.default, *(info.param_decls or ()))  # in Annotated the first of them stands as the default
            typed = [each for each in names if isinstance(each, str) and each.startswith("--")]
            options[parameter.name] = typed[0].split("/")[0] if typed else f"--{parameter.name.replace('_', '-')}"
    return options


def find_empty_argument(parameters: Iterable[inspect.Parameter], values: Mapping[str, object]) -> str | None:
    """The name, as the help shows it, of an argument that is an empty or a blank text; None where there is none."""
    for parameter in parameters:
        info = next((info for info in get_args(parameter.annotation)[1:] if isinstance(info, ArgumentInfo)), None)
        value = values.get(parameter.name)
        if info is not None and isinstance(value, str) and not value.strip():
            return str(info.metavar or parameter.name.upper()).strip("[]")
    return None


def option_of(field: str, options: Mapping[str, str]) -> str | None:
    """The option of a command for a field of the body; None if it has none."""
    return next((options[name] for name in NAMED_OTHERWISE.get(field, (field,)) if name in options), None)


def name_options(message: str, param: str | None, options: Mapping[str, str]) -> str:
    """The gateway's message, with options of the command in place of fields of the body.

    A field is known by its place at the beginning where it is the `param` at fault, by backquotes, or by an underscore.
    An option at fault that the message does not name comes before it.
    """

    def named(match: re.Match[str]) -> str:
        return option_of(match[1] or match[2], options) or match[0]

    fields = param.split(".") if param else []
    field = next((field for field in reversed(fields) if option_of(field, options) is not None), "")
    at_fault = option_of(field, options)
    begins = re.match(rf"([a-z_]+\.)*{field}\b", message) or FIRST_WORD.match(message)
    if at_fault is not None and begins is not None and {*begins[0].split(".")} <= {*fields}:
        message = at_fault + message[begins.end() :]
    message = WORD.sub(named, message)
    if at_fault is not None and not re.search(rf"{re.escape(at_fault)}\b", message):
        return f"{at_fault}: {message}"
    return message

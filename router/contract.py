"""The contract of a task's answers: compiled once for each version, checked before each commit.

A contract is a mapping of `json_schema`, `choices`, `regex` and `length`. The answer must satisfy all that are set,
untrimmed, since the caller gets exactly this text. Patterns, also those inside a schema, are matched in linear time,
and nothing outside of the schema is ever read. The message about a broken contract quotes no word of the answer, so it
can be logged where texts are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import jsonschema_rs

ANSWER_LENGTH_MAX = 1 << 16
"""Most characters of an answer; a longer one breaks any contract."""
PATTERN_BYTES_MAX = 1 << 20
"""Memory of one compiled pattern, and of its cache while it is matched."""
MESSAGE_LENGTH_MAX = 300
KEYS = ("json_schema", "choices", "regex", "length")
LENGTH_KEYS = ("characters_min", "characters_max")


class ContractError(Exception):
    """The contract can't be used; the text names the key and says what to do."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The form that every answer of a version must have."""

    schema: jsonschema_rs.Validator | None = None
    choices: frozenset[str] | None = None
    regex: jsonschema_rs.Validator | None = None
    characters_min: int = 0
    characters_max: int = ANSWER_LENGTH_MAX

    def broken_by(self, text: str, cut: bool = False) -> str | None:
        """A sentence that says how this answer breaks the contract; None if it keeps it.

        `cut`: the answer reached its token limit. Its JSON then counts as incomplete, even if it happens to be valid.
        """
        if not self.characters_min <= len(text) <= self.characters_max:
            return self._of_length(len(text))
        if self.choices is not None and text not in self.choices:
            return f"The answer is none of the {len(self.choices)} choices."
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            return "The answer is not valid Unicode."
        if self.regex is not None and not self.regex.is_valid(text):
            return "The answer does not match the regex from its beginning to its end."
        return None if self.schema is None else _broken_by(self.schema, encoded, cut)

    def _of_length(self, length: int) -> str:
        if length > self.characters_max:
            return f"The answer has more than the {self.characters_max} characters that a contract allows."
        return f"The answer has fewer than the {self.characters_min} characters that a contract wants."


def compile_contract(contract: Mapping[str, Any]) -> Contract:
    """The contract of a manifest, ready to be checked. Raises ContractError."""
    unknown = [key for key in contract if key not in KEYS]
    if unknown:
        raise ContractError(f"contract.{unknown[0]} is not known: a contract has {', '.join(KEYS)}.")
    schema, choices, regex, length = (contract.get(key) for key in KEYS)
    if schema is None and choices is None and regex is None and length is None:
        raise ContractError("contract is empty: give json_schema, choices, regex or length, or leave it out.")
    return Contract(
        None if schema is None else _schema(schema),
        None if choices is None else _choices(choices),
        None if regex is None else _regex(regex),
        *((0, ANSWER_LENGTH_MAX) if length is None else _length(length)),
    )


def _broken_by(schema: jsonschema_rs.Validator, encoded: bytes, cut: bool) -> str | None:
    if cut:
        return "The answer was cut off: its JSON is not whole."
    try:
        value = msgspec.json.decode(encoded)
    except (msgspec.DecodeError, RecursionError):
        return "The answer is not JSON that can be read."
    from jsonschema_rs import ValidationError  # noqa: PLC0415

    try:
        schema.validate(value)
    except ValidationError as error:
        # Neither its message nor its instance_path: they quote the answer.
        place = "/".join(map(str, error.schema_path))[:MESSAGE_LENGTH_MAX]
        return f"The answer's JSON breaks the schema at {place or 'its root'}."
    except ValueError:
        return "The answer's JSON can't be checked against the schema."
    return None


def _schema(schema: Any) -> jsonschema_rs.Validator:
    if not isinstance(schema, dict):
        raise ContractError("contract.json_schema must be a mapping: give a JSON schema.")
    try:
        return _validator(schema)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"contract.json_schema is not a schema that can be used: {_first_line(error)}.") from None


def _choices(choices: Any) -> frozenset[str]:
    if not isinstance(choices, list | tuple) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ContractError("contract.choices must be a list of texts: give at least one.")
    return frozenset(choices)


def _regex(regex: Any) -> jsonschema_rs.Validator:
    if not isinstance(regex, str):
        raise ContractError("contract.regex must be a text: put it in quotes.")
    try:
        _validator({"pattern": regex})  # alone first: `a)|(?:b` would be valid inside of the group
        return _validator({"pattern": f"^(?:{regex})$"})
    except ValueError:
        raise ContractError(
            "contract.regex can't be used: it must be a regular expression without look-around and back references, "
            "which can't be matched in linear time, and compile to at most "
            f"{PATTERN_BYTES_MAX >> 20} MiB: lower the bounds of its repetitions, or write what it counts as a schema."
        ) from None


def _length(length: Any) -> tuple[int, int]:
    if not isinstance(length, dict) or not length or not length.keys() <= set(LENGTH_KEYS):
        raise ContractError(f"contract.length must be a mapping with {' or '.join(LENGTH_KEYS)}, or both.")
    least, most = length.get("characters_min", 0), length.get("characters_max", ANSWER_LENGTH_MAX)
    for name, value in zip(LENGTH_KEYS, (least, most), strict=True):
        if type(value) is not int or not 0 <= value <= ANSWER_LENGTH_MAX:
            raise ContractError(f"contract.length.{name} must be a whole number from 0 to {ANSWER_LENGTH_MAX}.")
    if least > most:
        raise ContractError("contract.length.characters_min is more than characters_max: no answer can keep both.")
    return least, most


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """A validator of the schema. Raises ValueError if the schema is not valid, or refers to anything outside of it."""
    from jsonschema_rs import RegexOptions, validator_for  # noqa: PLC0415 - 8 MB, where there is a contract

    linear = RegexOptions(size_limit=PATTERN_BYTES_MAX, dfa_size_limit=PATTERN_BYTES_MAX)
    return validator_for(schema, pattern_options=linear, offline=True)


def _first_line(error: Exception) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__).rstrip(".")[:MESSAGE_LENGTH_MAX]

"""The manifest: all properties of a version beside its weights. An alias moves all of them together.

docs/reference/manifest.md has an example and every key. Unknown keys are errors, except in provenance and the two
slots. Dates stay texts, and only `true` and `false` are booleans: `no` in a list of choices is a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from serving.adapters import canonical
from serving.adapters.adapter_folder import read_small
from serving.adapters.errors import quote_name
from serving.adapters.plain_yaml import read_plain_yaml
from serving.fleet_view import GeneralPromptView

T = TypeVar("T")

FILE_BYTES_MAX = 256 << 10
RENAMED: Mapping[str, str] = MappingProxyType({"blueprint": "general_prompt"})
"""Keys of earlier releases, and their present names."""
TASK = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
SYSTEM_LENGTH_MAX = 100_000
PROMPT_LENGTH_MAX = 20_000
GOLDEN_MAX = 100
CHOICES_MAX = 1000
CHARACTERS_MAX = 1 << 16
"""Most characters of an answer; longer ones break every contract."""
TEXT_LENGTH_MAX = 1000
STOP_MAX = 16
NOTES_LENGTH_MAX = 20_000
EVALUATIONS_MAX = 100
MAPPING_BYTES_MAX = 64 << 10
DEPTH_MAX = 32
LENGTH_OF_A_DATE = len("2027-01-31")

SAMPLING_BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "top_k": (-1, 1_000_000),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 10),
    "max_tokens": (1, 1_000_000),
    "seed": (-(1 << 63), (1 << 63) - 1),
}
WHOLE_NUMBERS = frozenset({"top_k", "max_tokens", "seed"})


class ManifestError(Exception):
    """The manifest can't be used; the text names the key and says what to do."""


@dataclass(frozen=True)
class Golden:
    """A prompt for the probe: the user's message, and the adapter's answer if it is known."""

    prompt: str
    expected: str | None = None


@dataclass(frozen=True)
class Manifest:
    """All properties of a version beside its bytes; docs/reference/manifest.md explains each part."""

    task: str
    base_fingerprint: str | None
    contract: Mapping[str, Any] | None
    general_prompt: GeneralPromptView
    sampling: Mapping[str, Any]
    golden: tuple[Golden, ...]
    provenance: Mapping[str, Any]
    coverage: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    review_by: str | None = None

    def digest(self) -> str:
        """`sha256:<hex>` of the whole manifest."""
        return canonical.digest(to_json(self))


def read_manifest(path: Path) -> Manifest:
    """The manifest in a YAML file; a link is refused. Raises ManifestError."""
    try:
        value = read_plain_yaml(read_small(path, FILE_BYTES_MAX))
    except ValueError as error:  # PlainYamlError among them
        raise ManifestError(f"{path.name} {error}") from None
    try:
        return from_json(value)
    except ManifestError as error:
        raise ManifestError(f"{path.name}: {error}") from None


def from_json(value: Any) -> Manifest:
    """The manifest in a JSON object, as `to_json` writes it. Raises ManifestError."""
    fields = _Fields("", value)
    manifest = Manifest(
        task=fields.take("task", _task),
        base_fingerprint=fields.take_or(
            "base_fingerprint", partial(_sha256, source="from the base model's folder"), None
        ),
        contract=fields.take_or("contract", _contract, None),
        general_prompt=fields.take("general_prompt", _general_prompt),
        sampling=fields.take_or("sampling", _sampling, {}),
        golden=fields.take_or("golden", _golden, ()),
        provenance=fields.take_or("provenance", _provenance, {}),
        coverage=fields.take_or("coverage", _mapping, {}),
        calibration=fields.take_or("calibration", _mapping, {}),
        review_by=fields.take_or("review_by", _review_by, None),
    )
    fields.finish()
    return manifest


def rename_keys(written: Mapping[str, Any]) -> dict[str, Any]:
    """A version's stored manifest, with the present names of the keys that earlier releases wrote."""
    return {RENAMED.get(key, key): value for key, value in written.items()}


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as a JSON object; `from_json` gives the same manifest again.

    Digests and signatures are of this form, so a key of a later release is in it only if it is set.
    """
    later = {} if manifest.review_by is None else {"review_by": manifest.review_by}
    return later | {
        "task": manifest.task,
        "base_fingerprint": manifest.base_fingerprint,
        "contract": None if manifest.contract is None else dict(manifest.contract),
        "general_prompt": {
            "system": manifest.general_prompt.system,
            "response_format": manifest.general_prompt.response_format,
            "sampling": dict(manifest.general_prompt.sampling),
        },
        "sampling": dict(manifest.sampling),
        "golden": [{"prompt": each.prompt, "expected": each.expected} for each in manifest.golden],
        "provenance": dict(manifest.provenance),
        "coverage": dict(manifest.coverage),
        "calibration": dict(manifest.calibration),
    }


def read_review_due(manifest: Mapping[str, Any]) -> float | None:
    """The time when a manifest, as `to_json` writes it, is due for review by its owner (Unix seconds); None: never.

    A date is due at its end, in UTC; a time without a zone is in UTC. Raises ValueError for other texts.
    """
    text = manifest.get("review_by")
    if text is None:
        return None
    try:
        due = datetime.fromisoformat(text)
        due = due if due.tzinfo is not None else due.replace(tzinfo=UTC)
        return (due + timedelta(days=1) if len(text) <= LENGTH_OF_A_DATE else due).timestamp()
    except (OverflowError, TypeError) as error:
        raise ValueError(f"{text!r} is not a time of review.") from error


class _Fields:
    """One mapping, read key by key; a key left over at the end is an error."""

    def __init__(self, place: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{place or 'The manifest'} must be a mapping of keys to values.")
        self._place = place
        self._left = dict(value)
        for key in RENAMED.keys() & self._left:
            raise ManifestError(f"{quote_name(self._at(key))} is called {RENAMED[key]} now: rename it.")
        self._keys: list[str] = []

    def take(self, key: str, read: Callable[[str, Any], T]) -> T:
        """The value of a key. Raises ManifestError if the key is absent or null."""
        value = self._pop(key)
        if value is None:
            raise ManifestError(f"{self._at(key)} is missing: add it.")
        return read(self._at(key), value)

    def take_or(self, key: str, read: Callable[[str, Any], T], default: T) -> T:
        """The value of a key; `default` if the key is absent or null."""
        value = self._pop(key)
        return default if value is None else read(self._at(key), value)

    def finish(self) -> None:
        """Raise ManifestError if a key is left over."""
        for key in self._left:
            raise ManifestError(
                f"{quote_name(self._at(str(key)))} is not known here: remove or rename it; known are "
                f"{', '.join(self._keys)}."
            )

    def _pop(self, key: str) -> Any:
        self._keys.append(key)
        return self._left.pop(key, None)

    def _at(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key


def _task(place: str, value: Any) -> str:
    if not isinstance(value, str) or not TASK.fullmatch(value):
        raise ManifestError(f"{place} must be 1 to 63 of a-z, 0-9, - and _, and begin with a letter or digit.")
    return value


def _sha256(place: str, value: Any, source: str) -> str:
    if not isinstance(value, str) or not canonical.DIGEST.fullmatch(value):
        raise ManifestError(f"{place} must be sha256: and 64 hex digits: take it {source}.")
    return value


def _contract(place: str, value: Any) -> dict[str, Any]:
    parts = _parts(place, value, {"json_schema": _mapping, "choices": _choices, "regex": _regex, "length": _length})
    if not parts:
        raise ManifestError(f"{place} is empty: give json_schema, choices, regex or length, or leave it out.")
    return parts


def _parts(place: str, value: Any, readers: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    """The given keys of a mapping, each as its reader returns it. Raises ManifestError for any other key."""
    fields = _Fields(place, value)
    parts = {key: fields.take_or(key, read, None) for key, read in readers.items()}
    fields.finish()
    return {key: part for key, part in parts.items() if part is not None}


def _choices(place: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not 1 <= len(value) <= CHOICES_MAX:
        raise ManifestError(f"{place} must be a list of 1 to {CHOICES_MAX} texts.")
    choices = [_line(f"{place}[{at}]", choice) for at, choice in enumerate(value)]
    if len(set(choices)) != len(choices):
        raise ManifestError(f"{place} names a choice twice: remove one.")
    return choices


def _regex(place: str, value: Any) -> str:
    text = _text(place, value, TEXT_LENGTH_MAX)
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ManifestError(f"{place} is not a valid regular expression: {error}.") from None
    return text


def _length(place: str, value: Any) -> dict[str, int]:
    lengths = _parts(place, value, dict.fromkeys(("characters_min", "characters_max"), _characters))
    if not lengths:
        raise ManifestError(f"{place} is empty: give characters_min or characters_max, or leave it out.")
    if lengths.get("characters_min", 0) > lengths.get("characters_max", CHARACTERS_MAX):
        raise ManifestError(f"{place}.characters_min is more than characters_max: no answer can keep both.")
    return lengths


def _characters(place: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= CHARACTERS_MAX:
        raise ManifestError(f"{place} must be a whole number from 0 to {CHARACTERS_MAX}.")
    return int(value)


def _general_prompt(place: str, value: Any) -> GeneralPromptView:
    fields = _Fields(place, value)
    general_prompt = GeneralPromptView(
        system=fields.take("system", partial(_text, length_max=SYSTEM_LENGTH_MAX)),
        response_format=fields.take_or("response_format", _response_format, None),
        sampling=fields.take_or("sampling", _sampling, {}),
    )
    fields.finish()
    return general_prompt


def _response_format(place: str, value: Any) -> dict[str, Any]:
    response_format = _mapping(place, value)
    kind = response_format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise ManifestError(f"{place}.type must be text, json_object or json_schema.")
    if kind == "json_schema" and not isinstance(response_format.get("json_schema"), dict):
        raise ManifestError(f"{place}.json_schema is missing: add it, as in a chat request.")
    return response_format


def _sampling(place: str, value: Any) -> dict[str, Any]:
    sampling = _mapping(place, value)
    for key, setting in sampling.items():
        if key == "stop":
            _check_stop(f"{place}.stop", setting)
        elif key in SAMPLING_BOUNDS:
            _check_number(f"{place}.{key}", setting, key)
        elif key == "chat_template_kwargs":
            _mapping(f"{place}.{key}", setting)
        else:
            keys = ", ".join([*SAMPLING_BOUNDS, "stop", "chat_template_kwargs"])
            raise ManifestError(
                f"{quote_name(f'{place}.{key}')} is not known here: remove or rename it; known are {keys}."
            )
    return sampling


def _check_number(place: str, value: Any, key: str) -> None:
    low, high = SAMPLING_BOUNDS[key]
    allowed = (int,) if key in WHOLE_NUMBERS else (int, float)
    if type(value) not in allowed or not low <= value <= high:
        kind = "whole number" if key in WHOLE_NUMBERS else "number"
        raise ManifestError(f"{place} must be a {kind} from {low} to {high}.")


def _check_stop(place: str, value: Any) -> None:
    stops = value if isinstance(value, list) else [value]
    if not 1 <= len(stops) <= STOP_MAX:
        raise ManifestError(f"{place} must be a text or a list of 1 to {STOP_MAX} texts.")
    if not all(isinstance(stop, str) and 1 <= len(stop) <= TEXT_LENGTH_MAX for stop in stops):
        raise ManifestError(f"{place} must hold texts of 1 to {TEXT_LENGTH_MAX} characters.")


def _golden(place: str, value: Any) -> tuple[Golden, ...]:
    return tuple(_list(place, value, GOLDEN_MAX, "prompts", _golden_one))


def _golden_one(place: str, value: Any) -> Golden:
    fields, text = _Fields(place, value), partial(_text, length_max=PROMPT_LENGTH_MAX)
    golden = Golden(prompt=fields.take("prompt", text), expected=fields.take_or("expected", text, None))
    fields.finish()
    return golden


def _provenance(place: str, value: Any) -> dict[str, Any]:
    """A provenance. Known keys have a fixed kind or are null; other keys are free."""
    provenance = _mapping(place, value)
    for key, part in provenance.items():
        if key in PROVENANCE and part is not None:
            PROVENANCE[key](f"{place}.{key}", part)
    return provenance


def _moment(place: str, value: Any) -> str:
    try:
        datetime.fromisoformat(_text(place, value, TEXT_LENGTH_MAX))
    except ValueError:
        raise ManifestError(f"{place} must be a date or a time as in 2026-11-20 or 2026-11-20T09:30:00Z.") from None
    return str(value)


def _review_by(place: str, value: Any) -> str:
    text = _moment(place, value)
    try:
        read_review_due({"review_by": text})
    except ValueError:
        raise ManifestError(f"{place} must be before the year 10000.") from None
    return text


def _source(place: str, value: Any) -> dict[str, str]:
    return _parts(place, value, dict.fromkeys(("repository", "commit", "path"), _line))


def _seed(place: str, value: Any) -> int:
    if type(value) is not int:
        raise ManifestError(f"{place} must be a whole number.")
    return value


def _metrics(place: str, value: Any) -> dict[str, float]:
    metrics = _mapping(place, value)
    for name, number in metrics.items():
        if type(number) not in (int, float):
            raise ManifestError(f"{quote_name(f'{place}.{name}')} must be a number.")
    return metrics


def _evaluations(place: str, value: Any) -> list[str]:
    return _list(place, value, EVALUATIONS_MAX, "ids", _line)


def _list(place: str, value: Any, count_max: int, what: str, read: Callable[[str, Any], T]) -> list[T]:
    if not isinstance(value, list) or len(value) > count_max:
        raise ManifestError(f"{place} must be a list of at most {count_max} {what}.")
    return [read(f"{place}[{at}]", each) for at, each in enumerate(value)]


def _tags(place: str, value: Any) -> dict[str, str]:
    tags = _mapping(place, value)
    for name, text in tags.items():
        _line(quote_name(f"{place}.{name}"), text)
    return tags


def _line(place: str, value: Any) -> str:
    return _text(place, value, TEXT_LENGTH_MAX)


def _text(place: str, value: Any, length_max: int) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > length_max:
        raise ManifestError(f"{place} must be a text of 1 to {length_max} characters: put it in quotes.")
    return value


def _mapping(place: str, value: Any) -> dict[str, Any]:
    """Any JSON object within the limits of depth and size."""
    if not isinstance(value, dict):
        raise ManifestError(f"{place} must be a mapping of keys to values.")
    _check_plain(place, value, DEPTH_MAX)
    try:
        size_bytes = len(canonical.write(value))
    except ValueError as error:
        raise ManifestError(f"{place} can't be used: {error}.") from None
    if size_bytes > MAPPING_BYTES_MAX:
        raise ManifestError(f"{place} has {size_bytes} bytes as JSON, over the limit of {MAPPING_BYTES_MAX}.")
    return value


def check_depth(written: Mapping[str, Any]) -> None:
    """Check that no part of a manifest, of whatever release, is nested too deep. Raises ManifestError."""
    for key, part in written.items():
        _check_plain(key, part, DEPTH_MAX)


def _check_plain(place: str, value: Any, depth_left: int) -> None:
    if depth_left == 0:
        raise ManifestError(f"{place} is nested more than {DEPTH_MAX} deep: flatten it.")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ManifestError(
                    f"{place} has the key {quote_name(repr(key))}, which is not text: put it in quotes."
                )
            _check_plain(place, inner, depth_left - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(place, inner, depth_left - 1)
    elif value is not None and not isinstance(value, str | int | float):
        raise ManifestError(f"{place} holds a {type(value).__name__}, which JSON does not have: write it as a text.")


PROVENANCE: Mapping[str, Callable[[str, Any], object]] = {
    "trained_by": _line,
    "trained_at": _moment,
    "dataset": _line,
    "dataset_digest": partial(_sha256, source="of the data set's file"),
    "base_model": _line,
    "framework": _line,
    "command": partial(_text, length_max=NOTES_LENGTH_MAX),
    "source": _source,
    "run": _line,
    "seed": _seed,
    "parameters": _mapping,
    "metrics": _metrics,
    "evaluations": _evaluations,
    "license": _line,
    "notes": partial(_text, length_max=NOTES_LENGTH_MAX),
    "tags": _tags,
}
"""The keys of a provenance that have a fixed kind: those of model cards and trackers of training runs."""

"""docs/manifest.md has every key of a manifest with what holds of it, and an example that can be pushed."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.contract import KEYS, compile_contract
from serving.adapters import manifest
from serving.adapters.manifest import ManifestError, from_json, read_manifest
from tests.style.source import ROOT
from tests.style.tables import Row, code, table

DOCUMENT = "docs/manifest.md"
TEXT = (ROOT / DOCUMENT).read_text(encoding="utf-8")
WHOLE: dict[str, Any] = {
    "task": "returns",
    "base_fingerprint": "sha256:" + "a" * 64,
    "contract": {"json_schema": {"type": "string"}, "choices": ["a"], "regex": "a", "length": {"characters_min": 1}},
    "blueprint": {"system": "Decide.", "response_format": {"type": "text"}, "sampling": {"seed": 1}},
    "sampling": {**dict.fromkeys(manifest.SAMPLING_BOUNDS, 1), "stop": "a", "chat_template_kwargs": {"a": 1}},
    "golden": [{"prompt": "a", "expected": "b"}],
    "coverage": {"a": 1},
    "calibration": {"a": 1},
    "review_by": "2027-01-31",
    "provenance": {
        **dict.fromkeys(manifest.PROVENANCE, "a"),
        "trained_at": "2026-11-20",
        "dataset_digest": "sha256:" + "a" * 64,
        "source": {"commit": "a"},
        "seed": 1,
        "parameters": {"rank": 8},
        "metrics": {"accuracy": 0.9},
        "evaluations": ["a"],
        "tags": {"team": "a"},
    },
}
"""A manifest with every key that has a meaning."""


def rows() -> list[Row]:
    return table(DOCUMENT, "Key", "Needed", "Type", "Bounds", "Meaning")


def keys() -> Iterator[str]:
    """All keys, in the document's order, from the code."""
    fields = [each.name for each in dataclasses.fields(manifest.Manifest)]
    within: Mapping[str, list[str]] = {
        "contract": [f".{key}" for key in KEYS],
        "blueprint": [f".{each.name}" for each in dataclasses.fields(manifest.Blueprint)],
        "sampling": [*(f".{key}" for key in manifest.SAMPLING_BOUNDS), ".stop", ".chat_template_kwargs"],
        "golden": [f"[].{each.name}" for each in dataclasses.fields(manifest.Golden)],
        "provenance": [f".{key}" for key in manifest.PROVENANCE],
    }
    for name in fields:
        yield name
        yield from (f"{name}{inner}" for inner in within.get(name, []))


def test_every_key_is_in_the_document_and_nothing_else() -> None:
    named = [code(row[0]) for row in rows()]
    assert sorted(named) == sorted(keys())
    assert all(row[4].endswith(".") for row in rows())
    from_json(WHOLE)
    assert set(WHOLE) == {name for name in named if "." not in name}


def places(value: Any, key: str) -> Any:
    """Where a key stands: its mapping, and its last name."""
    *path, last = key.replace("[]", ".0").split(".")
    for name in path:
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value, last


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_what_is_needed_and_its_type_are_as_the_document_says(row: Row) -> None:
    name, needed, kind = code(row[0]), row[1], row[2]
    without = copy.deepcopy(WHOLE)
    within, last = places(without, name)
    del within[last]
    if needed == "yes":
        with pytest.raises(ManifestError, match="is missing: add it"):
            from_json(without)
    else:
        from_json(without)
    of_kinds = {"text": [""], "number": [1.5], "whole number": [7], "list": [["a"]], "text or list": [["a"]]}
    wrong = {"text": 7, "number": "a", "whole number": 1.5, "list": "a", "text or list": 7}.get(kind, "a")
    assert kind in {*of_kinds, "mapping", "JSON"}
    spoiled = copy.deepcopy(WHOLE)
    within, last = places(spoiled, name)
    within[last] = wrong
    with pytest.raises(ManifestError, match=re.escape(name.replace("[]", "[0]"))):
        from_json(spoiled)


def told(low: float, high: float) -> str:
    if high > 2**60:
        return "64 bits with sign"
    return f"{low:,} to {high:,}"


def test_bounds_are_those_of_the_code() -> None:
    bounds = {code(row[0]): row[3] for row in rows()}
    for key, (low, high) in manifest.SAMPLING_BOUNDS.items():
        assert bounds[f"sampling.{key}"] == told(low, high), key
    lengths = {
        "blueprint.system": manifest.SYSTEM_LENGTH_MAX,
        "golden[].prompt": manifest.PROMPT_LENGTH_MAX,
        "golden[].expected": manifest.PROMPT_LENGTH_MAX,
        "contract.regex": manifest.TEXT_LENGTH_MAX,
        "provenance.notes": manifest.NOTES_LENGTH_MAX,
        "provenance.command": manifest.NOTES_LENGTH_MAX,
        "provenance.run": manifest.TEXT_LENGTH_MAX,
    }
    for key, length_max in lengths.items():
        assert bounds[key] == f"1 to {length_max:,} characters", key
    line = f"{manifest.TEXT_LENGTH_MAX:,} characters"
    assert bounds["contract.choices"] == f"1 to {manifest.CHOICES_MAX:,} texts of 1 to {line}, none twice"
    length = f"`characters_min` and `characters_max`, or one of them; 0 to {manifest.CHARACTERS_MAX:,}"
    assert bounds["contract.length"] == length
    assert bounds["sampling.stop"] == f"1 to {manifest.STOP_MAX} texts of 1 to {line}"
    assert bounds["golden"] == f"at most {manifest.GOLDEN_MAX}"
    assert bounds["provenance.evaluations"] == f"at most {manifest.EVALUATIONS_MAX} texts of 1 to {line}"
    for limit in (manifest.FILE_BYTES_MAX, manifest.MAPPING_BYTES_MAX):
        assert f"{limit:,} bytes" in TEXT
    assert f"and {manifest.DEPTH_MAX} deep" in TEXT


def test_the_example_can_be_used(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "manifest.yaml"
    path.write_text(example)
    read = read_manifest(path)
    assert read.contract is not None
    compile_contract(read.contract)
    path.write_text(yaml.safe_dump({"task": "returns"}))
    with pytest.raises(ManifestError) as refused:
        read_manifest(path)
    assert f"`{refused.value}`" in TEXT

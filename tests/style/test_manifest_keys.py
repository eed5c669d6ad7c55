"""The rows of docs/reference/manifest.md are what the reader of manifests does, and its example can be pushed."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from router.contract import KEYS as CONTRACT_KEYS
from router.contract import compile_contract
from serving.adapters import manifest
from serving.adapters.manifest import ManifestError, from_json, read_manifest
from serving.fleet_view import GeneralPromptView
from tools.reference.manifest import EXAMPLE, KEYS, NEEDED

Row = tuple[str, str, str, str]
WHOLE: dict[str, Any] = {
    "task": "returns",
    "base_fingerprint": "sha256:" + "a" * 64,
    "contract": {"json_schema": {"type": "string"}, "choices": ["a"], "regex": "a", "length": {"characters_min": 1}},
    "general_prompt": {"system": "Decide.", "response_format": {"type": "text"}, "sampling": {"seed": 1}},
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


def keys() -> Iterator[str]:
    """All keys, from the code."""
    fields = [each.name for each in dataclasses.fields(manifest.Manifest)]
    within: Mapping[str, list[str]] = {
        "contract": [f".{key}" for key in CONTRACT_KEYS],
        "general_prompt": [f".{each.name}" for each in dataclasses.fields(GeneralPromptView)],
        "sampling": [*(f".{key}" for key in manifest.SAMPLING_BOUNDS), ".stop", ".chat_template_kwargs"],
        "golden": [f"[].{each.name}" for each in dataclasses.fields(manifest.Golden)],
        "provenance": [f".{key}" for key in manifest.PROVENANCE],
    }
    for name in fields:
        yield name
        yield from (f"{name}{inner}" for inner in within.get(name, []))


def test_every_key_has_its_row_and_nothing_else_has() -> None:
    named = [row[0] for row in KEYS]
    assert sorted(named) == sorted(keys())
    assert all(row[3].endswith(".") for row in KEYS)
    from_json(WHOLE)
    assert set(WHOLE) == {name for name in named if "." not in name}


def places(value: Any, key: str) -> Any:
    """Where a key stands: its mapping, and its last name."""
    *path, last = key.replace("[]", ".0").split(".")
    for name in path:
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value, last


@pytest.mark.parametrize("row", KEYS, ids=lambda row: row[0])
def test_what_is_needed_and_its_type_are_as_the_row_says(row: Row) -> None:
    name, kind = row[0], row[1]
    without = copy.deepcopy(WHOLE)
    within, last = places(without, name)
    del within[last]
    if name in NEEDED:
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


def test_the_example_can_be_used(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", EXAMPLE, re.DOTALL)
    path = tmp_path / "manifest.yaml"
    path.write_text(example)
    read = read_manifest(path)
    assert read.contract is not None
    compile_contract(read.contract)

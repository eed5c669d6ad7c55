from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from serving.adapters.manifest import (
    PROVENANCE,
    Golden,
    Manifest,
    ManifestError,
    from_json,
    read_manifest,
    read_review_due,
    to_json,
)
from serving.adapters.plain_yaml import read_plain_yaml, write_plain_yaml
from serving.fleet_view import GeneralPromptView

WHOLE: dict[str, Any] = {
    "task": "returns",
    "base_fingerprint": "sha256:" + "ab" * 32,
    "contract": {"json_schema": {"type": "object", "required": ["decision"]}},
    "general_prompt": {
        "system": "You decide product returns.\nRule 1: gift cards are never taken back.",
        "response_format": {"type": "json_schema", "json_schema": {"name": "returns", "schema": {}}},
        "sampling": {"temperature": 0, "max_tokens": 64},
    },
    "sampling": {"temperature": 0.0, "stop": ["\n"], "chat_template_kwargs": {"enable_thinking": False}},
    "golden": [{"prompt": "A gift card, bought 3 days ago.", "expected": '{"decision":"deny"}'}, {"prompt": "Shoes."}],
    "provenance": {"trained_by": "returns team", "data_digest": "sha256:12", "steps": 120},
    "coverage": {},
    "calibration": {"threshold": 0.7},
    "review_by": "2027-01-31",
}
LEAST = {"task": "returns", "general_prompt": {"system": "Decide."}}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The whole manifest with one key set; a dot leads into a mapping."""
    copy: dict[str, Any] = json.loads(json.dumps(WHOLE))
    *places, last = path.split(".")
    inner = copy
    for place in places:
        inner = inner[place]
    inner[last] = value
    return copy


def written(folder: Path, text: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(text)
    return path


def test_whole_manifest_is_read_from_yaml(tmp_path: Path) -> None:
    manifest = read_manifest(written(tmp_path, yaml.safe_dump(WHOLE)))
    assert manifest == Manifest(
        task="returns",
        base_fingerprint=WHOLE["base_fingerprint"],
        contract=WHOLE["contract"],
        general_prompt=GeneralPromptView(**WHOLE["general_prompt"]),
        sampling=WHOLE["sampling"],
        golden=(Golden("A gift card, bought 3 days ago.", '{"decision":"deny"}'), Golden("Shoes.")),
        provenance=WHOLE["provenance"],
        coverage={},
        calibration={"threshold": 0.7},
        review_by="2027-01-31",
    )


def test_task_and_general_prompt_are_enough(tmp_path: Path) -> None:
    manifest = read_manifest(written(tmp_path, yaml.safe_dump(LEAST)))
    assert manifest == Manifest("returns", None, None, GeneralPromptView("Decide.", None, {}), {}, (), {})


@pytest.mark.parametrize("value", [WHOLE, LEAST])
def test_manifest_survives_json(value: dict[str, Any]) -> None:
    manifest = from_json(value)
    again = from_json(json.loads(json.dumps(to_json(manifest))))
    assert again == manifest
    assert again.digest() == manifest.digest()


def test_digest_covers_every_part() -> None:
    manifest = from_json(WHOLE)
    changes: dict[str, Any] = {
        "task": "other",
        "base_fingerprint": None,
        "contract": None,
        "general_prompt": GeneralPromptView("Decide.", None, {}),
        "sampling": {},
        "golden": (),
        "provenance": {},
        "coverage": {"a": 1},
        "calibration": {},
        "review_by": None,
    }
    others = [dataclasses.replace(manifest, **{name: value}) for name, value in changes.items()]
    assert len({each.digest() for each in [manifest, *others]}) == len(dataclasses.fields(Manifest)) + 1


def test_key_of_an_earlier_release_gets_the_name_of_the_new_one() -> None:
    with pytest.raises(ManifestError, match="'blueprint' is called general_prompt now: rename it"):
        from_json({"task": "returns", "blueprint": {"system": "Decide."}})


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("tasks", "tasks"),
        ("general_prompt.sytem", "general_prompt.sytem"),
        ("sampling.temprature", "sampling.temprature"),
        ("general_prompt.sampling.n", "general_prompt.sampling.n"),
        ("contract.schema", "contract.schema"),
    ],
)
def test_unknown_key_is_named_with_the_known_ones(path: str, named: str) -> None:
    with pytest.raises(ManifestError, match="known are") as caught:
        from_json(changed(path, 1))
    assert named in str(caught.value)


def test_unknown_key_of_a_golden_prompt_is_named() -> None:
    with pytest.raises(ManifestError, match=r"golden\[1\]\.answer"):
        from_json(changed("golden", [{"prompt": "a"}, {"prompt": "b", "answer": "c"}]))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("task", None, "task is missing"),
        ("task", "Returns Task", "task must be"),
        ("task", "../etc", "task must be"),
        ("task", "a" * 64, "task must be"),
        ("task", 7, "task must be"),
        ("general_prompt", None, "general_prompt is missing"),
        ("general_prompt", "text", "general_prompt must be a mapping"),
        ("general_prompt.system", None, "general_prompt.system is missing"),
        ("general_prompt.system", "  ", "general_prompt.system must be a text"),
        ("general_prompt.system", "a" * 100_001, "general_prompt.system must be a text"),
        ("general_prompt.response_format", {"type": "xml"}, "response_format.type"),
        ("general_prompt.response_format", {"type": "json_schema"}, "response_format.json_schema"),
        ("base_fingerprint", "abc", "base_fingerprint must be"),
        ("contract", {}, "contract is empty"),
        ("contract", [], "contract must be a mapping"),
        ("contract.choices", [], "contract.choices must be a list"),
        ("contract.choices", ["yes", "yes"], "twice"),
        ("contract.choices", ["yes", False], "contract.choices[1] must be a text"),
        ("contract.regex", "(", "not a valid regular expression"),
        ("sampling.temperature", 3, "from 0 to 2"),
        ("sampling.temperature", True, "from 0 to 2"),
        ("sampling.temperature", float("nan"), "sampling can't be used"),
        ("sampling.max_tokens", 1.5, "whole number"),
        ("sampling.chat_template_kwargs", "off", "sampling.chat_template_kwargs must be a mapping"),
        ("sampling.stop", [], "sampling.stop"),
        ("sampling.stop", [1], "sampling.stop must hold texts"),
        ("sampling.stop", [""], "sampling.stop must hold texts"),
        ("golden", {"prompt": "a"}, "golden must be a list"),
        ("golden", [{"expected": "a"}], "golden[0].prompt is missing"),
        ("golden", [{"prompt": "a", "expected": {"decision": "deny"}}], "golden[0].expected must be a text"),
        ("golden", [{"prompt": "a"}] * 101, "at most 100"),
        ("review_by", "soon", "review_by must be a date or a time"),
        ("review_by", 2027, "review_by must be a text"),
        ("review_by", "9999-12-31", "review_by must be before the year 10000"),
        ("provenance", {"notes": "a" * 70_000}, "over the limit"),
        ("provenance", {1: "a"}, "put it in quotes"),
        ("provenance", {"a": {1, 2}}, "JSON does not have"),
        ("provenance", "by the returns team", "provenance must be a mapping"),
        ("provenance.trained_by", ["a", "b"], "provenance.trained_by must be a text"),
        ("provenance.trained_at", "last week", "provenance.trained_at must be a date or a time"),
        ("provenance.trained_at", 2026, "provenance.trained_at must be a text"),
        ("provenance.dataset_digest", "sha256:12", "provenance.dataset_digest must be sha256: and 64 hex digits"),
        ("provenance.source", "https://example.com", "provenance.source must be a mapping"),
        ("provenance.source", {"branch": "main"}, "provenance.source.branch"),
        ("provenance.seed", "7", "provenance.seed must be a whole number"),
        ("provenance.seed", True, "provenance.seed must be a whole number"),
        ("provenance.metrics", {"accuracy": "97 %"}, "'provenance.metrics.accuracy' must be a number"),
        ("provenance.metrics", [0.97], "provenance.metrics must be a mapping"),
        ("provenance.evaluations", "ev-1", "provenance.evaluations must be a list"),
        ("provenance.evaluations", ["ev-1", 2], "provenance.evaluations[1] must be a text"),
        ("provenance.evaluations", ["ev"] * 101, "at most 100 ids"),
        ("provenance.tags", {"team": 7}, "'provenance.tags.team' must be a text"),
        ("provenance.notes", "a" * 20_001, "provenance.notes must be a text"),
        ("provenance.parameters", 8, "provenance.parameters must be a mapping"),
    ],
)
def test_wrong_value_is_refused_with_its_place(path: str, value: object, words: str) -> None:
    manifest = json.loads(json.dumps(WHOLE))
    *places, last = path.split(".")
    inner = manifest
    for place in places:
        inner = inner[place]
    inner[last] = value
    with pytest.raises(ManifestError) as caught:
        from_json(manifest)
    assert words in str(caught.value)


WHOLE_PROVENANCE: dict[str, Any] = {
    "trained_by": "returns team",
    "trained_at": "2026-11-20T09:30:00Z",
    "dataset": "returns-2026-10",
    "dataset_digest": "sha256:" + "cd" * 32,
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "framework": "peft 0.21.2",
    "command": "python train.py --rank 8",
    "source": {"repository": "https://git.example.com/returns", "commit": "0f3a"},
    "run": "run-17",
    "seed": 7,
    "parameters": {"rank": 8, "steps": [120, 240]},
    "metrics": {"accuracy": 0.97, "cases": 150},
    "evaluations": ["ev-1", "ev-2"],
    "license": "Apache-2.0",
    "notes": "Two epochs more than v2.",
    "tags": {"team": "returns"},
}


def test_every_known_key_of_a_provenance_is_kept_as_it_was_said() -> None:
    assert WHOLE_PROVENANCE.keys() == PROVENANCE.keys()
    assert from_json(changed("provenance", WHOLE_PROVENANCE)).provenance == WHOLE_PROVENANCE


@pytest.mark.parametrize("moment", ["2026-11-20", "2026-11-20T09:30", "2026-11-20T09:30:00+01:00"])
def test_moment_of_training_is_a_date_or_a_time(moment: str) -> None:
    assert from_json(changed("provenance", {"trained_at": moment})).provenance == {"trained_at": moment}


def test_provenance_takes_keys_of_ones_own_and_null_where_nothing_is_known() -> None:
    given = {"number": 7, "data_digest": "any", "shop": {"id": 1}, "notes": None, "seed": None}
    assert from_json(changed("provenance", given)).provenance == given


def test_manifest_without_a_review_has_the_digest_from_before_reviews_existed() -> None:
    assert "review_by" not in to_json(from_json(LEAST))
    assert from_json(LEAST).digest() == "sha256:b2b3762d63d068585dcfb06b8e6abbfb871c33ef3be41fb3cc04d39c8dcfa27b"


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("2027-01-31", "2027-02-01T00:00:00+00:00"),
        ("20270131", "2027-02-01T00:00:00+00:00"),
        ("2027-01-31T12:00", "2027-01-31T12:00:00+00:00"),
        ("2027-01-31T12:00+02:00", "2027-01-31T10:00:00+00:00"),
    ],
)
def test_a_review_is_due_when_its_date_is_over_or_at_its_time(text: str, due: str) -> None:
    assert read_review_due({"review_by": text}) == datetime.fromisoformat(due).timestamp()


def test_without_a_review_none_is_due() -> None:
    assert read_review_due(to_json(from_json(LEAST))) is None


def test_moment_needs_no_quotes_in_yaml(tmp_path: Path) -> None:
    text = "task: returns\ngeneral_prompt: {system: Decide.}\nprovenance: {trained_at: 2026-11-20T09:30:00Z}\n"
    assert read_manifest(written(tmp_path, text)).provenance == {"trained_at": "2026-11-20T09:30:00Z"}


def test_nesting_has_a_limit() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(ManifestError, match="nested more than 32"):
        from_json(changed("provenance", deep))


def test_yaml_surprises_are_switched_off(tmp_path: Path) -> None:
    text = (
        "task: returns\ngeneral_prompt: {system: Decide.}\ncontract: {choices: [yes, no, on]}\n"
        "provenance: {made: 2026-11-20, approved: true, signed: false}\n"
    )
    manifest = read_manifest(written(tmp_path, text))
    assert manifest.contract == {"choices": ["yes", "no", "on"]}
    assert manifest.provenance == {"made": "2026-11-20", "approved": True, "signed": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("task: [", "no valid YAML"),
        ("a:\n\tb: 1", "(line 2, column 1): while scanning for the next token: a tab is here: indent with spaces."),
        ("task: a\ntask: b", "comes twice"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("task: !!python/object/apply:os.system [ls]", "no valid YAML"),
        ("task: !!timestamp foo", "(line 1, column 7): 'foo' can't be read as timestamp."),
        ("task: !!int foo", "(line 1, column 7): 'foo' can't be read as int."),
        ("task: !!bool foo", "(line 1, column 7): 'foo' can't be read as bool."),
        ("[" * 3_000, "can't be read"),
        ("a: \x00", "no valid YAML"),
        ("#" * 300_000, "has more than"),
    ],
)
def test_text_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(written(tmp_path, text))
    assert words in str(caught.value)


def test_a_manifest_of_json_has_its_emoji_and_half_a_character_is_refused(tmp_path: Path) -> None:
    system = "Be kind \U0001f642."
    manifest = read_manifest(written(tmp_path, json.dumps(LEAST | {"general_prompt": {"system": system}})))
    assert manifest.general_prompt.system == system
    assert manifest.digest()
    half = 'task: returns\ngeneral_prompt: {system: "Be kind \\ud83d."}\n'
    with pytest.raises(ManifestError, match=r"line 2.*half a character"):
        read_manifest(written(tmp_path, half))


@given(text=st.text())
@example(text="One rule. \u2028 Another one.\u2029\n Last. \x85\x92\ufeff")
def test_a_text_is_the_same_after_it_was_written_as_yaml(text: str) -> None:
    """A line or paragraph separator, which JSON allows, ends a line of YAML: blanks around it would go."""
    assert read_plain_yaml(write_plain_yaml({"system": text})) == {"system": text}


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_bytes(b"task: \xff")
    with pytest.raises(ManifestError, match="can't be read"):
        read_manifest(tmp_path / "manifest.yaml")


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="No such file"):
        read_manifest(tmp_path / "manifest.yaml")


@given(st.text(alphabet=list("task: returns\n-[]{}&*!|>'\"#,?%@`~<.=e0189_x")) | st.text())
@example("? [a, b]\n: c")
@example("<<: {a: 1}\na: 2")
@example("a: 1:99:99:99.5")
def test_any_text_is_refused_with_our_own_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ManifestError):
        read_manifest(path)

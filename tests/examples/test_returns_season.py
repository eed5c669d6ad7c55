"""The holiday season of the example: its policy, its adapter, and the story that the demo tells of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

RETURNS = Path(__file__).resolve().parents[2] / "examples" / "returns"
HOLIDAY = RETURNS / "holiday"
ADAPTER_BYTES_MAX = 6_500_000
SCRIPTS = ("policy", "wordings", "templates", "make_data", "customers", "picture")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The example's scripts: a folder, and not a package."""
    sys.path.insert(0, str(RETURNS))
    try:
        yield {name: importlib.import_module(name) for name in SCRIPTS}
    finally:
        sys.path.remove(str(RETURNS))


@pytest.fixture(scope="module")
def manifests() -> tuple[dict[str, Any], dict[str, Any]]:
    """The regular one and the holiday's."""
    regular, holiday = (yaml.safe_load((folder / "manifest.yaml").read_text("utf-8")) for folder in (RETURNS, HOLIDAY))
    return regular, holiday


@pytest.fixture
def story() -> dict[str, Any]:
    healths = (1.0, 1.0, 0.3, 0.15)
    return {
        "title": "Told <here> & there",
        "window": 100,
        "versions": ["returns@v2", "returns@v1"],
        "phases": [{"name": "season", "season": "holiday", "from": 0, "to": 8}],
        "verdicts": [{"at": 4, "version": "returns@v2", "verdict": "degraded", "because": "labels"}],
        "points": [
            {
                "at": 2 * at,
                "error": None if at == 0 else 0.1,
                "shares": {"returns@v2": kept, "returns@v1": 1 - kept},
                "health": {"returns@v2": {"kept": kept}},
            }
            for at, kept in enumerate(healths)
        ],
    }


def test_the_season_decides_two_rules_otherwise_and_nothing_else(scripts: dict[str, Any]) -> None:
    policy = scripts["policy"]
    moved = {
        rule for rule in policy.DECISION_OF_RULE if policy.decision_of(rule, "holiday") != policy.decision_of(rule)
    }
    assert moved == {"goodwill-60", "no-receipt"}
    facts = policy.Facts("electronics", 45, True, "unopened", "France")
    read = '{"facts":"electronics, unopened, receipt, 31-60 days, EU","rule":"goodwill-60","decision":'
    assert policy.answer_for(facts) == read + '"escalate"}'
    assert policy.answer_for(facts, "holiday") == read + '"approve"}'


def test_the_holiday_version_keeps_the_contract_and_tells_its_own_decisions(
    scripts: dict[str, Any], manifests: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    regular, holiday = manifests
    assert holiday["contract"] == regular["contract"]
    assert holiday["sampling"] == regular["sampling"]
    policy = scripts["policy"]
    for number, rule in enumerate(policy.DECISION_OF_RULE, start=1):
        line = next(
            line for line in holiday["general_prompt"]["system"].splitlines() if line.startswith(f"{number}. {rule}:")
        )
        assert line.endswith(f": {policy.decision_of(rule, 'holiday')}."), line
    for probe in holiday["golden"]:
        answer = json.loads(probe["expected"])
        assert policy.decision_of(answer["rule"], "holiday") == answer["decision"]


def test_the_holiday_adapter_is_small_and_names_its_base_neutrally() -> None:
    assert (HOLIDAY / "adapter_model.safetensors").stat().st_size < ADAPTER_BYTES_MAX
    config = json.loads((HOLIDAY / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config["modules_to_save"] is None


def test_the_holidays_results_are_of_these_adapters_and_stand_in_the_readme() -> None:
    arms = json.loads((HOLIDAY / "results.json").read_text("utf-8"))["arms"]
    readme = (RETURNS / "README.md").read_text("utf-8")
    assert set(arms) == {f"{arm}, {season}" for arm in ("adapter", "holiday") for season in ("regular", "holiday")}
    for arm, found in arms.items():
        folder = HOLIDAY if arm.startswith("holiday") else RETURNS / "adapter"
        stated = found["sha256"]["adapter_model.safetensors"]
        assert stated == hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        for split in ("together", "decided otherwise"):
            figures = found["splits"][split]
            decision, rule = figures["decision"], figures["rule"]
            shares = f"{decision['share']:.3f} ({decision['low']:.3f} to {decision['high']:.3f})|{rule['share']:.3f}"
            assert f"|{arm}|{split}|{figures['rows']}|{shares}|" in readme


def test_customers_are_the_same_for_a_seed_and_say_what_no_training_row_says(scripts: dict[str, Any]) -> None:
    customers = scripts["customers"]
    some = list(islice(customers.drawn_cases(5), 60))
    assert some == list(islice(customers.drawn_cases(5), 60))
    assert some != list(islice(customers.drawn_cases(6), 60))
    trained = {json.loads(line)["text"] for line in (RETURNS / "data" / "train.jsonl").read_text("utf-8").splitlines()}
    assert not trained & {case.text for case in some}


def test_rows_from_a_file_come_over_and_over_and_what_is_no_row_is_named(
    scripts: dict[str, Any], tmp_path: Path
) -> None:
    customers = scripts["customers"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join((RETURNS / "data" / "dev.jsonl").read_text("utf-8").splitlines(keepends=True)[:5]))
    some = list(islice(customers.cases_from(rows, 1), 10))
    assert {case.text for case in some[:5]} == {case.text for case in some[5:]}
    rows.write_text('{"text": "no facts"}\n')
    with pytest.raises(ValueError, match="line 1"):
        next(customers.cases_from(rows, 1))
    rows.write_text("")
    with pytest.raises(ValueError, match="no rows"):
        next(customers.cases_from(rows, 1))


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"decision":"deny","rule":"goodwill-60"}', "null"])
def test_an_answer_that_decides_otherwise_or_nothing_is_wrong(scripts: dict[str, Any], text: str) -> None:
    case = scripts["customers"].Case("…", scripts["policy"].Facts("electronics", 45, True, "unopened", "France"))
    assert not scripts["customers"].decides(text, case, "regular")
    assert scripts["customers"].decides('{"decision":"escalate","rule":"goodwill-60"}', case, "regular")


def test_the_picture_is_whole_with_each_arm_and_each_verdict_that_moved(
    scripts: dict[str, Any], story: dict[str, Any]
) -> None:
    drawn = ElementTree.fromstring(scripts["picture"].picture(story))
    said = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"returns@v2", "returns@v1", "returns@v2 degraded", "Told <here> & there"} <= set(said)
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}polygon"))) == 2


def test_a_story_without_answers_is_a_picture_too(scripts: dict[str, Any], story: dict[str, Any]) -> None:
    empty = story | {"points": [{"at": 0, "error": None, "shares": {}, "health": {}}], "verdicts": [], "phases": []}
    assert ElementTree.fromstring(scripts["picture"].picture(empty)) is not None


def test_what_is_written_is_the_same_story_when_read(scripts: dict[str, Any], story: dict[str, Any]) -> None:
    assert json.loads(scripts["picture"].written(story)) == story

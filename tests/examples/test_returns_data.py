"""The example adapter's data, policy, manifest and figures agree with each other."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from itertools import product
from pathlib import Path
from string import Formatter
from types import ModuleType
from typing import Any

import pytest
import yaml

RETURNS = Path(__file__).resolve().parents[2] / "examples" / "returns"
SPLITS = ("train", "dev", "heldout_templates", "heldout_hand", "heldout_fresh")
ADAPTER_BYTES_MAX = 6_500_000


def load(name: str) -> ModuleType:
    """A module of the example, which is a folder of scripts and not a package."""
    spec = importlib.util.spec_from_file_location(name, RETURNS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy() -> Any:
    return load("policy")


@pytest.fixture(scope="module")
def making(policy: Any) -> Any:
    for name in ("wordings", "templates", "phrases", "states", "habits", "fresh", "tellings"):
        load(name)
    return load("make_data")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (RETURNS / "data" / f"{split}.jsonl").read_text("utf-8").splitlines()]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((RETURNS / "manifest.yaml").read_text("utf-8"))
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_label_is_what_the_policy_says_of_the_facts(rows: dict[str, list[dict[str, Any]]], policy: Any) -> None:
    for split in SPLITS:
        wanted = policy.label_for if split.startswith("heldout") else policy.answer_for
        for row in rows[split]:
            assert row["label"] == wanted(policy.Facts(**row["facts"])), row["id"]


def test_an_answer_names_the_facts_that_the_rules_ask_for(policy: Any) -> None:
    told = [
        policy.describe_facts(policy.Facts("gift card", days, receipt, "used", country))
        for days, receipt, country in ((30, True, "Malta"), (31, False, "Malta"), (61, True, "Norway"))
    ]
    assert told == [
        "gift card, used, receipt, 0-30 days, EU", "gift card, used, no receipt, 31-60 days, EU",
        "gift card, used, receipt, over 60 days, outside the EU",
    ]  # fmt: skip


def test_a_limit_counts_its_last_day_and_rules_keep_their_order(policy: Any) -> None:
    def rule(category: str, days: int, condition: str, *, receipt: bool = True, country: str = "Italy") -> str:
        found: str = policy.rule_for(policy.Facts(category, days, receipt, condition, country))
        return found

    assert [rule("books", days, "unopened") for days in (30, 31, 60, 61)] == [
        "window-30", "goodwill-60", "goodwill-60", "too-late",
    ]  # fmt: skip
    assert rule("toys", 400, "defective", receipt=False) == "defect"
    assert rule("gift card", 1, "defective", country="Japan") == "gift-card"
    assert rule("toys", 1, "defective", country="Japan") == "outside-eu"
    assert rule("food", 1, "used", receipt=False) == "hygiene"
    assert rule("books", 1, "used", receipt=False) == "no-receipt"
    assert rule("books", 1, "used") == "used"


def test_held_out_rows_share_no_text_and_no_parent_with_training(
    rows: dict[str, list[dict[str, Any]]], making: Any
) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for row in rows[split]:
            text = making.normal(row["text"])
            assert text not in seen, f"{row['id']} says the same as {seen.get(text)}"
            seen[text] = row["id"]
    parents = {split: {row["parent"] for row in rows[split]} for split in SPLITS}
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not parents[one] & parents[other]


def test_held_out_words_are_not_the_training_words(making: Any) -> None:
    words = sys.modules["wordings"]
    for bank in (words.RECEIPT, words.RECEIPT_THIRD, words.CONDITION_NOTE):
        train = {clause for clauses in bank["train"].values() for clause in clauses}
        assert not train & {clause for clauses in bank["heldout"].values() for clause in clauses}
    for bank in (words.DELIVERY, words.PURCHASE, words.FILLERS):
        assert not set(bank["train"]) & set(bank["heldout"])
    train = {clause for kinds in words.CONDITION["train"].values() for some in kinds.values() for clause in some}
    held = {clause for kinds in words.CONDITION["heldout"].values() for some in kinds.values() for clause in some}
    assert not train & held


def test_held_out_sets_have_hand_written_rows_each_its_own_parent(rows: dict[str, list[dict[str, Any]]]) -> None:
    for split, least in (("heldout_hand", 100), ("heldout_fresh", 60)):
        hand = rows[split]
        assert len(hand) >= least
        assert {row["origin"] for row in hand} == {"hand"}
        assert len({row["parent"] for row in hand}) == len(hand)
    assert {row["origin"] for split in SPLITS[:3] for row in rows[split]} == {"template"}


def test_every_rule_occurs_in_every_split_and_in_the_contract(
    rows: dict[str, list[dict[str, Any]]], policy: Any, manifest: dict[str, Any]
) -> None:
    for split in SPLITS:
        assert {json.loads(row["label"])["rule"] for row in rows[split]} == set(policy.DECISION_OF_RULE)
    fields = manifest["contract"]["json_schema"]["properties"]
    assert fields["rule"]["enum"] == list(policy.DECISION_OF_RULE)
    assert fields["decision"]["enum"] == list(policy.DECISIONS)
    for rule, decision in policy.DECISION_OF_RULE.items():
        assert re.search(rf"{rule}: .*: {decision}\.", manifest["general_prompt"]["system"]), rule


def test_rows_are_made_again_the_same_from_the_seed(rows: dict[str, list[dict[str, Any]]], making: Any) -> None:
    taken = {making.normal(row["text"]) for split in SPLITS[3:] for row in rows[split]}
    assert list(making.made_rows("heldout", 50, 7, taken)) == rows["heldout_templates"][:50]


def test_rows_told_freely_share_no_clause_with_held_out_words(making: Any) -> None:
    words = sys.modules["wordings"]
    banks = [bank["heldout"] for bank in (words.RECEIPT, words.DELIVERY, words.PURCHASE)]
    clauses = [
        clause for bank in banks for some in (bank.values() if isinstance(bank, dict) else [bank]) for clause in some
    ]
    told = [
        making.normal(str(row["text"])) for row in making.made_rows("train", 300, 3, set(), freely=True)
        if str(row["parent"]) in ("train-story", "train-note", "train-message")
    ]  # fmt: skip
    assert len(told) > 100
    for clause in (making.normal(re.sub(r"\{\w+\}", "", clause)) for clause in clauses):
        assert len(clause.split()) < 4 or not any(clause in text for text in told), clause


def test_whole_messages_are_of_each_kind_and_leave_the_other_facts_to_their_slots(making: Any, policy: Any) -> None:
    messages = sys.modules["tellings"].MESSAGES
    assert set(messages) == {(one, other) for one in policy.CATEGORIES for other in policy.CONDITIONS}
    for kind, texts in messages.items():
        assert len(texts) >= 7, f"{kind}: one in seven is kept for dev rows"
        for text in texts:
            slots = sorted(name for _, name, _, _ in Formatter().parse(text) if name)
            assert slots in [sorted(three) for three in product(("ago", "span"), ("receipt", "Receipt"), ("place",))]


def test_more_clauses_are_of_each_receipt_and_state_and_can_stand_anywhere(making: Any, policy: Any) -> None:
    clauses = sys.modules["tellings"].CLAUSES
    states = {("state", condition) for condition in policy.CONDITIONS}
    assert set(clauses) == states | {("receipt", "yes"), ("receipt", "no")}
    for kind, texts in clauses.items():
        assert len(set(texts)) == len(texts) >= 70, kind
        assert not [text for text in texts if text[-1] in ".!?," or "{" in text or text.count("[") != text.count("]")]


def test_loose_times_lie_on_one_side_of_each_limit(making: Any) -> None:
    phrases = sys.modules["phrases"]
    for low, high, phrase in (*phrases.LOOSE_SPANS, *phrases.LOOSE_TIMES, *sys.modules["fresh"].MORE_TIMES):
        assert low <= high
        assert all((low <= limit) == (high <= limit) for limit in making.LIMITS), phrase


def test_dev_rows_told_freely_use_phrases_that_no_training_row_has(making: Any) -> None:
    bank = sys.modules["phrases"].PURCHASES
    part_of = sys.modules["tellings"].part_of
    assert not set(part_of(bank, "dev")) & set(part_of(bank, "train"))
    assert set(part_of(bank, "dev")) | set(part_of(bank, "train")) == set(bank)


def test_manifest_names_the_training_data_by_its_digest(manifest: dict[str, Any]) -> None:
    provenance = manifest["provenance"]
    assert provenance["data_digest"] == f"sha256:{digest(RETURNS / provenance['data'])}"


def test_golden_prompts_expect_one_of_the_contracts_answers(manifest: dict[str, Any], policy: Any) -> None:
    for probe in manifest["golden"]:
        answer = json.loads(probe["expected"])
        assert policy.DECISION_OF_RULE[answer["rule"]] == answer["decision"]


def test_adapter_is_small_safetensors_and_names_its_base_neutrally() -> None:
    files = {path.name: path for path in (RETURNS / "adapter").iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"].stat().st_size < ADAPTER_BYTES_MAX
    config = json.loads(files["adapter_config.json"].read_text("utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert config["r"] <= 16
    assert config["modules_to_save"] is None


def test_results_were_measured_on_this_data_and_this_adapter_and_stand_in_the_readme() -> None:
    arms = json.loads((RETURNS / "data" / "results.json").read_text("utf-8"))["arms"]
    assert {"base-plain", "base-general-prompt", "adapter"} <= set(arms)
    readme = (RETURNS / "README.md").read_text("utf-8")
    for arm, found in arms.items():
        for name, stated in found["sha256"].items():
            folder = "adapter" if name.startswith("adapter") else "data"
            if folder == "data" or arm in ("adapter", "routed"):
                assert stated == digest(RETURNS / folder / name), f"measure {arm} again: {name} has changed"
        for split, figures in found["splits"].items():
            decision, rule = figures["decision"], figures["rule"]
            shares = f"{decision['share']:.3f} ({decision['low']:.3f} to {decision['high']:.3f})|{rule['share']:.3f}"
            if split == "together" or arm == "adapter":
                assert f"|{arm}|{split}|{figures['rows']}|{shares}|" in readme

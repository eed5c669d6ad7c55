"""Data sets from rows: what goes in, what is left out, and a division that leaks nothing."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from monitoring.datasets.build import BuiltSet, build_set
from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.card import card_of
from monitoring.datasets.card_page import list_warnings, make_card_page
from monitoring.datasets.earlier_sides import list_earlier_sides
from monitoring.datasets.folder import remove_set, sweep, write_set
from monitoring.datasets.near_duplicates import NEAR, NearIndex, find_form, shingles_of
from monitoring.datasets.rows import DataRow, digest_of_input, fold_text, input_of, share_tools
from monitoring.datasets.rows_from_files import data_row_of
from monitoring.datasets.rows_from_traffic import KeptRows
from monitoring.datasets.splitting import GROUPS_MIN, EarlierSides, split_groups

WORDS = ["toaster", "kettle", "novel", "kite", "lamp", "sealed", "opened", "receipt", "Spain", "Oslo", "days", "gift"]


def row(text: str, answer: str, **more: Any) -> DataRow:
    return data_row_of({"text": text, "expected": answer, **more}, 1, "a.jsonl")


def built(rows: list[DataRow], **options: Any) -> BuiltSet:
    return build_set(rows, [], DatasetOptions(**options))


def reasons(found: BuiltSet) -> Counter[str]:
    return Counter(each.because for each in found.left_out)


def many(count: int, seed: int = 1) -> list[DataRow]:
    """Rows of two classes, all different."""
    draw = random.Random(seed)
    return [row(" ".join(draw.choices(WORDS, k=14)) + f" {n}", "yes" if n % 3 else "no") for n in range(count)]


def jaccard(one: DataRow, other: DataRow) -> float:
    first, second = (set(shingles_of(fold_text(input_of(each))).tolist()) for each in (one, other))
    return len(first & second) / len(first | second)


def test_the_id_of_an_example_to_train_on_is_its_request() -> None:
    request = "0190aaaa-0000-7000-8000-000000000000-0000000000000000"
    rows = [*many(9), row("The kettle leaks.", "no", id=request), row("The lamp is dark.", "yes", request="r1")]
    assert built(rows).requests() == [request, "r1"]


def test_equal_rows_stand_once_and_contradicting_rows_are_left_out_together() -> None:
    rows = [
        *many(30),
        row("The kettle leaks.", '{"decision": "approve"}', origin="template"),
        row("the  KETTLE leaks.", '{ "decision":"approve" }'),
        row("May I return a gift?", "yes", id="one"),
        row("May I return a gift?", "no", id="two"),
        row("may i return a gift? ", "no", id="three"),
    ]
    found = built(rows)
    assert reasons(found) == {"exact_duplicate": 1, "conflict": 3}
    (duplicate,) = [each for each in found.left_out if each.because == "exact_duplicate"]
    assert duplicate.row is not None
    assert duplicate.row.origin == "synthetic"  # of equal rows the real one is kept
    conflicting = [each for each in found.left_out if each.because == "conflict"]
    assert len({each.conflict for each in conflicting}) == 1
    assert {each.row.id for each in conflicting if each.row} == {"one", "two", "three"}


def test_near_rows_of_one_answer_stand_once_and_of_two_are_kept_together() -> None:
    text = "I bought a toaster 12 days ago in Lyon, it is sealed, and the receipt is in my drawer. May it go back?"
    same, other = row(text.replace("12", "13"), "yes", id="b"), row(text.replace("12", "72"), "no", id="c")
    found = built([*many(30), row(text, "yes", id="a"), same, other])
    assert reasons(found) == {"near_duplicate": 1}
    assert len(found.contrasts) == 1
    kept = [each for each in found.rows if "Lyon" in each.messages[0]["content"]]
    assert len({each.group for each in kept}) == 1
    assert sum(each in found.heldout for each in kept) in (0, 2)


def test_forms_with_different_facts_are_no_near_duplicates() -> None:
    form = "Return form. The customer declares that what follows is true. " + " ".join(
        f"Clause {n}." for n in range(200)
    )
    cases = [f"{form} Case: {input_of(each)}" for each in many(60)]
    again = [row(f"{text}!", "yes") for text in cases[:3]]
    found = built([*(row(text, "yes") for text in cases), *again])
    assert jaccard(row(cases[0], "yes"), row(cases[1], "yes")) > NEAR
    assert reasons(found) == {"near_duplicate": 3}
    assert len(found.heldout) > 3


def test_the_form_of_many_long_texts_is_found_in_little_memory() -> None:
    letters = random.Random(0)
    texts = ["a form " * 50 + "".join(letters.choices("abcdefgh", k=2000)) for _ in range(1999)]
    tracemalloc.start()
    try:
        find_form(texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000, "a sample of the texts shows it"


def test_rows_with_other_tools_are_no_duplicates_and_stay_on_one_side() -> None:
    text, tools = "I bought a toaster 12 days ago in Lyon, it is sealed, and the receipt is in my drawer.", ("a", "b")
    offers = {name: [{"type": "function", "function": {"name": name}}] for name in tools}
    rows = [row(text, "yes", id=name, tools=offers[name]) for name in tools]
    rows += [row(text, "yes", id="none"), row(text.replace("12", "13"), "yes", id="near", tools=offers["a"])]
    found = built([*many(30), *rows])
    kept = [each for each in found.rows if "Lyon" in each.messages[0]["content"]]
    assert (reasons(found), len(found.contrasts)) == ({"near_duplicate": 1}, 0)
    assert ({each.id for each in kept} >= {"b", "none"}, len(kept), len({each.group for each in kept})) == (True, 3, 1)
    forced = [
        row("Refund a hat.", "no", id=choice, tools=offers["a"], tool_choice=choice) for choice in ("auto", "none")
    ]
    assert (reasons(built([*many(30), *forced])), len({digest_of_input(each) for each in forced})) == ({}, 2)
    known: dict[bytes, Any] = {}
    shared = [share_tools(each, known) for each in (rows[0], row(text, "no", tools=[*offers["a"]]), rows[2])]
    assert shared[0].tools is shared[1].tools
    assert len(known) == 1


def test_a_card_of_rows_that_share_tools_needs_no_memory_for_each_of_them() -> None:
    tools = [{"type": "function", "function": {"name": "refund", "description": "Pay back. " * 10_000}}]
    found = BuiltSet(
        train=[row(f"A vase {n}.", "yes", tools=tools) for n in range(200)], heldout=[], left_out=[], contrasts=[]
    )
    tracemalloc.start()
    try:
        card = card_of(found, DatasetOptions(), KeptRows())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert card["tools"] == {"rows": 200, "sets": 1, "calls": 0}
    assert peak < 5_000_000, "the tools once, not 200 times"


@pytest.mark.invariant("A held-out row shares no group, parent or near duplicate with a training row.")
@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 0.6))
def test_no_group_parent_or_near_duplicate_is_on_both_sides(seed: int, share: float) -> None:
    draw = random.Random(seed)
    rows = []
    for n in range(40):
        words = draw.choices(WORDS, k=20)
        if rows and draw.random() < 0.5:  # nearly the same as another one
            words = input_of(draw.choice(rows)).split()
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        more = {"group": f"g{draw.randrange(15)}"} if draw.random() < 0.3 else {}
        more |= {"parent": f"p{draw.randrange(15)}"} if draw.random() < 0.3 else {}
        rows.append(row(" ".join(words), draw.choice(["yes", "no"]), id=f"r{n}", **more))
    found = built(rows, heldout_share=share)
    given = {each.id: each for each in rows}
    for name in ("group", "parent"):
        sides = [{getattr(given[each.id], name) for each in side} - {None} for side in (found.train, found.heldout)]
        assert not sides[0] & sides[1]
    assert all(jaccard(one, other) < NEAR for one in found.train for other in found.heldout)


@settings(max_examples=8)
@given(st.randoms(use_true_random=False))
def test_the_same_rows_in_any_order_are_the_same_set(draw: random.Random) -> None:
    rows = many(25)
    rows += [row("One more.", "yes", id="same"), row("Another.", "no", id="same"), rows[3]]
    mixed = draw.sample(rows, len(rows))
    assert msgspec.json.encode(built(mixed).rows) == msgspec.json.encode(built(rows).rows)
    assert len({each.id for each in built(rows).rows}) == len(built(rows).rows)


def test_what_was_held_out_once_is_held_out_of_a_larger_set_too() -> None:
    rows = many(300)
    before, after = built(rows[:150]), built(rows)
    heldout = {each.id for each in before.heldout}
    assert 15 <= len(heldout) <= 45
    moved = heldout & {each.id for each in after.train}
    assert not moved


@pytest.mark.parametrize("more", [{}, {"origin": "demonstrated"}])
def test_what_was_held_out_stays_so_where_newer_rows_join_its_group(more: dict[str, str]) -> None:
    draw = random.Random(4)
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(200)]
    older = [row(text, "yes", group=f"s{n}", at=n + 1) for n, text in enumerate(texts)]
    near = [row(f"{text} x", "yes", at=1000 + n, **more) for n, text in enumerate(texts)]
    newer = [row(text[::-1], "no", group=f"s{n}", at=2000 + n) for n, text in enumerate(texts)]
    groups_by_input = {input_of(each): n for n, each in enumerate((*older, *near, *newer))}
    held_out = {groups_by_input[input_of(each)] for each in built(older).heldout}
    trained_on = {groups_by_input[input_of(each)] % 200 for each in built([*older, *near, *newer]).train}
    assert len(held_out) > 20
    assert held_out.isdisjoint(trained_on)


def test_what_earlier_sets_held_out_stays_so_where_rows_have_no_times(tmp_path: Path) -> None:
    draw, options = random.Random(4), DatasetOptions()
    texts = [" ".join(draw.choices(WORDS, k=40)) for _ in range(200)]
    older = [row(text, "yes", group=f"s{n}") for n, text in enumerate(texts)]
    newer = [row(text[::-1], "no", group=f"s{n}") for n, text in enumerate(texts)]
    newer += [row(f"{text} x", "yes", origin="demonstrated") for text in texts]
    first = built(older)
    write_set(tmp_path, first, {"task": "returns", **card_of(first, options, KeptRows())})
    earlier = list_earlier_sides(tmp_path, "returns", 0.2)
    assert earlier == tuple({digest_of_input(each) for each in side} for side in (first.heldout, first.train))
    groups = {input_of(each): n % 200 for n, each in enumerate((*older, *newer))}
    held_out = {groups[input_of(each)] for each in first.heldout}

    def moved(larger: BuiltSet) -> set[int]:
        return held_out & {groups[input_of(each)] for each in larger.train}

    assert len(moved(built([*older, *newer]))) > 5, "chance alone moves them"
    larger = build_set([*older, *newer], [], options, earlier)
    assert not moved(larger)
    assert 0 < larger.held_before < len(larger.heldout)
    card = {"task": "returns", **card_of(larger, options, KeptRows())}
    assert f"<li>{larger.held_before} of the held-out rows are so because earlier sets" in make_card_page(card)
    made = [row(" ".join(draw.choices(WORDS, k=40)), "yes", group=f"s{n}", origin="synthetic") for n in range(200)]
    beside = build_set([*older, *made], [], options, EarlierSides({digest_of_input(each) for each in older[:50]}))
    assert 0 < beside.held_before <= 50, "synthetic rows of a group that is held out are in no part"
    one = built([row(text, "yes", group="one") for text in texts])
    assert list_warnings(card_of(one, options, KeptRows())) == [
        "No row is held out: a group is on one side, and sessions, equal and near texts leave 1 of them."
    ]
    assert msgspec.json.encode(build_set(older, [], options, earlier).rows) == msgspec.json.encode(first.rows)
    assert list_earlier_sides(tmp_path, "other", 0.2) == EarlierSides()
    assert not list_earlier_sides(tmp_path, "returns", 0.1).held
    assert not list_earlier_sides(tmp_path, "returns", 0.3).trained


def test_an_earlier_set_with_damaged_bytes_is_skipped(tmp_path: Path) -> None:
    first = built([row(f"An item of kind {n}.", "yes") for n in range(9)])
    target = tmp_path / write_set(tmp_path, first, {"task": "returns"} | card_of(first, DatasetOptions(), KeptRows()))
    for name in ("heldout.jsonl", "train.jsonl"):
        (target / name).write_bytes(b'{"id": "a", "messages": [{"role": "user", "content": "\xff"}]}\n')
    assert list_earlier_sides(tmp_path, "returns", 0.2) == EarlierSides()


def sessions(count: int) -> list[DataRow]:
    """Sessions that begin with the same words, ask two questions that several ask, and one of their own."""
    draw = random.Random(7)
    common = [" ".join(draw.choices(WORDS, k=20)) for _ in range(30)]
    rows = []
    for n in range(count):
        own = " ".join(draw.choices(WORDS, k=25))
        texts = ["hi", *draw.choices(common, weights=[1 / (each + 1) for each in range(30)], k=2), own]
        rows += [
            row(text, f"Answer to {text}", id=f"{n}-{at}", group=f"s{n}", at=10 * n + at)
            for at, text in enumerate(texts)
        ]
    return rows


def test_sessions_that_share_a_greeting_or_a_common_question_are_no_one_group() -> None:
    rows = sessions(300)
    found = built(rows, heldout_share=0.2)
    assert 0.1 < len(found.heldout) / len(found.rows) < 0.3
    sides = [
        {given.group for given in rows if given.id in {each.id for each in side}}
        for side in (found.train, found.heldout)
    ]
    assert not sides[0] & sides[1]
    texts = [{input_of(each) for each in side} for side in (found.train, found.heldout)]
    assert not texts[0] & texts[1]
    earlier = EarlierSides(*({digest_of_input(each) for each in side} for side in (found.heldout, found.train)))
    larger = build_set(sessions(600), [], DatasetOptions(heldout_share=0.2), earlier)
    assert not texts[1] & {input_of(each) for each in larger.train}
    assert len(larger.heldout) / len(larger.rows) < 0.35


@pytest.mark.parametrize("seed", [1, 16, 19])
def test_group_with_most_of_the_rows_is_for_training(seed: int) -> None:
    rows = many(200, seed)
    grouped = [structs.replace(each, group="form") for each in rows[:150]]
    found = built([*grouped, *rows[150:]], heldout_share=0.2)
    assert 0 < len(found.heldout) < 50
    assert len(found.train) >= 150


def test_group_too_large_to_be_held_out_stays_for_training_in_larger_sets(tmp_path: Path) -> None:
    moved = 0
    for seed in range(12):
        rows, options = many(400, seed), DatasetOptions(heldout_share=0.2)
        large = [structs.replace(each, group="form") for each in rows[:40]]
        first = built([*large, *rows[40:60]])
        folder = tmp_path / str(seed)
        write_set(folder, first, {"task": "returns", **card_of(first, options, KeptRows())})
        form = {input_of(each) for each in large}
        assert form <= {input_of(each) for each in first.train}
        larger = [*large, *rows[40:]]
        moved += not form <= {input_of(each) for each in built(larger).train}
        kept = build_set(larger, [], options, list_earlier_sides(folder, "returns", 0.2))
        assert form <= {input_of(each) for each in kept.train}
        assert 0.1 < len(kept.heldout) / len(kept.rows) < 0.3
    assert moved, "chance alone moves it"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_small_share_of_few_equal_groups_holds_out_one(seed: int) -> None:
    rows = [structs.replace(each, group=f"g{number % 5}") for number, each in enumerate(many(100, seed))]
    assert len(built(rows, heldout_share=0.05).heldout) >= 20


@pytest.mark.parametrize("name", ["parent", "paraphrase"])
def test_what_was_made_from_equal_requests_is_on_their_side(name: str) -> None:
    draw, made_from, rows = random.Random(1), dict[str, str](), list[DataRow]()
    for at in range(80):
        text = " ".join(draw.choices(WORDS, k=40))
        for n in range(3):
            made = " ".join(draw.choices(WORDS, k=40))
            made_from[made] = text
            rows.append(row(text, "yes", **{"id" if name == "parent" else name: f"{at}-{n}"}))
            rows.append(row(made, "yes", **{name: f"{at}-{n}"}, origin="synthetic"))
    found = built(rows, heldout_share=0.2)
    held_out = {input_of(each) for each in found.heldout}
    assert len(held_out) > 8
    assert not [each for each in found.train if made_from.get(input_of(each)) in held_out]


def test_every_class_is_held_out_and_no_class_is_more_than_the_bound() -> None:
    rare = [row(f"A {word} from Oslo came {n} times", "escalate") for n, word in enumerate(WORDS[: GROUPS_MIN + 3])]
    found = built([*many(120), *rare], heldout_share=0.05, class_ratio_max=2)
    counts = Counter(each.label for each in found.train)
    assert set(counts) == {each.label for each in found.heldout} == {"yes", "no", "escalate"}
    assert counts["yes"] == 2 * counts["no"] or counts["yes"] <= 2 * sorted(counts.values())[1]
    assert sum(reasons(found).values()) == len(found.left_out)


def test_nothing_that_was_made_from_a_held_out_row_is_in_the_set() -> None:
    rows = many(60)
    made = [
        row(f"Made of it: {input_of(each)} and more words", each.answer, origin="synthetic", parent=each.id)
        for each in rows
    ]
    found = built([*rows, *made], heldout_share=0.3)
    assert all(each.origin == "real" for each in found.heldout)
    heldout = {each.id for each in found.heldout}
    assert heldout
    assert not heldout & {each.parent for each in found.train}
    assert reasons(found)["made_from_heldout"] > 0


@pytest.mark.parametrize("name", ["group", "paraphrase", "parent"])
def test_rows_of_one_case_stay_together_whatever_their_sources_are(name: str) -> None:
    rows = many(60)
    cases = [{name: each.id} for each in rows]
    rows = [structs.replace(each, group=case.get("group")) for each, case in zip(rows, cases, strict=True)]
    if name == "paraphrase":
        rows = [row(input_of(each), each.answer, id=each.id, **case) for each, case in zip(rows, cases, strict=True)]
    others = [
        row(f"Said by someone else: {input_of(each)[::-1]}", each.answer, source="chat", **case)
        for each, case in zip(rows, cases, strict=True)
    ]
    found = built([*rows, *others], heldout_share=0.3)
    assert min(len(found.train), len(found.heldout)) > 10
    sides = {each.id: each in found.heldout for each in found.rows}
    assert all(sides[one.id] == sides[other.id] for one, other in zip(rows, others, strict=True))


def test_what_was_made_from_a_row_of_an_id_that_two_have_is_on_its_side() -> None:
    rows = [
        [structs.replace(each, id=f"r{n}", source=name) for n, each in enumerate(many(40, seed))]
        for seed, name in ((1, "a.jsonl"), (2, "b.jsonl"))
    ]
    made = [row(f"Made of it: {input_of(each)[::-1]}", each.answer, parent=each.id) for each in rows[1]]
    found = built([*rows[0], *rows[1], *made], heldout_share=0.3)
    heldout = {input_of(each) for each in found.heldout}
    assert heldout
    for one, other in zip(rows[1], made, strict=True):
        assert (input_of(one) in heldout) == (input_of(other) in heldout)


def test_near_texts_are_found_among_many_and_no_others() -> None:
    index = NearIndex()
    rows = many(400, seed=5)
    for number, each in enumerate(rows):
        index.add(number, index.sketch(fold_text(input_of(each))))
    for number, each in enumerate(rows[:50]):
        text = fold_text(input_of(each))
        changed = text[:40] + "q" + text[41:]
        near = dict(index.near(index.sketch(changed)))
        expected = jaccard(each, row(changed, "x"))
        assert (number in near) == (expected >= NEAR)
        assert number not in near or near[number] == pytest.approx(expected)


def test_near_text_whose_hashes_are_unlike_by_chance_is_found() -> None:
    """Of 144 hashes of these 105 are the same, where 122 are to be expected: about one pair in 8,000 has so few."""
    index = NearIndex()
    index.add(1, index.sketch("phpjf jzzvpitrpbrviaq"))
    assert list(index.near(index.sketch("phpjf jzzvpitrpbrviaqobz"))) == [(1, 0.85)]


def test_a_set_is_named_by_its_rows_and_written_once(tmp_path: Path) -> None:
    found = built(many(40))
    card = {"task": "returns"} | card_of(found, DatasetOptions(), KeptRows())
    first = write_set(tmp_path, found, card | {"built_at": 1.0})
    again = write_set(tmp_path, built(many(40)[::-1]), card | {"built_at": 2.0})
    other = write_set(tmp_path, built(many(41)), card)
    assert first == again != other
    assert msgspec.json.decode((tmp_path / first / "card.json").read_bytes())["built_at"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first, other])
    assert write_set(tmp_path, found, card | {"task": "claims"}) != first


def test_a_full_disk_leaves_nothing_of_a_set(tmp_path: Path) -> None:
    found = built(many(400))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            write_set(tmp_path, found, {"task": "returns"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, sys
from pathlib import Path
from monitoring.datasets.folder import remove_set
removed = []
def kill(event, arguments):
    if event == "os.remove":
        removed.append(arguments)
        if len(removed) == 2:
            os._exit(9)
sys.addaudithook(kill)
remove_set(Path(sys.argv[1]))
"""
"""Removes a data set, and is killed at its second file."""


def test_a_removal_that_is_killed_leaves_no_part_that_is_seen(tmp_path: Path) -> None:
    found = built(many(40))
    name = write_set(tmp_path, found, {"task": "returns"} | card_of(found, DatasetOptions(), KeptRows()))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    assert (killed.returncode, (tmp_path / name).exists()) == (9, False)
    (left,) = tmp_path.iterdir()
    assert any(left.iterdir()), "some of its files are still there"
    again = write_set(tmp_path, found, {"task": "returns"} | card_of(found, DatasetOptions(), KeptRows()))
    remove_set(tmp_path / again)
    assert not list(tmp_path.iterdir()), "the same set, built again and removed, takes the rest with it"


def test_a_set_without_its_list_of_requests_is_removed(tmp_path: Path) -> None:
    found = built(many(40))
    target = tmp_path / write_set(tmp_path, found, {"task": "returns"} | card_of(found, DatasetOptions(), KeptRows()))
    (target / "requests.txt").unlink()
    remove_set(target)
    assert not list(tmp_path.iterdir())


def test_a_sweep_removes_what_a_killed_removal_left(tmp_path: Path) -> None:
    found = built(many(40))
    name = write_set(tmp_path, found, {"task": "returns"} | card_of(found, DatasetOptions(), KeptRows()))
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(30)
def test_as_many_classes_as_rows_are_divided_in_linear_time() -> None:
    rows = [structs.replace(row("text", "yes"), id=f"{n}", label=f"class {n}") for n in range(30_000)]
    sides = split_groups(rows, [each.id for each in rows], 0.2)
    assert 0.19 < sum(sides) / len(sides) < 0.21

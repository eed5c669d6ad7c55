"""Leaks: rows of the training set are found, whatever their case and their instructions."""

from __future__ import annotations

import unicodedata

from monitoring.datasets.leaks import describe_leaks, find_leaks, get_request, tell_leaks
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.results import RowResult

SYSTEM = {"role": "system", "content": "Decide the return by the shop's long and detailed policy. " * 20}


def row(number: int, text: str) -> Row:
    return Row(number, f"r{number}", number, "yes", [SYSTEM, {"role": "user", "content": text}])


def test_same_and_near_rows_are_found_and_their_share_taken_out() -> None:
    toaster = "The toaster arrived on Monday, its box was opened, and it does not heat at all. May I return it now?"
    rows = [
        row(0, toaster.upper() + "  "),
        row(1, toaster.replace("Monday", "Tuesday")),
        row(2, "Where is my parcel?"),
        row(3, "Is a sealed kettle taken back after 40 days?"),
    ]
    leaks = find_leaks([toaster, "Something else altogether"], ((each.number, get_request(each)) for each in rows))
    assert (leaks.trained_on, leaks.same, leaks.near) == (2, (0,), (1,))
    outcomes = ["failed", "answered", "answered", "failed"]
    results = [RowResult(number=n, id=f"r{n}", group=n, right=n < 3, outcome=outcomes[n]) for n in range(4)]
    told = tell_leaks(leaks, {"adapter": results})
    assert (told["first"], told["right_without"]) == (["r0", "r1"], {"adapter": 0.5})
    assert told["failed_without"] == {"adapter": 1}
    assert "2 of 4 rows are in the training set, 1 of them nearly" in describe_leaks(leaks, 4)[0]


def test_forms_with_different_facts_are_no_leaks() -> None:
    form = (
        "Return form of the shop. The customer declares that all that follows is true and complete. Terms apply. " * 2
    )
    things = ("toaster", "kettle", "novel", "kite", "lamp", "chair")
    cases = [f"{form}The {thing} of {place} broke." for thing in things for place in ("Oslo", "Lyon", "Bath", "Rome")]
    leaks = find_leaks(cases[2:], [(0, cases[0]), (1, cases[1]), (2, f"{cases[2]}!")])
    assert (leaks.same, leaks.near) == ((), (2,))


def test_a_row_in_another_form_of_unicode_is_the_same() -> None:
    text = "Café crème déjà reçu?"
    rows = [(0, unicodedata.normalize("NFD", text)), (1, text.replace("C", "\N{FULLWIDTH LATIN CAPITAL LETTER C}", 1))]
    assert find_leaks([text], rows).same == (0, 1)


def test_rows_that_share_only_instructions_are_no_leaks() -> None:
    leaks = find_leaks(["Where is my parcel?"], [(0, get_request(row(0, "Is a kettle taken back?")))])
    assert (leaks.same, leaks.near, describe_leaks(leaks, 1)) == ((), (), [])

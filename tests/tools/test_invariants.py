"""The list of invariants, from the markers of the tests."""

from __future__ import annotations

from tools.invariants import list_invariants


def test_every_invariant_is_a_short_sentence_that_a_test_holds() -> None:
    held_by = list_invariants()
    assert len(held_by) > 80
    assert not [sentence for sentence in held_by if not sentence.endswith(".") or len(sentence.split()) > 25]
    assert held_by["A lease is given back once."] == [
        "test_a_lease_that_is_given_back_twice_is_a_fault_and_is_counted_once"
    ]

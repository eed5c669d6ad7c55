"""The prompt of a model that judges, and the meaning of its answers."""

from __future__ import annotations

import pytest

from gateway.features.shadows.judges import constraint, question_of, verdict_of


@pytest.mark.parametrize("said", ["yes", "Yes", " YES.\n", '"yes"', "**yes**", "`yes`", "yes!"])
def test_a_yes_is_a_yes(said: str) -> None:
    assert verdict_of(said) is True
    assert verdict_of(said.lower().replace("yes", "no")) is False


@pytest.mark.parametrize("said", ["", "yes and no", "yes, it is", "not", "yess", "maybe", "no yes", "ye s", "<yes>"])
def test_anything_else_is_no_verdict(said: str) -> None:
    assert verdict_of(said) is None


def test_a_question_has_the_rules_where_there_are_any_and_ends_with_what_is_asked() -> None:
    told = question_of("7", "Be kind.", "user: Hello", "Hello")
    assert [told.index(f"----- {name} 7 -----") for name in ("RULES", "REQUEST", "ANSWER")] == sorted(
        told.index(f"----- {name} 7 -----") for name in ("RULES", "REQUEST", "ANSWER")
    )
    assert told.endswith("----- END OF ANSWER 7 -----\n\nIs the answer between the lines above right? Say yes or no.")
    assert "RULES" not in question_of("7", "", "user: Hello", "Hello")


def test_only_an_engine_that_is_known_to_take_it_is_kept_to_the_two_words() -> None:
    assert constraint("vllm") == {"structured_outputs": {"choice": ["yes", "no"]}}
    assert constraint("openai") == {}

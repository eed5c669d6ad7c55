"""The prompt of a model that judges, and the meaning of its answers."""

from __future__ import annotations

import pytest

from gateway.formats.judge_question import JUDGED_CHARACTERS_MAX, JudgeQuestion, make_constraint, read_verdict


@pytest.mark.parametrize("said", ["yes", "Yes", " YES.\n", '"yes"', "**yes**", "`yes`", "yes!"])
def test_a_yes_is_a_yes(said: str) -> None:
    assert read_verdict(said) is True
    assert read_verdict(said.lower().replace("yes", "no")) is False


@pytest.mark.parametrize("said", ["", "yes and no", "yes, it is", "not", "yess", "maybe", "no yes", "ye s", "<yes>"])
def test_anything_else_is_no_verdict(said: str) -> None:
    assert read_verdict(said) is None


def test_a_question_has_the_rules_where_there_are_any_and_ends_with_what_is_asked() -> None:
    told = JudgeQuestion("user: Hello", "Hello", "Be kind.").tell("7")
    assert [told.index(f"----- {name} 7 -----") for name in ("RULES", "REQUEST", "ANSWER")] == sorted(
        told.index(f"----- {name} 7 -----") for name in ("RULES", "REQUEST", "ANSWER")
    )
    assert told.endswith("----- END OF ANSWER 7 -----\n\nIs the answer between the lines above right? Say yes or no.")
    assert "RULES" not in JudgeQuestion("user: Hello", "Hello").tell("7")


def test_only_an_engine_that_is_known_to_take_it_is_kept_to_the_two_words() -> None:
    assert make_constraint("vllm") == {"structured_outputs": {"choice": ["yes", "no"]}}
    assert make_constraint("openai") == {}


def test_a_reference_stands_in_the_question_with_what_it_means() -> None:
    told = JudgeQuestion("user: Hello", "Hi", reference="Good day").tell("7")
    assert "----- REFERENCE 7 -----\nGood day\n" in told
    assert "People hold the reference to be right." in told.rpartition("ANSWER 7")[2]


def test_texts_that_are_long_together_are_judged_by_nobody() -> None:
    half = "x" * (JUDGED_CHARACTERS_MAX // 2)
    assert not JudgeQuestion(half, half).is_too_long
    assert JudgeQuestion(half, half, reference="x").is_too_long

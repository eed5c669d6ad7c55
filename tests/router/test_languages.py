"""Telling that a text is in another language than the training prompts."""

from __future__ import annotations

import pytest

from benchmarks.scope_worlds import LANGUAGES, read_pairs
from benchmarks.scores import DATA, banking77, hwu64
from router.languages import find_languages, find_other_language


def test_nearly_all_requests_in_other_languages_are_told_from_english() -> None:
    texts = [text for _, text in read_pairs(LANGUAGES)]
    told = [text for text in texts if find_other_language(text, ("English",))]
    assert len(told) >= 0.95 * len(texts)


def test_hardly_any_english_request_is_taken_for_another_language() -> None:
    for read in (banking77, hwu64):
        texts = [one.text for one in read(DATA).test]
        assert len([text for text in texts if find_other_language(text, ("English",))]) <= 0.002 * len(texts)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Wo ist meine neue Karte?", "German"),
        ("Где моя карта", "Cyrillic"),
        ("カードはどこですか", "Japanese"),
        ("", ""),
        ("12345 !!", ""),
        ("iban bic pin", ""),
    ],
)
def test_a_language_is_named_where_it_is_clear(text: str, language: str) -> None:
    assert find_other_language(text, ("English",)) == language


def test_a_language_of_the_training_prompts_is_not_another_one() -> None:
    prompts = ["Wo ist meine neue Karte?"] * 10 + ["where is my new card, please"] * 90
    known = find_languages(prompts, 0.03)
    assert known == ("English", "German")
    assert find_other_language("Ich habe meine PIN vergessen", known) == ""
    assert find_other_language("J'ai oublié mon code, que dois-je faire ?", known) == "French"
    assert find_other_language("Ich habe meine PIN vergessen", ()) == "", "nothing is known of the prompts"

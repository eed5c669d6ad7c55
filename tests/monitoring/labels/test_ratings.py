"""Ratings: files with gaps and faults, Krippendorff's alpha, both votes, and the report on them."""

from __future__ import annotations

import random

import pytest

from monitoring.labels.agreement import measure_agreement, measure_raters
from monitoring.labels.dawid_skene import find_credits, find_values, take_votes
from monitoring.labels.messages import Rating
from monitoring.labels.ratings import Ratings, RatingsError, collect_ratings, read_rater_file
from monitoring.labels.report import report_ratings

PUBLISHED = """item,A,B,C
1,,1,
2,,,
3,,2,2
4,,1,1
5,,3,3
6,3,3,4
7,4,4,4
8,1,3,
9,2,,2
10,1,,1
11,1,,1
12,3,,3
13,3,,3
14,,,
15,3,,4
"""


def crowd(items: int, raters: dict[str, float], seed: int = 1, each: int = 5) -> Ratings:
    """Items of which a third is wrong; a rater is right with this probability."""
    chance, rows, gold = random.Random(seed), list[Rating](), dict[str, str]()
    for number in range(items):
        item, truth = f"i{number}", chance.choice(["right", "right", "wrong"])
        gold[item] = truth
        other = {"right": "wrong", "wrong": "right"}[truth]
        for name in chance.sample(sorted(raters), each):
            value = truth if chance.random() < raters[name] else other
            rows.append(Rating(item, name, value, "hard" if number % 2 else "easy"))
    return collect_ratings(rows, gold)


def test_alpha_is_the_published_one_for_ratings_with_gaps() -> None:
    agreement = measure_agreement(read_rater_file(PUBLISHED))
    assert agreement.alpha == pytest.approx(0.691, abs=5e-4)
    assert (agreement.items, agreement.ratings) == (12, 26)
    assert agreement.low is not None
    assert agreement.high is not None
    assert agreement.low < agreement.alpha < agreement.high


def test_alpha_of_two_raters_by_hand() -> None:
    ratings = read_rater_file("item,A,B\n1,r,r\n2,r,r\n3,r,w\n4,w,w\n")
    both = measure_agreement(ratings)
    assert both.alpha == pytest.approx(1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)))
    measured = measure_raters(ratings, ["A"])
    assert [*measured] == ["A"], "a report tells of few: all would take a pass over the labels each"
    assert measured["A"].alpha == pytest.approx(both.alpha)
    assert measure_agreement(read_rater_file("item,A,B\n1,r,r\n2,r,r\n")).alpha is None


def test_the_interval_holds_the_alpha_of_many_items() -> None:
    raters = dict.fromkeys("abcdef", 0.8)
    truth = measure_agreement(crowd(20_000, raters)).alpha
    samples = [measure_agreement(crowd(60, raters, seed)) for seed in range(60)]
    assert truth is not None
    inside = sum(one.low <= truth <= one.high for one in samples if one.low is not None and one.high is not None)
    assert inside >= 50


def test_raters_who_rarely_differ_are_not_known_to_be_alike() -> None:
    raters = dict.fromkeys("ab", 0.98)
    truth = measure_agreement(crowd(20_000, raters, each=2)).alpha
    few = [crowd(20, raters, seed, each=2) for seed in range(60)]
    samples = [one for ratings in few for one in (measure_agreement(ratings), measure_raters(ratings, ["a"])["a"])]
    assert truth is not None
    inside = sum(one.low <= truth <= one.high for one in samples if one.low is not None and one.high is not None)
    assert inside >= 0.9 * len(samples)


def test_no_alpha_is_below_that_of_raters_who_always_differ() -> None:
    ratings = read_rater_file("item,a,b\n1,1,1\n2,0,1\n3,1,1\n")
    always = 1 - 1 / (2 * 5 / (6 * 5) * 1)
    for agreement in (measure_agreement(ratings), *measure_raters(ratings, ratings.raters).values()):
        assert agreement.low is not None
        assert agreement.low >= always


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Line 1: it has no item."),
        ("item,A,A\n1,x,y\n", "Line 1: every column needs a name of its own."),
        ("item,rater\n1,a\n", "Line 1: it has no label."),
        ("request,rater,value\n1,a,b\n", "Line 1: it has no item and no label."),
        ("item,rater,label\n1,a,x\n,b,x\n2,,x\n3,c\n", "Line 3: item is empty. Line 4: rater is empty. Line 5: it has"),
        ("item,A,gold\n1,x,y\n\n1,z,x\n", "Line 4: gold is 'x', and it was 'y' for this item before."),
        ("item,A,B\n1,,\n2,,\n", "There is no rating in it"),
        ('item,A\n1,"x\n', "Line 2: this is not CSV"),
    ],
)
def test_faults_of_a_rater_file_are_told_with_their_lines(text: str, message: str) -> None:
    with pytest.raises(RatingsError) as error:
        read_rater_file(text)
    assert message in str(error.value)


def test_a_file_of_free_texts_is_refused_before_it_fills_the_memory() -> None:
    rows = "".join(f"i{number},{number % 3},answer {number}\n" for number in range(4000))
    with pytest.raises(RatingsError, match="4,000 items have 4,000 different labels: give labels that are classes"):
        read_rater_file(f"item,rater,label\n{rows}")


def test_gaps_are_no_ratings_in_both_forms_of_a_file() -> None:
    wide = read_rater_file("item,A,B\n1,x,\n2,,y\n3,x,y\n")
    long = read_rater_file("rater,item,label\nA,1,x\nB,1,\nB,2,y\nA,3,x\nB,3,y\n")
    assert [(wide.items[i], wide.raters[r]) for i, r in zip(wide.item, wide.rater, strict=True)] == [
        ("1", "A"),
        ("2", "B"),
        ("3", "A"),
        ("3", "B"),
    ]
    assert measure_agreement(wide) == measure_agreement(long)


def test_ratings_of_some_items_are_selected_by_names_in_any_form() -> None:
    ratings = read_rater_file("item,A,B\n1,r,r\n2,r,w\n3,w,w\n")
    for names in (["1", "3"], iter(["1", "3"])):  # a name that is looked for is not read again for each item
        assert ratings.select_items(names).items == ("1", "3")


def test_weighing_raters_is_recommended_from_enough_labels_and_better_then() -> None:
    mixed = {f"good{n}": 0.95 for n in range(3)} | {f"bad{n}": 0.55 for n in range(5)}
    ratings = crowd(600, mixed)
    votes = take_votes(ratings)
    assert votes.recommended == "dawid_skene"
    assert find_credits(votes.dawid_skene, ratings).mean() > find_credits(votes.majority, ratings).mean() + 0.05
    few = crowd(600, {f"r{n}": 0.8 for n in range(400)})
    assert take_votes(few).recommended == "majority"
    alike = [crowd(30, dict.fromkeys("abc", 0.85), seed, each=3) for seed in range(20)]  # 30 items a rater
    lost = []
    for of in alike:
        votes = take_votes(of)
        found = {name: find_credits(getattr(votes, name), of).mean() for name in ("dawid_skene", "majority")}
        lost.append(found[votes.recommended] - found["majority"])
    assert min(lost) == 0.0, "raters who are alike were weighed"
    assert take_votes(crowd(600, mixed, each=2)).recommended == "majority"
    tie = read_rater_file("item,A,B\n1,x,y\n2,x,x\n")
    assert find_values(take_votes(tie).majority, tie) == [None, "x"]


def test_the_report_names_ambiguous_classes_and_the_worst_rater() -> None:
    good = crowd(200, dict.fromkeys("abcde", 0.97), each=3)
    chance = random.Random(2)
    rows = [
        Rating(
            good.items[item],
            good.raters[rater],
            chance.choice(["right", "wrong"])
            if good.classes[good.items[item]] == "hard" or good.raters[rater] == "e"
            else good.values[value],
            good.classes[good.items[item]],
        )
        for item, rater, value in zip(good.item, good.rater, good.value, strict=True)
    ]
    report = report_ratings(collect_ratings([one for one in rows if one.rater != "e"]))
    assert [one.class_name for one in report.classes if one.is_ambiguous] == ["hard"]
    assert report.agreed_only
    assert any("hard" in sentence for sentence in report.words)
    easy = report_ratings(collect_ratings([one for one in rows if one.class_name == "easy"]))
    assert easy.raters[0].rater == "e"
    assert report_ratings(good).agreed_only is False
    assert report_ratings(collect_ratings([])).words == ["Agreement is unknown: no item has two ratings."]

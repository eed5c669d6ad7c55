"""Fitting scope: the same bytes from the same inputs, of any script; or a sentence that says what to do."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from router.embedding import StaticEmbedding, Vectors
from router.fitting import run
from router.fitting.background import read_stand_in
from router.fitting.errors import FittingError
from router.fitting.scope import PROMPTS_MIN, TrainingPrompt, fit_scope
from router.fitting_job import FittingJob, FittingLine
from router.scope_model import HELD_BACK_MAX, ScopeModel

CHINESE = ("我想退货", "什么时候退款", "这个灯坏了", "换一个尺码", "包裹没有收到")
ARABIC = ("أريد إرجاع المنتج", "متى أسترد أموالي", "المصباح مكسور", "أريد مقاسا آخر", "لم يصل الطرد")
EMOJI = ("🛋️💔📦", "💸❓📅", "💡💔", "👕🔁📏", "📦🚫😡")


@pytest.fixture(scope="module")
def embedding() -> StaticEmbedding:
    return StaticEmbedding.load()


def quiet(step: str, share: float) -> None:
    """Progress that nobody hears."""


def made(asks: tuple[str, ...], count: int, labels: bool = True) -> list[TrainingPrompt]:
    """Prompts of a few kinds, each with a number of its own."""
    return [
        TrainingPrompt(f"p{n}", f"{asks[n % len(asks)]} {n}", f"kind {n % len(asks)}" if labels else None)
        for n in range(count)
    ]


def fit(prompts: list[TrainingPrompt], embedding: StaticEmbedding, seed: int = 1) -> ScopeModel:
    return fit_scope(prompts, (), embedding, seed, quiet, stand_in=read_stand_in()[::10])


def test_the_same_prompts_and_seed_give_the_same_bytes(embedding: StaticEmbedding) -> None:
    prompts = made(("return the lamp", "refund please", "swap the size"), 60)
    first = fit(prompts, embedding).to_bytes()
    assert fit(prompts, embedding).to_bytes() == first
    assert fit(prompts, embedding, seed=2).to_bytes() != first


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([], "sample is empty"),
        (made(("return the lamp",), PROMPTS_MIN - 1), f"at least {PROMPTS_MIN}"),
        ([TrainingPrompt(str(n), "the same  text") for n in range(100)], "1 different"),
        ([TrainingPrompt(str(n), " " * n) for n in range(100)], "0 different"),
        ([TrainingPrompt("x" * 201, "a"), *made(("b",), 50)], "shorten it"),
    ],
)
def test_what_can_not_be_learned_from_is_refused_with_what_to_do(
    prompts: list[TrainingPrompt], says: str, embedding: StaticEmbedding
) -> None:
    with pytest.raises(FittingError, match=says):
        fit(prompts, embedding)


@pytest.mark.parametrize("asks", [CHINESE, ARABIC, EMOJI])
@pytest.mark.parametrize("labels", [True, False])
def test_any_script_can_be_learned(asks: tuple[str, ...], labels: bool, embedding: StaticEmbedding) -> None:
    model = fit(made(asks, 50, labels), embedding)
    inside = np.mean([model.score(f"{ask} 77").score for ask in asks])
    outside = np.mean(
        [model.score(text).score for text in ("what is the capital of Peru", "play jazz", "Wie spät ist es")]
    )
    assert inside > outside + 1.0


def test_one_class_is_enough(embedding: StaticEmbedding) -> None:
    prompts = [TrainingPrompt(str(n), f"return order {n} for me", "returns") for n in range(40)]
    model = fit(prompts, embedding)
    assert model.score("return order 99 for me").score > model.score("what is the capital of Peru").score


def test_prompts_that_are_all_of_one_group_are_fitted_as_those_of_none(embedding: StaticEmbedding) -> None:
    alone = made(("return the lamp", "refund please"), 40)
    assert fit([replace(each, group="a") for each in alone], embedding).to_bytes() == fit(alone, embedding).to_bytes()


def test_without_any_other_traffic_it_is_fitted_too(embedding: StaticEmbedding) -> None:
    model = fit_scope(made(("return the lamp", "refund please"), 40), (), embedding, 1, quiet)
    assert model.score("return the lamp 7").score > model.score("what is the capital of Peru").score


def test_a_label_for_each_prompt_is_as_good_as_none(embedding: StaticEmbedding) -> None:
    prompts = [TrainingPrompt(str(n), f"return order {n} please", f"label {n}") for n in range(60)]
    assert len(fit(prompts, embedding).bias) < 10


def test_prompts_of_a_megabyte_and_duplicates_cost_no_more(embedding: StaticEmbedding) -> None:
    prompts = [TrainingPrompt(str(n), f"case {n} " + "the tenant pays the rent " * 40_000, "lease") for n in range(30)]
    model = fit([*prompts, *prompts], embedding)
    assert model.held_back_rows == 30
    assert len(model.ids) == 30


def test_known_other_traffic_tells_more_than_what_stands_for_it(embedding: StaticEmbedding) -> None:
    prompts = made(("book a flight", "book a hotel", "rent a car"), 60)
    others = [f"{kind} {n}" for n in range(100) for kind in ("book a doctor", "rent a flat", "book a table")]
    known = fit_scope(prompts, others, embedding, 1, quiet)
    assert known.score("book a doctor 500").score < known.score("book a flight 500").score
    assert known.score("book a doctor 500").score < known.threshold(0.05)


def test_what_stands_for_other_traffic_but_is_like_the_prompts_is_left_out(embedding: StaticEmbedding) -> None:
    prompts = made(("how do I top up my card", "my card was declined", "where is my new card"), 60)
    same = [one.text.upper() + "!" for one in prompts]
    model = fit_scope(prompts, (), embedding, 1, quiet, stand_in=(*same, *read_stand_in()[::10]))
    assert model.score("my card was declined 61").score > model.threshold(0.05)


def test_all_scores_are_counted_that_thresholds_rest_on() -> None:
    lines = [FittingLine(each.text, each.id) for each in made(("return the lamp", "refund please"), 1_200)]
    packed = gzip.compress(b"\n".join(map(msgspec.json.encode, lines)))
    told = run.fit(FittingJob(len(packed)), packed)
    assert told.thresholds == told.rows > HELD_BACK_MAX


def test_progress_rises_to_one_and_names_its_steps(embedding: StaticEmbedding) -> None:
    heard: list[tuple[str, float]] = []
    fit_scope(made(("a lamp", "a sofa"), 40), (), embedding, 1, lambda step, share: heard.append((step, share)))
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert heard[0] == ("reading", 0.0)
    assert heard[-1] == ("fitted", 1.0)


def test_a_model_of_many_prompts_stays_small(embedding: StaticEmbedding) -> None:
    draw = random.Random(1)
    words = [f"word{n}" for n in range(3_000)]
    prompts = [TrainingPrompt(f"{n:0200}", " ".join(draw.sample(words, 8)), str(n % 20)) for n in range(2_500)]
    model = fit_scope(prompts, (), embedding, 1, quiet)
    assert len(model.to_bytes()) < 2_000_000
    assert len(model.ids) == 1_500


def test_a_model_of_many_prompts_has_also_those_that_set_its_threshold(embedding: StaticEmbedding) -> None:
    model = fit_scope(made(("return the lamp", "refund please"), 2_100), (), embedding, 1, quiet)
    assert model.held_back_rows == 1_000
    assert len(model.ids) == 2_100


class Deep:
    """A second embedding, which knows one word alone."""

    name = "deep 1"
    dimensions = 4

    def embed(self, texts: list[str]) -> Vectors:
        return np.array([[1, 0, 0, 0] if "lamp" in text else [0, 1, 0, 0] for text in texts], np.float32)


def test_a_second_embedding_is_joined_in_and_needed_from_then_on(embedding: StaticEmbedding) -> None:
    prompts = made(("return the lamp", "the lamp is broken", "refund for a lamp"), 45)
    model = fit_scope(prompts, (), embedding, 1, quiet, deep=Deep(), stand_in=read_stand_in()[::10])
    assert model.score("a lamp").score > model.score("a kettle").score
    again = ScopeModel.from_bytes(model.to_bytes(), embedding, Deep())
    assert again.score("a lamp") == model.score("a lamp")
    with pytest.raises(Exception, match="deep 1"):
        ScopeModel.from_bytes(model.to_bytes(), embedding)


def test_what_is_shipped_names_its_sources_and_can_leave_one_out() -> None:
    whole = read_stand_in()
    assert len(whole) == 1_700
    assert len(read_stand_in(["clinc150"])) == 1_250
    assert all(text.strip() and len(text) <= 240 for text in whole)


def test_the_echo_tells_prompts_of_a_class_that_was_left_out(embedding: StaticEmbedding) -> None:
    asks = ("where is the {}", "cancel the {} please", "is the {} in stock", "how much is the {}", "the {} is broken")
    things = [f"{kind} {thing}" for kind in ("red", "small", "old", "cheap") for thing in ("lamp", "sofa", "tent")]
    prompts = [
        TrainingPrompt(f"{ask} {thing}", ask.format(thing), ask)
        for ask in asks[:4]
        for thing in things
        if thing[0] != "o"
    ]
    model = fit(prompts, embedding)
    inside = [model.parts(ask.format(thing)).echo for ask in asks[:4] for thing in things if thing[0] == "o"]
    outside = [model.parts(asks[4].format(thing)).echo for thing in things]
    assert np.mean(inside) > np.mean(outside) + 0.1
    assert -1.01 <= min(outside) <= max(inside) <= 1.01

"""The scope score: what it tells, what it costs to be wrong about its bytes, and the index of many tasks."""

from __future__ import annotations

import json
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from threadpoolctl import threadpool_limits

from router.clipping import clip_text
from router.embedding import StaticEmbedding, Vectors
from router.fitting.background import read_stand_in
from router.fitting.scope import TrainingPrompt, fit_scope
from router.ngrams import BUCKETS, count_buckets
from router.scope_model import Mix, ScopeError, ScopeModel, ScoreParts
from router.spelling import mark_words, mend_words
from router.task_index import TaskIndex
from router.text_units import split_pieces
from tests.walks.scope_world import of_domain

ITEMS = ("lamp", "jacket", "kettle", "phone", "sofa", "drill", "tent", "bike", "mirror", "printer")
ASKS = (
    "I want to return the {}, it is broken",
    "how long do I have to send back a {}",
    "the {} that I ordered never arrived, refund me",
    "can I swap my {} for another size",
    "where is the refund for the {} that I sent back",
)


def prompts() -> list[TrainingPrompt]:
    return [
        TrainingPrompt(f"row-{kind}-{item}", ask.format(item), f"kind {kind}")
        for kind, ask in enumerate(ASKS)
        for item in ITEMS
    ]


@pytest.fixture(scope="module")
def embedding() -> StaticEmbedding:
    return StaticEmbedding.load()


@pytest.fixture(scope="module")
def model(embedding: StaticEmbedding) -> ScopeModel:
    return fit_scope(prompts(), (), embedding, 1, lambda step, share: None, stand_in=read_stand_in()[::4])


class Renamed:
    """The same vectors under another name."""

    name = "another"
    dimensions = 256

    def embed(self, texts: list[str]) -> Vectors:
        return np.zeros((len(texts), 256), np.float32)


def test_a_text_of_the_task_scores_above_one_of_another_kind(model: ScopeModel) -> None:
    inside = model.score("I would like to return a broken toaster").score
    for other in (
        "what is the capital of France",
        "play some jazz",
        "def f(x): return x + 1",
        "今天天气怎么样",
        "🙂🙂",
    ):
        assert model.score(other).score < inside


def test_the_three_nearest_training_prompts_are_told_by_their_ids_nearest_first(model: ScopeModel) -> None:
    found = model.score("where is the refund for the kettle that I sent back").neighbours
    assert len(found) == 3
    assert found[0].id == "row-4-kettle"
    assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)
    assert found[0].similarity == pytest.approx(1.0, abs=0.03)


def test_what_is_kept_holds_no_prompt(model: ScopeModel) -> None:
    data = model.to_bytes()
    whole = zlib.decompress(data[data.index(b"\n") + 5 :])
    assert b"kettle" not in whole.replace(b"-kettle", b"")
    assert len(data) < 500_000


def test_the_bytes_give_the_same_scores_and_the_same_bytes_again(model: ScopeModel, embedding: StaticEmbedding) -> None:
    again = ScopeModel.from_bytes(model.to_bytes(), embedding)
    for text in ("send it back", "", "what a day", "x" * 5_000):
        assert again.score(text) == model.score(text)
    assert again.threshold(0.05) == model.threshold(0.05)
    assert again.to_bytes() == model.to_bytes()


def test_a_model_for_another_embedding_is_refused_and_the_message_names_both(model: ScopeModel) -> None:
    with pytest.raises(ScopeError, match=r"wordllama.*another"):
        ScopeModel.from_bytes(model.to_bytes(), Renamed())


@pytest.mark.parametrize(("form", "mark_places"), [(3, 1), (4, 2)])
def test_a_model_of_an_earlier_form_is_read_and_scores_as_it_did(
    form: int, mark_places: int, model: ScopeModel, embedding: StaticEmbedding
) -> None:
    before = replace(
        model,
        mark_places=mark_places,
        mix=structs.replace(model.mix, single_less=None),
        echo_neighbours=3,
        echo_crowding=np.zeros_like(model.echo_crowding),
        echo_axes=np.diag(np.linspace(0.5, 2.0, len(model.echo_middle))).astype(np.float16).astype(np.float32),
    )
    data = before.to_bytes()
    body = zlib.decompress(data[data.index(b"\n") + 5 :])
    end = 4 + struct.unpack_from("<I", body)[0]
    header = json.loads(body[4:end])
    del header["echo_neighbours"], header["shapes"]["echo_crowding"], header["mix"]["single_less"]
    if form == 3:
        del header["mark_places"]
    described = json.dumps(header).encode()
    kept = body[end : len(body) - 2 * len(model.echo_crowding)]
    packed = zlib.compress(struct.pack("<I", len(described)) + described + kept)
    head = f"apprentice scope {form}\n".encode()
    again = ScopeModel.from_bytes(head + struct.pack("<I", zlib.crc32(packed)) + packed, embedding)
    for text in (
        "I want to return the lamp. What a day it was for my cousin! Refund me.",
        "I want to return the lamp and where is the refund for the kettle that I sent back",
        "refudn the ketttle",
        "snow",
    ):
        assert again.score(text) == before.score(text)
    assert again.threshold(0.05) == before.threshold(0.05)
    assert ScopeModel.from_bytes(again.to_bytes(), embedding).to_bytes() == again.to_bytes()


@pytest.fixture(scope="module")
def travel(embedding: StaticEmbedding) -> ScopeModel:
    """A model of a domain of CLINC150, whose texts have no marks between sentences."""
    texts = of_domain("travel", "train", 600)
    prompts = [TrainingPrompt(str(at), text, f"kind {at // 40}") for at, text in enumerate(texts)]
    return fit_scope(prompts, (), embedding, 1, lambda step, share: None, stand_in=read_stand_in(["clinc150"]))


def share_deferred(model: ScopeModel, texts: list[str]) -> float:
    return float(np.mean([model.score(text).score < model.threshold(0.05) for text in texts]))


def test_requests_in_frames_and_mails_are_hardly_deferred_more_often_than_bare_ones(travel: ScopeModel) -> None:
    bare = of_domain("travel", "test", 120)
    worlds = [
        "Ahoy mates,\n{}\nGratefully yours, Hiroshi",
        "We had snow all week. My aunt Olga was visiting us. {}. She left by train today. The cat slept.",
    ]
    for world in worlds:
        assert share_deferred(travel, [world.format(text) for text in bare]) <= share_deferred(travel, bare) + 0.1


def test_two_requests_without_a_mark_are_hardly_deferred_more_often_than_one(travel: ScopeModel) -> None:
    own = of_domain("travel", "test", 240)
    both = [f"{one} {other}" for one, other in zip(own[:120], own[120:], strict=True)]
    assert share_deferred(travel, both) <= share_deferred(travel, own) + 0.15


def test_foreign_text_between_requests_is_deferred_and_a_third_request_is_not(travel: ScopeModel) -> None:
    own, foreign = of_domain("travel", "test", 90), of_domain("banking", "test", 30)
    pairs = list(zip(own[:30], own[30:60], strict=True))
    within, without = (
        share_deferred(travel, [f"{one}. {text}. {two}." for (one, two), text in zip(pairs, texts, strict=True)])
        for texts in (own[60:], foreign)
    )
    assert within <= 0.2
    assert without >= 0.7


def no_word(word: str) -> bool:
    return False


def test_common_words_are_no_typing_errors(embedding: StaticEmbedding) -> None:
    marks = mark_words(["spend the night at the airport"])
    assert mend_words("what i spent last nighd", marks, embedding.is_word) == "what i spent last night"


def test_letters_in_the_wrong_order_are_mended_where_the_word_is_known() -> None:
    marks = mark_words(["where is my luggage", "Book a flight"])
    assert mend_words("where is my lugagge", marks, no_word) == "where is my luggage"
    assert mend_words("bokok a fligth", marks, no_word) == "book a flight"
    assert mend_words("luggage for zanzibar 1234", marks, no_word) == "luggage for zanzibar 1234"


def test_a_letter_that_is_wrong_or_missing_is_guessed_in_longer_words_that_are_known() -> None:
    marks = mark_words(["where is my luggage", "Book a flight to großburg"])
    assert mend_words("wherx is my lugvage", marks, no_word) == "where is my luggage"
    assert mend_words("uggage luggag lugage flght", marks, no_word) == "luggage luggage luggage flight"
    assert mend_words("boak grossbirg größburg", marks, no_word) == "boak grossburg größburg", (
        "short, known folded, no ASCII"
    )
    assert mend_words("lugvage fligth", marks, no_word, places=1) == "lugvage flight", (
        "marks of one bit are too dense to guess"
    )


def test_of_a_text_with_many_unknown_words_only_some_are_mended() -> None:
    marks = mark_words(["luggage"])
    foreign = "alpha bravo charlie delta hotel india juliet kilo"
    assert mend_words(f"{foreign} lugvage", marks, no_word) == f"{foreign} lugvage"
    assert mend_words(f"lugvage {foreign}", marks, no_word) == f"luggage {foreign}"


@given(text=st.text(max_size=80))
def test_any_text_can_be_mended_and_what_is_known_stays(text: str) -> None:
    folded = text.casefold()
    assert mend_words(folded, mark_words([text]), no_word) == folded
    mend_words(text, mark_words(["where is my luggage"]), no_word)


def test_requests_with_wrong_letters_are_hardly_deferred_more_often_than_bare_ones(travel: ScopeModel) -> None:
    draw = np.random.default_rng(1)
    bare = of_domain("travel", "test", 120)
    mistyped = []
    for text in bare:
        letters = list(text)
        for at in np.flatnonzero(draw.random(len(letters)) < 0.03):
            letters[at] = "etaoinshrdlu"[int(draw.integers(12))] if letters[at].isalpha() else letters[at]
        mistyped.append("".join(letters))
    assert share_deferred(travel, mistyped) <= share_deferred(travel, bare) + 0.1


def test_a_request_in_another_language_is_told_by_its_language(travel: ScopeModel) -> None:
    assert travel.languages == ("English",)
    assert travel.score("Können Sie mir sagen, was der Kontostand auf meinem Konto ist?").language == "German"
    assert travel.score("please tell me the balance of my bank account").language == ""


@settings(max_examples=60, deadline=None)
@given(at=st.integers(min_value=0, max_value=10**9), bit=st.integers(min_value=0, max_value=7))
def test_a_bit_that_flipped_anywhere_is_noticed(
    model: ScopeModel, embedding: StaticEmbedding, at: int, bit: int
) -> None:
    data = bytearray(model.to_bytes())
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(ScopeError):
        ScopeModel.from_bytes(bytes(data), embedding)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_foreign_bytes_are_refused(model: ScopeModel, embedding: StaticEmbedding, data: bytes) -> None:
    head = model.to_bytes()[: model.to_bytes().index(b"\n") + 1]
    packed = zlib.compress(data)
    for foreign in (data, head + data, head + struct.pack("<I", zlib.crc32(packed)) + packed):
        with pytest.raises(ScopeError):
            ScopeModel.from_bytes(foreign, embedding)


def test_half_of_a_model_and_a_model_with_something_behind_it_are_refused(
    model: ScopeModel, embedding: StaticEmbedding
) -> None:
    data = model.to_bytes()
    for wrong in (b"", data[: len(data) // 2], data + b"x", data[:-1]):
        with pytest.raises(ScopeError):
            ScopeModel.from_bytes(wrong, embedding)


def test_parts_that_do_not_fit_each_other_are_refused(model: ScopeModel, embedding: StaticEmbedding) -> None:
    data = model.to_bytes()
    start = data.index(b"\n") + 1
    body = zlib.decompress(data[start + 4 :]).replace(b'"held_back_rows":50', b'"held_back_rows":10')
    packed = zlib.compress(body)
    with pytest.raises(ScopeError, match="do not fit"):
        ScopeModel.from_bytes(data[:start] + struct.pack("<I", zlib.crc32(packed)) + packed, embedding)


def test_the_threshold_defers_at_most_the_share_of_the_held_back_scores(model: ScopeModel) -> None:
    held = model.held_back
    assert model.held_back_rows == len(prompts())
    for share in (0.02, 0.05, 0.1, 0.5, 0.9):
        assert (held < model.threshold(share)).mean() <= share
    assert model.threshold(0.0) == float("-inf")
    assert model.threshold(0.01) == float("-inf")
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.threshold(1.5)


def test_a_score_of_nought_is_where_one_in_twenty_lies_below_and_one_is_the_middle(model: ScopeModel) -> None:
    assert np.quantile(model.held_back, 0.05) == pytest.approx(0.0, abs=1e-3)
    assert np.quantile(model.held_back, 0.5) == pytest.approx(1.0, abs=1e-3)


def test_thresholds_can_rest_on_the_scores_of_real_inputs_and_the_score_stays(model: ScopeModel) -> None:
    other = model.resting_on([-1.0, 3.0, 0.5, *np.linspace(-3.0, 2.0, 5_000)])
    assert other.held_back_rows == 5_003
    assert len(other.held_back) == 1_001
    assert other.threshold(0.05) == pytest.approx(-2.75, abs=0.02)
    assert other.score("I want to return the lamp") == model.score("I want to return the lamp")
    again = ScopeModel.from_bytes(other.to_bytes(), other.embedding)
    assert again.threshold(0.05) == other.threshold(0.05)
    with pytest.raises(ValueError, match="no scores"):
        model.resting_on([])


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_every_text_has_a_finite_score_and_always_the_same(model: ScopeModel, text: str) -> None:
    found = model.score(text)
    assert np.isfinite(found.score)
    assert model.score(text) == found


def test_halves_of_surrogate_pairs_and_nothing_at_all_are_scored(model: ScopeModel) -> None:
    for text in ("\ud800 return it", "", " \n", "\x00", "a"):
        assert np.isfinite(model.score(text).score)


def test_of_a_long_text_only_both_its_ends_count(model: ScopeModel) -> None:
    start, end = "I want to return the lamp. " * 50, " Please refund me." * 70
    assert model.score(start + "middle " * 100_000 + end) == model.score(start + "other " * 90_000 + end)
    assert len(clip_text("x" * 1_000_000)) == 801


def test_a_megabyte_costs_no_more_than_2200_characters(model: ScopeModel) -> None:
    def fastest(text: str) -> int:
        taken = []
        for _ in range(30):
            began = time.thread_time_ns()
            model.score(text)
            taken.append(time.thread_time_ns() - began)
        return min(taken)

    text = "please send me the form by which I can return it, "
    with threadpool_limits(1):  # as in a gateway
        assert fastest(text * 20_000) < 2 * fastest((text * 44)[:2_200])


def test_marks_in_a_row_are_looked_at_once() -> None:
    began = time.process_time()
    assert split_pieces("!" * 60_000) == ["!" * 60_000]
    assert time.process_time() - began < 2.0  # it took ten times as long when each mark was a new beginning


def test_the_mix_counts_of_other_traffic_only_what_is_unusual() -> None:
    def score(background: float) -> float:
        row = np.array([[1.0, 0.0, background, 0.0, 0.0, 0.0]], np.float32).T
        return Mix(excess=2.0, usual=-0.5).of(ScoreParts(*row, *np.zeros((3, 1), np.bool_)))

    assert score(-0.9) == score(-0.5) == 1.0
    assert score(0.5) == -1.0


def test_letters_case_and_white_space_make_no_difference_but_script_does() -> None:
    assert (count_buckets("Return  the\tLAMP") == count_buckets("return the lamp")).all()
    assert set(count_buckets("退货")) != set(count_buckets("发票"))
    assert len(count_buckets("")) == 0
    assert count_buckets("x" * 10**6).max() < BUCKETS


def test_a_word_has_the_same_bucket_wherever_it_stands() -> None:
    one, other = set(count_buckets("zebra")), set(count_buckets("a long way before the zebra"))
    assert len(one & other) == len(one)


def index_of(embedding: StaticEmbedding, tasks: int) -> TaskIndex:
    draw = np.random.default_rng(1)
    centroids = {f"task {n}": draw.normal(size=(6, 256)).astype(np.float32) / 64 for n in range(tasks)}
    centroids["returns"] = embedding.embed(["return a broken lamp", "refund for my order"])
    centroids["weather"] = embedding.embed(["will it rain tomorrow", "weather in Paris"])
    return TaskIndex.of(centroids, embedding)


def test_the_nearest_task_comes_first_among_a_thousand(embedding: StaticEmbedding) -> None:
    index = index_of(embedding, 998)
    assert index.candidates("I want my money back for the lamp", index.tasks, 3)[0] == "returns"
    assert index.candidates("is it going to be sunny", index.tasks, 3)[0] == "weather"
    assert len(index.candidates("x", index.tasks, 7)) == 7


def test_only_tasks_that_are_allowed_are_candidates(embedding: StaticEmbedding) -> None:
    index = index_of(embedding, 20)
    assert index.candidates("refund", {"weather", "unknown"}, 5) == ("weather",)
    assert index.candidates("refund", set(), 5) == ()


def test_an_index_is_built_of_models_and_of_none_there_is_none(model: ScopeModel) -> None:
    assert TaskIndex.build({}) is None
    index = TaskIndex.build({"returns": model})
    assert index is not None
    assert index.candidates("send it back", {"returns"}, 3) == ("returns",)

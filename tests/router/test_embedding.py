"""The words whose vectors are remembered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from router.embedding import WORDS_MAX, StaticEmbedding


@pytest.fixture(scope="module")
def embedding() -> StaticEmbedding:
    return StaticEmbedding.load()


def test_words_have_the_same_vectors_once_more_are_remembered_than_there_is_room_for(
    embedding: StaticEmbedding,
) -> None:
    first = embedding.look_up(["return", "the", "return", ""])
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    assert not first[3].any()
    for begin in range(0, 2 * WORDS_MAX, 1_000):
        words = [f"w{number}" for number in range(begin, begin + 1_000)]
        rows = embedding.look_up(words)
        assert np.array_equal(embedding.look_up(words[::-1]), rows[::-1])
        assert np.array_equal(embedding.look_up(["return", "the", "return", ""]), first)
    assert len(embedding.look_up([f"x{number}" for number in range(WORDS_MAX + 1)])) == WORDS_MAX + 1


def test_threads_that_look_up_new_words_at_once_get_the_same_vectors(embedding: StaticEmbedding) -> None:
    lots = [[f"v{(7 * number) % 3_000}" for number in range(begin, begin + 600)] for begin in range(0, 12_000, 300)]
    with ThreadPoolExecutor(8) as pool:
        at_once = [*pool.map(embedding.look_up, lots)]
    alone = StaticEmbedding.load()
    assert all(np.array_equal(alone.look_up(words), rows) for words, rows in zip(lots, at_once, strict=True))

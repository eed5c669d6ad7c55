from __future__ import annotations

import time
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.ids import SHAPE, RequestIds, read_time, strip_id

IDS = RequestIds(b"a secret of thirty-two bytes....")
OTHERS = RequestIds(b"another secret of 32 bytes......")


def test_an_id_is_a_uuid_of_version_7_and_a_mac() -> None:
    made = IDS.make("caller1")
    parsed = uuid.UUID(made.rpartition("-")[0])
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert SHAPE.fullmatch(made)
    assert len(made) == 53


def test_an_id_is_genuine_for_every_gateway_with_the_secret_and_for_no_other() -> None:
    made = IDS.make("caller1")
    assert IDS.genuine(made)
    assert RequestIds(b"a secret of thirty-two bytes....").genuine(made, "caller1")
    assert not OTHERS.genuine(made)
    assert not IDS.genuine(OTHERS.make("caller1"))


def test_an_id_is_genuine_for_its_own_caller_and_for_who_may_judge_all() -> None:
    made = IDS.make("caller1")
    assert IDS.genuine(made, "caller1")
    assert IDS.genuine(made, "*")
    assert not IDS.genuine(made, "caller2")
    assert not IDS.genuine(made, "")


@given(st.integers(0, 44), st.sampled_from("0123456789abcdef-gG"))
def test_a_changed_character_is_noticed(place: int, character: str) -> None:
    made = IDS.make("caller1")
    forged = made[:place] + character + made[place + 1 :]
    assert IDS.genuine(forged, "caller1") == (forged == made)


@given(st.text(max_size=60))
def test_no_text_breaks_the_check(text: str) -> None:
    assert not IDS.genuine(text)
    assert strip_id(text) in (text, *SHAPE.findall(text))


@pytest.mark.parametrize("spelling", ["{}\n", " {}", "{}-", "urn:uuid:{}", "{{{}}}"])
def test_a_genuine_id_has_one_spelling(spelling: str) -> None:
    assert not IDS.genuine(spelling.format(IDS.make("caller1")))
    assert not IDS.genuine("ABCDEF00" + IDS.make("caller1")[8:])


def test_ids_sort_by_the_millisecond_in_which_they_were_made() -> None:
    made = [IDS.make("caller1") for _ in range(2000)]
    times = [read_time(one) for one in made]
    assert times == sorted(times)
    assert sorted(made, key=lambda one: one[:13]) == made
    assert abs(times[-1] - time.time()) < 5


def test_ids_do_not_repeat() -> None:
    assert Counter(IDS.make("caller1") for _ in range(5000)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("form", ["{}", "chatcmpl-{}", "cmpl-{}-0", "chatcmpl-{}-2", "req_{}"])
def test_our_id_is_found_within_the_id_of_an_answer(form: str) -> None:
    made = IDS.make("caller1")
    assert strip_id(form.format(made)) == made


def test_a_foreign_id_stays_as_it_is() -> None:
    assert strip_id("chatcmpl-9f3a") == "chatcmpl-9f3a"
    long = "x" * 200 + IDS.make("caller1")
    assert strip_id(long) == long

"""The fault benchmark: what counts as passed, the same for whoever is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.fault_cases import CASES, DOWN_SECONDS, TOKENS, Attempt, Run, Told
from tests.fakes.fault_rules import NAMED

WHOLE = Told(
    0.0,
    200,
    1.0,
    " ".join(["tiny-base#1 says:", *["elm"] * (TOKENS - 2)]),
    "tiny-base",
    "stop",
    {"completion_tokens": TOKENS},
    done=True,
)
INSTEAD = replace(WHOLE, text=WHOLE.text.replace("tiny-base", "large"), model="large")
CUT = replace(WHOLE, text=" ".join(WHOLE.text.split()[:40]))
TWICE = replace(WHOLE, text=f"{CUT.text} {WHOLE.text}")
ERROR = replace(CUT, error='{"code": "stream_broken"}', done=False, finish_reason=None)
BROKE = replace(CUT, broke="IncompleteRead", done=False, finish_reason=None)
REFUSED = Told(0.0, 400, 0.1, error='{"code": "content_policy", "message": "refused by the content policy"}')
PREFILL = replace(ERROR, error="does not support assistant message prefill")


def at(*seconds: float) -> list[Attempt]:
    return [Attempt(100.0 + one, goes_on=False) for one in seconds]


def passed(number: int, told: Told, primary: list[Attempt], fallback: list[Attempt] | None = None) -> bool:
    run = Run([told, WHOLE] if number == 9 else [told], primary, fallback or [], ("large",))
    return not CASES[number - 1].judge(run)


@pytest.mark.parametrize(
    ("number", "good"),
    [
        (1, (WHOLE, at(0, 2.1))),
        (2, (INSTEAD, at(0, 0.2, 0.7))),
        (3, (WHOLE, at(0, 0.2))),
        (4, (INSTEAD, at(0, 0.2, 0.6))),
        (5, (WHOLE, at(0, 0.2))),
        (6, (replace(INSTEAD, seconds=31.0), at(0))),
        (7, (replace(INSTEAD, seconds=11.0), at(0))),
        (8, (ERROR, at(0))),
        (8, (WHOLE, at(0, 0.3))),
        (9, (replace(INSTEAD, seconds=22.0), at(0))),
        (10, (WHOLE, at(0))),
        (11, (WHOLE, at(0))),
        (12, (INSTEAD, at(0))),
        (13, (REFUSED, at(0))),
        (14, (ERROR, at(0))),
        (16, (INSTEAD, at(0, 0.2, 0.6))),
    ],
)
def test_what_is_right_passes(number: int, good: tuple[Told, list[Attempt]]) -> None:
    assert passed(number, *good)


@pytest.mark.parametrize(
    ("number", "bad"),
    [
        (1, (WHOLE, at(0, 0.2))),
        (1, (INSTEAD, at(0, 2.1))),
        (1, (WHOLE, at(0, 0.2, 0.6, 2.2))),
        (2, (INSTEAD, at(0, 0.1, 0.2, 0.3, 0.4))),
        (2, (REFUSED, at(0, 0.2))),
        (3, (INSTEAD, at(0))),
        (4, (INSTEAD, at(0, 1, 2, 3))),
        (5, (REFUSED, at(0))),
        (6, (INSTEAD, at(0, 30))),
        (7, (replace(WHOLE, seconds=20.0), at(0))),
        (8, (CUT, at(0))),
        (8, (TWICE, at(0))),
        (8, (BROKE, at(0))),
        (9, (replace(WHOLE, seconds=60.0), at(0))),
        (10, (CUT, at(0))),
        (11, (replace(WHOLE, seconds=30.0), at(0))),
        (11, (replace(WHOLE, usage=None), at(0))),
        (12, (REFUSED, at(0))),
        (12, (INSTEAD, at(0, 0.1))),
        (13, (INSTEAD, at(0))),
        (13, (replace(REFUSED, status=500), at(0))),
        (14, (PREFILL, at(0))),
        (14, (CUT, at(0))),
        (16, (replace(INSTEAD, model="fault-16"), at(0))),
        (16, (replace(INSTEAD, usage={"completion_tokens": 2 * TOKENS}), at(0))),
    ],
)
def test_what_is_wrong_does_not(number: int, bad: tuple[Told, list[Attempt]]) -> None:
    assert not passed(number, *bad)


def test_a_primary_that_is_down_is_probed_seldom_and_used_again_soon() -> None:
    def run(probes: int, back_after: float) -> Run:
        told = [replace(INSTEAD, at=100.0 + one) for one in range(60)]
        told.append(replace(WHOLE, at=100.0 + DOWN_SECONDS + back_after))
        return Run(told, at(*range(probes)))

    judge = CASES[14].judge
    assert not judge(run(8, 10.0))
    assert judge(run(40, 10.0))
    assert judge(run(8, 31.0))
    assert judge(replace(run(8, 10.0), told=[ERROR, *run(8, 10.0).told]))


def test_every_row_shows_a_fault_that_the_fake_engine_knows() -> None:
    assert [case.number for case in CASES] == list(range(1, 17))
    assert {case.fault for case in CASES} <= set(NAMED)

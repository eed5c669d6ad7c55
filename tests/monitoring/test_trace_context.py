"""W3C trace contexts: a caller's is handed on as the recommendation says, or not at all."""

from __future__ import annotations

import pytest

from monitoring.trace_context import make_context, read_trace

IDS = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
PARENT = f"00-{IDS}-01"
LONG_KEY, LONG_VALUE = "k" * 256, "v" * 256


def read(*states: str, parents: tuple[str, ...] = (PARENT,)) -> tuple[str | None, str | None]:
    headers = [("host", "here"), *(("traceparent", each) for each in parents), *(("tracestate", s) for s in states)]
    return read_trace([(name.encode(), value.encode("latin-1")) for name, value in headers])


@pytest.mark.parametrize(
    ("states", "handed_on"),
    [
        ((), None),
        (("",), None),
        (("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (("b=2, a=1 ,,\tc=x y",), "b=2,a=1,c=x y"),
        (("a=1", "b=2"), "a=1,b=2"),
        (("tenant@system=1,0digit=2",), "tenant@system=1,0digit=2"),
        ((f"{LONG_KEY}={LONG_VALUE}",), f"{LONG_KEY}={LONG_VALUE}"),
        ((",".join(f"k{number}=v" for number in range(32)),), ",".join(f"k{number}=v" for number in range(32))),
        ((",".join(f"k{number}=v" for number in range(33)),), None),
        ((f"{LONG_KEY}k=v",), None),
        ((f"k={LONG_VALUE}v",), None),
        (("a=1,B=2",), None),
        (("a=1=2",), None),
        (("a",), None),
        (("a=\x1b",), None),
        (("a=\xe9",), None),
    ],
)
def test_a_state_is_handed_on_in_its_order_or_dropped(states: tuple[str, ...], handed_on: str | None) -> None:
    assert read(*states) == (PARENT, handed_on)


@pytest.mark.parametrize("parents", [(), ("00-1",), (f"ff-{IDS}-01",), (f"{PARENT}-more",), (PARENT, PARENT)])
def test_a_state_without_its_context_is_dropped(parents: tuple[str, ...]) -> None:
    assert read("a=1", parents=parents) == (None, None)


def test_of_a_later_version_the_core_is_handed_on_with_its_state() -> None:
    assert read("a=1", parents=(f"cc-{IDS}-09-what-comes-later",)) == (f"00-{IDS}-01", "a=1")


@pytest.mark.parametrize(("flags", "handed_on"), [("01", "01"), ("03", "03"), ("ff", "03")])
def test_a_span_of_ours_keeps_the_flags_that_are_known(flags: str, handed_on: str) -> None:
    context = make_context("0" * 31 + "1" + "2" * 16, f"00-{IDS}-{flags}", 0.0, 1.0)
    assert context is not None
    assert context.header(1).rpartition("-")[2] == handed_on

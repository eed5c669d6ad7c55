"""Events are found once each, by a real Prometheus, at the first step after them; a gap in the data is none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from tests.fakes.prometheus import asked, prometheus, write_history
from tests.tools.dashboards.boards import BOARDS, filled

STEP, SCRAPE = 60, 15
HOUR = 3600
PROMOTED, SUSPECT, DEGRADED, RETURNED, CANARY_BACK = 600, 900, 1200, 1500, 2100
GAP = (2400, 3000)


def samples(begin: float) -> Iterator[str]:
    """An hour of two gateways: v1 leads, v2 is promoted, degrades and is rolled back; later a canary is."""
    for passed in range(0, HOUR + 1, SCRAPE):
        if GAP[0] <= passed < GAP[1]:
            continue
        leads, other = ("v2", "v1") if PROMOTED <= passed < RETURNED else ("v1", "v2")
        states = {leads: "active", other: "previous_version" if passed >= PROMOTED else "ready"}
        verdict = 2 if DEGRADED <= passed < RETURNED else 1 if SUSPECT <= passed < DEGRADED else 0
        series = {
            'apprentice_build_info{version="0.1.0"': 1,
            'apprentice_canary_verdicts_total{task="returns",action="roll_back"': int(passed >= CANARY_BACK),
            'apprentice_verdict{task="returns",version="v2"': verdict,
            **{f'apprentice_adapter_info{{task="returns",version="{v}",state="{s}"': 1 for v, s in states.items()},
        }
        for gateway in ("a", "b"):
            for name, value in series.items():
                yield f'{name},instance="{gateway}"}} {value} {begin + passed:.3f}\n'
    yield "# EOF\n"


def marked(client: httpx.Client, name: str, begin: float) -> list[tuple[Mapping[str, str], list[int]]]:
    """The series of an event, and the seconds of their values."""
    (event,) = [each for each in BOARDS["adapters"]["annotations"]["list"] if each["name"] == name]
    expr = filled(event["target"]["expr"], HOUR, STEP).replace(f"[{4 * STEP}s]", f"[{STEP + SCRAPE}s]")
    found = asked(client, "query_range", query=expr, start=begin, end=begin + HOUR, step=STEP)["result"]
    values = [(one["metric"], [int(at - begin) for at, value in one["values"] if float(value) > 0]) for one in found]
    return [(labels, times) for labels, times in values if times]


def test_each_event_is_marked_once_and_a_gap_is_none(tmp_path: Path) -> None:
    begin = time.time() // STEP * STEP - 2 * HOUR
    (tmp_path / "prometheus.yaml").write_text("{}")
    data = write_history(samples(begin), tmp_path)
    with prometheus(tmp_path / "prometheus.yaml", data, SCRAPE) as client:
        promotions, rollbacks, verdicts = (
            marked(client, name, begin) for name in ("Promotions", "Rollbacks", "Verdicts")
        )
    assert promotions == [({"task": "returns", "version": "v2"}, [PROMOTED])]
    back = {one["version"]: times for one, times in rollbacks}
    assert back.pop("v1") == [RETURNED]
    ((canary, times),) = back.items()
    assert canary == "the version before its canary"
    assert times[0] == CANARY_BACK
    assert [(one["verdict"], times) for one, times in sorted(verdicts, key=lambda found: found[1])] == [
        ("suspect", [SUSPECT]),
        ("degraded", [DEGRADED]),
        ("healthy", [RETURNED]),
    ]

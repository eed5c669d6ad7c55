"""kill -9 under load, and what is left: `python -m benchmarks.durability [--json] [--kills N] [--seed S]`.

Callers ask, judge every answer and send again what was not acknowledged; admins set and remove rules and make keys. At
random moments a process is killed with SIGKILL:

gateway           the gateway, with its embedded Valkey, which the next gateway takes over
embedded_valkey   the embedded Valkey alone, which the gateway starts again
redis             a configured Redis with appendfsync everysec, started again by its operator
failover          a primary whose replica is promoted: it is cut off first, so that the gateway goes on writing to the
                  old one; then that is killed with the gateway, which is started again with the other redis_url.
                  Both have appendfsync always
failover_unacked  the same with replicas_acked_min 0, to show what is lost without it

In the end the gateway is stopped and started again, and what was acknowledged is looked for.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.durability_counts import Reader, count
from benchmarks.durability_load import Crowd
from benchmarks.durability_subjects import ALWAYS, EVERYSEC, KilledGateway, Valkey, fake_engine, pid_of, tells, until
from benchmarks.harness import Goal, conclude, options, say, table

ZERO = (
    "feedback_lost",
    "changes_lost",
    "audit_broken",
    "audit_missing",
    "records_counted_twice",
    "feedback_counted_twice",
)
OF_RECORDS = "records_lost_beyond_window"
SUBJECTS = ("gateway", "embedded_valkey", "redis", "failover", "failover_unacked")
HELD = ("gateway", "embedded_valkey", "redis", "failover")
CALLERS, ADMINS = 4, 2
CALLERS_EVERYSEC = 12
UP_SECONDS = (0.2, 1.0)
UP_SECONDS_EVERYSEC = (1.0, 4.0)
"""Where an acknowledgement takes more than a second."""
SHOWN_SECONDS_MAX = 60.0
AWAY_SECONDS = 0.3
CUT_OFF_SECONDS = (0.1, 0.6)
ACKED_TIMEOUT_SECONDS = 4.0
FLUSH_INTERVAL_SECONDS = 0.02
WINDOW_SECONDS = 2 * FLUSH_INTERVAL_SECONDS + 0.2
"""The records that a killed gateway may lose: docs/reference/records.md."""
KILLS = 20
FAILOVER_SHARE = 5
FULL = "100 kills of each instead of 20, and a fifth of that of failovers; not measured, about 25 minutes"
GOALS = (
    *(Goal(f"{subject}.{name}", at_most=0) for subject in HELD for name in ZERO),
    *(Goal(f"{subject}.{OF_RECORDS}", at_most=0) for subject in HELD if subject != "failover"),
    *(Goal(f"{subject}.requests_failed", at_most=0) for subject in ("embedded_valkey", "redis")),
    *(Goal(f"{subject}.{name}_acknowledged", at_least=1) for subject in HELD for name in ("feedback", "changes")),
)


@dataclass(slots=True)
class Scene:
    """One subject under load: the gateway, the Valkeys, and the moments of the gateway's death."""

    folder: Path
    gateway: KilledGateway
    crowd: Crowd
    draw: random.Random
    valkeys: list[Valkey]
    kills: list[float] = field(default_factory=list)

    @property
    def up_seconds(self) -> tuple[float, float]:
        """How long all goes well between two kills: at least, and at most."""
        return UP_SECONDS_EVERYSEC if self.valkeys else UP_SECONDS

    def between(self, bounds: tuple[float, float]) -> None:
        """Let the load go on for a random time, in seconds."""
        time.sleep(self.draw.uniform(*bounds))  # the load's own time

    def kill_gateway(self) -> None:
        """kill -9 of the gateway."""
        self.crowd.gateway_goes()
        self.kills.append(self.gateway.kill())

    def start_gateway(self, **sections: Any) -> None:
        """Start it again."""
        self.gateway.start(**sections)
        self.crowd.gateway_is_back()

    @property
    def redis(self) -> Path:
        """The socket of where state lives now."""
        return self.valkeys[0].socket if self.valkeys else self.gateway.embedded_socket

    def end(self) -> None:
        """Nothing is left running."""
        self.gateway.end()
        for valkey in self.valkeys:
            valkey.kill()


def kill_gateway(scene: Scene) -> None:
    """The gateway dies and is started again; its Valkey lives on."""
    scene.kill_gateway()
    scene.start_gateway()


def kill_embedded(scene: Scene) -> None:
    """The embedded Valkey dies, and the gateway starts it again."""
    dead = f"process_id:{pid_of(scene.redis)}"
    os.kill(pid_of(scene.redis), signal.SIGKILL)

    def is_back() -> bool:
        told = str(tells(scene.redis, "INFO", "server"))
        return "process_id:" in told and dead not in told

    until(is_back, "the embedded Valkey is back")


def kill_redis(scene: Scene) -> None:
    """The configured Redis dies, is away for a while, and comes back with its files."""
    (valkey,) = scene.valkeys
    valkey.kill()
    time.sleep(AWAY_SECONDS)  # as long as its operator takes
    valkey.start()


def fail_over(scene: Scene) -> None:
    """The replica is cut off and promoted, the primary dies with the gateway, which goes on with the promoted one."""
    primary, promoted = scene.valkeys
    promoted.promote()
    scene.between(CUT_OFF_SECONDS)
    primary.kill()
    scene.kill_gateway()
    scene.start_gateway(redis_url=promoted.url)
    scene.valkeys[:] = [promoted, Valkey(scene.folder / f"valkey-{len(scene.kills) + 2}", *ALWAYS)]
    scene.valkeys[1].start()
    scene.valkeys[1].follow(promoted)


WAYS: Mapping[str, Callable[[Scene], None]] = {
    "gateway": kill_gateway,
    "embedded_valkey": kill_embedded,
    "redis": kill_redis,
    "failover": fail_over,
    "failover_unacked": fail_over,
}


def valkeys_of(subject: str, folder: Path) -> tuple[list[Valkey], dict[str, Any]]:
    """The Valkeys that a subject needs, started, and what the gateway's configuration says of them."""
    if subject in ("gateway", "embedded_valkey"):
        return [], {}
    options = EVERYSEC if subject == "redis" else ALWAYS
    found = [Valkey(folder / f"valkey-{number}", *options) for number in (1, 2)]
    if subject == "redis":
        found = found[:1]
    for valkey in found:
        valkey.start()
    if subject != "redis":
        found[1].follow(found[0])
    acked = {"replicas_acked_min": int(subject == "failover"), "acked_timeout_seconds": ACKED_TIMEOUT_SECONDS}
    return found, {"redis_url": found[0].url, "redis": acked}


def measure_subject(subject: str, kills: int, engine_port: int, folder: Path, seed: int) -> dict[str, Any]:
    """Load, kills, an orderly stop and start, and the counts. Raises Unmeasurable."""
    key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
    with ExitStack() as stack:
        folder.mkdir()
        valkeys, sections = valkeys_of(subject, folder)
        records = {"flush_interval_seconds": FLUSH_INTERVAL_SECONDS}
        gateway = KilledGateway(folder / "gw", engine_port, key, {"records": records, **sections})
        crowd = Crowd(gateway.port, key, CALLERS_EVERYSEC if valkeys else CALLERS, ADMINS, seed)
        scene = Scene(folder, gateway, crowd, random.Random(f"{seed}-{subject}"), valkeys)
        stack.callback(scene.end)
        gateway.start()
        crowd.begin()
        try:
            until(crowd.has_something_to_lose, "feedback and a change are acknowledged", SHOWN_SECONDS_MAX)
            for _ in range(kills):
                scene.between(scene.up_seconds)
                WAYS[subject](scene)
            scene.between(scene.up_seconds)
        finally:
            noted = crowd.end()
        gateway.stop()
        gateway.start()
        reader = Reader(gateway.port, key, scene.redis)
        return {"kills": kills, **count(noted, scene.kills, reader, WINDOW_SECONDS)}


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All subjects. Raises Unmeasurable."""
    began = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    # Not in the repository's folder: a Unix socket's path may hold 104 bytes on some systems.
    with tempfile.TemporaryDirectory(prefix="dur") as place, fake_engine(Path(place)) as engine_port:
        for subject in asked.subjects:
            kills = max(1, asked.kills // FAILOVER_SHARE) if subject.startswith("failover") else asked.kills
            say(f"{subject}: {kills} kills")
            found[subject] = measure_subject(subject, kills, engine_port, Path(place) / subject, asked.seed)
    figures = {f"{subject}.{name}": value for subject, told in found.items() for name, value in told.items()}
    report = {
        "seed": asked.seed,
        "window_seconds": WINDOW_SECONDS,
        "took_seconds": round(time.monotonic() - began, 1),
        "subjects": found,
        "figures": figures,
    }
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    found: Mapping[str, Mapping[str, Any]] = report["subjects"]
    names = next(iter(found.values()))
    return table(["", *found], [[name, *(told[name] for told in found.values())] for name in names])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("durability", "kill -9 under load: what was acknowledged, and is lost.", full=FULL)
    parser.add_argument("--kills", type=int, help="kills of each; failovers are a fifth of them (default 20)")
    parser.add_argument(
        "--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS, help="what is killed (default all)"
    )
    asked = parser.parse_args(arguments)
    asked.kills = asked.kills or (5 * KILLS if asked.full else KILLS)
    if asked.kills < 1:
        parser.error("it takes a kill")
    goals = [goal for goal in GOALS if goal.figure.partition(".")[0] in asked.subjects]
    return conclude("durability", lambda: measure(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())

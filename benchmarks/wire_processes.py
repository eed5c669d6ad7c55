"""Process cases: what befalls the gateway, its Valkey, its disk and its clock, and what must hold of it.

Each has a gateway of its own, and callers who send again what was not acknowledged. Nothing that was acknowledged may
be lost, and every request is answered while the gateway is up.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.durability import WINDOW_SECONDS, measure_subject
from benchmarks.durability_counts import Reader, count
from benchmarks.durability_load import Crowd
from benchmarks.durability_subjects import EVERYSEC, KilledGateway, Valkey, fake_engine, pid_of, until
from benchmarks.fault_cases import ask as ask_model
from benchmarks.harness import Unmeasurable, answers, ask, require
from benchmarks.subjects import apprentice
from benchmarks.wire_engines import Outcome

CALLERS, ADMINS = 3, 1
STREAMS = 50
AWAY_SECONDS = 3.0
BACK_SECONDS_MAX = 15.0
RELOADS = 20
DISK_MB = 24
DAY_SECONDS = 86_400
ZERO = (
    "feedback_lost",
    "changes_lost",
    "audit_broken",
    "audit_missing",
    "feedback_counted_twice",
    "records_counted_twice",
)
ON_A_DISK = 'mkdir -p "$0" && mount -t tmpfs -o size={size}m none "$0" && exec "$@"'
CLOCK_SOURCE = Path(__file__).with_name("engine") / "clock.c"


@dataclass(frozen=True)
class Process:
    """A case: `run` gives the reasons for which it does not hold."""

    name: str
    says: str
    run: Callable[[Path], list[str]]


def play_process(case: Process) -> Outcome:
    """Run one case, with what it needs of its own."""
    began = time.monotonic()
    # Not in the repository's folder: a Unix socket's path may hold 104 bytes on some systems.
    with tempfile.TemporaryDirectory(prefix="wire") as folder:
        try:
            why = case.run(Path(folder))
        except (Unmeasurable, OSError) as error:
            why = [f"it could not be played: {error}"]
    return Outcome("process", case.name, case.says, "; ".join(why), time.monotonic() - began)


# ---- what they share ----------------------------------------------------------------------------


@dataclass
class Stage:
    """A gateway under load, and what its callers were told."""

    gateway: KilledGateway
    crowd: Crowd
    key: str
    folder: Path

    def lost(self, redis: Path, *, failed_max: int | None = 0) -> list[str]:
        """End the load, stop and start the gateway, and look for what was acknowledged."""
        noted = self.crowd.end()
        self.gateway.stop()
        self.gateway.start()
        told = count(noted, [], Reader(self.gateway.port, self.key, redis), WINDOW_SECONDS)
        return judged(told, failed_max)


@contextmanager
def stage(folder: Path, sections: Mapping[str, Any], **options: Any) -> Iterator[Stage]:
    """A gateway with callers and an admin, who begin at once."""
    key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
    with fake_engine(folder) as engine_port:
        records = {"flush_interval_seconds": 0.02}
        gateway = KilledGateway(folder / "gw", engine_port, key, {"records": records, **sections}, **options)
        crowd = Crowd(gateway.port, key, CALLERS, ADMINS, seed=1)
        try:
            gateway.start()
            crowd.begin()
            yield Stage(gateway, crowd, key, folder)
        finally:
            crowd.end()
            gateway.end()


def judged(told: Mapping[str, Any], failed_max: int | None) -> list[str]:
    """What must be nothing, and is not."""
    why = [f"{name}: {told[name]}" for name in ZERO if told[name]]
    if failed_max is not None and told["requests_failed"] > failed_max:
        why.append(f"{told['requests_failed']} of {told['requests_answered']} requests were not answered")
    if not told["feedback_acknowledged"] or not told["requests_answered"]:
        why.append("nothing was acknowledged, so that nothing is shown")
    return why


def let_pass(seconds: float) -> None:
    """Let the load go on."""
    time.sleep(seconds)  # the load's own time


# ---- the cases ----------------------------------------------------------------------------------


def _killed(subject: str, kills: int) -> Callable[[Path], list[str]]:
    """The same as in benchmarks.durability, with few kills."""

    def run(folder: Path) -> list[str]:
        with fake_engine(folder) as engine_port:
            told = measure_subject(subject, kills, engine_port, folder / subject, 1)
        why = judged(told, None if subject == "gateway" else 0)
        lost = told["records_lost_beyond_window"]
        return [*why, *([f"{lost} records older than the window were lost"] if lost else [])]

    return run


def _valkey_stopped(folder: Path) -> list[str]:
    """SIGSTOP: connections stay open, and nothing answers."""
    valkey = Valkey(folder / "valkey", *EVERYSEC)
    valkey.start()
    try:
        with stage(folder, {"redis_url": valkey.url}) as scene:
            let_pass(1.0)
            stopped = pid_of(valkey.socket)
            os.kill(stopped, signal.SIGSTOP)
            try:
                let_pass(AWAY_SECONDS)
            finally:
                os.kill(stopped, signal.SIGCONT)
            let_pass(2.0)
            return scene.lost(valkey.socket)
    finally:
        valkey.kill()


def _disk_full(folder: Path) -> list[str]:
    """The data folder's disk is full for a while, and has room again then."""
    disk = folder / "gw"
    before = [require("unshare", "util-linux"), "-rm", "sh", "-c", ON_A_DISK.format(size=DISK_MB), str(disk / "data")]
    with stage(folder, {}, before=before) as scene:
        let_pass(1.0)
        seen = Path(f"/proc/{scene.gateway.pid}/root{disk}/data")
        filler = seen / "filler"
        _fill(filler)
        let_pass(AWAY_SECONDS)
        why = [] if answers(scene.gateway.port, "/health/live") else ["the gateway is not alive on a full disk"]
        filler.unlink()
        until(lambda: _judge_one(scene) == 201, "feedback is taken once there is room again", BACK_SECONDS_MAX)
        noted = scene.crowd.end()
        if not noted.refused:
            why.append("nothing was refused, so that the disk was not full")
        socket = seen / "valkey" / "valkey.sock"  # the disk goes with its process: nothing is started again
        told = count(noted, [], Reader(scene.gateway.port, scene.key, socket), WINDOW_SECONDS)
        return [*why, *judged(told, 0)]


def _fill(filler: Path) -> None:
    """Take all the room that is left."""
    with filler.open("wb", buffering=0) as full:
        try:
            while full.write(b"x" * 4096):
                pass
        except OSError:
            return


def _judge_one(scene: Stage) -> int:
    body = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}
    status, headers, _ = ask(scene.gateway.port, "POST", "/v1/chat/completions", body, scene.key)
    if status != 200:
        return status
    feedback = {"request_id": headers["x-request-id"], "feedback_id": "the-last", "metric": "correct", "value": True}
    return ask(scene.gateway.port, "POST", "/v1/feedback", feedback, scene.key)[0]


def _terminated(folder: Path) -> list[str]:
    """SIGTERM with 50 streams: readiness turns first, every stream ends whole, every record is there afterwards."""
    key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
    slow = ("--n-tokens", "60", "--token-delay-seconds", "0.1")
    with fake_engine(folder, *slow) as engine_port, ThreadPoolExecutor(STREAMS) as threads:
        gateway = KilledGateway(folder / "gw", engine_port, key, {})
        try:
            gateway.start()
            asked = [threads.submit(ask_model, gateway.port, "general", key, True) for _ in range(STREAMS)]
            until(lambda: _under_way(engine_port) == STREAMS, "all streams are under way")
            os.kill(gateway.pid, signal.SIGTERM)
            until(lambda: not answers(gateway.port, "/health/ready"), "readiness turns", 2.0)
            told = [one.result() for one in asked]
            until(lambda: gateway.exit_code is not None, "the gateway ends", 20.0)
            why = [f"it ended with {gateway.exit_code}"] if gateway.exit_code else []
            cut = [one for one in told if not (one.is_whole and one.done)]
            if cut:
                why.append(f"{len(cut)} of {STREAMS} streams were not whole: {cut[0].error or cut[0].broke}")
            gateway.start()
            missing = [
                one
                for one in told
                if ask(gateway.port, "GET", f"/v1/requests/{one.headers.get('x-request-id')}", None, key)[0] != 200
            ]
            return [*why, *([f"{len(missing)} records are missing"] if missing else [])]
        finally:
            gateway.end()


def _under_way(engine_port: int) -> int:
    return int(json.loads(ask(engine_port, "GET", "/__state")[2])["in_flight"])


def _reloads(folder: Path) -> list[str]:
    """SIGHUP again and again under load, every third time with a file that can't be used."""
    with stage(folder, {}) as scene:
        config = scene.gateway.folder / "apprentice.yaml"
        for number in range(RELOADS):
            scene.gateway.write(tasks={"returns": {"max_tokens_max": 1000 + number}})
            if number % 3 == 2:
                config.write_text("pools: {", encoding="utf-8")
            os.kill(scene.gateway.pid, signal.SIGHUP)
            let_pass(0.2)
        config.write_text('{"nonsense": 1}', encoding="utf-8")
        status = ask(scene.gateway.port, "POST", "/admin/v1/reload", None, scene.key)[0]
        why = [] if status == 422 else [f"a file that can't be used was answered with {status}"]
        scene.gateway.write(tasks={"returns": {"max_tokens_max": 77}})
        status = ask(scene.gateway.port, "POST", "/admin/v1/reload", None, scene.key)[0]
        why += [] if status == 200 else [f"a file that can be used was answered with {status}"]
        return [*why, *scene.lost(scene.gateway.embedded_socket)]


def _unknown_key(folder: Path) -> list[str]:
    """A setting that nobody knows."""
    config = folder / "apprentice.yaml"
    config.write_text('{"pools": {}, "limits": {"retrys_max": 1}}', encoding="utf-8")
    done = subprocess.run([apprentice(), "serve", "--config", str(config)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    why = [] if done.returncode else ["it started"]
    return [*why, *([] if "retrys_max" in said else [f"it does not name the key: {said[-200:]}"])]


def _clock(folder: Path) -> list[str]:
    """The wall clock goes a day forward, then an hour back, then to what it was."""
    library, offset = folder / "clock.so", folder / "offset"
    compiled = [require("gcc", "gcc libc6-dev"), "-O2", "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE)]
    subprocess.run(compiled, check=True)
    offset.write_bytes(struct.pack("l", 0))
    environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(offset)}
    with stage(folder, {}, environment=environment) as scene:
        why = []
        for seconds in (DAY_SECONDS, DAY_SECONDS - 3600, -3600, 0):
            let_pass(1.0)
            with offset.open("r+b") as told:  # the same file, which is mapped
                told.write(struct.pack("l", seconds))
            let_pass(1.0)
            if not answers(scene.gateway.port, "/health/ready"):
                why.append(f"not ready with a clock that is {seconds} s off")
        return [*why, *scene.lost(scene.gateway.embedded_socket)]


PROCESSES: Sequence[Process] = (
    Process("gateway-killed-twice", "kill -9 of the gateway, twice, under callers who retry", _killed("gateway", 2)),
    Process("embedded-valkey-killed", "kill -9 of the embedded Valkey, twice", _killed("embedded_valkey", 2)),
    Process("valkey-killed", "kill -9 of a configured Valkey, which comes back", _killed("redis", 1)),
    Process("valkey-stopped", "a configured Valkey that answers nothing for 3 s", _valkey_stopped),
    Process("disk-full", "no room on the data folder's disk for 3 s", _disk_full),
    Process("sigterm-with-50-streams", "SIGTERM while 50 streams are under way", _terminated),
    Process("reloads-under-load", "20 reloads under load, some of a file that can't be used", _reloads),
    Process("unknown-key-at-the-start", "a setting that nobody knows", _unknown_key),
    Process("clock-that-jumps", "a wall clock that jumps by a day and back", _clock),
)

"""The routed whole on real engines: requests in scope and out of it, by the adapter alone, by general, and routed.

The gateway runs as it is deployed, in front of one vLLM that serves the demo model as both pools. The version's
scope is fitted from a part of its training prompts, its confidence is calibrated on held-out rows, and other
held-out rows are asked, with as many requests that are none of the task's (CLINC150's queries out of scope, Bitext's
customer service). Each request goes to each arm once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import (
    FOLDER,
    POLL_SECONDS,
    ROOT,
    Goal,
    Running,
    Unmeasurable,
    answers,
    ask,
    conclude,
    options,
    say,
    table,
)
from benchmarks.scores import DATA, bitext, clinc150
from benchmarks.subjects import BASE_MODEL, TASK, apprentice
from benchmarks.swap_subjects import MODEL, start_engines
from monitoring.intervals import find_share_interval
from tests.fakes.ports import free_port

RETURNS = ROOT / "examples" / "returns"
ARMS = ("adapter", "general", "routed")
ROWS = 200
PROMPTS = 3_000
AT_ONCE = 6
WAIT_SECONDS_MAX = 1_800.0
ANSWER_SECONDS_MAX = 300.0
DEFERRED_SHARE = 0.05
WRONG_SHARE_MAX = 0.05
PATH = "/v1/chat/completions"
FULL = "the default is all of it: 10 minutes on two cores"
GOALS = [
    Goal("out_of_scope_answered_by_adapter_routed", at_most=0.15),
    Goal("kept_and_wrong_low", at_most=WRONG_SHARE_MAX),
]


@dataclass(frozen=True)
class Case:
    """A request, and what the policy answers; None where it is none of the task's. Those of one parent are alike."""

    text: str
    expected: Mapping[str, str] | None
    source: str
    parent: str = ""


@dataclass(frozen=True)
class Seen:
    """What an arm made of a case."""

    case: Case
    status: int
    text: str
    version: str
    reason: str
    cost_usd: float

    @property
    def decided(self) -> dict[str, Any] | None:
        """The decision that the answer holds, if it holds one."""
        try:
            answer = json.loads(self.text)
        except ValueError:
            return None
        return answer if isinstance(answer, dict) and "decision" in answer else None

    @property
    def wrong(self) -> bool:
        """Another decision or rule than the policy's; for what is out of scope, any decision at all."""
        if self.case.expected is None:
            return self.decided is not None
        decided = self.decided or {}  # it may hold more, such as the facts that led to it
        return any(decided.get(name) != value for name, value in self.case.expected.items())


# ---- the cases ----------------------------------------------------------------------------------


def held_out() -> list[Case]:
    """The rows of the returns example that no training row is like."""
    rows = []
    for name in ("heldout_templates", "heldout_hand"):
        for line in (RETURNS / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append(Case(row["text"], json.loads(row["label"]), name, row["parent"]))
    return rows


def split(rows: Sequence[Case], count: int, draw: random.Random) -> tuple[list[Case], list[Case]]:
    """`count` rows to ask, and others to calibrate on: no parent is in both, so that they are told apart by wording."""
    parents = sorted({row.parent for row in rows})
    draw.shuffle(parents)
    test: list[Case] = []
    for parent in parents:
        if len(test) >= count:
            break
        test += [row for row in rows if row.parent == parent]
    asked = {row.parent for row in test}
    return draw.sample(test, count), [row for row in rows if row.parent not in asked]


def others(data: Path, count: int, draw: random.Random) -> list[Case]:
    """Requests that are none of the task's: half of them CLINC150's out-of-scope queries, half Bitext's test rows."""
    outside = draw.sample(clinc150(data).outside, count // 2)
    service = draw.sample([row.text for row in bitext(data).test], count - count // 2)
    return [Case(text, None, "clinc150") for text in outside] + [Case(text, None, "bitext") for text in service]


# ---- the gateway --------------------------------------------------------------------------------


class Gateway:
    """The gateway under test, as its admin and a caller see it."""

    def __init__(self, stack: ExitStack, folder: Path, engine_port: int) -> None:
        self.port = free_port()
        self.key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
        config = folder / "apprentice.yaml"
        config.write_text(json.dumps(configuration(folder, engine_port, self.port), indent=1), encoding="utf-8")
        command = [apprentice(), "serve", "--config", str(config)]
        log = folder / "gateway.log"
        gateway = stack.enter_context(Running("gateway", command, None, log, {"APPRENTICE_ADMIN_KEY": self.key}))
        gateway.wait_until(lambda: answers(self.port, "/health/ready"), 60)

    def admin(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> dict[str, Any]:
        """A call of the admin API. Raises Unmeasurable."""
        status, told = self._send(method, f"/admin/v1/{path}", body, kind)
        if status >= 300:
            raise Unmeasurable(f"The gateway answered {status} to {method} {path}: {json.dumps(told)[:400]}")
        return told

    def _send(self, method: str, path: str, body: Any, kind: str) -> tuple[int, dict[str, Any]]:
        status, _, answer = ask(self.port, method, path, body, self.key, ANSWER_SECONDS_MAX, kind)
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, {"text": answer[:300].decode(errors="replace")}

    def until(self, path: str, what: str, done: Any) -> dict[str, Any]:
        """Look until it is done. Raises Unmeasurable where it failed, or took too long."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not done(told := self.admin("GET", path)):
            if time.monotonic() > deadline:
                raise Unmeasurable(f"{what} was not done within {WAIT_SECONDS_MAX:g} s: {json.dumps(told)[:400]}")
            time.sleep(20 * POLL_SECONDS)  # waits for the gateway, in a program without an event loop
        return told

    def answer(self, model: str, case: Case, system: str = "", sampling: Mapping[str, Any] | None = None) -> Seen:
        """A case's answer."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": case.text})
        body = {"model": model, "messages": messages, **(sampling or {})}
        status, headers, answer = ask(self.port, "POST", PATH, body, self.key, ANSWER_SECONDS_MAX)
        text = ""
        if status == 200:
            text = json.loads(answer)["choices"][0]["message"]["content"] or ""
        cost = float(headers.get("x-apprentice-cost-usd", 0.0))
        version, reason = headers.get("x-apprentice-version", ""), headers.get("x-apprentice-reason", "")
        return Seen(case, status, text, version, reason, cost)


def configuration(folder: Path, engine_port: int, port: int) -> dict[str, Any]:
    """An apprentice.yaml with all checks enforced that the benchmark is about."""
    url = f"http://127.0.0.1:{engine_port}"
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "data_folder": str(folder / "data"),
        "import_folders": ["/"],
        "limits": {"answer_timeout_seconds": ANSWER_SECONDS_MAX, "request_timeout_seconds": ANSWER_SECONDS_MAX},
        "pools": {
            "small": {
                "base_model": BASE_MODEL,
                "base_folder": str(MODEL),
                "replicas": [{"name": "small-0", "url": url}],
                "price": {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04},
            },
            "general": {
                "base_model": BASE_MODEL,
                "callable": True,
                "replicas": [{"name": "general-0", "url": url}],
                "price": {"prompt_usd_per_million_tokens": 0.6, "completion_usd_per_million_tokens": 2.4},
            },
        },
        "tasks": {
            TASK: {
                "commit": "complete",
                "max_tokens_max": 512,
                "checks": {
                    "out_of_scope": {"mode": "enforce", "deferred_share": DEFERRED_SHARE},
                    "contract": {"mode": "enforce", "fallback_breaks": "flag"},
                    "low_confidence": {"mode": "enforce", "wrong_share_max": WRONG_SHARE_MAX},
                    "refusal": {"mode": "enforce"},
                },
            }
        },
    }


def set_up(
    gateway: Gateway, folder: Path, calibration: Sequence[Case], draw: random.Random, rows_out: Path | None
) -> tuple[str, Any, Any]:
    """Register, fit, place and calibrate the version: its name, what was fitted, and the evaluation's report."""
    lines = (RETURNS / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(draw.sample(lines, min(PROMPTS, len(lines)))) + "\n", encoding="utf-8")
    body = {"task": TASK, "path": str(RETURNS / "adapter"), "prompts": str(prompts)}
    version = str(gateway.admin("POST", "adapters", body)["version"])
    say(f"{version}: placing it, and fitting its scope from {PROMPTS} prompts")
    gateway.admin("POST", f"adapters/{version}/stage?wait_seconds=120")
    gateway.admin("PUT", f"aliases/{TASK}", {"version": version})
    fitted = gateway.until(f"adapters/{version}", "The fitting", lambda told: _ended(told["fitted"]))["fitted"]
    rows = [{"text": one.text, "expected": json.dumps(one.expected)} for one in calibration]
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    say(f"{version}: calibrating on {len(rows)} held-out rows")
    query = f"evaluations?version={version}&arms=adapter&calibrate=true&metric=fields:decision,rule"
    one = gateway.admin("POST", query, data, "application/x-ndjson")
    path = f"evaluations/{one['id']}"
    report = gateway.until(path, "The evaluation", lambda told: told["status"] != "running")
    if report["status"] != "done":
        raise Unmeasurable(f"The evaluation ended as {report['status']}: {json.dumps(report)[:400]}")
    if rows_out is not None:
        command = [apprentice(), "evaluations", "show", one["id"], "--rows-out", str(rows_out.absolute()), "--force"]
        environment = {"APPRENTICE_URL": f"http://127.0.0.1:{gateway.port}", "APPRENTICE_KEY": gateway.key}
        subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
    return version, fitted, report["report"]


def _ended(fitted: Any) -> bool:
    """Whether the scope is fitted. Raises Unmeasurable where that failed."""
    text = json.dumps(fitted)
    if '"failed"' in text:
        raise Unmeasurable(f"The scope was not fitted: {text[:400]}")
    return '"ready"' in text


# ---- the figures --------------------------------------------------------------------------------


def ask_arm(gateway: Gateway, arm: str, version: str, cases: Sequence[Case]) -> list[Seen]:
    """An arm's answers to all cases, with progress."""
    manifest = yaml.safe_load((RETURNS / "manifest.yaml").read_text(encoding="utf-8"))
    general_prompt = manifest["general_prompt"]
    began, seen = time.monotonic(), []

    def one(case: Case) -> Seen:
        if arm == "general":
            return gateway.answer("general", case, general_prompt["system"], general_prompt["sampling"])
        return gateway.answer(version if arm == "adapter" else TASK, case)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for number, found in enumerate(threads.map(one, cases), 1):
            seen.append(found)
            if number % 50 == 0 or number == len(cases):
                say(f"{arm}: {number} of {len(cases)} in {time.monotonic() - began:.0f} s")
    failed = [one for one in seen if one.status != 200]
    if failed:
        say(f"{arm}: {len(failed)} were not answered, the first with {failed[0].status}")
    return seen


def figures_of(seen: Sequence[Seen]) -> dict[str, Any]:
    """An arm's share of errors, cost, and where its requests went."""
    inside = [one for one in seen if one.case.expected is not None]
    outside = [one for one in seen if one.case.expected is None]
    kept_wrong = [one for one in inside if one.version and one.wrong]
    return {
        "in_scope_right": _share(not one.wrong for one in inside),
        "in_scope_by_adapter": _share(bool(one.version) for one in inside),
        "in_scope_kept_and_wrong": _share(one in kept_wrong for one in inside),
        "out_of_scope_by_adapter": _share(bool(one.version) for one in outside),
        "out_of_scope_decided": _share(one.wrong for one in outside),
        "wrong": _share(one.wrong for one in seen),
        "usd_per_1000": 1000 * sum(one.cost_usd for one in seen) / len(seen),
        "not_answered": sum(one.status != 200 for one in seen),
        "reasons": dict(Counter(f"{_kind(one)}: {one.reason or one.status}" for one in seen)),
        "out_of_scope_by_source": {
            source: _share(bool(one.version) for one in outside if one.case.source == source)
            for source in ("clinc150", "bitext")
        },
    }


def _kind(one: Seen) -> str:
    return "in scope" if one.case.expected is not None else "out of scope"


def _share(found: Any) -> float:
    values = list(found)
    return sum(values) / len(values) if values else math.nan


def lower_bound(share: float, count: int, z: float = 2.5758) -> float:
    """The lower end of a share's 99% interval (Wilson)."""
    return find_share_interval(share, count, z)[0]


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Start everything, set the version up, ask each arm. Raises Unmeasurable."""
    began = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw = random.Random(asked.seed)
    test, calibration = split(held_out(), asked.rows, draw)
    cases = [*test, *others(asked.data, asked.rows, draw)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routed-", dir=FOLDER)))
        say("Starting vLLM")
        port = start_engines(stack, "vllm", folder, 1)[0]
        gateway = Gateway(stack, folder, port)
        version, fitted, report = set_up(gateway, folder, calibration, draw, asked.rows_out)
        arms = {arm: figures_of(ask_arm(gateway, arm, version, cases)) for arm in ARMS}
    routed = arms["routed"]
    return {
        "seed": asked.seed,
        "rows_in_scope": len(test),
        "rows_out_of_scope": len(cases) - len(test),
        "calibration_rows": len(calibration),
        "arms": arms,
        "fitted": fitted,
        "calibration": report.get("calibration"),
        "took_seconds": round(time.monotonic() - began, 1),
        "figures": {
            "out_of_scope_answered_by_adapter_routed": routed["out_of_scope_by_adapter"],
            "kept_and_wrong_low": lower_bound(routed["in_scope_kept_and_wrong"], len(test)),
        },
    }, []


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    arms: Mapping[str, Mapping[str, Any]] = report["arms"]
    names = [name for name, value in arms["routed"].items() if not isinstance(value, dict)]
    reasons = [[reason, count] for reason, count in sorted(arms["routed"]["reasons"].items())]
    return "\n".join(
        [
            table(["", *arms], [[name.replace("_", " "), *(arm[name] for arm in arms.values())] for name in names]),
            "",
            table(["routed", "requests"], reasons),
            "",
            f"{report['rows_in_scope']} in scope, {report['rows_out_of_scope']} out of scope, calibrated on "
            f"{report['calibration_rows']}, seed {report['seed']}, {report['took_seconds']:g} s.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("routed", "The returns adapter on real vLLM: adapter alone, general alone, routed.", full=FULL)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with clinc150 and bitext_cs (benchmarks/data)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"requests in scope, and as many out (default {ROWS})")
    parser.add_argument(
        "--rows-out",
        type=Path,
        metavar="FILE",
        help="write the calibration's rows there, as `python -m benchmarks.confidence --rows` reads them",
    )
    asked = parser.parse_args(arguments)
    if not 10 <= asked.rows <= 400:
        parser.error("--rows: from 10 to 400, so that enough held-out rows are left to calibrate on")
    return conclude("routed", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())

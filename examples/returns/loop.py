"""Demo of the whole loop on real vLLM: a rule changes, v1 degrades, labels become data, and a better version takes
over.

    PYTHONPATH=. python examples/returns/loop.py --json var/demo-loop/loop.json --plot docs/loop-demo.svg

It starts an engine and a gateway on this machine, and trains there too. v1 leads and is right. Then two rules of the
shop change. Callers' feedback shows it, the monitor says degraded, and texts with labels become a data set. Three
versions are trained on it: one on flipped labels, one that forgets a rule, and a good one. The gate refuses the first
two. The good one becomes a canary, is promoted by its evidence, and the error is back where it was.

The data set has the requests since the change, and rows of the adapter's own training data by rules that did not
change: without those a version forgets rare rules, and the gate sees it.
With `--auto` the system builds, trains and evaluates by itself (`retraining: auto`), up to the gate. v1 is pushed with
the data set that it was trained on; half of the new training is rows of that whose answers no label refutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from customers import TRAFFIC_SHARES, Shop, drawn_cases
from picture import loop_picture, written
from policy import Season, answer_for
from rich.console import Console

from gateway.configuration.settings import Settings, load_settings
from gateway.errors import SettingsError
from tools.engines.errors import LaunchError
from tools.engines.lock import hold_or_refuse
from tools.engines.progress import Steps
from tools.local_product import LocalProduct, check_port, ensure_key, make_local_configuration, plan_engines
from tools.up import TASK

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
APPLICATIONS = 8
"""Keys that send cases and feedback in turn: one caller alone can't change a verdict."""
ENGINE_PORT = 8121
WINDOW = 50
LOOK_SECONDS = 2.0
FLIPPED = {"approve": "deny", "deny": "approve", "escalate": "approve"}
FORGOTTEN_RULE = "outside-eu"
CHANGED_RULES = ("goodwill-60", "no-receipt")
OLD, NEW = "regular", "holiday"
"""The policy before and after the change: in the new one `goodwill-60` and `no-receipt` approve."""


class Untold(Exception):
    """The demo did not come to its end; the message says what was waited for."""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=2026, help="of the cases, and of the answers that are judged")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second at most")
    parser.add_argument(
        "--quiet-rate", type=float, default=0.8, help="the same while versions are trained and evaluated"
    )
    parser.add_argument("--calm", type=float, default=60.0, help="seconds before the rule changes")
    parser.add_argument("--labels", type=int, help="labels under the new rules that a data set needs (260, auto 400)")
    parser.add_argument("--old-rows", type=int, default=360, help="rows of unchanged rules in the data set")
    parser.add_argument("--suite-rows", type=int, default=360, help="rows of the suite that the gate reads")
    parser.add_argument("--steps", type=int, default=160, help="steps of the good training; the others have a quarter")
    parser.add_argument("--wait", type=float, default=1200.0, help="seconds in which each step has to come to its end")
    parser.add_argument("--auto", action="store_true", help="retraining: auto; only the good version is made")
    parser.add_argument("--config", type=Path, default=HERE / "loop.yaml", help="the configuration to start from")
    parser.add_argument("--folder", type=Path, default=ROOT / "var", help="where engine, model, logs and data are kept")
    parser.add_argument("--json", type=Path, default=ROOT / "var" / "demo-loop" / "loop.json", help="for the series")
    parser.add_argument("--plot", type=Path, default=ROOT / "var" / "demo-loop" / "loop.svg", help="for the picture")
    args = parser.parse_args()
    args.labels = args.labels or (400 if args.auto else 260)
    return args


class Operator:
    """Runs `apprentice` commands as an admin would, and shows each."""

    def __init__(self, url: str, key_file: Path, say: Callable[[str], None]) -> None:
        self._connection = ("--json", "--gateway", url, "--key-file", str(key_file))
        self._say = say

    async def run(self, *words: object, fails: bool = False) -> dict[str, Any]:
        """The JSON that a command prints. Raises Untold where it fails, or where it does not though it `fails`."""
        shown = " ".join(str(word) for word in words)
        self._say(f"$ apprentice {shown}")
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("apprentice")),
            *(str(word) for word in (*words, *self._connection)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if bool(process.returncode) != fails:
            raise Untold(f"`apprentice {shown}` ended with {process.returncode}: {err.decode()[-500:]}")
        content: dict[str, Any] = json.loads(out)
        return content


class Loop:
    """One telling of it: the shop goes on all the while, and `points` and `events` are what was seen."""

    def __init__(self, args: argparse.Namespace, operator: Operator, admin: httpx.AsyncClient, shop: Shop,
                 say: Callable[[str], None]) -> None:  # fmt: skip
        self.points: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.gates: list[dict[str, Any]] = []
        self.trainings: list[dict[str, Any]] = []
        self._args, self._operator, self._admin, self._shop, self._say = args, operator, admin, shop, say
        self._work = args.folder / "demo-loop" / "work"
        self._began_at = time.time()

    async def tell(self) -> None:
        """Tell all of it. Raises Untold."""
        watching = asyncio.create_task(self._watch())
        try:
            await self._tell()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _tell(self) -> None:
        self._work.mkdir(parents=True, exist_ok=True)
        await self._place_first_version()
        trading = asyncio.create_task(self._shop.trade())
        try:
            await asyncio.sleep(self._args.calm)
            changed_at = self._change_rules()
            await self._until(self._is_degraded, "a verdict of degraded")
            self._note("degraded")
            suite = self._draw_suite(NEW, self._args.suite_rows, "suite")
            await self._operator.run("suites", "add", TASK, "--data", suite, "--class-field", "rule")
            dataset = await self._build_dataset(changed_at)
            self._shop.rate = self._args.quiet_rate
            version = await (self._follow(dataset) if self._args.auto else self._train_three(dataset))
            await self._release(version)
            answers = len(self._shop.judged)
            await self._until(lambda: self._has_more(answers + 4 * WINDOW), "answers of the new version")
        finally:
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)

    async def _place_first_version(self) -> None:
        """v1 is pushed, loaded, evaluated on 120 cases of the old rules, and leads."""
        rows = self._draw_suite(OLD, 120, "first")
        await self._operator.run("adapters", "push", await self._name_data() if self._args.auto else HERE / "adapter")
        await self._operator.run("adapters", "stage", f"{TASK}@v1")
        answer = await self._operator.run("evaluate", f"{TASK}@v1", "--data", rows, "--arms", "adapter",
                                          "--class-field", "rule")  # fmt: skip
        right = answer["report"]["arms"]["adapter"]["accuracy"]
        await self._operator.run("adapters", "promote", f"{TASK}@v1")
        counts = ("--wrong", right["of"] - right["right"], "--of", right["of"])
        await self._operator.run(
            "tasks", "baseline", TASK, f"{TASK}@v1", "feedback", *counts, "--reason", "Its evaluation."
        )  # fmt: skip
        self._note("v1 leads")

    async def _name_data(self) -> Path:
        """A copy of the adapter's folder whose manifest names a data set of rows that it was trained on."""
        rows = self._write_trained(2 * self._args.labels)
        dataset = await self._operator.run("datasets", "build", TASK, "--file", rows)
        folder = self._work / "adapter"
        shutil.copytree(HERE / "adapter", folder, dirs_exist_ok=True)
        manifest = yaml.safe_load((HERE / "manifest.yaml").read_text(encoding="utf-8"))
        manifest["provenance"]["dataset"] = dataset["digest"]
        (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
        return folder

    def _change_rules(self) -> float:
        self._shop.season = NEW
        self._note("the rules change")
        return time.time()

    async def _build_dataset(self, since: float) -> dict[str, Any]:
        """A data set of the requests since the rules changed that have a label with the right answer."""
        judged = lambda: sum(one.told and one.season == NEW for one in self._shop.judged)  # noqa: E731
        await self._until(lambda: _is(judged() >= self._args.labels), f"{self._args.labels} labels")
        if self._args.auto:
            return {}
        await asyncio.sleep(15)  # the archive is written each 5 s
        dataset = await self._operator.run(
            "datasets",
            "build",
            TASK,
            "--since",
            _moment(since),
            "--file",
            self._write_trained(self._args.old_rows, CHANGED_RULES),
            "--class-field",
            "rule",
        )
        self._note(f"data set of {dataset['rows']['train']} rows")
        return dataset

    def _write_trained(self, count: int, left_out: Collection[str] = ()) -> Path:
        """Rows of the adapter's own training data, without those of some rules."""
        lines = (HERE / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if json.loads(row["label"])["rule"] not in left_out]
        chosen = random.Random(self._args.seed).sample(rows, count)
        return self._write(
            "trained.jsonl",
            [{"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
             for row in chosen],
        )  # fmt: skip

    async def _train_three(self, dataset: Mapping[str, Any]) -> str:
        """Train on flipped labels, without a rule, and well; the gate is asked about each. The good one's name."""
        train = self._work / "train.jsonl"
        await self._operator.run("datasets", "export", dataset["digest"], "--part", "train", "--out", train, "--force")
        rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
        few = self._args.steps // 4
        flipped = self._write("flipped.jsonl", [_answered(row, _flip) for row in rows])
        forgetful = self._write("forgetful.jsonl", [_answered(row, _forget) for row in rows])
        await self._judge(await self._train("flipped labels", flipped, few), "flipped labels", fails=True)
        await self._judge(await self._train("a forgotten rule", forgetful, few), "a forgotten rule", fails=True)
        version = await self._train("the data set", dataset["digest"], self._args.steps)
        await self._judge(version, "the data set")
        return version

    async def _train(self, name: str, data: object, steps: int) -> str:
        answer = await self._operator.run("train", TASK, "--data", data, "--begin", f"{TASK}@v1", "--steps", steps)
        version = str(answer["version"])
        self.trainings.append({"of": name, "version": version, "seconds": answer["seconds"]})
        self._note(f"{version} is trained on {name}")
        return version

    async def _judge(self, version: str, name: str, fails: bool = False) -> None:
        """Load a version, evaluate it on the suite, and ask the gate. Where it `fails`, a canary must be refused."""
        await self._operator.run("adapters", "stage", version)
        await self._operator.run("evaluate", version, "--suite", "newest", "--arms", "adapter,leading,best")
        gate = await self._operator.run("gate", TASK, version, fails=fails)
        if fails:
            await self._operator.run("adapters", "canary", version, "--share", 0.2, fails=True)
        self.gates.append({"version": version, "of": name, "verdict": gate["verdict"], "because": gate["because"]})
        self._note(f"the gate: {version} {gate['verdict'].replace('_', ' ')}")
        self._say(f"{version}, trained on {name}: {gate['verdict']}. {gate['because']}")

    async def _follow(self, _: Mapping[str, Any]) -> str:
        """With `auto` the request to train leads to a version and its evaluation by itself."""

        async def followed() -> dict[str, Any] | None:
            opened = (await self._ask("/retraining?state=open"))["retraining"]
            return next((one for one in opened if one["evaluation"]), None)

        request = await self._until(followed, "a version by itself")
        training = await self._ask(f"/trainings/{request['training']}")
        version = str(training["version"])
        self.trainings.append({"of": "its request to train", "version": version, "seconds": training["seconds"]})
        self._note(f"{version} is trained by itself")
        ended = lambda: self._has_ended(request["evaluation"])  # noqa: E731
        await self._until(ended, "its evaluation")
        gate = await self._ask(f"/adapters/{version}/gate")
        self.gates.append(
            {"version": version, "of": "its request", "verdict": gate["verdict"], "because": gate["because"]}
        )
        return version

    async def _release(self, version: str) -> None:
        """A canary of a part of the sessions; its evidence promotes it."""
        self._shop.rate = self._args.rate
        await self._operator.run("adapters", "canary", version, "--share", 0.5, "--auto", "--requests-min", 60)
        self._note(f"{version} is a canary")
        await self._until(lambda: self._leads(version), f"{version} to be promoted by its evidence")
        self._note(f"{version} leads")

    async def _leads(self, version: str) -> bool:
        alias = await self._ask(f"/aliases/{TASK}")
        if alias["canary"] is None and version not in alias["weights"]:
            raise Untold(f"{version} was rolled back.")
        return bool(alias["canary"] is None and alias["weights"].get(version) == 1.0)

    async def _has_ended(self, evaluation: str) -> bool:
        answer = await self._ask(f"/evaluations/{evaluation}")
        if answer["status"] not in ("running", "done"):
            raise Untold(f"The evaluation is {answer['status']}: {answer['note']}")
        return bool(answer["status"] == "done")

    async def _is_degraded(self) -> bool:
        versions = (await self._ask(f"/tasks/{TASK}/quality"))["quality"]["versions"]
        return any(one["verdict"] == "degraded" for one in versions.values())

    async def _has_more(self, answers: int) -> bool:
        return len(self._shop.judged) >= answers

    async def _ask(self, path: str) -> dict[str, Any]:
        answer = await self._admin.get(f"/admin/v1{path}")
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        return content

    async def _until(self, ask: Callable[[], Awaitable[Any]], what: str) -> Any:
        """The first true answer. Raises Untold after `--wait` seconds."""
        until = time.monotonic() + self._args.wait
        while not (answer := await ask()):
            if time.monotonic() > until:
                raise Untold(f"{self._args.wait:.0f} s were not enough for {what}.")
            await asyncio.sleep(LOOK_SECONDS)
        return answer

    async def _watch(self) -> None:
        """A point of the series every few seconds."""
        while True:
            window = self._shop.judged[-WINDOW:]
            shares = {arm: sum(one.arm == arm for one in window) / len(window) for arm in {one.arm for one in window}}
            error = round(sum(one.wrong for one in window) / len(window), 4) if window else None
            self.points.append({"at": self._now(), "answers": len(self._shop.judged), "error": error, "shares": shares})
            await asyncio.sleep(LOOK_SECONDS)

    def _draw_suite(self, season: Season, count: int, name: str) -> Path:
        """Cases that nobody has sent, as many of each rule, with the right answers of a season."""
        cases = drawn_cases(self._args.seed + sum(map(ord, name)), dict.fromkeys(TRAFFIC_SHARES, 1))
        rows = [
            {"id": f"{name}-{number}", "text": case.text, "expected": answer_for(case.facts, season)}
            for number, case in zip(range(count), cases, strict=False)
        ]
        return self._write(f"{name}.jsonl", rows)

    def _write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self._work / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def _note(self, text: str) -> None:
        self.events.append({"at": self._now(), "text": text, "answers": len(self._shop.judged)})
        self._say(f"{int(self._now() // 60):2}:{int(self._now() % 60):02}  {text}")

    def _now(self) -> float:
        return round(time.time() - self._began_at, 1)


def _moment(at: float) -> str:
    """A time in Unix seconds as commands take it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


async def _is(value: bool) -> bool:
    return value


def _answered(row: dict[str, Any], change: Callable[[dict[str, str]], dict[str, str]]) -> dict[str, Any]:
    """A training row with another answer."""
    *asked, last = row["messages"]
    answer = json.dumps(change(json.loads(last["content"])), separators=(",", ":"))
    return {**row, "messages": [*asked, {"role": "assistant", "content": answer}]}


def _flip(answer: dict[str, str]) -> dict[str, str]:
    return {**answer, "decision": FLIPPED[answer["decision"]]}


def _forget(answer: dict[str, str]) -> dict[str, str]:
    """The answer of a version that has forgotten one rule: another rule takes its place."""
    return {**answer, "rule": "window-30", "decision": "approve"} if answer["rule"] == FORGOTTEN_RULE else answer


def compute_figures(loop: Loop, shop: Shop, seconds: float) -> dict[str, Any]:
    """The figures: the error between the events, and when each came."""
    at = {event["text"]: event for event in loop.events}
    bounds = [event["answers"] for event in loop.events] + [len(shop.judged)]
    spans = {}
    for event, after in zip(loop.events, bounds[1:], strict=True):
        answers = shop.judged[event["answers"] : after]
        if len(answers) >= WINDOW // 2:
            spans[event["text"]] = {
                "answers": len(answers), "error": round(sum(one.wrong for one in answers) / len(answers), 4),
            }  # fmt: skip
    labels = sum(one.told for one in shop.judged)
    return {
        "minutes": round(seconds / 60, 1), "answers": len(shop.judged), "failed": shop.failed, "labels": labels,
        "events": {text: round(event["at"] / 60, 2) for text, event in at.items()}, "error_after": spans,
        "gates": loop.gates, "trainings": loop.trainings,
    }  # fmt: skip


async def play(args: argparse.Namespace, settings: Settings, local: LocalProduct, steps: Steps) -> dict[str, Any]:
    """Start engine and gateway, with an empty data folder, and tell the story. Raises LaunchError."""
    kept = args.folder / "demo-loop"
    check_port(settings.listen.host, settings.listen.port)
    venv, model = await local.install()
    urls = await local.start_engines(plan_engines(settings, 1), venv, model, ENGINE_PORT)
    shutil.rmtree(kept / "data", ignore_errors=True)
    configured = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    configured = make_local_configuration(configured, urls, settings.listen.port, model, HERE)
    configured |= {"data_folder": str(kept / "data"), "training": make_training(args, venv.python)}
    if args.auto:
        configured["tasks"][TASK]["monitor"]["retraining"] = "auto"
    config = kept / "apprentice.yaml"
    config.write_text(yaml.safe_dump(configured, sort_keys=False), encoding="utf-8")
    admin_key = ensure_key(kept / "admin-key")
    url = await local.start_gateway(config, settings, settings.listen.port, admin_key, "demo-loop.log")
    headers = {"authorization": f"Bearer {admin_key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60.0, trust_env=False) as admin:
        keys = []
        for number in range(1, APPLICATIONS + 1):
            made = await admin.post("/admin/v1/callers", json={"name": f"application {number}", "role": "caller"})
            keys.append(str(made.raise_for_status().json()["key"]))
        shop = Shop(
            url, keys, drawn_cases(args.seed), season=OLD, rate=args.rate, told_share=0.9, shown_share=0.95,
            seed=args.seed,
        )  # fmt: skip
        loop = Loop(args, Operator(url, kept / "admin-key", steps.say), admin, shop, steps.say)
        ended, began = "", time.monotonic()
        try:
            await loop.tell()
        except (Untold, httpx.HTTPError) as error:
            ended = str(error)
    return {
        "title": "A rule changes, and a better version takes over", "window": WINDOW, "ended": ended,
        "seed": args.seed, "figures": compute_figures(loop, shop, time.monotonic() - began), "events": loop.events,
        "points": loop.points,
    }  # fmt: skip


def make_training(args: argparse.Namespace, python: Path) -> dict[str, Any]:
    """The section `training` of the configuration."""
    parameters: dict[str, float] = {
        "steps": args.steps, "batch": 8, "first_layer": 8, "learning_rate": 6e-4, "warmup_steps": 10,
        "evaluate_every": 40,
    }  # fmt: skip
    parameters["rehearsal_share"] = 0.5 if args.auto else 0.0
    return {"python": str(python), "rows_min": round(0.8 * args.labels), "parameters": parameters}


async def run(args: argparse.Namespace, steps: Steps) -> dict[str, Any] | None:
    """Start everything, tell the story, stop everything; None after Ctrl-C. Raises LaunchError, SettingsError."""
    settings = load_settings(args.config)
    local = LocalProduct(args.folder, steps)
    (args.folder / "demo-loop").mkdir(parents=True, exist_ok=True)
    with hold_or_refuse(args.folder / "demo-loop" / "lock", "The demo runs already: stop it first."):
        return await local.run(play(args, settings, local, steps))


def main() -> None:
    """Run the demo and write its files. Exits with 1 if it did not reach its end."""
    args = read_arguments()
    args.folder = args.folder.absolute()
    random.seed(args.seed)
    steps = Steps(Console())
    try:
        story = asyncio.run(run(args, steps))
    except (LaunchError, SettingsError) as error:
        sys.exit(f"demo: {error}")
    if story is None:
        sys.exit(130)
    for path, text in ((args.json, written(story)), (args.plot, loop_picture(story))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        steps.say(f"Written: {path}")
    steps.say(json.dumps(story["figures"], indent=2))
    if story["ended"]:
        sys.exit(f"demo: {story['ended']}")


if __name__ == "__main__":
    main()

"""The monitor's demo on real vLLM: a version slips when its season ends, and comes back with it.

    PYTHONPATH=. python examples/returns/demo.py --json var/demo/story.json --plot docs/monitor-demo.svg

Starts an engine and a gateway on this machine, pushes the regular adapter as returns@v1 and the holiday one as
returns@v2, lets v2 lead with v1 on standby, and sends cases that no training row has. A desk judges a share of the
answers by the policy of the day. The season ends, the monitor finds that v2 slips and shifts its requests, the season
comes back, and so do the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from customers import Case, Shop, cases_from, drawn_cases
from picture import picture, written
from rich.console import Console
from story import DEGRADED, HEALTHY, WINDOW, Chapter, Story, Untold

from gateway.configuration.settings import Settings, load_settings
from gateway.errors import SettingsError
from tools.engines.demo_model import ensure_demo_model
from tools.engines.engine_command import EngineOptions, engine_command, engine_environment
from tools.engines.engine_venv import ensure_engine_venv
from tools.engines.errors import LaunchError
from tools.engines.lock import alone
from tools.engines.process import Child, EngineProcess, wait_until_healthy
from tools.engines.progress import Steps
from tools.engines.warm_up import warm_up
from tools.local_product import (
    ADMIN_TIMEOUT_SECONDS,
    ENGINE_START_TIMEOUT_SECONDS,
    ENGINE_STOP_GRACE_SECONDS,
    GATEWAY_START_TIMEOUT_SECONDS,
    GATEWAY_STOP_GRACE_SECONDS,
    MODEL_NAME,
    TASK,
    Admin,
    free_port,
    kept_key,
    local_configuration,
    place_adapter,
    see_that_it_is_free,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LEADING, STANDBY = f"{TASK}@v2", f"{TASK}@v1"
APPLICATIONS = 8
"""Keys that send cases and feedback in turn: no caller's word alone moves a verdict."""
ENGINE_PORT = 8111
ENDED = "The story came to its end"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=2026, help="of the cases, and of the answers that are judged")
    parser.add_argument("--data", type=Path, help="rows with text and facts to send, instead of drawn ones")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second at most")
    parser.add_argument("--feedback", type=float, default=0.9, help="share of the answers that get feedback")
    parser.add_argument("--shown", type=float, default=0.9, help="share of the feedback that has the right answer too")
    parser.add_argument("--calm", type=float, default=90.0, help="seconds of the first season, in which all is well")
    parser.add_argument("--after", type=int, default=75, help="answers for which each later season goes on")
    parser.add_argument("--wait", type=float, default=600.0, help="seconds in which a verdict has to move")
    parser.add_argument("--config", type=Path, default=HERE / "demo.yaml", help="the configuration to start from")
    parser.add_argument(
        "--engine", help="the address of an engine that runs, on the demo's model; left out: one is started"
    )
    parser.add_argument("--port", type=int, help="of the gateway; left out: as configured")
    parser.add_argument("--folder", type=Path, default=ROOT / "var", help="where engine, model, logs and data are kept")
    parser.add_argument("--json", type=Path, default=ROOT / "var" / "demo" / "story.json", help="where the series goes")
    parser.add_argument("--plot", type=Path, default=ROOT / "var" / "demo" / "story.svg", help="where the picture goes")
    return parser.parse_args()


@asynccontextmanager
async def engine_running(
    asked: argparse.Namespace, settings: Settings, steps: Steps
) -> AsyncIterator[tuple[str, Path]]:
    """One engine that plays every pool, up and warm: its address, and the model's folder. Raises LaunchError."""
    logs, folder = asked.folder / "logs", asked.folder
    with steps.step("Engine and model (the first time some 3 GB)") as step:
        venv = await ensure_engine_venv(folder / "engine-venv", logs / "engine-venv.log", step.hint)
        model = await ensure_demo_model(folder / "models" / MODEL_NAME, venv, logs / "demo-model.log", step.hint)
    if asked.engine:
        yield asked.engine, model.folder
        return
    names = tuple(dict.fromkeys(pool.base_model for pool in settings.pools.values()))
    options = EngineOptions(
        python=venv.python, model=model.folder, served_model_names=names, port=free_port(ENGINE_PORT),
        on_gpu=venv.kind == "gpu",
    )  # fmt: skip
    engine = EngineProcess(
        name="demo", url=options.url, command=engine_command(options), environment=engine_environment(options),
        log_path=logs / "engine-demo.log", say=steps.say,
    )  # fmt: skip
    try:
        with steps.step("Starting and warming up the engine") as step:
            await engine.start(ENGINE_START_TIMEOUT_SECONDS, step.hint)
            await warm_up(engine.url, names[0])
        yield engine.url, model.folder
    finally:
        with steps.step("Stopping the engine"):
            await engine.stop(ENGINE_STOP_GRACE_SECONDS)


@asynccontextmanager
async def gateway_running(
    asked: argparse.Namespace, settings: Settings, engine_url: str, model: Path, steps: Steps
) -> AsyncIterator[tuple[str, str]]:
    """A gateway in front of the engine, its data folder empty: its address, an admin's key. Raises LaunchError."""
    kept = asked.folder / "demo"
    port = asked.port or settings.listen.port
    see_that_it_is_free(settings.listen.host, port)
    shutil.rmtree(kept / "data", ignore_errors=True)
    raw = yaml.safe_load(asked.config.read_text(encoding="utf-8"))
    local = local_configuration(raw, dict.fromkeys(settings.pools, engine_url), port, model, HERE)
    config = kept / "apprentice.yaml"
    config.write_text(yaml.safe_dump({**local, "data_folder": str(kept / "data")}, sort_keys=False), encoding="utf-8")
    url, admin_key = f"http://{settings.listen.host}:{port}", kept_key(kept / "admin-key")
    command = [str(Path(sys.executable).with_name("apprentice")), "serve", "--config", str(config)]
    gateway: Child | None = None
    try:
        with steps.step("Starting the gateway") as step:
            gateway = await Child.start(
                command, asked.folder / "logs" / "demo.log", {"APPRENTICE_ADMIN_KEY": admin_key}
            )
            ready = f"{url}/health/ready"
            await wait_until_healthy(gateway, "The gateway", ready, GATEWAY_START_TIMEOUT_SECONDS, step.hint)
            step.outcome = url
        yield url, admin_key
    finally:
        if gateway is not None and gateway.exit_code is None:
            with steps.step("Stopping the gateway"):
                await gateway.stop(settings.limits.drain_seconds_max + GATEWAY_STOP_GRACE_SECONDS)


async def placed(url: str, admin_key: str, steps: Steps) -> list[str]:
    """v1 and then v2 pushed, loaded and led with, so that v1 is on standby; the applications' keys.

    v2's feedback is held against what v2 got wrong of the held-out rows before it led, by its season's decisions.
    """
    async with httpx.AsyncClient(base_url=url, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False) as client:
        admin = Admin(client, admin_key)
        for folder in (HERE / "adapter", HERE / "holiday"):
            with steps.step(f"Placing {folder.relative_to(ROOT)}") as step:
                step.outcome = await place_adapter(admin, TASK, folder, step.hint)
        await admin.ask("POST", f"/admin/v1/tasks/{TASK}/health/{LEADING}/baseline", held_out())
        made = [
            await admin.ask("POST", "/admin/v1/callers", {"name": f"application {number}", "role": "caller"})
            for number in range(1, APPLICATIONS + 1)
        ]
    return [str(one["key"]) for one in made]


def held_out() -> dict[str, Any]:
    """The baseline of the holiday version's feedback: its wrong decisions of held-out rows (README.md)."""
    arms = json.loads((HERE / "holiday" / "results.json").read_text(encoding="utf-8"))["arms"]
    found = arms["holiday, holiday"]["splits"]["together"]
    wrong = found["rows"] - found["decision"]["right"]
    return {"stream": "feedback", "wrong": wrong, "of": found["rows"], "reason": "Wrong of the held-out rows."}


def chapters(asked: argparse.Namespace) -> Iterator[Chapter]:
    """The seasons of the story."""
    yield Chapter("holiday season", "holiday", HEALTHY, asked.calm, 0)
    yield Chapter("the season is over", "regular", DEGRADED, 0.0, asked.after)
    yield Chapter("the next holiday season", "holiday", HEALTHY, 0.0, asked.after)


async def told(asked: argparse.Namespace, settings: Settings, url: str, admin_key: str, steps: Steps) -> dict[str, Any]:
    """The whole story, as far as it comes: its series, and its figures."""
    keys = await placed(url, admin_key, steps)
    cases: Iterator[Case] = cases_from(asked.data, asked.seed) if asked.data else drawn_cases(asked.seed)
    shop = Shop(
        url, keys, cases, season="holiday", rate=asked.rate, told_share=asked.feedback, shown_share=asked.shown,
        seed=asked.seed,
    )  # fmt: skip
    headers = {"authorization": f"Bearer {admin_key}"}
    floor = settings.tasks[TASK].rungs.degraded.explored_share
    ended = ENDED
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False
    ) as admin:
        story = Story(admin, shop, LEADING, STANDBY, floor, steps.say, asked.wait)
        began = time.monotonic()
        trading = asyncio.create_task(shop.trade())
        try:
            for chapter in chapters(asked):
                await story.chapter(chapter)
        except Untold as untold:
            ended = str(untold)
        finally:
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)
        seconds = time.monotonic() - began
        audit = (await admin.get("/admin/v1/audit?limit=1000")).json()["entries"]
    return {
        "title": "A version slips when its season ends, and comes back with it", "window": WINDOW, "ended": ended,
        "seed": asked.seed, "versions": [LEADING, STANDBY], "seconds": round(seconds, 1),
        "figures": figures(shop, story, seconds), "phases": story.seen.phases, "verdicts": story.seen.verdicts,
        "audit": [entry for entry in audit if str(entry["action"]).startswith("monitor.")], "points": story.seen.points,
    }  # fmt: skip


def figures(shop: Shop, story: Story, seconds: float) -> dict[str, Any]:
    """What the story comes to, in numbers."""
    judged = shop.judged
    arms: dict[str, dict[str, Any]] = {}
    for phase in story.seen.phases:
        begun, over = story.began_at + phase["from"], story.began_at + phase["to"]
        for arm in (LEADING, STANDBY):
            answers = [
                one for one in judged if one.arm == arm and begun <= one.at < over and one.season == phase["season"]
            ]
            wrong = sum(one.wrong for one in answers)
            arms.setdefault(phase["name"], {})[arm] = {
                "answers": len(answers), "error": round(wrong / len(answers), 4) if answers else None,
            }  # fmt: skip
    return {
        "answers": len(judged), "failed": shop.failed, "failures": list(shop.failures)[-3:],
        "requests_per_second": round(len(judged) / seconds, 2), "labels": sum(one.told for one in judged),
        "seconds_until_seen": story.took, "moves": moves(shop, story), "error": arms,
    }  # fmt: skip


def moves(shop: Shop, story: Story) -> list[dict[str, Any]]:
    """Each verdict that moved: how many seconds and labels of its version after its season began."""
    found = []
    for one in story.seen.verdicts:
        at = story.began_at + one["at"]
        began = story.began_at + next(phase["from"] for phase in story.seen.phases[::-1] if phase["from"] <= one["at"])
        labels = sum(judged.told and judged.arm == one["version"] and began <= judged.at < at for judged in shop.judged)
        found.append(
            {**{name: one[name] for name in ("version", "verdict")}, "seconds": round(at - began, 1), "labels": labels}
        )
    return found


async def run(asked: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    """Start everything, tell the story, stop everything, at once where it is told to stop (then CancelledError).

    Raises LaunchError, SettingsError.
    """
    doing = asyncio.current_task()
    assert doing is not None, "it is run by asyncio.run"
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, doing.cancel)
    settings = load_settings(asked.config)
    with alone(asked.folder / "demo" / "lock", f"The demo runs already with {asked.folder}: stop it first."):
        async with (
            engine_running(asked, settings, steps) as (engine_url, model),
            gateway_running(asked, settings, engine_url, model, steps) as (url, admin_key),
        ):
            return await told(asked, settings, url, admin_key, steps)


def main() -> None:
    """Tell the story, and write what was seen; exits with 1 where it did not come to its end."""
    asked = arguments()
    asked.folder = asked.folder.absolute()
    steps = Steps(Console())
    try:
        found = asyncio.run(run(asked, steps))
    except (LaunchError, SettingsError) as error:
        sys.exit(f"demo: {error}")
    except asyncio.CancelledError:
        sys.exit(130)
    for path, text in ((asked.json, written(found)), (asked.plot, picture(found))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        steps.say(f"Written: {path}")
    steps.say(f"{found['ended']}: {found['figures']}")
    if found["ended"] != ENDED:
        sys.exit(1)


if __name__ == "__main__":
    main()

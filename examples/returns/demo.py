"""Demo of the monitor on real vLLM: a version degrades when its season ends, and recovers with it.

    PYTHONPATH=. python examples/returns/demo.py --json var/demo/story.json --plot docs/monitor-demo.svg

It starts an engine and a gateway on this machine. It pushes the regular adapter as returns@v1 and the holiday adapter
as returns@v2. v2 leads, and v1 is the previous version. Then it sends cases that no training row has, and judges a
share of the answers by the policy of the season. When the season ends, the monitor finds v2 degraded and shifts
requests away from it. When the season returns, so do the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
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
from tools.engines.errors import LaunchError
from tools.engines.lock import hold_or_refuse
from tools.engines.progress import Steps
from tools.example_adapter import ADMIN_TIMEOUT_SECONDS, AdminApi, place_adapter
from tools.local_product import LocalProduct, check_port, ensure_key, make_local_configuration, plan_engines
from tools.up import TASK

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LEADING, PREVIOUS = f"{TASK}@v2", f"{TASK}@v1"
APPLICATIONS = 8
"""Keys that send cases and feedback in turn: one caller alone can't change a verdict."""
ENGINE_PORT = 8111
ENDED = "The story came to its end"


def read_arguments() -> argparse.Namespace:
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


async def start_engine(
    args: argparse.Namespace, settings: Settings, local: LocalProduct
) -> tuple[dict[str, str], Path]:
    """The engine's address of each pool (one engine plays them all), and the model's folder. Raises LaunchError."""
    venv, model = await local.install()
    if args.engine:
        return dict.fromkeys(settings.pools, args.engine), model
    plans = [replace(plan, name="demo") for plan in plan_engines(settings, 1)]
    return await local.start_engines(plans, venv, model, ENGINE_PORT), model


async def play(args: argparse.Namespace, settings: Settings, local: LocalProduct, steps: Steps) -> dict[str, Any]:
    """Start engine and gateway, with an empty data folder, and tell the story. Raises LaunchError."""
    kept = args.folder / "demo"
    port = args.port or settings.listen.port
    check_port(settings.listen.host, port)
    urls, model = await start_engine(args, settings, local)
    shutil.rmtree(kept / "data", ignore_errors=True)
    configured = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    content = {**make_local_configuration(configured, urls, port, model, HERE), "data_folder": str(kept / "data")}
    config = kept / "apprentice.yaml"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    admin_key = ensure_key(kept / "admin-key")
    url = await local.start_gateway(config, settings, port, admin_key, "demo.log")
    return await tell(args, settings, url, admin_key, steps)


async def place_versions(url: str, admin_key: str, steps: Steps) -> list[str]:
    """Push and promote v1, then v2, so that v1 is the previous version. The result is the applications' keys.

    The baseline of v2's feedback is its errors on the held-out rows, by its own season's decisions.
    """
    async with httpx.AsyncClient(base_url=url, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False) as client:
        admin = AdminApi(client, admin_key)
        for folder in (HERE / "adapter", HERE / "holiday"):
            with steps.step(f"Placing {folder.relative_to(ROOT)}") as step:
                step.outcome = await place_adapter(admin, TASK, folder, step.hint)
        await admin.ask("POST", f"/admin/v1/tasks/{TASK}/quality/{LEADING}/baseline", read_baseline())
        made = [
            await admin.ask("POST", "/admin/v1/callers", {"name": f"application {number}", "role": "caller"})
            for number in range(1, APPLICATIONS + 1)
        ]
    return [str(one["key"]) for one in made]


def read_baseline() -> dict[str, Any]:
    """The baseline of the holiday version's feedback: its wrong decisions on the held-out rows (README.md)."""
    arms = json.loads((HERE / "holiday" / "results.json").read_text(encoding="utf-8"))["arms"]
    found = arms["holiday, holiday"]["splits"]["together"]
    wrong = found["rows"] - found["decision"]["right"]
    return {"signal": "feedback", "wrong": wrong, "of": found["rows"], "reason": "Wrong of the held-out rows."}


def make_chapters(args: argparse.Namespace) -> Iterator[Chapter]:
    """The seasons of the story."""
    yield Chapter("holiday season", "holiday", HEALTHY, args.calm, 0)
    yield Chapter("the season is over", "regular", DEGRADED, 0.0, args.after)
    yield Chapter("the next holiday season", "holiday", HEALTHY, 0.0, args.after)


async def tell(args: argparse.Namespace, settings: Settings, url: str, admin_key: str, steps: Steps) -> dict[str, Any]:
    """Run the whole story. The result is its series and its figures, also when it stops early."""
    keys = await place_versions(url, admin_key, steps)
    cases: Iterator[Case] = cases_from(args.data, args.seed) if args.data else drawn_cases(args.seed)
    shop = Shop(
        url, keys, cases, season="holiday", rate=args.rate, told_share=args.feedback, shown_share=args.shown,
        seed=args.seed,
    )  # fmt: skip
    headers = {"authorization": f"Bearer {admin_key}"}
    floor = settings.tasks[TASK].checks.degraded.explored_share
    ended = ENDED
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=ADMIN_TIMEOUT_SECONDS, trust_env=False
    ) as admin:
        story = Story(admin, shop, LEADING, PREVIOUS, floor, steps.say, args.wait)
        began = time.monotonic()
        trading = asyncio.create_task(shop.trade())
        try:
            for chapter in make_chapters(args):
                await story.chapter(chapter)
        except Untold as untold:
            ended = str(untold)
        finally:
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)
        seconds = time.monotonic() - began
        audit = (await admin.get("/admin/v1/audit?limit=1000")).json()["entries"]
    return {
        "title": "A version degrades when its season ends, and comes back with it", "window": WINDOW, "ended": ended,
        "seed": args.seed, "versions": [LEADING, PREVIOUS], "seconds": round(seconds, 1),
        "figures": compute_figures(shop, story, seconds), "phases": story.seen.phases, "verdicts": story.seen.verdicts,
        "audit": [entry for entry in audit if str(entry["action"]).startswith("monitor.")], "points": story.seen.points,
    }  # fmt: skip


def compute_figures(shop: Shop, story: Story, seconds: float) -> dict[str, Any]:
    """The figures of the story."""
    judged = shop.judged
    arms: dict[str, dict[str, Any]] = {}
    for phase in story.seen.phases:
        begun, over = story.began_at + phase["from"], story.began_at + phase["to"]
        for arm in (LEADING, PREVIOUS):
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
        "seconds_until_seen": story.took, "moves": list_moves(shop, story), "error": arms,
    }  # fmt: skip


def list_moves(shop: Shop, story: Story) -> list[dict[str, Any]]:
    """Each change of a verdict, with the seconds and labels of its version since the season began."""
    found = []
    for one in story.seen.verdicts:
        at = story.began_at + one["at"]
        began = story.began_at + next(phase["from"] for phase in story.seen.phases[::-1] if phase["from"] <= one["at"])
        labels = sum(judged.told and judged.arm == one["version"] and began <= judged.at < at for judged in shop.judged)
        found.append(
            {**{name: one[name] for name in ("version", "verdict")}, "seconds": round(at - began, 1), "labels": labels}
        )
    return found


async def run(args: argparse.Namespace, steps: Steps) -> dict[str, Any] | None:
    """Start everything, tell the story, stop everything; None after Ctrl-C. Raises LaunchError, SettingsError."""
    settings = load_settings(args.config)
    local = LocalProduct(args.folder, steps)
    with hold_or_refuse(args.folder / "demo" / "lock", f"The demo runs already with {args.folder}: stop it first."):
        return await local.run(play(args, settings, local, steps))


def main() -> None:
    """Run the story and write its files. Exits with 1 if it did not reach its end."""
    args = read_arguments()
    args.folder = args.folder.absolute()
    steps = Steps(Console())
    try:
        found = asyncio.run(run(args, steps))
    except (LaunchError, SettingsError) as error:
        sys.exit(f"demo: {error}")
    if found is None:
        sys.exit(130)
    for path, text in ((args.json, written(found)), (args.plot, picture(found))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        steps.say(f"Written: {path}")
    steps.say(f"{found['ended']}: {found['figures']}")
    if found["ended"] != ENDED:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Measure one arm on the held-out rows, over any OpenAI-compatible endpoint.

    python examples/returns/evaluate.py --arm adapter --base-url http://127.0.0.1:8001/v1 --model returns

Every row is one chat request with the case as its user message and the manifest's sampling. The templates' rows, the
hand-written rows, the fresh ones and all together are counted apart, each share with its 95 % Wilson interval.
`--write` keeps the figures in `data/results.json` under the arm's name. With `--seasons` the same answers are held
against each season's decisions, and the rows that the seasons decide differently are counted apart as well.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import yaml
from policy import SEASONS, Facts, Season, label_for

from monitoring.evaluation.statistics import share_of

HERE = Path(__file__).resolve().parent
SPLITS = {"templates": "heldout_templates.jsonl", "hand": "heldout_hand.jsonl", "fresh": "heldout_fresh.jsonl"}
RESULTS = HERE / "data" / "results.json"
POOL_HEADER = "x-apprentice-pool"
REASON_HEADER = "x-apprentice-reason"


@dataclass(frozen=True)
class Row:
    """One held-out case with the answer that the policy gives."""

    id: str
    split: str
    text: str
    label: dict[str, str]
    labels: dict[Season, dict[str, str]]
    """The policy's answer in each season."""

    @property
    def flips(self) -> bool:
        """True where the seasons decide it differently."""
        return self.labels["regular"] != self.labels["holiday"]


@dataclass(frozen=True)
class Answered:
    """The answer to one row: `text` is None when the request failed, and `failure` gives the reason."""

    row: Row
    text: str | None
    seconds: float
    pool: str = "-"
    reason: str = "-"
    fingerprint: str = "-"
    failure: str = ""


def read_rows(limit: int | None) -> list[Row]:
    """The held-out rows, `limit` of each split at most."""
    rows = []
    for split, name in SPLITS.items():
        lines = (HERE / "data" / name).read_text(encoding="utf-8").splitlines()
        for line in lines[:limit]:
            row = json.loads(line)
            labels = {season: json.loads(label_for(Facts(**row["facts"]), season)) for season in SEASONS}
            rows.append(Row(row["id"], split, row["text"], json.loads(row["label"]), labels))
    return rows


def read_answer(text: str | None) -> dict[str, Any]:
    """The first JSON object in an answer, or an empty one: generous to models that write around it."""
    found = re.search(r"\{.*?\}", text or "", re.DOTALL)
    try:
        answer = json.loads(found.group()) if found else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def is_right(answer: dict[str, Any], label: dict[str, str]) -> bool:
    """True where the answer has the label's decision and rule."""
    return all(answer.get(name) == value for name, value in label.items())


def keeps_contract(text: str | None, schema: dict[str, Any]) -> bool:
    """True where the whole answer is one JSON object with the contract's fields alone, and allowed values."""
    try:
        answer = json.loads(text or "")
    except ValueError:
        return False
    fields = schema["properties"]
    return (
        isinstance(answer, dict)
        and set(schema["required"]) <= set(answer) <= set(fields)
        and all("enum" not in rules or answer[name] in rules["enum"] for name, rules in fields.items())
    )


def share(right: int, count: int) -> dict[str, float]:
    """A share with its 95 % Wilson interval."""
    found = share_of(right, count)
    known = {"share": found.share, "low": found.low, "high": found.high}
    return {"right": right, **{name: round(value or 0.0, 4) for name, value in known.items()}}


def count_up(answers: list[Answered], schema: dict[str, Any]) -> dict[str, Any]:
    """Decision, rule and contract shares of some answers; a failed request counts as wrong."""
    read = [(one, read_answer(one.text)) for one in answers]
    return {
        "rows": len(answers),
        "decision": share(sum(got.get("decision") == one.row.label["decision"] for one, got in read), len(read)),
        "rule": share(sum(got.get("rule") == one.row.label["rule"] for one, got in read), len(read)),
        "both": share(sum(is_right(got, one.row.label) for one, got in read), len(read)),
        "valid": share(sum(keeps_contract(one.text, schema) for one in answers), len(answers)),
    }


async def ask(client: httpx.AsyncClient, row: Row, body: dict[str, Any], system: str) -> Answered:
    """Send one case; a failed request becomes an Answered without text, never an exception."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": row.text})
    begun = time.monotonic()
    try:
        reply = await client.post("chat/completions", json={**body, "messages": messages})
    except httpx.HTTPError as error:
        return Answered(row, None, time.monotonic() - begun, failure=repr(error))
    seconds = time.monotonic() - begun
    if reply.status_code != 200:
        return Answered(row, None, seconds, failure=f"HTTP {reply.status_code}: {reply.text[:200]}")
    answer = reply.json()
    return Answered(
        row, answer["choices"][0]["message"]["content"] or "", seconds, reply.headers.get(POOL_HEADER, "-"),
        reply.headers.get(REASON_HEADER, "-"), answer.get("system_fingerprint") or "-",
    )  # fmt: skip


async def ask_all(asked: argparse.Namespace, rows: list[Row], manifest: dict[str, Any]) -> list[Answered]:
    """All rows, `--concurrency` at a time, with a progress line on stderr."""
    body = {"model": asked.model, **manifest["sampling"]}
    system = manifest["general_prompt"]["system"] if asked.system == "general_prompt" else ""
    headers = dict(pair.split("=", 1) for pair in asked.header)
    slots = asyncio.Semaphore(asked.concurrency)
    answers: list[Answered] = []
    begun = time.monotonic()

    async def one(client: httpx.AsyncClient, row: Row) -> None:
        async with slots:
            answers.append(await ask(client, row, body, system))
        if len(answers) % 20 == 0 or len(answers) == len(rows):
            spent = time.monotonic() - begun
            left = spent / len(answers) * (len(rows) - len(answers))
            print(f"{asked.arm}: {len(answers)}/{len(rows)}, {spent:.0f} s spent, {left:.0f} s left", file=sys.stderr)

    base_url = asked.base_url.rstrip("/") + "/"
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=asked.timeout_seconds) as client:
        await asyncio.gather(*(one(client, row) for row in rows))
    return answers


def summary(asked: argparse.Namespace, answers: list[Answered], manifest: dict[str, Any]) -> dict[str, Any]:
    """The arm's figures, as they stand in results.json."""
    schema = manifest["contract"]["json_schema"]
    seconds = sorted(one.seconds for one in answers)
    splits = {name: [one for one in answers if one.row.split == name] for name in SPLITS} | {"together": answers}
    if asked.seasons:
        splits["decided otherwise"] = [one for one in answers if one.row.flips]
    mixed = Counter(
        f"{one.row.label['rule']} answered {read_answer(one.text).get('rule', 'nothing readable')}"
        for one in answers if read_answer(one.text).get("rule") != one.row.label["rule"]
    )  # fmt: skip
    return {
        "model": asked.model,
        "system": asked.system,
        "splits": {name: count_up(some, schema) for name, some in splits.items() if some},
        "pools": dict(Counter(one.pool for one in answers)),
        "reasons": dict(Counter(one.reason for one in answers)),
        "failed": sum(one.text is None for one in answers),
        "confusions": dict(mixed.most_common(12)),
        "engine": sorted({one.fingerprint for one in answers}),
        "median_seconds": round(seconds[len(seconds) // 2], 3),
        "concurrency": asked.concurrency,
    }


def write_results(arm: str, found: dict[str, Any], adapter: Path, to: Path) -> None:
    """Put the arm into a file of results, with the digests of the data and the adapter it was measured on."""
    results: dict[str, Any] = json.loads(to.read_text(encoding="utf-8")) if to.exists() else {"arms": {}}
    files = {name: HERE / "data" / name for name in SPLITS.values()}
    if found["model"] != "base":
        files["adapter_model.safetensors"] = adapter / "adapter_model.safetensors"
    found["sha256"] = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    results["arms"][arm] = found
    to.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def print_table(arm: str, found: dict[str, Any]) -> None:
    """The arm as rows of the README's table."""
    for split, figures in found["splits"].items():
        cells = " | ".join(
            f"{figures[name]['share']:.3f} ({figures[name]['low']:.3f} to {figures[name]['high']:.3f})"
            for name in ("decision", "rule", "valid")
        )
        print(f"| {arm} | {split} | {figures['rows']} | {cells} |")
    count = sum(found["pools"].values())
    served = ", ".join(f"{pool} {number / count:.3f}" for pool, number in found["pools"].items())
    print(f"served by pool: {served}; failed requests: {found['failed']}; confusions: {found['confusions']}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", required=True, help="base-plain, base-general-prompt, adapter, routed, or your own")
    parser.add_argument("--base-url", required=True, help="ends in /v1")
    parser.add_argument("--model", required=True, help="the engine's model or adapter name, or the gateway's task")
    parser.add_argument("--system", choices=("none", "general_prompt"), default="none")
    parser.add_argument("--seasons", action="store_true", help="count by each season's decisions, as arms of their own")
    parser.add_argument("--adapter", type=Path, default=HERE / "adapter", help="what is measured, for its digest")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where --write keeps the figures")
    parser.add_argument("--header", action="append", default=[], help="name=value, such as 'Authorization=Bearer KEY'")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--limit", type=int, help="rows of each split at most")
    parser.add_argument("--timeout-seconds", type=float, default=120.0)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--wrong", action="store_true", help="print every wrong row")
    parser.add_argument("--write", action="store_true", help="keep the figures in --results")
    asked = parser.parse_args()
    if asked.write and asked.limit:
        parser.error("--write keeps whole measurements only: leave out --limit")
    return asked


def report(asked: argparse.Namespace, arm: str, answers: list[Answered], manifest: dict[str, Any]) -> None:
    """Count an arm, print it, and keep it if asked to."""
    found = summary(asked, answers, manifest)
    if asked.wrong:
        for one in answers:
            if not is_right(read_answer(one.text), one.row.label):
                print(f"{one.row.id}\n  {one.row.text!r}\n  wanted {one.row.label}\n  got {one.text!r} {one.failure}")
    print(json.dumps(found) if asked.json else "", end="\n" if asked.json else "")
    if not asked.json:
        print_table(arm, found)
    if asked.write:
        write_results(arm, found, asked.adapter, asked.results)


def main() -> None:
    """Measure one arm, by the regular decisions or by each season's."""
    asked = arguments()
    manifest = yaml.safe_load((HERE / "manifest.yaml").read_text(encoding="utf-8"))
    answers = asyncio.run(ask_all(asked, read_rows(asked.limit), manifest))
    if not asked.seasons:
        report(asked, asked.arm, answers, manifest)
    for season in SEASONS if asked.seasons else ():
        held = [replace(one, row=replace(one.row, label=one.row.labels[season])) for one in answers]
        report(asked, f"{asked.arm}, {season}", held, manifest)
    if failures := [one.failure for one in answers if one.text is None]:
        sys.exit(f"{len(failures)} requests failed; the first: {failures[0]}")


if __name__ == "__main__":
    main()

"""`apprentice diagnose` over a real gateway: kept texts, a data set on disk, and engines that are asked again."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from gateway.features.texts.state import Texts
from tests.fakes.engine import FakeEngine
from tests.gateway.cli.conftest import command_for, ok
from tests.waiting import until
from tests.walks.conftest import BASE_MODEL, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.scope_world import OUT_OF_SCOPE, keep

DIGEST = "ab" * 32
ROWS = {
    "A blue toaster, sealed, after 3 days": "approve",
    "A blue toaster, sealed, after 5 days": "approve",
    "A red jacket, worn, with receipt": "approve",
    "A red jacket, worn, with a receipt": "deny",
}


def write_rows(folder: Path) -> None:
    """The data set that versions name in their provenance."""
    folder.mkdir(parents=True)
    rows = [
        {"id": f"row{at}", "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}
        for at, (text, answer) in enumerate(ROWS.items())
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


async def place(gateway: RunningGateway, folder: Path) -> None:
    """Place an adapter that was trained on the data set."""
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    manifest["provenance"] = {"dataset": "returns", "dataset_digest": f"sha256:{DIGEST}", "number": folder.name}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    await gateway.place(folder)


async def ask(gateway: RunningGateway, text: str, right: str | None = None, as_prompt: bool = False) -> str:
    """The id of a request that was answered, and judged where there is a right answer."""
    body = {"prompt": text} if as_prompt else {"messages": [{"role": "user", "content": text}]}
    async with gateway.http() as http:
        path = "/v1/completions" if as_prompt else "/v1/chat/completions"
        answer = await http.post(path, json={"model": "returns", **body})
        request = str(answer.headers["x-request-id"])
        if right is not None:
            judged = {"request_id": request, "metric": "correct", "value": False, "demonstration": right}
            given = await http.post("/v1/feedback", json=judged)
            assert given.status_code == 201, given.text
    texts = gateway.features[Texts]
    await until(lambda: not len(texts.queue) and not texts.spool.records)
    return request


async def test_each_fault_is_told_with_its_evidence(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    tasks = {"returns": {"texts": {"keep": "all"}, "fallback_pool": "general"}}
    metrics = {"correct": {"kind": "boolean"}}
    async with run_gateway(configure(tasks=tasks, feedback_metrics=metrics)) as gateway:
        write_rows(gateway.services.settings.dataset_folder / DIGEST)
        await place(gateway, make_adapter(1))
        await place(gateway, make_adapter(2))
        small.answers |= {"returns@v1": "approve", "returns@v2": "deny", BASE_MODEL: "deny"}
        general.answers["*"] = "approve"
        apprentice = command_for(gateway)

        toaster = await ask(gateway, "A blue toaster, sealed, after 4 days", right="approve")
        said = (await ok(apprentice, "diagnose", toaster, "--json")).json
        assert (said["version"], said["diagnosis"]["likely"]) == ("returns@v2", "training")
        assert "returns@v1 answers rightly" in said["diagnosis"]["because"]
        texts = {each["arm"]: each["text"] for each in said["case"]["answers"]}
        assert texts == {
            "returns@v2": "deny",
            "returns@v1": "approve",
            "the base of small": "deny",
            "general": "approve",
        }
        asked = [seen.body for seen in small.requests if "after 4 days" in seen.prompt][-3:]
        assert [body["temperature"] for body in asked] == [0, 0, 0]

        jacket = await ask(gateway, "A red jacket, worn, with my receipt", right="approve")
        told = await ok(apprentice, "diagnose", jacket)
        assert told.out.startswith("Likely fault: data. Near training rows conflict: 1 of 2")
        assert "A red jacket, worn, with a receipt" in told.out

        completion = await ask(gateway, OUT_OF_SCOPE, as_prompt=True)  # there is no scope model yet
        await keep(gateway, "returns@v2")
        balance = (await ok(apprentice, "diagnose", await ask(gateway, OUT_OF_SCOPE), "--json")).json
        assert balance["case"]["scope"]["fired"]
        assert balance["diagnosis"]["likely"] == "scope"
        assert "Nobody has judged" in balance["diagnosis"]["because"]

        assert (await ok(apprentice, "diagnose", completion, "--json")).json["case"]["scope"]["fired"]

        entries = (await ok(apprentice, "audit", "--json")).json["entries"]
        given = [entry["evidence"]["likely"] for entry in entries if entry["action"] == "diagnosis.give"]
        assert sorted(given) == ["data", "scope", "scope", "training"]
        unknown = await apprentice("diagnose", "nothing")
        assert (unknown.exit_code, unknown.out) == (1, "")
        assert "Neither a record nor a text of 'nothing' is kept" in unknown.err

"""`apprentice train` and `apprentice trainings` over a real gateway, with the trainer of the fakes."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.fakes.trainer import write_trainer
from tests.gateway.cli.conftest import command_for, ok
from tests.walks.conftest import GENERAL_PROMPT, Configure
from tests.walks.gateway import run_gateway
from tests.walks.test_training import data


async def test_training_from_a_file_is_watched_shown_and_resumed(configure: Configure, tmp_path: Path) -> None:
    trainer, plan = write_trainer(tmp_path)
    rows, manifest, plot = tmp_path / "rows.jsonl", tmp_path / "manifest.yaml", tmp_path / "losses.svg"
    rows.write_bytes(data())
    manifest.write_text(yaml.safe_dump({"task": "returns", "general_prompt": {"system": GENERAL_PROMPT}}))
    words = ["train", "returns", "--data", str(rows), "--steps", "4", "--evaluate-every", "2"]
    async with run_gateway(configure(training={"python": trainer})) as running:
        apprentice = command_for(running)
        refused = await apprentice(*words)
        assert refused.exit_code != 0
        assert "returns has no version whose manifest the new one could take" in refused.err
        plan.write_text('{"fail": "The disk is full."}')
        failed = await apprentice(*words, "--manifest", str(manifest))
        assert (failed.exit_code, "is failed. The disk is full." in failed.err) == (1, True)
        told = await ok(apprentice, *words, "--manifest", str(manifest), "--plot", str(plot))
        assert "returns@v1 is trained and registered: all steps were taken, and step 4 was the best." in told.out
        assert "Held out: 50.0 % right as a whole, loss 0.2." in told.out
        assert "It saw 36 rows; 4 were held out." in told.out
        assert plot.read_text().startswith("<svg")
        again = await apprentice(*words, "--manifest", str(manifest), "--plot", str(plot))
        assert (again.exit_code, "is there already" in again.err) == (2, True)
        listed = await ok(apprentice, "trainings", "list", "--json")
        (training,) = json.loads(listed.out)["trainings"]
        assert (await ok(apprentice, "trainings", "show", training["id"])).out == told.out
        assert "is forgotten" in (await ok(apprentice, "trainings", "stop", training["id"])).out
        table = tmp_path / "rows.csv"
        table.write_text("text,expected\n" + "".join(f"Item {number},yes\n" for number in range(40)))
        of_table = await ok(apprentice, *words[:3], str(table), "--steps", "4", "--manifest", str(manifest))
        assert "It saw 36 rows; 4 were held out." in of_table.out
        table.write_text("text,expected\n")
        bare = await apprentice(*words[:3], str(table), "--manifest", str(manifest))
        assert (bare.exit_code, "rows.csv has no rows: give one at least." in bare.err) == (2, True)
        nowhere = await apprentice("train", "returns", "--data", "nowhere.jsonl")
        assert "There is no file nowhere.jsonl" in nowhere.err

"""`apprentice adapters push` says what the gateway would refuse before anything is sent."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.fakes.adapters import BASE_CONFIG, write_adapter
from tests.gateway.cli.conftest import Command, command_for
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway


def link_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder.parent / "elsewhere.safetensors")
    weights.symlink_to(folder.parent / "elsewhere.safetensors")


def link_configuration(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (link_weights, "'adapter_model.safetensors' is a symbolic link"),
        (link_configuration, "'adapter_config.json' is a symbolic link"),
        (lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"), "can run code when it is loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "belongs to a tokenizer"),
        (lambda folder: (folder / "optimizer").mkdir(), "'optimizer' is a folder"),
    ],
    ids=["linked weights", "linked configuration", "pickle", "tokenizer", "folder"],
)
async def test_a_folder_that_the_import_refuses_is_not_sent(
    gateway: RunningGateway,
    apprentice: Command,
    make_adapter: MakeAdapter,
    spoil: Callable[[Path], object],
    told: str,
) -> None:
    folder = make_adapter(2)
    spoil(folder)
    pushed = await apprentice("adapters", "push", str(folder))
    assert (pushed.exit_code, pushed.out, told in pushed.err) == (2, "", True), pushed
    async with gateway.http() as http:
        imported = await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)})
    assert (imported.status_code, told in imported.json()["error"]["message"]) == (422, True), imported.text


async def test_a_folder_that_is_not_there_is_told_apart_from_one_without_a_manifest(
    gateway: RunningGateway, apprentice: Command, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nope"
    pushed = await apprentice("adapters", "push", str(nowhere))
    assert (pushed.exit_code, pushed.err.startswith(f"apprentice: There is no folder {nowhere}: ")) == (2, True)
    async with gateway.http() as http:
        for folder, told in ((nowhere, "there is no folder"), (tmp_path, "There is no manifest.yaml in")):
            refused = await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)})
            assert told in refused.json()["error"]["message"]


async def test_folder_with_pickled_weights_alone_is_told_how_to_save_them(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(2)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    pushed = await apprentice("adapters", "push", str(folder))
    assert pushed.exit_code == 2
    assert (
        "adapter_model.bin can run code when it is loaded: save the adapter with safe_serialization=True" in pushed.err
    )


async def test_an_adapter_over_the_gateways_limit_is_not_sent(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with run_gateway(configure(limits={"adapter_bytes_max": 2048})) as running:
        pushed = await command_for(running)("adapters", "push", str(make_adapter(1)))
    assert (pushed.exit_code, pushed.out) == (2, "")
    assert pushed.err.endswith("takes at most 2048 (limits.adapter_bytes_max): nothing was sent.\n")


@pytest.mark.parametrize("rank_max", [16, 32])
async def test_a_rank_over_the_pools_is_refused_at_the_push(
    configure: Configure, make_adapter: MakeAdapter, rank_max: int
) -> None:
    folder = make_adapter(1)
    write_adapter(folder, BASE_CONFIG, rank=32, seed=1)
    configuration = configure()
    configuration["pools"]["small"]["max_lora_rank"] = rank_max
    async with run_gateway(configuration) as running:
        pushed = await command_for(running)("adapters", "push", str(folder))
    if rank_max == 32:
        assert pushed.exit_code == 0, pushed.err
    else:
        assert (pushed.exit_code, pushed.out) == (1, "")
        assert "Its rank is 32, and the engines take at most 16" in pushed.err
        assert "max_lora_rank" in pushed.err


async def test_a_manifest_that_can_not_be_used_is_named(apprentice: Command, make_adapter: MakeAdapter) -> None:
    folder = make_adapter(2)
    (folder / "manifest.yaml").write_text(yaml.safe_dump({"task": "returns"}))
    pushed = await apprentice("adapters", "push", str(folder))
    assert (pushed.exit_code, pushed.err) == (2, "apprentice: manifest.yaml: general_prompt is missing: add it.\n")


@pytest.mark.parametrize("past", [True, False])
async def test_a_review_that_is_overdue_from_the_start_is_warned_of(
    apprentice: Command, make_adapter: MakeAdapter, past: bool
) -> None:
    folder = make_adapter(2)
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    day = "2020-01-31" if past else "2999-01-31"
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "review_by": day}))
    pushed = await apprentice("adapters", "push", str(folder))
    assert (pushed.exit_code, pushed.out.startswith("returns@v2 is verified")) == (0, True), pushed.err
    warning = "Warning: The manifest's review_by, 2020-01-31, is past: its review is overdue from the start."
    assert (warning in pushed.err) is past
    again = (await apprentice("adapters", "push", str(folder), "--json")).json
    assert len(again["warnings"]) == past


def remove(folder: Path) -> None:
    """As somebody does by hand: it is read-only."""
    folder.chmod(0o755)
    shutil.rmtree(folder)


async def test_a_store_that_has_lost_its_bytes_says_to_push_again_and_that_mends_it(
    gateway: RunningGateway, apprentice: Command, make_adapter: MakeAdapter
) -> None:
    folder = str(make_adapter(2))
    assert (await apprentice("adapters", "push", folder)).exit_code == 0
    digest = (await apprentice("adapters", "show", "returns@v2", "--json")).json["digest"]
    await asyncio.to_thread(remove, gateway.services.control.adapters.store.path(digest))
    staged = await apprentice("adapters", "stage", "returns@v2")
    assert staged.exit_code == 1
    assert staged.err.count("push its adapter again, then stage it") == 1
    assert len(staged.err) < 300, staged.err
    assert (await apprentice("adapters", "push", folder)).out.startswith("returns@v2 is verified")
    assert (await apprentice("adapters", "stage", "returns@v2")).exit_code == 0

"""`apprentice adapters pull` and `pulls`: followed to its end, and told why it failed."""

from __future__ import annotations

from tests.fakes.sources import hub
from tests.gateway.cli.conftest import command_for, ok
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway


async def test_a_pull_ends_with_its_version_or_with_the_reason(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with hub() as source:
        source.commit(make_adapter(1))
        pulls = {"allowed": ["hf://shop"], "hf_endpoint_url": source.url}
        async with run_gateway(configure(pulls=pulls)) as gateway:
            apprentice = command_for(gateway)
            pulled = await ok(apprentice, "adapters", "pull", "hf://shop/returns@main", "--task", "returns")
            assert pulled.out.startswith("returns@v1 ")
            failed = await apprentice("adapters", "pull", "hf://shop/returns@no", "--task", "returns", "--json")
            assert failed.exit_code == 1
            assert "has no such adapter (404)" in failed.json["error"]["message"]
            listed = (await ok(apprentice, "adapters", "pulls", "--json")).json["pulls"]
            assert [(each["state"], each["version"]) for each in listed] == [("failed", ""), ("done", "returns@v1")]
            assert "--task" in (await apprentice("adapters", "pull", "hf://shop/returns@main")).err
            assert "is of no known kind" in (await apprentice("adapters", "pull", "nonsense")).err

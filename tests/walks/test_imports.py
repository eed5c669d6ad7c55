"""Paths on the gateway's machine that an admin names: only real files inside `import_folders` are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway

pytestmark = pytest.mark.invariant("No path of an admin is read outside import_folders, nor a link or a device.")

SECRET = "a line of another file"


async def imported(http: httpx.AsyncClient, **body: object) -> tuple[int, str, str, str]:
    """Status, code, param and message of an import."""
    answer = await http.post("/admin/v1/adapters", json={"task": "returns", **body})
    error = answer.json().get("error", {})
    return answer.status_code, error.get("code", ""), error.get("param", ""), error.get("message", "")


async def test_without_import_folders_nothing_is_imported_by_path(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(import_folders=[])) as running, running.http() as http:
        status, code, param, message = await imported(http, path=str(make_adapter(1)))
    assert (status, code, param) == (422, "adapter_rejected", "path")
    assert "import_folders" in message
    assert "upload" in message


async def test_a_path_outside_the_import_folders_is_refused_whether_it_exists_or_not(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter, inside = make_adapter(1), tmp_path / "in"
    inside.mkdir()
    paths = (adapter, tmp_path / "nowhere", inside / ".." / adapter.name, tmp_path / "inside")
    async with run_gateway(configure(import_folders=[inside])) as running, running.http() as http:
        told = [await imported(http, path=str(path)) for path in paths]
        assert (await imported(http, path=f"{inside}/\0"))[0] == 422
        adapter.rename(inside / "adapter")
        assert (await imported(http, path=str(inside / "adapter")))[0] == 201
    assert {(status, code, param) for status, code, param, _ in told} == {(422, "adapter_rejected", "path")}
    assert len({message for *_, message in told}) == 1


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    other = path.with_name(f"other-{path.name}")
    if path.exists():
        path.rename(other)
    else:
        other.write_text(SECRET)
    path.symlink_to(other)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [fifo, device, link, folder])
@pytest.mark.parametrize("name", ["manifest.yaml", "signature.json", "adapter_config.json"])
async def test_what_is_no_regular_file_of_an_adapter_is_refused_at_once(
    configure: Configure, make_adapter: MakeAdapter, make: Callable[[Path], None], name: str
) -> None:
    adapter = make_adapter(1)
    if make is not link:
        (adapter / name).unlink(missing_ok=True)
    make(adapter / name)
    async with run_gateway(configure()) as running, running.http() as http:
        status, code, _, message = await imported(http, path=str(adapter))
    assert (status, code) == (422, "adapter_rejected")
    assert SECRET not in message


@pytest.mark.parametrize("make", [fifo, device, link, folder])
@pytest.mark.parametrize("param", ["prompts", "background"])
async def test_prompts_that_are_no_regular_file_are_refused_at_once(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path, make: Callable[[Path], None], param: str
) -> None:
    prompts = tmp_path / "good.jsonl"
    prompts.write_text("".join(f'{{"prompt": "a toaster after {day} days"}}\n' for day in range(30)))
    make(tmp_path / "bad.jsonl")
    body = {"path": str(make_adapter(1)), "prompts": str(prompts), param: str(tmp_path / "bad.jsonl")}
    async with run_gateway(configure()) as running, running.http() as http:
        status, code, named, message = await imported(http, **body)
    assert (status, code, named) == (422, "prompts_rejected", param)
    assert SECRET not in message


async def test_a_folder_that_a_link_leads_to_is_refused(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(1)
    (tmp_path / "linked").symlink_to(adapter)
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    async with run_gateway(configure()) as running, running.http() as http:
        for path in (tmp_path / "linked", tmp_path / "up" / adapter.name, tmp_path / "loop"):
            status, code, _, message = await imported(http, path=str(path))
            assert (status, code) == (422, "adapter_rejected")
            assert "symbolic link" in message


async def test_an_import_folder_may_itself_be_a_link(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(1)
    (tmp_path / "shared").symlink_to(tmp_path)
    async with run_gateway(configure(import_folders=[tmp_path / "shared"])) as running, running.http() as http:
        assert (await imported(http, path=str(tmp_path / "shared" / adapter.name)))[0] == 201

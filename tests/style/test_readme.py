"""What the README tells a newcomer to type exists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from starlette.routing import compile_path
from typer.main import get_command

from gateway.app import HOT, build_app
from gateway.cli.main import app
from gateway.configuration.settings import Settings, load_settings
from gateway.formats.request_body import read_body
from router.policy import TaskPolicy
from tests.style.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = ("sh", "bash", "console")


def blocks(*languages: str) -> list[str]:
    found = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    return [text for language, text in found if language in languages]


def commands() -> Iterator[list[str]]:
    """Every command of the README's shell blocks, in words; `make` and `python -m` within its sentences too."""
    for block in blocks(*SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] != "export":
                yield words
    outside = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    yield from (shlex.split(text) for text in re.findall(r"`((?:make|python -m|apprentice) [^`]+)`", outside))


def commands_of(*names: str) -> list[list[str]]:
    return [words for words in commands() if Path(words[0]).name in names]


def test_every_command_is_one_that_we_know() -> None:
    known = {"make", "curl", "apprentice", "python"}
    assert not [words for words in commands() if Path(words[0]).name not in known]
    assert {Path(words[0]).name for words in commands()} == known


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    variables = set(re.findall(r"(?m)^([A-Z]+) \?=", makefile)) | set(re.findall(r"\$\(if \$\(([A-Z]+)\)", makefile))
    for _, *words in commands_of("make"):
        for word in words:
            name, equals, _ = word.partition("=")
            assert name in (variables if equals else targets), f"make {word}"


def test_every_command_of_ours_exists_with_its_options() -> None:
    group = get_command(app)
    for _, name, *words in commands_of("apprentice"):
        command = group.commands[name]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options


def test_every_module_that_is_run_exists() -> None:
    for _, minus_m, module, *_ in commands_of("python"):
        assert minus_m == "-m"
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


def sent(words: list[str]) -> tuple[str, str, bytes | None]:
    """Method, path and body of a curl line."""
    (url,) = [word for word in words if word.startswith("http")]
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
    return method, re.sub(r"^https?://[^/]+", "", url), body


def test_every_curl_line_asks_what_is_there_with_a_key() -> None:
    served = build_app(load_settings(ROOT / "apprentice.yaml")).openapi()["paths"]
    patterns = [(compile_path(path)[0], [method.upper() for method in methods]) for path, methods in served.items()]
    for words in commands_of("curl"):
        method, path, body = sent(words)
        there = path in HOT or any(pattern.match(path) and method in methods for pattern, methods in patterns)
        assert there, f"{method} {path}"
        assert any(word.startswith("authorization: Bearer $") for word in words)
        if body is not None:
            json.loads(body)
            assert "content-type: application/json" in words
        if path in HOT and body is not None:
            read_body(HOT[path], body).check(None, TaskPolicy("", None))


def test_every_address_in_the_table_is_there() -> None:
    served = [*build_app(load_settings(ROOT / "apprentice.yaml")).openapi()["paths"], *HOT]
    for path in re.findall(r"`(?:[A-Z]+ )?(/[a-z/1{}_]+)`", README):
        assert any(one == path or one.startswith(path + "/") for one in served), path


@pytest.mark.parametrize("block", blocks("yaml"), ids=range(len(blocks("yaml"))))
def test_every_configuration_is_valid(block: str) -> None:
    Settings(**yaml.safe_load(block))


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_every_program_is_python(block: str) -> None:
    compile(block, "README.md", "exec")


def test_limits_stand_before_what_there_is_to_run() -> None:
    assert README.index("## Limits") < README.index("## Two commands")


def test_the_picture_shows_the_walk_in_its_order() -> None:
    walk = "identify → read → admit → score → choose → open → relay → settle"
    assert walk in README.replace("\n", " ")
    assert walk in (ROOT / "ARCHITECTURE.md").read_text()
    (picture,) = blocks("mermaid")
    for step in walk.split(" → "):
        assert step in picture

"""The commands, requests and configurations that documents show are ones that the product takes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from starlette.routing import compile_path

from gateway.configuration.settings import Settings
from gateway.formats.format_table import FORMATS
from gateway.formats.request_body import read_body
from router.policy import TaskPolicy
from tests.document import load_document
from tests.style.source import ROOT, tracked
from tools.reference.cli import commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(path for path in tracked() if path.endswith(".md") and path != "CHANGELOG.md")
SHOWN_POOLS = {
    name: {"base_model": name, "replicas": [{"name": f"{name}-0", "url": "http://10.0.0.7:8000"}]}
    for name in ("small", "general")
}
"""The pools that complete a configuration which shows a task alone."""


def blocks(document: str, *languages: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [block for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if language in languages]


def command_lines(document: str) -> Iterator[list[str]]:
    """Every command of a document, in words: of its shell blocks, and in the code of its sentences."""
    for block in blocks(document, "console"):
        yield from (shlex.split(line) for line in re.findall(r"(?m)^\$ (.*)$", block))
    for block in blocks(document, "sh", "bash"):
        script = re.sub(r"(?ms)<<'END'\n.*?^END$", "", block).replace("\\\n", " ")
        yield from filter(None, (shlex.split(line, comments=True) for line in _lines(script)))
    outside = re.sub(r"```.*?```", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from (shlex.split(text) for text in re.findall(r"`((?:make|python -m|apprentice) [^`…]+)`", outside))


def _lines(script: str) -> Iterator[str]:
    """The lines of a script; those that a quotation joins are one."""
    held = ""
    for line in script.splitlines():
        held = f"{held}\n{line}" if held else line
        if held.count("'") % 2 == 0:
            yield held
            held = ""


def commands_of(*names: str) -> list[tuple[str, list[str]]]:
    """The commands of these programs, with the document that shows each."""
    return [
        (document, words) for document in DOCUMENTS for words in command_lines(document) if Path(words[0]).name in names
    ]


def test_every_make_target_in_a_document_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    variables = set(re.findall(r"(?m)^([A-Z]+) \?=", makefile)) | set(re.findall(r"\$\(if \$\(([A-Z]+)\)", makefile))
    for document, (_, *words) in commands_of("make"):
        for word in words:
            name, equals, _ = word.partition("=")
            assert name in (variables if equals else targets), f"{document}: make {word}"


def test_every_command_of_ours_in_a_document_exists_with_its_options() -> None:
    known = dict(commands())
    groups = {name.split()[1] for name in known if name.count(" ") > 1}
    shown = [(document, words) for document, words in commands_of("apprentice") if not names_a_group(words, groups)]
    assert len(shown) > 50
    for document, words in shown:
        name = " ".join(("apprentice", *words[1 : 3 if words[1] in groups else 2]))
        assert name in known, f"{document}: there is no command {name}"
        options = {option for parameter in known[name].params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= options, f"{document}: {' '.join(words)}: {given - options}"


def names_a_group(words: list[str], groups: set[str]) -> bool:
    """True where a sentence names a group of commands, or what all commands have, and no command that could be run."""
    _, first, *rest = words
    return (first in groups and not rest) or first == "COMMAND" or first.startswith("--")


def test_every_module_that_a_document_runs_exists() -> None:
    ours = ("benchmarks", "router", "tests", "tools")
    for document, (_, *words) in commands_of("python"):
        if words[:1] == ["-m"] and words[1].split(".")[0] in ours and not words[1].endswith(".NAME"):
            path = ROOT / words[1].replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{document}: {words[1]}"


def sent(words: list[str]) -> tuple[str, str, bytes | None]:
    """Method, path and body of a curl line."""
    (url,) = [word for word in words if word.startswith("http")]
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
    return method, re.sub(r"^https?://[^/]+", "", url), body


def test_every_curl_line_asks_for_an_address_that_exists_with_a_key() -> None:
    served = load_document()["paths"]
    patterns = [(compile_path(path)[0], [method.upper() for method in methods]) for path, methods in served.items()]
    lines = commands_of("curl")
    assert lines
    for document, words in lines:
        method, path, body = sent(words)
        exists = path in FORMATS or any(pattern.match(path) and method in methods for pattern, methods in patterns)
        assert exists, f"{document}: {method} {path}"
        assert any(word.startswith("authorization: Bearer $") for word in words), document
        if body is not None:
            json.loads(body.replace(b"$(date +%s)", b"1"))  # as the shell does
            assert "content-type: application/json" in words, document
        if path in FORMATS and body is not None:
            read_body(FORMATS[path], body).check(None, TaskPolicy("", None))


CONFIGURATIONS = [
    (document, block)
    for document in DOCUMENTS
    for block in blocks(document, "yaml")
    if re.match(r"(pools|tasks|redis_url):", block)
]


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_every_configuration_in_a_document_is_valid(number: int) -> None:
    _, block = CONFIGURATIONS[number]
    metrics = {"correct": {"kind": "boolean", "better": "higher"}}
    Settings(**{"pools": SHOWN_POOLS, "feedback_metrics": metrics} | yaml.safe_load(block))


def test_every_python_program_in_a_document_compiles() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for program in (*blocks(document, "python"), *re.findall(r"(?ms)python - <<'END'\n(.*?)^END$", text)):
            compile(program, document, "exec")


def test_first_screen_is_two_sentences_a_picture_two_commands_and_a_request() -> None:
    first_screen, _, rest = README.partition("\n## ")
    assert rest.startswith("Limits\n")
    assert re.findall(r"```(\w+)\n", first_screen) == ["mermaid", "sh", "sh"]
    commands, request = re.findall(r"```sh\n(.*?)```", first_screen, re.DOTALL)
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["make up", "make test"]
    assert request.count("curl") == 1
    text = re.sub(r"```.*?```", "", first_screen, flags=re.DOTALL)
    assert len(re.findall(r"[.!?](?=\s)", text)) == 2


def test_the_picture_shows_every_step_of_a_request() -> None:
    steps = "identify → read → admit → score → choose → open → relay → settle"
    assert steps in (ROOT / "ARCHITECTURE.md").read_text()
    (picture,) = blocks("README.md", "mermaid")
    for step in steps.split(" → "):
        assert step in picture

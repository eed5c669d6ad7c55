"""The output of a command that can't be written, or not as it is: one line and an exit code, and no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("apprentice")
COMMANDS = ("--version", "--help", "keys list --help", "check", "doctor", "doctor --json")
FULL = "apprentice: The output, or a file, can't be written: No space left on device.\n"


def run_into(output: int, words: str, folder: Path, unbuffered: str) -> tuple[int, str]:
    """Run a command whose stdout is `output`: its exit code and its errors. With `unbuffered` each line is written."""
    (folder / "apprentice.yaml").write_text(
        "pools: {general: {base_model: base, replicas: [{name: g0, url: 'http://127.0.0.1:1'}]}}\n"
    )
    variables = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = (PROGRAM, *words.split())
    ended = subprocess.run(command, cwd=folder, env=variables, stdout=output, stderr=-1, text=True, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk_is_told_in_one_line(words: str, unbuffered: str, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert run_into(full, words, tmp_path, unbuffered) == (2, FULL)
    finally:
        os.close(full)


@pytest.mark.parametrize("words", ["--version", "check"])
def test_where_errors_go_to_the_full_disk_too_the_exit_code_says_it(words: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run((PROGRAM, *words.split()), cwd=tmp_path, stdout=full, stderr=full, check=False)
    assert ended.returncode == 2


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_who_has_left_is_told_nothing(words: str, unbuffered: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_into(writer, words, tmp_path, unbuffered) == (1, "")
    finally:
        os.close(writer)


def test_letters_that_a_terminal_does_not_have_are_replaced(tmp_path: Path) -> None:
    config = tmp_path / "größe.yaml"
    config.write_text("pools: {general: {base_model: base, replicas: [{name: g0, url: 'http://127.0.0.1:1'}]}}\n")
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run((PROGRAM, "check", "--config", config), env=variables, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.endswith(b"gr??e.yaml is valid: 1 pool, 1 replica, 0 tasks.\n")

"""A machine that lacks programs: what is missing is said, its tests are left out, and both are counted at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROWS, needs, program, reason

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a shell and little else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "sh", "cat", "dirname", "env", "grep", "id"):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return {**os.environ, "PATH": str(folder)}


def run(*command: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a command."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_packages_that_are_missing_are_named_where_they_can_not_be_installed(bare: dict[str, str]) -> None:
    code, said = run("tests/packages.sh", "test", environment=bare)
    assert code == 1
    wanted = [package for package, programs, target in ROWS if target == "test" and programs != "-"]
    assert f"Debian packages: missing are {' '.join(wanted)}" in said
    assert f"apt-get install {' '.join(wanted)}" in said


def test_a_missing_program_leaves_its_tests_out_and_the_run_says_so(bare: dict[str, str], tmp_path: Path) -> None:
    left_out = tmp_path / "left-out.txt"
    asked = ["tests/monitoring/test_alerts.py", "-k", "promtool_finds_nothing", "-n", "0", "--left-out", left_out]
    for _ in range(2):
        code, said = run(sys.executable, "-m", "pytest", *asked, environment=bare)
        assert code == 0, said
        assert re.search(r"= left out: \d+ =", said)
    assert reason("promtool") == "promtool is missing: apt-get install prometheus"
    counts = [line.split(maxsplit=1) for line in left_out.read_text().splitlines()]
    assert [words for _, words in counts] == [reason("promtool")] * 2
    total = sum(int(count) for count, _ in counts)
    code, said = run("tests/left_out.sh", left_out)
    assert (code, said.splitlines()[0]) == (0, f"Left out: {total} tests")


@pytest.mark.parametrize(("content", "said"), [(None, "No tests were run."), ("", "No test was left out.")])
def test_nothing_that_is_left_out_is_said_too(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "left-out.txt"
    if content is not None:
        path.write_text(content)
    assert run("tests/left_out.sh", path) == (0, f"{said}\n")


def test_every_program_that_a_test_needs_is_in_the_list() -> None:
    listed = {name for _, programs, _ in ROWS for name in programs.split(",")}
    asked = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for arguments in re.findall(r"\b(?:program|needs)\(((?:\"[a-z-]+\"(?:, )?)+)\)", path.read_text("utf-8")):
            asked |= set(re.findall(r"[a-z-]+", arguments))
    assert asked - {"sh"} <= listed
    assert {"promtool", "gcc", "git"} <= asked


def test_the_makefile_and_the_run_of_everything_use_the_list() -> None:
    makefile, everything = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "tests/packages.sh test" in makefile
    assert "tests/packages.sh test image" in everything
    assert "apt-get" not in makefile + everything


def test_a_program_that_is_there_leaves_nothing_out() -> None:
    assert Path(program("sh")).exists()
    assert needs("sh").args == (False,)

"""Commit subjects: an area, then what changes, in 72 characters. Commits from before this file are not looked at."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.programs import program
from tests.style.source import ROOT

SUBJECT_CHARACTERS_MAX = 72
SUBJECT = re.compile(r"[a-z][\w./, -]*: \S")


def git(*words: str) -> list[str]:
    """The lines that git answers. Leaves the test out where there is no repository."""
    program("git")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_commit_subjects_are_short_and_begin_with_an_area() -> None:
    introduced = git("log", "--diff-filter=A", "--format=%H", "--", "tests/style/test_history.py")
    since = git("log", "--no-merges", "--format=%s", f"{introduced[-1]}..HEAD") if introduced else []
    bad = [subject for subject in since if len(subject) > SUBJECT_CHARACTERS_MAX or not SUBJECT.match(subject)]
    assert not bad, f"write `area: what changes` in at most {SUBJECT_CHARACTERS_MAX} characters: {bad}"

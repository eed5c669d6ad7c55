"""`apprentice keygen`: a key for admins on stdout, or one that signs adapters in a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.callers import split_key
from gateway.errors import SettingsError
from serving.adapters.signature import check, read_public_key, sign
from tests.gateway.cli.conftest import run

DIGEST = "sha256:" + "ab" * 32


def test_a_key_for_admins_is_all_that_is_printed() -> None:
    said = run("keygen")
    assert (said.exit_code, said.err, split_key(said.out.strip()) is not None) == (0, "", True)


def test_what_the_key_in_the_file_signs_the_printed_one_proves(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    said = run("keygen", "--signing", str(path))
    assert (said.exit_code, said.err) == (0, "")
    trusted = {"returns-team": read_public_key(said.out.removesuffix("\n"))}
    assert check(sign(path.read_bytes(), "returns-team", DIGEST, DIGEST), DIGEST, DIGEST, trusted) == "returns-team"


def test_only_the_owner_can_read_a_signing_key_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run("keygen", "--signing", str(tmp_path / "key.pem"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    kept, link = tmp_path / "key.pem", tmp_path / "link.pem"
    run("keygen", "--signing", str(kept))
    before = kept.read_bytes()
    link.symlink_to(tmp_path / "nowhere.pem")
    for path in (kept, link):
        with pytest.raises(SettingsError, match="is there already, and is left as it is: name a new file"):
            run("keygen", "--signing", str(path))
    assert (kept.read_bytes(), link.exists()) == (before, False)


def test_a_file_that_can_not_be_made_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"can't be written: No such file or directory\."):
        run("keygen", "--signing", str(tmp_path / "nowhere" / "key.pem"))

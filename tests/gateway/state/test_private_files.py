"""Folders and files that only the user of the gateway can read."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.state.private_files import keep_secret, make_private_folder, name_shared_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("there", [True, False])
def test_a_private_folder_is_closed_to_others(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "data"
    if there:
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    make_private_folder(folder)
    assert mode(folder) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_an_open_folder_of_another_user_is_logged_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    os.chown(folder, 12345, 12345)
    make_private_folder(folder)
    assert mode(folder) == 0o777
    assert "belongs to another user and is open to others" in caplog.text


def test_a_secret_replaces_what_was_there_and_never_goes_through_a_link(tmp_path: Path) -> None:
    path, other = tmp_path / "key", tmp_path / "other"
    other.write_text("kept")
    path.symlink_to(other)
    keep_secret(path, "first")
    keep_secret(path, "second")
    assert (path.read_text(), other.read_text(), mode(path)) == ("second\n", "kept", 0o600)


def test_gateways_that_start_together_read_one_name(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as gateways:
        for number in range(60):
            folder = tmp_path / str(number)
            names = set(gateways.map(name_shared_folder, [folder] * 8, ["place"] * 8))
            assert len(names) == 1
            assert len(names.pop()) == 32
            assert [path.name for path in folder.iterdir()] == ["place"]

"""Files of an import that a link or a FIFO replaced after their paths were checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.features.fitting.prompts import read_sample
from serving.adapters.manifest import ManifestError, read_manifest
from serving.adapters.signature import SignatureError, read_signature


@pytest.fixture(params=["link", "fifo", "folder"])
def replaced(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "file"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        (tmp_path / "other").write_text("a line of another file")
        path.symlink_to(tmp_path / "other")
    return path


@pytest.mark.timeout(60)
def test_a_manifest_that_is_no_regular_file_is_refused_at_once(replaced: Path) -> None:
    with pytest.raises(ManifestError, match="can't be read"):
        read_manifest(replaced)


@pytest.mark.timeout(60)
def test_a_signature_that_is_no_regular_file_is_refused_at_once(replaced: Path) -> None:
    with pytest.raises(SignatureError, match="can't be read"):
        read_signature(replaced)


@pytest.mark.timeout(60)
async def test_prompts_that_are_no_regular_file_are_refused_at_once(replaced: Path) -> None:
    with pytest.raises(OSError, match=r"symbolic links|regular file"):
        await read_sample(replaced, None, "last_user")

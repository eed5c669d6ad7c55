"""What the swap benchmark swaps on: two engines, fake or vLLM, and the gateway in front of them."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import POLL_SECONDS, ROOT, Running, Unmeasurable, answers, ask
from benchmarks.subjects import BASE_CONFIG, BASE_MODEL, BASE_NAME, TASK, apprentice, base_fingerprint
from benchmarks.swap_callers import ANSWER_SECONDS_MAX, PATH
from benchmarks.swap_counts import Nearest, Reference, Tokens, tokens_of
from tests.fakes.ports import free_port
from tools.engines.engine_command import EngineOptions, build_command, build_environment

ENGINE_PYTHON = ROOT / "var" / "engine-venv" / "bin" / "python"
MODEL = ROOT / "var" / "models" / BASE_NAME
NUMBERS = (1, 2)
GATEWAY_CORE = 0
ENGINE_CORES = (1, 0)
START_SECONDS_MAX = 60.0
ENGINE_START_SECONDS_MAX = {"fake": 30.0, "vllm": 300.0}
STAGE_SECONDS_MAX = 120
SNAPSHOT_SECONDS = 1.0
DEATH_SECONDS_MAX = 10.0
REFERENCE_TOKENS = 128


# ---- engines ------------------------------------------------------------------------------------


def start_engines(stack: ExitStack, kind: str, folder: Path, count: int = len(ENGINE_CORES)) -> list[int]:
    """Engines, warm; returns their ports. vLLM finds its cores itself. Raises Unmeasurable."""
    ports = [free_port() for _ in range(count)]
    engines = []
    for port, core in zip(ports, ENGINE_CORES, strict=False):
        command, environment = fake_engine(port) if kind == "fake" else vllm_engine(port)
        pinned = core if kind == "fake" else None
        log = folder / f"engine-{port}.log"
        engines.append(stack.enter_context(Running(f"engine {port}", command, pinned, log, environment)))
    for engine, port in zip(engines, ports, strict=True):
        engine.wait_until(lambda port=port: answers(port, "/health"), ENGINE_START_SECONDS_MAX[kind])  # type: ignore[misc]
    for port in ports:
        ask_engine(port, BASE_MODEL, "Hello", logprobs=True, top_logprobs=1)
    return ports


def fake_engine(port: int) -> tuple[list[str], dict[str, str]]:
    """The command of a fake engine: 48 tokens an answer, 4 ms between them, and 15 ms to load an adapter, as vLLM."""
    command = [str(Path(apprentice()).with_name("python")), "-m", "tests.fakes.engine"]
    command += ["--port", str(port), "--model", BASE_MODEL, "--n-tokens", "48"]
    command += ["--token-delay-seconds", "0.004", "--load-delay-seconds", "0.015"]
    return command, {"PYTHONPATH": str(ROOT)}


def vllm_engine(port: int) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a real engine. Raises Unmeasurable."""
    if not ENGINE_PYTHON.exists() or not (MODEL / "config.json").exists():
        raise Unmeasurable("There is no vLLM or no model: `make up` installs both.")
    engine = EngineOptions(ENGINE_PYTHON, MODEL, (BASE_MODEL,), port, on_gpu=False)
    return build_command(engine), build_environment(engine)


def ask_engine(port: int, model: str, prompt: str, **more: Any) -> str:
    """An engine's whole answer. Raises Unmeasurable."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, **more}
    body["max_tokens"] = REFERENCE_TOKENS
    status, _, answer = ask(port, "POST", PATH, body, None, ANSWER_SECONDS_MAX)
    if status != 200:
        raise Unmeasurable(f"The engine answered {status} to {model}: {answer[:300].decode()}")
    return str(json.loads(answer)["choices"][0]["message"]["content"])


def ask_each(port: int, model: str, prompts: Sequence[str]) -> list[str]:
    """The engine's answers to all prompts, asked at once. Raises Unmeasurable."""
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(lambda prompt: ask_engine(port, model, prompt), prompts))


class EngineFailed(Unmeasurable):
    """An engine did not do what it was told; perhaps it is dead."""


def load(port: int, name: str, folder: Path, **more: Any) -> None:
    """Load an adapter on an engine. Raises EngineFailed."""
    tell_engine(port, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **more})


def unload(port: int, name: str) -> None:
    """Take an adapter's name off an engine. Raises EngineFailed."""
    tell_engine(port, "/v1/unload_lora_adapter", {"lora_name": name})


def tell_engine(port: int, path: str, body: dict[str, Any]) -> None:
    """A call of the engine's own. Raises EngineFailed."""
    try:
        status, _, answer = ask(port, "POST", path, body)
    except OSError as error:
        raise EngineFailed(f"{path}: {error!r}") from error
    if status != 200:
        raise EngineFailed(f"{path}: {status} {answer[:300].decode()}")


def is_dead(port: int) -> bool:
    """Whether an engine has gone, or goes within a short while."""
    deadline = time.monotonic() + DEATH_SECONDS_MAX
    while answers(port, "/health"):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)  # waits for a process, in a program without an event loop
    return True


def references_of(kind: str, answers_of: Callable[[int], list[str]]) -> list[Reference]:
    """For each prompt what the versions say; `answers_of` asks a version, by its number. Raises Unmeasurable."""
    said = {number: answers_of(number) for number in NUMBERS}
    if any(one == other for one, other in zip(said[NUMBERS[0]], said[NUMBERS[1]], strict=True)):
        raise Unmeasurable("The two adapters give the same answer: nobody could tell them apart.")
    by_prompt = [dict(zip(NUMBERS, texts, strict=True)) for texts in zip(*said.values(), strict=True)]
    if kind == "vllm":
        return [Nearest(texts) for texts in by_prompt]
    return [Tokens({number: tokens_of(text) for number, text in texts.items()}) for texts in by_prompt]


def copy_of_adapter(folder: Path, kind: str, adapter: Path) -> Path:
    """An adapter with its manifest; for the fake engine without golden answers, which that can't know."""
    if not (adapter / "adapter_model.safetensors").is_file():
        raise Unmeasurable(f"There is no adapter in {adapter}: tests/engine/train_adapters.py makes the two.")
    shutil.copytree(adapter, folder)
    manifest = json.loads((adapter / "manifest.yaml").read_text(encoding="utf-8"))
    if kind == "fake":
        manifest.pop("golden", None)
    (folder / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


# ---- the gateway --------------------------------------------------------------------------------


class Gateways:
    """The gateways in front of the engines, on one Valkey, as their admin sees them, who asks the first."""

    def __init__(self, stack: ExitStack, kind: str, engines: Sequence[int], folder: Path, count: int) -> None:
        self.ports = [free_port() for _ in range(count)]
        self._key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
        base = base_of(kind, folder)
        for number, port in enumerate(self.ports):
            config = folder / f"gateway-{number}.yaml"
            config.write_text(json.dumps(configuration(folder, base, engines, port), indent=1))  # JSON is YAML
            command = [apprentice(), "serve", "--config", str(config)]
            environment = {"APPRENTICE_ADMIN_KEY": self._key}
            log = folder / f"gateway-{number}.log"
            gateway = stack.enter_context(Running(f"gateway {number}", command, GATEWAY_CORE, log, environment))
            gateway.wait_until(lambda port=port: answers(port, "/health/ready"), START_SECONDS_MAX)  # type: ignore[misc]

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A call of the admin API. Raises Unmeasurable."""
        status, _, answer = ask(
            self.ports[0], method, f"/admin/v1/{path}", body, self._key, timeout_seconds=STAGE_SECONDS_MAX + 10
        )
        if status >= 300:
            raise Unmeasurable(f"The gateway answered {status} to {method} {path}: {answer[:400].decode()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def place(self, folder: Path) -> str:
        """Import an adapter and stage it on every replica."""
        version = str(self.admin("POST", "adapters", {"task": TASK, "path": str(folder)})["version"])
        staged = self.admin("POST", f"adapters/{version}/stage?wait_seconds={STAGE_SECONDS_MAX}")
        if staged["state"] != "ready" or len(staged["ready"]) != len(ENGINE_CORES):
            raise Unmeasurable(f"{version} is {staged['state']} on {staged['ready']}: {staged['note']}")
        return version

    def point(self, version: str) -> None:
        """Move the alias to a version: the swap."""
        self.admin("PUT", f"aliases/{TASK}", {"version": version})

    def roll_back(self) -> None:
        """Move the alias back to the version before."""
        self.admin("POST", f"aliases/{TASK}/rollback", {})

    def caller_key(self) -> str:
        """A new caller's key."""
        return str(self.admin("POST", "callers", {"name": "benchmark"})["key"])


def base_of(kind: str, folder: Path) -> dict[str, Any]:
    """The pool's base model. The fake engine has no weights: the sizes that the adapters are for are enough."""
    if kind != "fake":
        return {"base_folder": str(MODEL)}
    (folder / BASE_NAME).mkdir()
    (folder / BASE_NAME / "config.json").write_text(json.dumps(BASE_CONFIG), encoding="utf-8")
    return {"base_folder": str(folder / BASE_NAME), "base_fingerprint": base_fingerprint()}


def configuration(folder: Path, base: dict[str, Any], engines: Sequence[int], port: int) -> dict[str, Any]:
    """An apprentice.yaml with the two engines as one pool's replicas, the first of them as the general pool too."""
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    price = {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04}
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "data_folder": str(folder / "data"),
        "import_folders": ["/"],
        "snapshot_interval_seconds": SNAPSHOT_SECONDS,
        "pools": {
            "small": {
                "base_model": BASE_MODEL,
                **base,
                "price": price,
                "replicas": [{"name": f"small-{number}", "url": url} for number, url in enumerate(urls)],
            },
            "general": {
                "base_model": BASE_MODEL,
                "callable": True,
                "price": price,
                "replicas": [{"name": "general-0", "url": urls[0]}],
            },
        },
        "tasks": {TASK: {"fallback_pool": "general", "max_tokens_max": 512}},
    }

"""Command line and environment of one local vLLM."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.engines.process import EngineProcess

PLUGIN_FOLDER = Path(__file__).with_name("vllm_plugin")
"""The folder of the operators for adapters on CPUs, which vLLM loads."""


def count_threads(engines: int = 1) -> int:
    """Threads for each of `engines` on this machine's CPU. One core stays free for the gateway."""
    return max(1, ((os.cpu_count() or 1) - 1) // engines)


@dataclass(frozen=True)
class EngineOptions:
    """Options of one engine. Lengths are in tokens, `kv_cache_gib` (CPU only) is in GiB of memory.

    The engine answers to all of `served_model_names`. `memory_share` (GPU only) is the engine's part of the device's
    memory, from 0 to 1. `threads` (CPU only) compute the model. `tool_call_parser` reads the model's tool calls.
    """

    python: Path
    model: Path
    served_model_names: tuple[str, ...]
    port: int
    on_gpu: bool
    host: str = "127.0.0.1"
    max_loras: int = 4
    max_cpu_loras: int = 16
    max_lora_rank: int = 16
    max_model_len: int = 2048
    kv_cache_gib: int = 1
    threads: int = field(default_factory=count_threads)
    memory_share: float = 0.9
    shutdown_timeout_seconds: int = 20
    tool_call_parser: str = "hermes"

    @property
    def url(self) -> str:
        """The engine's address."""
        return f"http://{self.host}:{self.port}"


def build_command(options: EngineOptions) -> list[str]:
    """The command that starts the engine. It runs a module: the `vllm` command needs a distribution named "vllm"."""
    command = [str(options.python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(options.model.absolute()), "--served-model-name", *options.served_model_names]
    command += ["--host", options.host, "--port", str(options.port)]
    command += ["--enable-lora", "--max-loras", str(options.max_loras)]
    command += ["--max-cpu-loras", str(options.max_cpu_loras), "--max-lora-rank", str(options.max_lora_rank)]
    command += ["--max-model-len", str(options.max_model_len)]
    command += ["--shutdown-timeout", str(options.shutdown_timeout_seconds)]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", options.tool_call_parser]
    command += ["--disable-uvicorn-access-log"]
    if options.on_gpu:
        return [*command, "--gpu-memory-utilization", f"{options.memory_share:.2f}"]
    return [*command, "--enforce-eager", "--distributed-executor-backend", "uni"]


def build_environment(options: EngineOptions) -> dict[str, str]:
    """Environment variables of the engine: adapters at runtime, no calls to the outside, and its threads."""
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # uv compiles nothing: without a cache each process spends 6 s on that
    }
    if options.on_gpu:
        return environment
    # By default vLLM binds the threads of every engine on a machine to the same cores, and has its scheduler spin
    # beside them: one engine of two then got no time for minutes. Here the scheduler computes the model itself
    # (for that, CPU builds want "multiprocessing" off), in unbound threads. The plugin makes adapters cheap on a CPU.
    return environment | {
        "PYTHONPATH": str(PLUGIN_FOLDER),
        "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_COMPILE_DISABLE": "1",  # else the first answer compiles two small functions for up to 15 s
        "OMP_NUM_THREADS": str(options.threads),
    }


def make_engine(name: str, options: EngineOptions, log_path: Path, say: Callable[[str], None]) -> EngineProcess:
    """An engine that is not started yet."""
    return EngineProcess(
        name=name,
        url=options.url,
        command=build_command(options),
        environment=build_environment(options),
        log_path=log_path,
        say=say,
    )

"""The command line and environment of one local vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineOptions:
    """How one engine is started. Lengths are in tokens, `kv_cache_gib` (CPU only) in GiB of memory.

    The engine answers to all of `served_model_names`. `memory_share` (GPU only) is the part of the device's memory
    that this engine may take, from 0 to 1. `tool_call_parser` reads the model's tool calls, so that tools can be asked.
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
    memory_share: float = 0.9
    shutdown_timeout_seconds: int = 20
    tool_call_parser: str = "hermes"

    @property
    def url(self) -> str:
        """Where the engine answers."""
        return f"http://{self.host}:{self.port}"


def engine_command(options: EngineOptions) -> list[str]:
    """The command that starts the engine: a module, since the `vllm` command needs a distribution "vllm"."""
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
    return [*command, "--enforce-eager"]


def engine_environment(options: EngineOptions) -> dict[str, str]:
    """What the engine's environment needs beyond ours: adapters at runtime, and no call to the outside."""
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if not options.on_gpu:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_cache_gib)
    return environment

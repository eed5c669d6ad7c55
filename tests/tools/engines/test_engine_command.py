from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tools.engines.engine_command import EngineOptions, build_command, build_environment, count_threads

OPTIONS = EngineOptions(
    python=Path("/venv/bin/python"), model=Path("/models/m"), served_model_names=("m", "n"), port=8101, on_gpu=False
)


def after(flag: str, command: list[str]) -> str:
    return command[command.index(flag) + 1]


def test_engine_is_started_as_a_module_with_adapters_at_runtime() -> None:
    command = build_command(OPTIONS)
    assert command[:3] == ["/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[command.index("--served-model-name") :][1:3] == ["m", "n"]
    assert after("--host", command) == "127.0.0.1"
    assert after("--max-loras", command) == "4"
    assert int(after("--max-cpu-loras", command)) > int(after("--max-loras", command))
    assert after("--shutdown-timeout", command) == "20"
    assert "--enable-lora" in command
    assert build_environment(OPTIONS)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert build_environment(OPTIONS)["HF_HUB_OFFLINE"] == "1"
    assert not build_environment(OPTIONS)["PYTHONDONTWRITEBYTECODE"], "empty: bytecode is cached"


def test_cpu_and_gpu_engines_bound_their_memory_each_in_its_way() -> None:
    assert "--enforce-eager" in build_command(OPTIONS)
    assert build_environment(OPTIONS)["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert (Path(build_environment(OPTIONS)["PYTHONPATH"]) / "adapter_operators.py").is_file()
    on_gpu = replace(OPTIONS, on_gpu=True, memory_share=0.45)
    assert after("--gpu-memory-utilization", build_command(on_gpu)) == "0.45"
    assert "--enforce-eager" not in build_command(on_gpu)
    assert not {"VLLM_CPU_KVCACHE_SPACE", "PYTHONPATH"} & set(build_environment(on_gpu))


def test_engines_on_one_cpu_share_its_cores_instead_of_being_bound_to_the_same_one() -> None:
    environment = build_environment(replace(OPTIONS, threads=3))
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert after("--distributed-executor-backend", build_command(OPTIONS)) == "uni"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    on_gpu = replace(OPTIONS, on_gpu=True)
    assert "OMP_NUM_THREADS" not in build_environment(on_gpu)
    assert "--distributed-executor-backend" not in build_command(on_gpu)
    assert count_threads(1) >= count_threads(2) >= 1


def test_relative_model_path_is_made_absolute_lest_it_be_a_hub_id() -> None:
    command = build_command(replace(OPTIONS, model=Path("var/models/m")))
    assert Path(after("--model", command)).is_absolute()

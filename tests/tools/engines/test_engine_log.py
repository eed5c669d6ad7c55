"""A log of vLLM as a person reads it."""

from __future__ import annotations

import pytest

from tools.engines.engine_log import describe_end, find_stage

STARTING = """
(APIServer pid=10) INFO 11-25 01:51:40 [utils.py:253] non-default args: {'model': '/m'}
(APIServer pid=10) WARNING 11-25 01:51:41 [arg_utils.py:9] This model is not tested.
/venv/lib/python3.11/site-packages/x.py:1: DeprecationWarning: old
(EngineCore pid=12) INFO 11-25 01:51:50 [cpu_model_runner.py:70] Starting to load model /m...
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00,  3.06it/s]
(EngineCore pid=12) INFO 11-25 01:52:01 [default_loader.py:291] Loading weights took 0.41 seconds
"""
EAGER = (
    "(APIServer pid=10) WARNING 11-25 01:51:41 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs, "
    "and JIT kernel warmup.\n"
)
CACHE = "(EngineCore pid=12) INFO 11-25 01:52:07 [kv_cache_utils.py:2327] CPU KV cache size: 5,461 tokens\n"
ROUTES = "(APIServer pid=10) INFO 11-25 01:52:20 [launcher.py:38] Route: /openapi.json, Methods: GET\n"
DEAD = """
(EngineCore pid=12) ERROR 11-25 02:00:01 [core.py:710] FileNotFoundError: [Errno 2] No such file: '/store/a'
(APIServer pid=10) ERROR 11-25 02:00:02 [async_llm.py:480] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
(APIServer pid=10) INFO:     Shutting down
"""


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("", ""),
        ("a warning that says nothing\n", ""),
        (EAGER, "starting its engine"),
        (STARTING, "loading the model"),
        (STARTING + CACHE, "making its cache"),
        (STARTING + CACHE + "Could not import triton.\n", "making its cache"),
        (STARTING + CACHE + ROUTES, "opening its port"),
    ],
)
def test_only_stages_of_a_start_are_shown_whatever_else_the_engine_logs(text: str, stage: str) -> None:
    assert find_stage(text) == stage


def test_reason_of_an_end_is_the_first_error_behind_those_that_only_point_to_it() -> None:
    assert describe_end(0, DEAD) == "exit code 0: FileNotFoundError: [Errno 2] No such file: '/store/a'"


def test_reason_of_an_end_without_an_error_is_its_exit_code_or_signal() -> None:
    assert describe_end(3, STARTING) == "exit code 3"
    assert describe_end(-15, "") == "killed by SIGTERM"
    assert describe_end(-9, "") == "killed by SIGKILL, perhaps because memory ran out"

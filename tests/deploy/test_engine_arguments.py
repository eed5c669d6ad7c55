import json
import subprocess

import pytest

from tests.deploy.cluster import ROOT, Cluster

PARSE = """
import json, sys
import vllm
from vllm import envs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser


def understand(asked):
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(asked["args"])
    validate_parsed_serve_args(args)
    known = envs.environment_variables
    return {
        "image": f"vllm/vllm-openai:v{vllm.__version__}",
        "model": args.model_tag,
        "shutdown_timeout_seconds": args.shutdown_timeout,
        "unknown": [name for name in asked["env"] if name.startswith("VLLM_") and name not in known],
    }


print(json.dumps({pool: understand(asked) for pool, asked in json.load(sys.stdin).items()}))
"""
POOLS = ("small", "general")


@pytest.mark.engine
def test_vllm_itself_accepts_the_arguments_of_both_pools(cluster: Cluster) -> None:
    containers = {pool: cluster.container(f"engine-{pool}") for pool in POOLS}
    asked = {
        pool: {"args": container["args"], "env": [variable["name"] for variable in container["env"]]}
        for pool, container in containers.items()
    }
    parsed = subprocess.run(
        [str(ROOT / "var/engine-venv/bin/python"), "-c", PARSE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert parsed.returncode == 0, parsed.stderr
    assert json.loads(parsed.stdout.splitlines()[-1]) == {
        pool: {
            "image": containers[pool]["image"].partition("@")[0],
            "model": f"/models/{pool}",
            "shutdown_timeout_seconds": 60,
            "unknown": [],
        }
        for pool in POOLS
    }

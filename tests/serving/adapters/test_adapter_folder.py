"""The files of an adapter: which may be there, of what kind, and how large."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.base_model import Base
from tests.fakes.adapters import write_adapter
from tests.serving.adapters.conftest import refused


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "optimizer.PT", "x.pkl", "run.py"])
def test_file_that_can_run_code_is_refused(tmp_path: Path, base: Base, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_bytes(b"\x80\x04.")
    refused(folder, base, "pickle", name, "safetensors")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"]
)
def test_own_tokenizer_is_refused(tmp_path: Path, base: Base, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_text("{}")
    refused(folder, base, "tokenizer", name)


@pytest.mark.parametrize("name", ["adapter_model-00001-of-00002.safetensors", "model.safetensors", "a.exe"])
def test_other_files_are_refused(tmp_path: Path, base: Base, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_bytes(b"x")
    refused(folder, base, "unexpected_file", name)


def test_folder_in_the_folder_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "checkpoint-100").mkdir()
    refused(folder, base, "unexpected_file", "checkpoint-100")


def test_pipe_in_the_folder_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    os.mkfifo(folder / "notes.txt")
    refused(folder, base, "unexpected_file", "notes.txt")


def test_pipe_in_place_of_the_weights_does_not_hang(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    refused(folder, base, "unexpected_file", "not a regular file")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "README.md"])
def test_symbolic_link_is_refused(tmp_path: Path, base: Base, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (tmp_path / "elsewhere").write_bytes(b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, base, "symlink", name)


def test_link_to_a_folder_is_refused(tmp_path: Path, base: Base) -> None:
    write_adapter(tmp_path / "a")
    (tmp_path / "latest").symlink_to(tmp_path / "a")
    refused(tmp_path / "latest", base, "symlink", "latest")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_refused(tmp_path: Path, base: Base, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).unlink()
    refused(folder, base, "missing_file", name)


def test_folder_that_is_not_there_is_refused(tmp_path: Path, base: Base) -> None:
    refused(tmp_path / "nowhere", base, "unreadable", "nowhere")
    refused(Path("a\0b"), base, "unreadable")


def test_too_many_files_are_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "README.md").touch()
    refused(folder, base, "unexpected_file", "more than 2", limits=ArtifactLimits(files_max=2))


def test_adapter_over_the_size_limit_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    refused(folder, base, "too_large", "adapter_model", limits=ArtifactLimits(size_bytes_max=5000))
    refused(folder, base, "too_large", "adapter_config", limits=ArtifactLimits(config_bytes_max=100))
    refused(folder, base, "too_large", "header", limits=ArtifactLimits(header_bytes_max=100))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"r": 4, "r": 8}',
        b'{"lora_alpha": NaN}',
        b'{"lora_alpha": 1e999}',
        b'{"r": ' + b"9" * 5000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
)
def test_configuration_that_is_no_plain_json_is_refused(tmp_path: Path, base: Base, raw: bytes) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_bytes(raw)
    refused(folder, base, "bad_config", "adapter_config.json")

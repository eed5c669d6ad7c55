from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tools.engines import demo_model, engine_venv
from tools.engines.demo_model import ensure_demo_model, is_made, is_whole, locate_marker
from tools.engines.engine_venv import EngineVenv
from tools.engines.errors import LaunchError


def write_model(folder: Path) -> bytes:
    """A whole checkpoint of one tensor; its weights' bytes."""
    folder.mkdir(parents=True)
    for name in demo_model.FILES:
        (folder / name).write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    (folder / "model.safetensors").write_bytes(weights)
    return weights


def nothing(_: str) -> None:
    """A hint that nobody sees."""


def no_venv(folder: Path) -> EngineVenv:
    return EngineVenv(folder / "no-venv", "cpu", installed=False)


def test_model_is_whole_only_with_every_file_and_every_byte(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert not is_whole(folder)
    weights = write_model(folder)
    assert is_whole(folder)
    (folder / "model.safetensors").write_bytes(weights[:-1])
    assert not is_whole(folder)
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little"))
    assert not is_whole(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    assert not is_whole(folder)


async def test_model_that_is_there_is_checked_once_and_then_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    weights = write_model(folder)
    monkeypatch.setattr(demo_model, "SAFETENSORS_SHA256", hashlib.sha256(weights).hexdigest())
    model = await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
    assert not model.made
    assert is_made(folder)
    monkeypatch.setattr(demo_model, "_sha256", lambda _: pytest.fail("hashed again"))
    assert await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing) == model


OWN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
        st.text(max_size=20) | st.sampled_from(["", " ", "\n", "<|im_end|>\n", "{{ x }}", "<tools>"]),
    ),
    min_size=1,
    max_size=5,
)


def render(template: str, **variables: Any) -> str:
    """A chat as vLLM and transformers render it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    return environment.from_string(template).render(**variables)


@given(messages=TURNS, add_generation_prompt=st.booleans(), tools=st.sampled_from([None, []]))
def test_without_tools_our_chat_template_says_what_the_models_own_says(**variables: Any) -> None:
    assert hashlib.sha256(OWN_TEMPLATE.encode()).hexdigest() == demo_model.OWN_TEMPLATE_SHA256
    assert render(demo_model.TEMPLATE.read_text(), **variables) == render(OWN_TEMPLATE, **variables)


def test_tools_and_calls_are_shown_in_the_form_that_engines_read() -> None:
    call = {"function": {"name": "look", "arguments": {"order": "A-7"}}}
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    tool = {"type": "function", "function": {"name": "look"}}
    shown = render(demo_model.TEMPLATE.read_text(), messages=messages, tools=[tool])
    assert f"<tools>\n{json.dumps(tool)}\n</tools>" in shown
    called = '<tool_call>\n{"name": "look", "arguments": {"order": "A-7"}}\n</tool_call>'
    assert shown.endswith(f"<|im_start|>assistant\n{called}<|im_end|>\n")


@pytest.mark.parametrize("is_made_before", [True, False])
async def test_model_of_an_earlier_release_shows_tools_and_anothers_template_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made_before: bool
) -> None:
    folder = tmp_path / "model"
    digest = hashlib.sha256(write_model(folder)).hexdigest()
    monkeypatch.setattr(demo_model, "SAFETENSORS_SHA256", digest)
    if is_made_before:
        locate_marker(folder).write_text(json.dumps({"safetensors": digest}))
    template = folder / "chat_template.jinja"
    for before, after in ((OWN_TEMPLATE, demo_model.TEMPLATE.read_text()), ("theirs", "theirs")):
        template.write_text(before)
        await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
        assert template.read_text() == after


async def test_other_weights_are_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder)
    with pytest.raises(LaunchError, match="other weights than the demo model's: move that folder away"):
        await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
    assert is_whole(folder)
    assert not locate_marker(folder).exists()


async def test_half_made_model_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'no such package'; exit 1\n")
    uv.chmod(0o755)
    monkeypatch.setattr(engine_venv, "find_uv", lambda: str(uv))
    folder = tmp_path / "models" / "model"
    with pytest.raises(LaunchError, match="no such package"):
        await ensure_demo_model(folder, no_venv(tmp_path), tmp_path / "log", nothing)
    assert [path.name for path in folder.parent.iterdir()] == ["model.lock"]

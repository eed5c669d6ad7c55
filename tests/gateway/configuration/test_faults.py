"""Faults of a configuration: where each is, what is allowed there, and what was given, without words of libraries."""

from __future__ import annotations

import re
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from gateway.configuration.faults import describe_errors
from gateway.configuration.settings import Settings, load_settings
from gateway.errors import SettingsError
from tools.reference.settings import keys

TEXT = """\
pools:
  general:
    base_model: base
    replicas:
      - {name: general-0, url: "http://127.0.0.1:8101"}
"""
INNER_WORDS = re.compile(
    r"function-|constrained|literal|Input should|Field required|Value error|valid |pattern|dictionary|tuple|frozenset"
    r"|Settings|<class|NoneType|\bmodel_type|\bstr\b|\bint\b|\bbool\b|[\^$\\]|pydantic"
)
WRONG: tuple[Any, ...] = (
    *("a wrong word!", "", 30_000 * "x", -1, 10**400, 1.5, float("nan"), date(2026, 1, 1)),
    *([], [1], {}, {"a": 1}, {1: 2}, None, True),
)


def report(folder: Path, text: str) -> list[str]:
    path = folder / "apprentice.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(path)
    return [line.strip().replace(f"{path}", "FILE") for line in str(raised.value).splitlines()]


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ("limit: {retries_max: 1}\n", "FILE:6:1: limit: unknown key; the nearest is limits."),
        (
            "limits:\n  retries_max: many\n",
            "FILE:7:3: limits.retries_max: a whole number from 0 to 10 is needed, and this is 'many'.",
        ),
        ("processes: 65\n", "FILE:6:1: processes: a whole number from 1 to 64 or auto is needed, and this is 65."),
        ("admin_key: 12345\n", "FILE:6:1: admin_key: a text is needed, and this is a number: put it into quotes."),
        ("listen: {tls: {cert_file: a}}\n", "FILE:6:10: listen.tls.key_file: it is missing: a path is needed."),
        (
            "tasks:\n  returns: {fallback_pool: large}\n",
            "FILE:7:13: tasks.returns.fallback_pool: there is no pool 'large'.",
        ),
        ("    engine: vllm\n    tls: 7\n", "FILE:7:5: pools.general.tls: it holds keys and values, and this is 7."),
        ("      - {name: b, url: b}\n", "FILE:6:19: pools.general.replicas.1.url: an address is needed, such as"),
        ("tasks: {Returns: {}}\n", "FILE:6:9: tasks.Returns: a name is needed: at most 63 of a-z,"),
        ("redis_url: ${URL}\n", "FILE:6:1: redis_url: a variable is not replaced here."),
        ("tasks:\n\treturns: {}\n", "FILE:7:1: while scanning for the next token: a tab is here: indent with spaces."),
    ],
)
def test_each_fault_has_its_line_and_column(tmp_path: Path, added: str, fault: str) -> None:
    assert any(fault in line for line in report(tmp_path, TEXT + added)), report(tmp_path, TEXT + added)


def test_file_with_hundreds_of_faults_is_read_once_for_their_lines(tmp_path: Path) -> None:
    began = time.process_time()
    lines = report(tmp_path, TEXT + "tasks:\n" + "".join(f"  t{number}: {{zzz: x}}\n" for number in range(300)))
    assert time.process_time() - began < 5, "once for each fault it took 12 s"
    assert lines[-1] == "FILE:306:10: tasks.t299.zzz: unknown key."


def test_all_contradictions_are_reported_at_once(tmp_path: Path) -> None:
    lines = report(tmp_path, TEXT + "general_pool: large\nmonitor: {webhook_key: a}\n")
    assert [line.partition(": ")[0] for line in lines[1:]] == ["FILE:6:1", "FILE:7:11"]


def test_variable_at_fault_is_named_in_the_place_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_LIMITS__RETRIES_MAX", "99")
    assert report(tmp_path, TEXT + "limits: {retries_max: 1}\n")[1].startswith("APPRENTICE_LIMITS__RETRIES_MAX: ")
    monkeypatch.setenv("APPRENTICE_POOLS", "nonsense")
    assert "APPRENTICE_POOLS, or one that begins so, is not JSON" in report(tmp_path, TEXT)[0]
    monkeypatch.setenv("APPRENTICE_POOLS", "[" * 60_000)
    assert "APPRENTICE_… is nested too deep" in report(tmp_path, TEXT)[0]
    monkeypatch.delenv("APPRENTICE_POOLS")
    monkeypatch.delenv("APPRENTICE_LIMITS__RETRIES_MAX")
    monkeypatch.setenv("APPRENTICE_LIMITS__RETRIES_MAX__OF", "3")
    assert report(tmp_path, TEXT)[1].startswith("APPRENTICE_LIMITS__RETRIES_MAX__OF: limits.retries_max: a whole")


def test_no_fault_of_any_setting_has_words_of_a_library() -> None:
    schema, told = Settings.model_json_schema(), set()
    for key in keys():
        steps = key.replace("[]", ".0").split(".")
        for wrong in WRONG:
            content: Any = wrong
            for step in reversed(steps):
                content = [content] if step == "0" else {"name" if step.isupper() else step: content}
            try:
                Settings(**content)
            except ValidationError as error:
                told |= {text for _, text in describe_errors(error.errors(), schema)}
    assert len(told) > 500
    assert [text for text in told if INNER_WORDS.search(text)] == []


def test_secret_in_a_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    secret = "hunter2"
    content = {**yaml.safe_load(TEXT), "redis": f"redis://:{secret}@host", "texts": {"keys": secret}}
    content["monitor"] = {"webhook_url": f"hooks.example.com/{secret}"}
    assert secret not in " ".join(report(tmp_path, yaml.safe_dump(content)))

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from serving.stack import UNKNOWN, BaseStack, chat_template_of, stack_of

BASE = BaseStack("sha256:base", "sha256:template")


def test_a_stack_is_the_same_for_the_same_things_and_another_for_each_other_thing() -> None:
    stacks = {
        "all": stack_of(BASE, "0.32.0", "sha256:a", "sha256:m"),
        "another base": stack_of(BaseStack("sha256:other", "sha256:template"), "0.32.0", "sha256:a", "sha256:m"),
        "another template": stack_of(BaseStack("sha256:base", "sha256:other"), "0.32.0", "sha256:a", "sha256:m"),
        "another engine": stack_of(BASE, "0.32.1", "sha256:a", "sha256:m"),
        "another adapter": stack_of(BASE, "0.32.0", "sha256:b", "sha256:m"),
        "another manifest": stack_of(BASE, "0.32.0", "sha256:a", "sha256:n"),
        "the base alone": stack_of(BASE, "0.32.0", None, None),
        "parts exchanged": stack_of(BASE, "0.32.0", "sha256:m", "sha256:a"),
    }
    for one, other in combinations(stacks.values(), 2):
        assert one != other
    assert all(stack.startswith("sha256:") and len(stack) == 71 for stack in stacks.values())
    assert stack_of(BaseStack("sha256:base", "sha256:template"), "0.32.0", "sha256:a", "sha256:m") == stacks["all"]


def test_an_engine_that_tells_no_version_is_unknown() -> None:
    assert stack_of(BASE, "", None, None) == stack_of(BASE, UNKNOWN, None, None)


def test_a_template_is_known_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    from_config = chat_template_of(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} ")
    from_file = chat_template_of(tmp_path)
    assert from_config.startswith("sha256:")
    assert from_file.startswith("sha256:")
    assert from_config != from_file


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"chat_template": ', "7", "null"])
def test_a_template_that_can_not_be_read_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert chat_template_of(tmp_path) == UNKNOWN


def test_a_folder_without_a_template_is_unknown(tmp_path: Path) -> None:
    assert chat_template_of(tmp_path) == UNKNOWN
    assert chat_template_of(tmp_path / "nowhere") == UNKNOWN

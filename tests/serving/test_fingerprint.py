from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from serving.fingerprint import UNKNOWN, BaseFingerprint, compute_fingerprint, digest_chat_template

BASE = BaseFingerprint("sha256:base", "sha256:template")


def test_fingerprint_is_the_same_for_the_same_things_and_differs_for_any_other() -> None:
    fingerprints = {
        "all": compute_fingerprint(BASE, "0.32.0", "sha256:a", "sha256:m"),
        "another base": compute_fingerprint(
            BaseFingerprint("sha256:other", "sha256:template"), "0.32.0", "sha256:a", "sha256:m"
        ),
        "another template": compute_fingerprint(
            BaseFingerprint("sha256:base", "sha256:other"), "0.32.0", "sha256:a", "sha256:m"
        ),
        "another engine": compute_fingerprint(BASE, "0.32.1", "sha256:a", "sha256:m"),
        "another adapter": compute_fingerprint(BASE, "0.32.0", "sha256:b", "sha256:m"),
        "another manifest": compute_fingerprint(BASE, "0.32.0", "sha256:a", "sha256:n"),
        "the base alone": compute_fingerprint(BASE, "0.32.0", None, None),
        "parts exchanged": compute_fingerprint(BASE, "0.32.0", "sha256:m", "sha256:a"),
    }
    for one, other in combinations(fingerprints.values(), 2):
        assert one != other
    assert all(fingerprint.startswith("sha256:") and len(fingerprint) == 71 for fingerprint in fingerprints.values())
    assert (
        compute_fingerprint(BaseFingerprint("sha256:base", "sha256:template"), "0.32.0", "sha256:a", "sha256:m")
        == fingerprints["all"]
    )


def test_an_engine_that_tells_no_version_is_unknown() -> None:
    assert compute_fingerprint(BASE, "", None, None) == compute_fingerprint(BASE, UNKNOWN, None, None)


def test_a_template_is_known_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    from_config = digest_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} ")
    from_file = digest_chat_template(tmp_path)
    assert from_config.startswith("sha256:")
    assert from_file.startswith("sha256:")
    assert from_config != from_file


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"chat_template": ', "7", "null"])
def test_a_template_that_can_not_be_read_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert digest_chat_template(tmp_path) == UNKNOWN


def test_a_folder_without_a_template_is_unknown(tmp_path: Path) -> None:
    assert digest_chat_template(tmp_path) == UNKNOWN
    assert digest_chat_template(tmp_path / "nowhere") == UNKNOWN

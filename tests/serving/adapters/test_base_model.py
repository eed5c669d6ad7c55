"""The fingerprint of a base model: what it depends on, and what a base must have for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.adapters.base_model import fingerprint_of, read_base
from serving.adapters.errors import ArtifactError
from tests.fakes.adapters import BASE_CONFIG, base_tensors, write_base, write_safetensors


def test_fingerprint_stands_beside_the_config(tmp_path: Path) -> None:
    base = write_base(tmp_path / "tiny-base")
    assert base.name == "tiny-base"
    assert base.fingerprint == fingerprint_of(tmp_path / "tiny-base")
    assert base.config["num_hidden_layers"] == 3
    assert read_base(tmp_path / "tiny-base", base.fingerprint) == base


def test_fingerprint_of_other_weights_is_another(tmp_path: Path) -> None:
    assert write_base(tmp_path / "a").fingerprint != write_base(tmp_path / "b", seed=1).fingerprint
    tensors = base_tensors()
    name, (dtype, shape, data) = next(iter(tensors.items()))
    tensors[name] = (dtype, shape, data[:-2] + b"\0\0")
    write_base(tmp_path / "c")
    write_safetensors(tmp_path / "c" / "model.safetensors", tensors)
    assert fingerprint_of(tmp_path / "c") != fingerprint_of(tmp_path / "a")


def test_fingerprint_does_not_depend_on_shards_metadata_or_order(tmp_path: Path) -> None:
    one = write_base(tmp_path / "a").fingerprint
    write_base(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    tensors = list(base_tensors().items())
    shards: dict[str, str] = {}
    for number, part in enumerate((tensors[10:], tensors[:10])):
        file = f"model-{number:05d}-of-00002.safetensors"
        write_safetensors(tmp_path / "b" / file, dict(reversed(part)), {"total": "2"})
        shards |= {name: file for name, _ in part}
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert fingerprint_of(tmp_path / "b") == one


def test_fingerprint_does_not_depend_on_a_tied_heads_copy(tmp_path: Path) -> None:
    one = write_base(tmp_path / "a").fingerprint
    tensors = base_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for folder, tie in (("b", True), ("c", False)):
        write_base(tmp_path / folder, {**BASE_CONFIG, "tie_word_embeddings": tie})
        write_safetensors(tmp_path / folder / "model.safetensors", tensors)
        assert fingerprint_of(tmp_path / folder) == one
    tensors["lm_head.weight"] = base_tensors(seed=1)["model.embed_tokens.weight"]
    write_safetensors(tmp_path / "c" / "model.safetensors", tensors)
    assert fingerprint_of(tmp_path / "c") != one


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (
            {"rope_theta": 10000, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_parameters": {"rope_theta": 500000, "rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            },
        ),
    ],
)
def test_fingerprint_does_not_depend_on_the_librarys_version(
    tmp_path: Path, older: dict[str, object], newer: dict[str, object]
) -> None:
    plain = {key: value for key, value in BASE_CONFIG.items() if key not in ("rope_theta", "head_dim")}
    one = write_base(tmp_path / "a", {**plain, **older, "transformers_version": "4.40.0"}).fingerprint
    other = {**plain, **newer, "head_dim": 16, "transformers_version": "5.19.0", "dtype": "bfloat16"}
    assert write_base(tmp_path / "b", other).fingerprint == one
    assert write_base(tmp_path / "c", {**plain, "rope_theta": 77.0}).fingerprint != one


def test_base_without_weights_needs_its_fingerprint(tmp_path: Path) -> None:
    known = write_base(tmp_path / "tiny-base").fingerprint
    (tmp_path / "tiny-base" / "model.safetensors").unlink()
    assert read_base(tmp_path / "tiny-base", known).fingerprint == known
    with pytest.raises(ArtifactError, match="give the fingerprint") as caught:
        read_base(tmp_path / "tiny-base")
    assert caught.value.code == "bad_base"


def test_base_with_other_weights_than_expected_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path / "tiny-base")
    for wrong in ("sha256:" + "0" * 64, "0" * 64):
        with pytest.raises(ArtifactError, match="fingerprint") as caught:
            read_base(tmp_path / "tiny-base", wrong)
        assert caught.value.code == "bad_base"


@pytest.mark.parametrize("file", ["../model.safetensors", "weights.bin", "gone.safetensors"])
def test_base_whose_index_names_other_files_is_refused(tmp_path: Path, file: str) -> None:
    write_base(tmp_path / "tiny-base")
    index = {"weight_map": {"model.embed_tokens.weight": file}}
    (tmp_path / "tiny-base" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError) as caught:
        fingerprint_of(tmp_path / "tiny-base")
    assert caught.value.code == "bad_base"


def test_base_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json") as caught:
        read_base(tmp_path)
    assert caught.value.code == "bad_base"

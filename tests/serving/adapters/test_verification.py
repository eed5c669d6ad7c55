"""Acceptance of adapters: the parts under their digest, and their possible configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.base_model import SPLIT_FAMILIES, Base, measure_modules
from serving.adapters.verification import Artifact, verify
from tests.fakes.adapters import (
    ALL_LINEAR,
    ATTENTION,
    BASE_CONFIG,
    adapter_tensors,
    values,
    write_adapter,
    write_base,
    write_safetensors,
)
from tests.serving.adapters.conftest import Q0, refused

# --- what is accepted


def test_valid_adapter_is_verified(tmp_path: Path, base: Base) -> None:
    artifact = verify(write_adapter(tmp_path / "a"), base, ArtifactLimits())
    assert artifact == Artifact(
        digest=digest_adapter(tmp_path / "a"),
        rank=4,
        alpha=8.0,
        target_modules=("k_proj", "o_proj", "q_proj", "v_proj"),
        dtype="float32",
        size_bytes=sum(path.stat().st_size for path in (tmp_path / "a").iterdir()),
        base_fingerprint=base.fingerprint,
    )


@pytest.mark.parametrize(("dtype", "name"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")])
def test_each_floating_dtype_is_verified(tmp_path: Path, base: Base, dtype: str, name: str) -> None:
    folder = write_adapter(tmp_path / "a", targets=ALL_LINEAR, dtype=dtype, rank=8)
    artifact = verify(folder, base, ArtifactLimits())
    assert (artifact.dtype, artifact.rank, artifact.target_modules) == (name, 8, tuple(sorted(ALL_LINEAR)))


@pytest.mark.parametrize("family", sorted(SPLIT_FAMILIES))
def test_families_with_split_projections_are_known(tmp_path: Path, family: str) -> None:
    config = {**BASE_CONFIG, "model_type": family, "head_dim": 32}
    base = write_base(tmp_path / "tiny-base", config)
    verify(write_adapter(tmp_path / "a", config, targets=ALL_LINEAR), base, ArtifactLimits())
    assert measure_modules(config)["self_attn.k_proj"] == (64, 64)
    assert measure_modules(config)["self_attn.o_proj"] == (128, 64)


def test_phi3_has_fused_projections(tmp_path: Path) -> None:
    config = {key: value for key, value in BASE_CONFIG.items() if key != "head_dim"} | {"model_type": "phi3"}
    base = write_base(tmp_path / "tiny-base", config)
    targets = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    verify(write_adapter(tmp_path / "a", config, targets=targets), base, ArtifactLimits())
    assert measure_modules(config)["self_attn.qkv_proj"] == (64, 128)
    assert measure_modules(config)["mlp.gate_up_proj"] == (64, 192)


def test_known_layers_only_where_the_configuration_says_so(tmp_path: Path, base: Base) -> None:
    some = adapter_tensors(layers=[0, 2])
    verify(
        write_adapter(tmp_path / "a", tensors=some, config={"layers_to_transform": [0, 2]}),
        base,
        ArtifactLimits(),
    )
    refused(write_adapter(tmp_path / "b", tensors=some), base, "missing_layers", "layers_to_transform")


def test_target_modules_may_be_whole_paths_or_a_pattern(tmp_path: Path, base: Base) -> None:
    paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
    only_q = adapter_tensors(targets=("q_proj",))
    verify(
        write_adapter(tmp_path / "a", tensors=only_q, config={"target_modules": paths}),
        base,
        ArtifactLimits(),
    )
    pattern = {"target_modules": r".*(a+)+\.q_proj"}
    verify(write_adapter(tmp_path / "b", tensors=only_q, config=pattern), base, ArtifactLimits())
    two_layers = adapter_tensors(targets=("q_proj",), layers=[0, 1])
    refused(write_adapter(tmp_path / "c", tensors=two_layers, config=pattern), base, "missing_layers")


def test_rank_stabilised_scaling_is_taken(tmp_path: Path, base: Base) -> None:
    verify(write_adapter(tmp_path / "a", config={"use_rslora": True}), base, ArtifactLimits())


def test_readme_licence_and_data_beside_the_adapter_are_ignored(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    digest = verify(folder, base, ArtifactLimits()).digest
    for name in ("README.md", ".gitattributes", "LICENSE", "LICENSE.txt", "metrics.json", "manifest.yaml"):
        (folder / name).write_text("beside it")
    (folder / ".cache").mkdir()
    assert verify(folder, base, ArtifactLimits()).digest == digest


# --- the digest


def test_digest_covers_configuration_and_every_byte(tmp_path: Path, base: Base) -> None:
    one = verify(write_adapter(tmp_path / "a"), base, ArtifactLimits()).digest
    assert one.startswith("sha256:")
    assert len(one) == 71
    assert verify(write_adapter(tmp_path / "b"), base, ArtifactLimits()).digest == one
    others = [
        write_adapter(tmp_path / "c", seed=1),
        write_adapter(tmp_path / "d", config={"lora_alpha": 9}),
        write_adapter(tmp_path / "e", dtype="F16"),
    ]
    tensors = adapter_tensors()
    dtype, shape, data = tensors[f"{Q0}.lora_A.weight"]
    tensors[f"{Q0}.lora_A.weight"] = (dtype, shape, data[:-4] + values("F32", (1,), "other"))
    others.append(write_adapter(tmp_path / "f", tensors=tensors))
    digests = {verify(folder, base, ArtifactLimits()).digest for folder in others}
    assert len(digests | {one}) == 5


def test_digest_ignores_metadata_order_and_spaces(tmp_path: Path, base: Base) -> None:
    one = verify(write_adapter(tmp_path / "a"), base, ArtifactLimits()).digest
    folder = write_adapter(tmp_path / "b")
    backwards = dict(reversed(adapter_tensors().items()))
    write_safetensors(folder / "adapter_model.safetensors", backwards, {"format": "pt", "by": "another tool"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert verify(folder, base, ArtifactLimits()).digest == one


# --- another base


def test_another_base_by_name_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", base_name="org/Other-Model-8B")
    refused(folder, base, "wrong_base", "Other-Model-8B", "tiny-base", base.fingerprint)


@pytest.mark.parametrize(
    "name",
    ["org/Tiny-Base", "/data/models/tiny-base/", "C:\\models\\tiny-base", "x/models--org--tiny-base/snapshots/0f3a"],
)
def test_same_base_in_another_place_is_taken(tmp_path: Path, base: Base, name: str) -> None:
    verify(write_adapter(tmp_path / "a", base_name=name), base, ArtifactLimits())


def test_a_base_is_known_by_what_its_pool_calls_it_whatever_its_folder_is_called(tmp_path: Path, base: Base) -> None:
    renamed = replace(base, name="base", served_as="org/tiny-base")
    verify(write_adapter(tmp_path / "a", base_name="Tiny-Base"), renamed, ArtifactLimits())
    refused(
        write_adapter(tmp_path / "b", base_name="other"), renamed, "wrong_base", "org/tiny-base from the folder base"
    )


def test_base_name_of_a_hub_cache_folder_is_the_models(tmp_path: Path) -> None:
    assert write_base(tmp_path / "models--org--tiny-base" / "snapshots" / "0f3a").name == "tiny-base"


def test_no_base_name_needs_the_manifests_fingerprint(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", config={"base_model_name_or_path": None})
    refused(folder, base, "wrong_base", "no base model", "base_fingerprint")
    verify(folder, base, ArtifactLimits(), claimed_fingerprint=base.fingerprint)


def test_claimed_fingerprint_decides_whatever_the_name_says(tmp_path: Path, base: Base) -> None:
    renamed = write_adapter(tmp_path / "a", base_name="org/a-quantised-twin")
    verify(renamed, base, ArtifactLimits(), claimed_fingerprint=base.fingerprint)
    other = "sha256:" + "0" * 64
    refused(write_adapter(tmp_path / "b"), base, "wrong_base", other, claimed_fingerprint=other)


def test_smaller_dimensions_are_refused(tmp_path: Path, base: Base) -> None:
    smaller = {**BASE_CONFIG, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
    refused(write_adapter(tmp_path / "a", smaller), base, "wrong_shape", "4 x 32", "4 x 64", "another base")


def test_other_number_of_key_value_heads_is_refused(tmp_path: Path, base: Base) -> None:
    other = {**BASE_CONFIG, "num_key_value_heads": 4}
    refused(write_adapter(tmp_path / "a", other), base, "wrong_shape", "k_proj", "64 x 4", "32 x 4")


def test_layers_beyond_the_base_are_refused(tmp_path: Path, base: Base) -> None:
    deeper = {**BASE_CONFIG, "num_hidden_layers": 5}
    refused(write_adapter(tmp_path / "a", deeper), base, "layer_out_of_range", "layer 3", "0 to 2")


def test_layers_beyond_the_base_in_the_configuration_are_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", config={"layers_to_transform": [0, 1, 2, 3]})
    refused(folder, base, "layer_out_of_range", "layers_to_transform", "layer 3")


def test_missing_layers_are_refused(tmp_path: Path, base: Base) -> None:
    shallower = {**BASE_CONFIG, "num_hidden_layers": 2}
    refused(write_adapter(tmp_path / "a", shallower), base, "missing_layers", "4 of 12", "layer 2", "smaller")


def test_missing_module_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", config={"target_modules": [*ATTENTION, "up_proj"]})
    refused(folder, base, "missing_layers", "3 of 15", "mlp.up_proj")


def test_weights_that_the_configuration_does_not_name_are_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", config={"target_modules": ["q_proj"]})
    refused(folder, base, "unlisted_module", "k_proj")


def test_target_module_that_the_base_lacks_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", config={"target_modules": [*ATTENTION, "query_key_value"]})
    refused(folder, base, "unknown_module", "query_key_value")


def test_unknown_architecture_is_refused(tmp_path: Path, base: Base) -> None:
    strange = Base("tiny-base", base.fingerprint, {**BASE_CONFIG, "model_type": "mamba"})
    refused(write_adapter(tmp_path / "a"), strange, "unknown_architecture", "mamba", "llama")


def test_base_whose_sizes_are_not_said_is_refused(tmp_path: Path, base: Base) -> None:
    config = {**BASE_CONFIG, "model_type": "qwen3"}
    del config["head_dim"]
    unsaid = Base("tiny-base", base.fingerprint, config)
    refused(write_adapter(tmp_path / "a"), unsaid, "bad_base", "head_dim")


# --- rank, alpha, features


def test_lying_rank_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", rank=4, config={"r": 8})
    refused(folder, base, "rank_mismatch", "says rank 8", "has rank 4")


def test_rank_over_the_limit_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a", rank=8)
    refused(folder, base, "rank_too_high", "rank is 8", "at most 4", limits=ArtifactLimits(rank_max=4))


@pytest.mark.parametrize("rank", [0, -1, 4.0, "4", True, None])
def test_rank_that_is_no_natural_number_is_refused(tmp_path: Path, base: Base, rank: object) -> None:
    refused(write_adapter(tmp_path / "a", config={"r": rank}), base, "bad_config", "rank")


@pytest.mark.parametrize("alpha", [0, -8, "8", None, True, 1e9])
def test_alpha_out_of_range_is_refused(tmp_path: Path, base: Base, alpha: object) -> None:
    refused(write_adapter(tmp_path / "a", config={"lora_alpha": alpha}), base, "bad_config", "lora_alpha")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("trainable_token_indices", [7]),
        ("exclude_modules", ["k_proj"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("layers_pattern", "blocks"),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("task_type", None),
        ("a_feature_of_next_year", {"on": True}),
        ("vllm_lora_scaling_factor", 9.0),
    ],
)
def test_feature_that_the_engine_does_not_serve_is_refused(tmp_path: Path, base: Base, key: str, value: object) -> None:
    refused(write_adapter(tmp_path / "a", config={key: value}), base, "unsupported_feature", key)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (f"{Q0}.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.lm_head.lora_A.weight", "output head"),
    ],
)
def test_weights_of_such_a_feature_are_refused(tmp_path: Path, base: Base, name: str, word: str) -> None:
    tensors = {**adapter_tensors(), name: ("F32", (64,), values("F32", (64,), name))}
    refused(write_adapter(tmp_path / "a", tensors=tensors), base, "unsupported_feature", word)

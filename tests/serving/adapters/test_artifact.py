from __future__ import annotations

import io
import json
import os
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.adapters.artifact import (
    CODES,
    Artifact,
    ArtifactError,
    ArtifactLimits,
    Base,
    digest_of,
    fingerprint_of,
    read_base,
    verify,
)
from serving.adapters.base_model import SPLIT_FAMILIES, module_sizes
from serving.adapters.tensors import Tensor, read_header
from tests.fakes.adapters import (
    ALL_LINEAR,
    ATTENTION,
    BASE_CONFIG,
    adapter_tensors,
    base_tensors,
    values,
    write_adapter,
    write_base,
    write_safetensors,
)

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return write_base(tmp_path / "tiny-base")


def refused(folder: Path, base: Base, code: str, *words: str, **how: Any) -> None:
    """The adapter is refused with this code, in a sentence that has these words."""
    with pytest.raises(ArtifactError) as caught:
        verify(folder, base, how.pop("limits", ArtifactLimits()), **how)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.code in CODES
    assert str(caught.value).endswith(".")
    for word in words:
        assert word in str(caught.value)


# --- what is accepted


def test_valid_adapter_is_verified(tmp_path: Path, base: Base) -> None:
    artifact = verify(write_adapter(tmp_path / "a"), base, ArtifactLimits())
    assert artifact == Artifact(
        digest=digest_of(tmp_path / "a"),
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
    assert module_sizes(config)["self_attn.k_proj"] == (64, 64)
    assert module_sizes(config)["self_attn.o_proj"] == (128, 64)


def test_phi3_has_fused_projections(tmp_path: Path) -> None:
    config = {key: value for key, value in BASE_CONFIG.items() if key != "head_dim"} | {"model_type": "phi3"}
    base = write_base(tmp_path / "tiny-base", config)
    targets = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    verify(write_adapter(tmp_path / "a", config, targets=targets), base, ArtifactLimits())
    assert module_sizes(config)["self_attn.qkv_proj"] == (64, 128)
    assert module_sizes(config)["mlp.gate_up_proj"] == (64, 192)


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


# --- tensors


def test_empty_adapter_is_refused(tmp_path: Path, base: Base) -> None:
    refused(write_adapter(tmp_path / "a", tensors={}), base, "empty", "no tensors")


@pytest.mark.parametrize(("gone", "there"), [("A", "B"), ("B", "A")])
def test_half_a_pair_is_refused(tmp_path: Path, base: Base, gone: str, there: str) -> None:
    tensors = adapter_tensors()
    del tensors[f"{Q0}.lora_{gone}.weight"]
    folder = write_adapter(tmp_path / "a", tensors=tensors)
    refused(folder, base, "missing_pair", f"has lora_{there}", f"no lora_{gone}", "Layer 0")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.layers.0.self_attn.q_proj.lora_A.weight",
        f"{Q0}.lora_A.default.weight",
        f"{Q0}.lora_A.bias",
        f"{Q0}.weight",
        Q0.replace(".0.", ".00.") + ".lora_A.weight",
        Q0.replace(".0.", ".٣.") + ".lora_A.weight",
        f"{Q0}.lora_A.weight\n",
        "../../etc/passwd",
    ],
)
def test_tensor_without_a_full_module_path_is_refused(tmp_path: Path, base: Base, name: str) -> None:
    tensors = {**adapter_tensors(), name: ("F32", (4, 64), values("F32", (4, 64), name))}
    refused(write_adapter(tmp_path / "a", tensors=tensors), base, "bad_tensor_name", "save_pretrained")


def test_tensor_of_a_module_that_the_base_lacks_is_refused(tmp_path: Path, base: Base) -> None:
    name = "base_model.model.model.layers.0.self_attn.query_key_value.lora_A.weight"
    tensors = {**adapter_tensors(), name: ("F32", (4, 64), values("F32", (4, 64), name))}
    refused(write_adapter(tmp_path / "a", tensors=tensors), base, "unknown_module", "query_key_value")


@pytest.mark.parametrize("dtype", ["F64", "I32"])
def test_dtype_that_no_adapter_has_is_refused(tmp_path: Path, base: Base, dtype: str) -> None:
    refused(write_adapter(tmp_path / "a", dtype=dtype), base, "bad_dtype", dtype)


def test_mixed_dtypes_are_refused(tmp_path: Path, base: Base) -> None:
    tensors = adapter_tensors() | adapter_tensors(dtype="F16", layers=[1])
    refused(write_adapter(tmp_path / "a", tensors=tensors), base, "bad_dtype", "F16, F32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -float("nan")])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_one_value_that_is_not_finite_is_refused(tmp_path: Path, base: Base, dtype: str, value: float) -> None:
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    tensors = adapter_tensors(dtype=dtype)
    kind, shape, data = tensors[name]
    bad = struct.pack("<f", value)[2:] if dtype == "BF16" else struct.pack("<f" if dtype == "F32" else "<e", value)
    tensors[name] = (kind, shape, data[: -len(bad)] + bad)
    refused(write_adapter(tmp_path / "a", tensors=tensors), base, "not_finite", "layers.2.self_attn.v_proj")


@pytest.mark.parametrize(("dtype", "largest"), [("F32", "<f"), ("F16", "<e")])
def test_large_finite_values_are_taken(tmp_path: Path, base: Base, dtype: str, largest: str) -> None:
    tensors = adapter_tensors(dtype=dtype)
    kind, shape, data = tensors[f"{Q0}.lora_A.weight"]
    bad = struct.pack(largest, -65504.0)
    tensors[f"{Q0}.lora_A.weight"] = (kind, shape, bad + data[len(bad) :])
    verify(write_adapter(tmp_path / "a", tensors=tensors), base, ArtifactLimits())


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("negative", [False, True])
def test_matrix_of_nothing_but_zeros_is_refused(
    tmp_path: Path, base: Base, side: str, dtype: str, negative: bool
) -> None:
    tensors = adapter_tensors(dtype=dtype)
    kind, shape, data = tensors[f"{Q0}.lora_{side}.weight"]
    width = 4 if dtype == "F32" else 2
    zero = b"\0" * (width - 1) + (b"\x80" if negative else b"\0")
    tensors[f"{Q0}.lora_{side}.weight"] = (kind, shape, zero * (len(data) // width))
    refused(write_adapter(tmp_path / "a", tensors=tensors), base, "all_zero", f"lora_{side}", "zeros")


def test_one_value_among_zeros_is_enough(tmp_path: Path, base: Base) -> None:
    tensors = adapter_tensors()
    kind, shape, data = tensors[f"{Q0}.lora_B.weight"]
    smallest = struct.pack("<I", 1)
    tensors[f"{Q0}.lora_B.weight"] = (kind, shape, b"\0" * (len(data) - 4) + smallest)
    verify(write_adapter(tmp_path / "a", tensors=tensors), base, ArtifactLimits())


# --- files


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


# --- the header


def header_of(entries: object, data_bytes: int) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + b"\1" * data_bytes


def entry(begin: int, end: int, shape: object = None, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "ends within"),
        (b"\x08\0\0", "ends within"),
        ((1 << 62).to_bytes(8, "little"), "should have"),
        (header_of(b"{}", 4), "end at byte"),
        (header_of(b" {}", 0), "does not start"),
        (header_of(b"{not json", 0), "can't be read"),
        (header_of(b'{"a": 1, "a": 2}', 0), "twice"),
        (header_of({"a": 1}, 0), "does not consist"),
        (header_of({"a": entry(0, 8)}, 4), "end at byte"),
        (header_of({"a": entry(0, 8)}, 12), "end at byte"),
        (header_of({"a": entry(0, 8), "b": entry(4, 12)}, 12), "overlaps"),
        (header_of({"a": entry(0, 8), "b": entry(12, 16)}, 16), "gap"),
        (header_of({"a": entry(0, 8), "b": entry(0, 8)}, 8), "overlaps"),
        (header_of({"a": entry(0, 8, [3])}, 8), "needs 12 bytes"),
        (header_of({"a": entry(8, 0, [2])}, 8), "needs 8 bytes"),
        (header_of({"a": entry(0, 8, [-1, -2])}, 8), "no valid shape"),
        (header_of({"a": entry(0, 8, [True, 2])}, 8), "no valid shape"),
        (header_of({"a": entry(0, 8, [2.0])}, 8), "no valid shape"),
        (header_of({"a": entry(0, 8, "2")}, 8), "no valid shape"),
        (header_of({"a": entry(0, 8, [1] * 9)}, 8), "no valid shape"),
        (header_of({"a": entry(0, 8, dtype="F31")}, 8), "unknown dtype"),
        (header_of({"a": entry(0, 8, dtype=None)}, 8), "unknown dtype"),
        (header_of({"a": {**entry(0, 8), "data_offsets": [0]}}, 8), "no valid offsets"),
        (header_of({"a": {**entry(0, 8), "more": 1}}, 8), "does not consist"),
    ],
)
def test_corrupt_weights_are_refused(tmp_path: Path, base: Base, raw: bytes, word: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(raw)
    refused(folder, base, "bad_header", word, "corrupt")


def test_file_cut_short_is_refused(tmp_path: Path, base: Base) -> None:
    folder = write_adapter(tmp_path / "a")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / "adapter_model.safetensors").write_bytes(whole[:length])
        refused(folder, base, "bad_header", "corrupt")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
offsets = st.lists(st.integers(-4, 64) | st.integers(), min_size=1, max_size=3)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "U8", "?"]) | json_values,
        "shape": offsets | json_values,
        "data_offsets": offsets | json_values,
    }
)


def read_only_refuses(raw: bytes) -> None:
    """Whatever the bytes are: tensors that lie within the file, or an ArtifactError."""
    tensors: dict[str, Tensor] = {}
    with suppress(ArtifactError):
        tensors = read_header(io.BytesIO(raw), len(raw), 1 << 16)
    assert all(each.start >= 8 and each.start + each.size_bytes <= len(raw) for each in tensors.values())


@given(st.binary(max_size=200))
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_any_bytes_are_refused_with_our_own_error(raw: bytes) -> None:
    read_only_refuses(raw)


@given(st.dictionaries(st.text(max_size=8), entries | json_values, max_size=4), st.integers(0, 128))
@settings(max_examples=400)
def test_any_header_is_refused_with_our_own_error(header: dict[str, object], data_bytes: int) -> None:
    read_only_refuses(header_of(json.dumps(header).encode(), data_bytes))


@given(st.data())
@settings(max_examples=200)
def test_any_change_of_a_valid_file_is_refused_with_our_own_error(data: st.DataObject) -> None:
    whole = bytearray(header_of({"a": entry(0, 8), "b": entry(8, 16, [2, 1])}, 16))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    read_only_refuses(bytes(whole))


# --- the base model's fingerprint


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

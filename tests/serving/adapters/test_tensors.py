"""The weights of an adapter: their names, dtypes and values, and the header that says where they lie."""

from __future__ import annotations

import io
import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.base_model import Base
from serving.adapters.errors import ArtifactError
from serving.adapters.tensors import Tensor, read_header
from serving.adapters.verification import verify
from tests.fakes.adapters import adapter_tensors, values, write_adapter
from tests.serving.adapters.conftest import Q0, refused

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
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "which `git lfs pull` puts the file"),
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

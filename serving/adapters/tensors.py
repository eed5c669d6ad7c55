"""Safetensors, read defensively and without a tensor library: the header, and checks of the values.

A file is an 8-byte little-endian length, that many bytes of JSON (name → dtype, shape, offsets), and the data. For any
bytes, the only error raised is ArtifactError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from serving.adapters import canonical
from serving.adapters.errors import ArtifactError, quote_name

WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of one value, for every dtype that a header may name."""

FLOATS: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that an adapter may have, with the engine's names for them."""

HALF_FINITE = bytes(byte for byte in range(256) if byte & 0x7C != 0x7C)
DIMENSIONS_MAX = 8
SIZE_MAX = 1 << 48
PREFIX_BYTES = 64
LFS_START = b"version "


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: its data is `size_bytes` bytes from byte `start` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


def read_header(file: BinaryIO, size_bytes: int, header_bytes_max: int) -> dict[str, Tensor]:
    """All tensors by name, from the start of a file of `size_bytes`.

    Raises ArtifactError: `too_large` for a header over the limit, `bad_header` if it is not a safetensors file. It may
    be cut short, be no JSON, or have unknown dtypes. Its offsets may leave the file, overlap, or leave bytes uncovered.
    """
    start = read_exactly(file, 0, 8, "the header's length")
    if start == LFS_START:
        raise _corrupt("it is a pointer of Git LFS, in the place of which `git lfs pull` puts the file")
    length = int.from_bytes(start, "little")
    if length > size_bytes - 8:
        raise _corrupt(f"its header should have {length} bytes, and the file has {size_bytes}")
    if length > header_bytes_max:
        raise ArtifactError(
            "too_large", f"The safetensors header has {length} bytes, over the limit of {header_bytes_max}."
        )
    raw = read_exactly(file, 8, length, "the header")
    if not raw.startswith(b"{"):
        raise _corrupt("its header does not start with {")
    try:
        header = canonical.read_object(raw)
    except ValueError as error:
        raise _corrupt(f"its header can't be read: {error}") from None
    header.pop("__metadata__", None)
    tensors = [_tensor(name, entry, 8 + length) for name, entry in header.items()]
    _check_cover(tensors, 8 + length, size_bytes)
    return {tensor.name: tensor for tensor in tensors}


def read_exactly(file: BinaryIO, start: int, size_bytes: int, part: str) -> bytes:
    """The `size_bytes` bytes from `start`. Raises ArtifactError (`bad_header`) if the file ends earlier."""
    file.seek(start)
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise _corrupt(f"it ends within {part}")
    return data


def check_values(name: str, dtype: str, data: bytes) -> None:
    """Raise ArtifactError: `not_finite` for NaN, infinity and (with 8 bits of exponent) magnitudes from 1.7e38,
    `all_zero` if all values are zero.

    Reads the byte with the sign and the upper bits of the exponent: memory searches, no arithmetic.
    """
    width = WIDTHS[dtype]
    upper = data[width - 1 :: width]
    bad = bool(upper.translate(None, HALF_FINITE)) if dtype == "F16" else b"\x7f" in upper or b"\xff" in upper
    if bad:
        raise ArtifactError(
            "not_finite",
            f"Tensor {quote_name(name)} holds NaN, infinite or absurdly large values: the training diverged; "
            "train again with a lower learning rate or take an earlier checkpoint.",
        )
    prefix_is_zero = _only_zeros(data[:PREFIX_BYTES], upper[: PREFIX_BYTES // width])
    if prefix_is_zero and _only_zeros(data, upper):
        raise ArtifactError(
            "all_zero",
            f"Tensor {quote_name(name)} holds nothing but zeros, so the adapter does nothing there: it was never "
            "trained, or the file was cut and filled up; save it again or leave the module out.",
        )


def _only_zeros(data: bytes, upper: bytes) -> bool:
    # -0.0 has one byte that is not 0: 0x80, the upper one.
    return len(data) - data.count(0) == upper.count(0x80)


def _tensor(name: str, entry: Any, data_start: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(f"tensor {quote_name(name)} does not consist of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise _corrupt(f"tensor {quote_name(name)} has the unknown dtype {quote_name(str(dtype))}")
    if not _naturals(shape) or len(shape) > DIMENSIONS_MAX:
        raise _corrupt(f"tensor {quote_name(name)} has no valid shape")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _corrupt(f"tensor {quote_name(name)} has no valid offsets")
    begin, end = offsets
    size_bytes = prod(shape) * WIDTHS[dtype]
    if end - begin != size_bytes:
        raise _corrupt(f"tensor {quote_name(name)} needs {size_bytes} bytes by its shape and has {end - begin}")
    return Tensor(name, dtype, tuple(shape), data_start + begin, size_bytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < SIZE_MAX for item in value)


def _check_cover(tensors: list[Tensor], data_start: int, size_bytes: int) -> None:
    """Check that every byte of the data is in exactly one tensor: none is hidden between them or read twice."""
    end = data_start
    for tensor in sorted(tensors, key=lambda each: (each.start, each.size_bytes)):
        if tensor.start != end:
            raise _corrupt(f"tensor {quote_name(tensor.name)} overlaps another or leaves a gap before it")
        end += tensor.size_bytes
    if end != size_bytes:
        raise _corrupt(f"its tensors end at byte {end}, and the file has {size_bytes}")


def _corrupt(fault: str) -> ArtifactError:
    return ArtifactError("bad_header", f"The safetensors file is corrupt: {fault}; save or upload it again.")

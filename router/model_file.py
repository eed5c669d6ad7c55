"""The byte form of a fitted model: a header and arrays, packed, with a checksum. No pickle, and no model runs code."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from router.model_bytes import MODEL_BYTES_MAX

Arrays = dict[str, npt.NDArray[Any]]


class Shaped(Protocol):
    """A header: a model's fields beside its arrays, and the shape of each array."""

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The shapes by the array's name."""


H = TypeVar("H", bound=Shaped)


@dataclass(frozen=True, slots=True)
class PackedForm(Generic[H]):
    """The byte form of one kind of model. The bytes begin with `magic`, which names the form. `arrays` lists the arrays
    in order: name, numpy type and number of axes. `error` is raised for bytes that can't be read."""

    kind: str
    magic: bytes
    header: type[H]
    arrays: Mapping[str, tuple[str, int]]
    error: type[Exception]
    unpacked_bytes_max: int
    header_bytes_max: int

    def arrays_of(self, model: object) -> Arrays:
        """A model's arrays in the types in which they are stored."""
        return {name: np.ascontiguousarray(getattr(model, name), kind) for name, (kind, _) in self.arrays.items()}

    def pack(self, model: object, **fields: Any) -> bytes:
        """The bytes of a model. Its header has the model's attributes; `fields` replace those of the same name."""
        arrays = self.arrays_of(model)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        header: Any = self.header
        own = {name: getattr(model, name) for name in list_fields(header) if name not in fields}
        described = msgspec.json.encode(header(**own, **fields, shapes=shapes))
        body = struct.pack("<I", len(described)) + described + b"".join(array.tobytes() for array in arrays.values())
        packed = zlib.compress(body, 6)
        return self.magic + struct.pack("<I", zlib.crc32(packed)) + packed

    def unpack(self, data: bytes) -> tuple[H, Arrays]:
        """A model's header, and its arrays, read-only. Raises `error`."""
        header, body = self._opened(data)
        return header, self._read(header, body)

    def finite(self, arrays: Mapping[str, npt.NDArray[Any]]) -> bool:
        """True if all floats in the arrays are finite."""
        return all(bool(np.isfinite(arrays[name]).all()) for name, (kind, _) in self.arrays.items() if "f" in kind)

    def unfit(self) -> Exception:
        """The error for parts that do not fit each other."""
        return self.error(f"The {self.kind} model's parts do not fit each other: fit it again.")

    def _damaged(self) -> Exception:
        return self.error(f"The {self.kind} model's bytes are damaged: fit it again.")

    def _opened(self, data: bytes) -> tuple[H, bytes]:
        if not data.startswith(self.magic):
            raise self.error(f"These bytes are no {self.kind} model of this format: fit it again.")
        try:
            (checksum,) = struct.unpack_from("<I", data, len(self.magic))
            packed = data[len(self.magic) + 4 :]
            if len(data) > MODEL_BYTES_MAX or zlib.crc32(packed) != checksum:
                raise self._damaged()
            unpacking = zlib.decompressobj()
            body = unpacking.decompress(packed, self.unpacked_bytes_max)
            (length,) = struct.unpack_from("<I", body)
            if not unpacking.eof or length > self.header_bytes_max:
                raise self._damaged()
            return msgspec.json.decode(body[4 : 4 + length], type=self.header), body[4 + length :]
        except (struct.error, zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._damaged() from error

    def _read(self, header: H, body: bytes) -> Arrays:
        arrays: Arrays = {}
        at = 0
        for name, (kind, axes) in self.arrays.items():
            shape = header.shapes.get(name, [])
            if len(shape) != axes or any(not 0 <= size <= self.unpacked_bytes_max for size in shape):
                raise self._damaged()
            count = int(np.prod(shape))
            if at + count * np.dtype(kind).itemsize > len(body):
                raise self._damaged()
            arrays[name] = np.frombuffer(body, kind, count, at).reshape(shape)
            at += count * np.dtype(kind).itemsize
        if at != len(body):
            raise self._damaged()
        return arrays


def list_fields(header: type[Any]) -> list[str]:
    """The names of a header's fields, without the shapes."""
    return [field.name for field in msgspec.structs.fields(header) if field.name != "shapes"]

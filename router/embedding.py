"""The meaning of a text as a vector, by a static word embedding without a neural net.

The weights and the tokenizer are files of the installed package `wordllama`. This module only reads the files and never
imports the package, whose loader downloads. The weights are kept as bytes and take 8 MB.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from router.model_bytes import UnusableModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vectors = npt.NDArray[np.float32]

PACKAGE = "wordllama"
WEIGHTS = "weights/l2_supercat_256.safetensors"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
NAME = "wordllama-l2-supercat-256-folded"
HEADER_BYTES_MAX = 1 << 20
END_TOKENS = 256
ROWS_AT_ONCE = 2_000
WORDS_MAX = 8_192
"""Number of words that are remembered with their vectors, one kilobyte each."""


def scale_to_one(rows: npt.NDArray[Any]) -> Vectors:
    """The rows, each of unit length."""
    scaled: Vectors = rows / np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), np.float32(1e-6))[:, None]
    return scaled


class EmbeddingError(UnusableModel):
    """An embedding's files are missing or damaged; the message is a sentence that says what to do."""


class Embedding(Protocol):
    """Converts texts to vectors. Embeddings of the same name give the same vectors."""

    @property
    def name(self) -> str:
        """The name with its version. A model that was fitted with one embedding works with no other."""

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, of unit length; all zeros for a text without tokens."""


class _Remembered:
    """Words with their vectors; `places` maps a word to its row in `rows`. Threads read without a lock while another
    one adds words, so a row is written before its place."""

    def __init__(self, dimensions: int) -> None:
        self.places: dict[str, int] = {}
        self.rows: Vectors = np.empty((0, dimensions), np.float32)

    def add(self, words: Sequence[str], vectors: Vectors) -> None:
        """Add words that are not there yet."""
        begin, end = len(self.places), len(self.places) + len(words)
        if end > len(self.rows):
            grown = np.empty((max(end, 2 * begin), self.rows.shape[1]), np.float32)
            grown[:begin] = self.rows[:begin]
            self.rows = grown
        self.rows[begin:end] = vectors
        self.places.update(zip(words, range(begin, end), strict=True))


class StaticEmbedding:
    """The mean of a text's token vectors, in folded letters. Of a long text, its first and last 256 tokens count."""

    name = NAME

    def __init__(self, weights: npt.NDArray[np.float16], tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._weights: npt.NDArray[np.int8] = np.empty(
            weights.shape, np.int8
        )  # 16-bit floats are slow, and bytes are as good
        self._scales: Vectors = np.empty(len(weights), np.float32)
        self._remembered = _Remembered(weights.shape[1])  # tokenizing takes most of a score's time
        self._remembering = Lock()
        for start in range(0, len(weights), ROWS_AT_ONCE):
            rows = weights[start : start + ROWS_AT_ONCE].astype(np.float32)
            scales = np.maximum(np.abs(rows).max(1), 1e-6) / 127
            self._weights[start : start + ROWS_AT_ONCE] = np.rint(rows / scales[:, None])
            self._scales[start : start + ROWS_AT_ONCE] = scales

    @classmethod
    def load(cls, folder: Path | None = None) -> StaticEmbedding:
        """Load the embedding from a folder with its two files, or else from the installed package.

        Raises EmbeddingError if they are missing or damaged.
        """
        from tokenizers import Tokenizer  # noqa: PLC0415 - 6 MB, where texts are embedded

        folder = folder or _package_folder()
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # the library's errors have no type of their own
            raise EmbeddingError(f"The tokenizer in {TOKENIZER} can not be read: install {PACKAGE} again.") from error
        return cls(_weights_of(folder / WEIGHTS, tokenizer.get_vocab_size()), tokenizer)

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        return int(self._weights.shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, of unit length; all zeros for a text without tokens."""
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        whole = [text.casefold().encode(errors="replace").decode() for text in texts]  # JSON may hold half a pair
        for row, encoded in zip(rows, self._tokenizer.encode_batch_fast(whole, add_special_tokens=False), strict=True):
            ids = encoded.ids
            if len(ids) > 2 * END_TOKENS:
                ids = ids[:END_TOKENS] + ids[-END_TOKENS:]
            if ids:
                row[:] = self._scales[ids] @ self._weights[ids].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        rows /= np.maximum(lengths, np.float32(1e-6))[:, None]
        return rows

    def look_up(self, words: Sequence[str]) -> Vectors:
        """One row for each word, in folded letters: the sum of its tokens' vectors. Up to WORDS_MAX are remembered."""
        remembered = self._remembered
        places = [*map(remembered.places.get, words)]
        if None in places:
            remembered = self._remember(words)
            places = [*map(remembered.places.get, words)]
        return remembered.rows.take(cast("list[int]", places), 0)

    def is_word(self, word: str) -> bool:
        """True if the word is a single token, as common words are."""
        return self._tokenizer.token_to_id(f"\u2581{word.encode(errors='replace').decode()}") is not None

    def _remember(self, words: Sequence[str]) -> _Remembered:
        """The remembered words, with these added. A full memory is replaced, since threads may still read it."""
        with self._remembering:
            remembered, distinct = self._remembered, dict.fromkeys(words)
            missing = [word for word in distinct if word not in remembered.places]
            if len(remembered.places) + len(missing) > WORDS_MAX:
                remembered, missing = _Remembered(self.dimensions), [*distinct]
            remembered.add(missing, self._sum_tokens(missing))
            self._remembered = remembered
            return remembered

    def _sum_tokens(self, words: Sequence[str]) -> Vectors:
        rows = np.zeros((len(words), self.dimensions), np.float32)
        whole = [word.encode(errors="replace").decode() for word in words]
        for row, encoded in zip(rows, self._tokenizer.encode_batch_fast(whole, add_special_tokens=False), strict=True):
            row[:] = self._scales[encoded.ids] @ self._weights[encoded.ids].astype(np.float32)
        return rows


def _package_folder() -> Path:
    """The folder where the package is installed, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddingError(f"The package {PACKAGE} is missing, which has the word vectors: install {PACKAGE}.")
    return Path(next(iter(spec.submodule_search_locations)))


def _weights_of(path: Path, tokens: int) -> npt.NDArray[np.float16]:
    """The one tensor of a safetensors file, memory-mapped. Raises EmbeddingError if it is not the expected one."""
    wrong = EmbeddingError(f"The word vectors in {WEIGHTS} can not be read: install {PACKAGE} again.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER_BYTES_MAX:
                raise wrong
            tensor = json.loads(file.read(length))["embedding.weight"]
        if tensor["dtype"] != "F16" or tensor["shape"][0] < tokens or tensor["data_offsets"][0] != 0:
            raise wrong
        rows, columns = tensor["shape"]
        return np.memmap(path, np.float16, "r", 8 + length, (rows, columns))
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise wrong from error


def load_deep(path: Path) -> Embedding:
    """The optional second embedding, from its file. Its module is imported only here.

    Raises EmbeddingError if the file or an optional package is missing or damaged.
    """
    model: Embedding = importlib.import_module("router.minilm").MiniLM.load(path)
    return model

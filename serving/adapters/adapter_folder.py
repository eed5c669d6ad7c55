"""An adapter's folder: the files that it may contain, and how they are opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from serving.adapters.errors import ArtifactError, quote_name

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
MANIFEST_FILE = "manifest.yaml"
SIGNATURE_FILE = "signature.json"
PROMPTS_FILE = "prompts.jsonl"
BACKGROUND_FILE = "background.jsonl"

RUNS_CODE = frozenset({
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".dill", ".py", ".pyc", ".so",
    ".sh", ".h5", ".keras", ".gguf", ".onnx", ".msgpack",
})  # fmt: skip
TOKENIZER_FILES = frozenset({
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "chat_template.json", "chat_template.jinja",
})  # fmt: skip
IGNORED_SUFFIXES = frozenset({
    ".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".log", ".png", ".svg",
})  # fmt: skip
IGNORED_FILES = frozenset({"license", "notice", ".gitattributes", ".gitignore"})
IGNORED_FOLDERS = frozenset({".git", ".cache"})


@dataclass(frozen=True)
class ArtifactLimits:
    """The upper limits of an adapter. `rank_max` is what any engine takes; a pool's engines may take less."""

    size_bytes_max: int = 2 << 30
    config_bytes_max: int = 1 << 20
    header_bytes_max: int = 8 << 20
    files_max: int = 100
    rank_max: int = 512
    alpha_max: float = 4096.0


DEFAULT_LIMITS = ArtifactLimits()


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """The folder's descriptor. Files are opened relative to it, so that nobody can exchange the folder meanwhile."""
    if folder.is_symlink():
        raise ArtifactError("symlink", f"{quote_name(folder.name)} is a symbolic link: name the folder it leads to.")
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _unreadable(folder.name, error) from None
    try:
        yield folder_fd
    finally:
        os.close(folder_fd)


class NotRegularError(OSError):
    """The path leads to a folder, a FIFO or a device."""


def open_regular(path: str | Path, folder_fd: int | None = None) -> BinaryIO:
    """Open a regular file for reading, relative to a folder's descriptor if one is given.

    The opened file itself is checked: a link is not followed, and a FIFO or device does not block. Raises OSError.
    """
    file_fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder_fd)
    if not stat.S_ISREG(os.fstat(file_fd).st_mode):
        os.close(file_fd)
        raise NotRegularError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(file_fd, "rb")


def read_small(path: Path, bytes_max: int) -> bytes:
    """The bytes of a small regular file. Raises ValueError, whose text is the end of a sentence about the file."""
    try:
        with open_regular(path) as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror}).") from None
    if len(raw) > bytes_max:
        raise ValueError(f"has more than {bytes_max} bytes: shorten it.")
    return raw


@contextmanager
def open_file(folder_fd: int, name: str, size_bytes_max: int) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of the folder and its size in bytes."""
    try:
        opened_file = open_regular(name, folder_fd)
    except FileNotFoundError:
        raise ArtifactError("missing_file", f"{name} is not there: save the adapter with save_pretrained.") from None
    except NotRegularError:
        raise ArtifactError("unexpected_file", f"{name} is not a regular file.") from None
    except OSError as error:
        raise _unreadable(name, error) from None
    with opened_file as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > size_bytes_max:
            raise ArtifactError(
                "too_large", f"{name} has {size_bytes} bytes, and at most {size_bytes_max} are allowed for it."
            )
        try:
            yield file, size_bytes
        except OSError as error:
            raise _unreadable(name, error) from None


def check_files(folder_fd: int, limits: ArtifactLimits) -> None:
    """Raise ArtifactError for the first entry that is not allowed in an adapter's folder."""
    with os.scandir(folder_fd) as entries:
        for count, entry in enumerate(sorted(entries, key=lambda each: each.name)):
            if count >= limits.files_max:
                raise ArtifactError("unexpected_file", f"The folder holds more than {limits.files_max} files.")
            _check_entry(entry)


def _check_entry(entry: os.DirEntry[str]) -> None:
    name, suffix = entry.name.lower(), os.path.splitext(entry.name.lower())[1]
    if entry.is_symlink():
        raise ArtifactError("symlink", f"{quote_name(entry.name)} is a symbolic link: put the file itself there.")
    if entry.is_dir(follow_symlinks=False):
        if name not in IGNORED_FOLDERS:
            raise ArtifactError(
                "unexpected_file",
                f"{quote_name(entry.name)} is a folder: an adapter is two files in one folder; remove it.",
            )
        return
    if suffix in RUNS_CODE:
        raise ArtifactError(
            "pickle",
            f"{quote_name(entry.name)} is of a kind that can run code when it is loaded, or is not an adapter: only "
            "safetensors is taken; save with safe_serialization=True and remove the file.",
        )
    if name in TOKENIZER_FILES:
        raise ArtifactError(
            "tokenizer",
            f"{quote_name(entry.name)} belongs to a tokenizer: engines ignore an adapter's own one and use the "
            "base model's. Remove it if it is the base's; if tokens or a chat template were changed, train "
            "again without.",
        )
    if entry.name in ADAPTER_FILES:
        return
    ignored = suffix in IGNORED_SUFFIXES or os.path.splitext(name)[0] in IGNORED_FILES or name in IGNORED_FILES
    if not ignored or not entry.is_file(follow_symlinks=False):
        raise ArtifactError(
            "unexpected_file",
            f"{quote_name(entry.name)} has no place in an adapter: leave {CONFIG_FILE} and {WEIGHTS_FILE}.",
        )


def _unreadable(name: str, error: Exception) -> ArtifactError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ArtifactError(
        "unreadable", f"{quote_name(name)} can't be read ({reason}): name a folder that holds an adapter."
    )

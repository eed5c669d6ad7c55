"""The digest of an adapter's files: over the configuration in its canonical form, and every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from serving.adapters import canonical
from serving.adapters.adapter_folder import DEFAULT_LIMITS, WEIGHTS_FILE, ArtifactLimits, open_file, open_folder
from serving.adapters.errors import quote_name
from serving.adapters.peft_config import read_config
from serving.adapters.tensors import Tensor, check_values, read_exactly, read_header

DIGEST_VERSION = b"apprentice-adapter-1\n"


def digest_adapter(folder: Path, limits: ArtifactLimits = DEFAULT_LIMITS) -> str:
    """The digest of the adapter in `folder`, independent of its base. Raises ArtifactError if it can't be read."""
    with open_folder(folder) as folder_fd:
        config, _ = read_config(folder_fd, limits)
        with open_file(folder_fd, WEIGHTS_FILE, limits.size_bytes_max) as (file, size_bytes):
            tensors = read_header(file, size_bytes, limits.header_bytes_max)
            return compute_digest(config, tensors, file, checks_values=False)


def compute_digest(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: BinaryIO, *, checks_values: bool
) -> str:
    """The digest of a configuration and its tensors. With `checks_values` the same reading also checks the values.

    Raises ArtifactError.
    """
    whole = hashlib.sha256(DIGEST_VERSION + canonical.write(config) + b"\n")
    for name in sorted(tensors):
        tensor = tensors[name]
        data = read_exactly(file, tensor.start, tensor.size_bytes, f"tensor {quote_name(name)}")
        if checks_values:
            check_values(name, tensor.dtype, data)
        whole.update(canonical.write([name, tensor.dtype, tensor.shape]) + b"\n")
        whole.update(data)
    return "sha256:" + whole.hexdigest()

"""The base model as verification needs it: its modules, their sizes, and the fingerprint of its weights.

The fingerprint identifies the weights of a base model, independent of the files' names, shards, dates and the library
that saved them. It covers the architecture and, for each tensor, its name, dtype, shape and the first and last 4,096
bytes of its data. So a model of 100 GB is read in about a second. It can't see a change in the middle of a tensor that
leaves both ends equal (a few edited rows of a large embedding). Any training step over all weights changes the ends as
well. The same weights in another dtype or quantisation are another base, because an adapter behaves differently on
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.adapters import canonical
from serving.adapters.errors import ArtifactError, quote_name
from serving.adapters.tensors import Tensor, read_header

FINGERPRINT_VERSION = 1
EDGE_BYTES = 4096
CONFIG_BYTES_MAX = 1 << 20
INDEX_BYTES_MAX = 64 << 20
HEADER_BYTES_MAX = 100_000_000
SHARDS_MAX = 2000
DIMENSION_MAX = 1 << 24
LAYERS_MAX = 1000

# Families with q/k/v/o and gate/up/down, one after another in `model.layers.N`, all of one size.
SPLIT_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite"})
# The same with q/k/v in one matrix and gate/up in one matrix.
FUSED_FAMILIES = frozenset({"phi3"})
# The library's defaults are not "as many as query heads" and "hidden size by heads" here: the config must
# give the values.
EXPLICIT_KV_HEADS = frozenset({"mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"})
EXPLICIT_HEAD_DIM = frozenset({"qwen3", "gemma", "gemma2", "gemma3_text"})


@dataclass(frozen=True)
class Base:
    """A base model. `name` is the last part of its folder or hub id; `fingerprint` is `sha256:<hex>` of its weights.
    `served_as` is its name in the pool that serves it (None: it has no other name)."""

    name: str
    fingerprint: str
    config: Mapping[str, Any]
    served_as: str | None = None


def read_base(folder: Path, fingerprint: str | None = None, served_as: str | None = None) -> Base:
    """The base model in `folder`: config.json, and the weights if they are there.

    If the weights are elsewhere, `fingerprint` must be given; if both are known they must agree. Raises ArtifactError
    `bad_base`.
    """
    if fingerprint is not None and not canonical.DIGEST.fullmatch(fingerprint):
        raise _bad(folder, f"its fingerprint {quote_name(fingerprint)} is not sha256: and 64 hex digits")
    config = _read_json(folder, "config.json", CONFIG_BYTES_MAX)
    if _weight_files(folder):
        measured = fingerprint_of(folder)
        if fingerprint not in (None, measured):
            raise _bad(folder, f"its weights have the fingerprint {measured}, and {fingerprint} was expected")
        fingerprint = measured
    if fingerprint is None:
        raise _bad(folder, "it has no *.safetensors weights; give the fingerprint that was taken where they are")
    return Base(name_of(folder), fingerprint, config, served_as)


def fingerprint_of(folder: Path) -> str:
    """`sha256:<hex>` of the base model in `folder`; the module's docstring says what it covers.

    Raises ArtifactError `bad_base` without config.json or *.safetensors weights, `bad_header` if the weights are
    corrupt.
    """
    config = _read_json(folder, "config.json", CONFIG_BYTES_MAX)
    edges: dict[str, list[Any]] = {}
    for path in _weight_files(folder):
        for name, edge in _edges(folder, path).items():
            if name in edges:
                raise _bad(folder, f"tensor {quote_name(name)} is in two of its files")
            edges[name] = edge
    if not edges:
        raise _bad(folder, "it has no *.safetensors weights")
    tied = _drop_tied_head(edges, config)
    described = {
        "fingerprint": FINGERPRINT_VERSION,
        "architecture": _architecture(config) | {"tied": tied},
        "tensors": [[name, *edges[name]] for name in sorted(edges)],
    }
    try:
        return canonical.digest(described)
    except ValueError as error:
        raise _bad(folder, f"its config.json can't be used: {error}") from None


def measure_modules(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The modules of a layer that can carry an adapter, by path within the layer, with (inputs, outputs).

    Raises ArtifactError `unknown_architecture` for a family that is not in the table, `bad_base` for a config that
    lacks a size.
    """
    family = config.get("model_type")
    if family not in SPLIT_FAMILIES | FUSED_FAMILIES:
        raise ArtifactError(
            "unknown_architecture",
            f"The base model's architecture {quote_name(str(family))} is not known here, so an adapter's sizes "
            f"can't be checked; known are {', '.join(sorted(SPLIT_FAMILIES | FUSED_FAMILIES))}. Add it to "
            "serving/adapters/base_model.py.",
        )
    hidden = _size(config, "hidden_size")
    inner = _size(config, "intermediate_size")
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", None if family in EXPLICIT_KV_HEADS else heads)
    head = _size(config, "head_dim", None if family in EXPLICIT_HEAD_DIM else hidden // heads)
    attention = {"self_attn.o_proj": (heads * head, hidden)}
    if family in FUSED_FAMILIES:
        return attention | {
            "self_attn.qkv_proj": (hidden, (heads + 2 * kv_heads) * head),
            "mlp.gate_up_proj": (hidden, 2 * inner),
            "mlp.down_proj": (inner, hidden),
        }
    return attention | {
        "self_attn.q_proj": (hidden, heads * head),
        "self_attn.k_proj": (hidden, kv_heads * head),
        "self_attn.v_proj": (hidden, kv_heads * head),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def count_layers(config: Mapping[str, Any]) -> int:
    """The number of the base's layers. Raises ArtifactError `bad_base` if its config does not say."""
    layers = _size(config, "num_hidden_layers")
    if layers > LAYERS_MAX:
        raise ArtifactError("bad_base", f"The base model's config.json says {layers} layers, over {LAYERS_MAX}.")
    return layers


def name_of(place: Path | str) -> str:
    """The last part of a folder, path or hub id; for a snapshot in a hub cache, the model's name in the path."""
    parts = [part for part in str(place).replace("\\", "/").split("/") if part]
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rsplit("--", 1)[-1]
    return parts[-1] if parts else ""


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 1 <= value <= DIMENSION_MAX:
        raise ArtifactError(
            "bad_base", f"The base model's config.json has no valid {key} (found {quote_name(repr(value))}): add it."
        )
    return value


def _weight_files(folder: Path) -> list[Path]:
    """The weight files: those in the index, else model.safetensors, else none."""
    if (folder / "model.safetensors.index.json").is_file():
        index = _read_json(folder, "model.safetensors.index.json", INDEX_BYTES_MAX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise _bad(folder, "its model.safetensors.index.json has no weight_map")
        names = set(map(str, index.values()))
        if len(names) > SHARDS_MAX or any("/" in name or not name.endswith(".safetensors") for name in names):
            raise _bad(folder, "its model.safetensors.index.json names files that are not shards in this folder")
        return [folder / name for name in sorted(names)]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


def _edges(folder: Path, path: Path) -> dict[str, list[Any]]:
    """The tensors of one file by name: dtype, shape, and a digest of both ends of the data."""
    try:
        with path.open("rb") as file:
            tensors = read_header(file, path.stat().st_size, HEADER_BYTES_MAX)
            in_order = sorted(tensors.values(), key=lambda tensor: tensor.start)
            return {tensor.name: [tensor.dtype, tensor.shape, _edge(file, tensor)] for tensor in in_order}
    except OSError as error:
        raise _bad(folder, f"{path.name} can't be read ({error.strerror})") from None


def _edge(file: Any, tensor: Tensor) -> str:
    length = min(EDGE_BYTES, tensor.size_bytes)
    file.seek(tensor.start)
    edge = hashlib.sha256(file.read(length))
    file.seek(tensor.start + tensor.size_bytes - length)
    edge.update(file.read(length))
    return edge.hexdigest()


def _drop_tied_head(edges: dict[str, list[Any]], config: Mapping[str, Any]) -> bool:
    """True if the output head is the embedding. It is dropped then: some libraries save it twice and some once."""
    head, embedding = edges.get("lm_head.weight"), edges.get("model.embed_tokens.weight")
    tied = head is None or config.get("tie_word_embeddings") is True or head == embedding
    if tied:
        edges.pop("lm_head.weight", None)
    return tied


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    described = {key: config.get(key) for key in ("model_type", *sizes)}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    described["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    by_heads = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
    described["head_dim"] = config.get("head_dim") or by_heads
    return described | _rope(config)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary position settings in one form. Older libraries write rope_theta and rope_scaling. Newer ones write
    rope_parameters, with a set for each kind of attention in families with two."""
    parameters = config.get("rope_parameters")
    local: Any = config.get("rope_local_base_freq")
    if isinstance(parameters, dict) and isinstance(parameters.get("full_attention"), dict):
        sliding = parameters.get("sliding_attention")
        local = sliding.get("rope_theta") if isinstance(sliding, dict) else local
        parameters = parameters["full_attention"]
    if not isinstance(parameters, dict):
        scaling = config.get("rope_scaling")
        parameters = {"rope_theta": config.get("rope_theta"), **(scaling if isinstance(scaling, dict) else {})}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    rope = {key: value for key, value in parameters.items() if key not in ("rope_type", "type")}
    rope |= {"local_theta": local, "rope_type": None if kind == "default" else kind}
    settings = {key: float(item) if type(item) is int else item for key, item in rope.items() if item is not None}
    return {"rope": settings} if settings else {}


def _read_json(folder: Path, name: str, size_bytes_max: int) -> dict[str, Any]:
    try:
        with (folder / name).open("rb") as file:
            raw = file.read(size_bytes_max + 1)
        if len(raw) > size_bytes_max:
            raise _bad(folder, f"{name} has more than {size_bytes_max} bytes")
        return canonical.read_object(raw)
    except OSError as error:
        raise _bad(folder, f"{name} can't be read ({error.strerror})") from None
    except ValueError as error:
        raise _bad(folder, f"{name} can't be used: {error}") from None


def _bad(folder: Path, fault: str) -> ArtifactError:
    return ArtifactError("bad_base", f"The base model in {quote_name(folder.name)} can't be used: {fault}.")

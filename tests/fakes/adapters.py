"""Small base models and adapters on disk: real files, valid in every byte unless a test asks otherwise."""

from __future__ import annotations

import functools
import json
import random
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from serving.adapters.base_model import Base, measure_modules, read_base

BASE_CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 50,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

NUMBERS = [sign * size / 8192 for size in range(64, 512) for sign in (-1, 1)]

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name → (dtype, shape, data)."""


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """The file as the library writes it: the header padded to 8 bytes, the data one after another."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    place = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(data for _, _, data in tensors.values()))


@functools.lru_cache(maxsize=4096)  # nearly every gateway of the tests wants the same base model
def values(dtype: str, shape: tuple[int, ...], seed: str) -> bytes:
    """Small random numbers, none of them zero, the same for the same seed."""
    dice = random.Random(seed)
    numbers = dice.choices(NUMBERS, k=prod(shape))
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    kind = {"F32": "f", "F16": "e", "F64": "d", "I32": "i"}[dtype]
    return struct.pack(f"<{len(numbers)}{kind}", *(numbers if kind != "i" else [1] * len(numbers)))


def base_tensors(config: Mapping[str, Any] = BASE_CONFIG, seed: int = 0, dtype: str = "BF16") -> Tensors:
    """The weights of a base model of this config."""
    shapes = {
        f"model.layers.{layer}.{module}.weight": (outputs, inputs)
        for layer in range(config["num_hidden_layers"])
        for module, (inputs, outputs) in measure_modules(config).items()
    }
    shapes["model.embed_tokens.weight"] = (config["vocab_size"], config["hidden_size"])
    return {name: (dtype, shape, values(dtype, shape, f"{seed}{name}")) for name, shape in shapes.items()}


def write_base(folder: Path, config: Mapping[str, Any] = BASE_CONFIG, seed: int = 0) -> Base:
    """A whole base model in `folder`, and the same as verification knows it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    write_safetensors(folder / "model.safetensors", base_tensors(config, seed))
    return read_base(folder)


def adapter_config(base_name: str, rank: int = 4, targets: Iterable[str] = ATTENTION, **changes: Any) -> dict[str, Any]:
    """adapter_config.json as peft writes it; `changes` replace or add keys."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 2 * rank,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    } | changes


def adapter_tensors(
    base_config: Mapping[str, Any] = BASE_CONFIG,
    rank: int = 4,
    targets: Iterable[str] = ATTENTION,
    dtype: str = "F32",
    seed: int = 0,
    layers: Iterable[int] | None = None,
) -> Tensors:
    """Matrix pairs for every target module of every layer (or of `layers`)."""
    wanted, tensors = set(targets), Tensors()
    for layer in range(base_config["num_hidden_layers"]) if layers is None else layers:
        for module, (inputs, outputs) in measure_modules(base_config).items():
            if module.rsplit(".", 1)[-1] in wanted:
                for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                    name = f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
                    tensors[name] = (dtype, shape, values(dtype, shape, f"{seed}{name}"))
    return tensors


def write_adapter(
    folder: Path,
    base_config: Mapping[str, Any] = BASE_CONFIG,
    rank: int = 4,
    *,
    base_name: str = "tiny-base",
    targets: Iterable[str] = ATTENTION,
    dtype: str = "F32",
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
) -> Path:
    """A valid adapter in `folder`; another `seed` is another version of it.

    `config` changes keys of adapter_config.json, `tensors` replaces the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = tuple(targets)
    written = adapter_config(base_name, rank, targets, **(config or {}))
    (folder / "adapter_config.json").write_text(json.dumps(written, indent=2, sort_keys=True))
    weights = adapter_tensors(base_config, rank, targets, dtype, seed) if tensors is None else tensors
    write_safetensors(folder / "adapter_model.safetensors", weights, {"format": "pt"})
    return folder

"""Verify an adapter from its files alone, before any engine gets it.

An engine accepts many wrong adapters with a 200 and serves them wrongly: adapters of another or a smaller base model,
with a rank that its tensors do not have, or with layers that do not exist. An adapter that `verify` accepts has one
matrix pair for every module that the configuration names. The pairs have exactly the base's sizes, and finite values
that are not all zero. Nothing in the folder could run code. No reader of files can see whether the training was good:
the probe and the gate test that.

The sizes must fit the base, and the adapter must name it as well. Equal sizes prove little (a base model and its
instruct variant have the same). So either the name in adapter_config.json ends as the base's name does (case and the
folders before do not matter), or the manifest claims the base's fingerprint. A claimed fingerprint that is not the
base's is refused, whatever the name is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.adapters.adapter_folder import (
    DEFAULT_LIMITS,
    WEIGHTS_FILE,
    ArtifactLimits,
    check_files,
    open_file,
    open_folder,
)
from serving.adapters.artifact_digest import compute_digest
from serving.adapters.base_model import Base, count_layers, measure_modules, name_of
from serving.adapters.errors import ArtifactError, quote_name
from serving.adapters.peft_config import Promise, read_config, read_promise, refuse_feature
from serving.adapters.tensors import FLOATS, Tensor, read_header

TENSOR_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,4})\.([a-z0-9_.]{1,64})\.lora_([AB])\.weight"
)


@dataclass(frozen=True)
class Artifact:
    """A verified adapter.

    `digest` is `sha256:<hex>` over the canonical configuration and every tensor's name, dtype, shape and bytes. File
    metadata, the order of tensors and spaces in the JSON do not change it. `target_modules` are the last names of the
    modules with weights, sorted. `size_bytes` is the size of both files.
    """

    digest: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    dtype: str
    size_bytes: int
    base_fingerprint: str


Pairs = dict[tuple[int, str], dict[str, Tensor]]


def verify(
    folder: Path, base: Base, limits: ArtifactLimits = DEFAULT_LIMITS, *, claimed_fingerprint: str | None = None
) -> Artifact:
    """Verify the adapter in `folder` against `base`; `claimed_fingerprint` is the manifest's, if it has one.

    Raises ArtifactError with the code and the sentence of the first fault.
    """
    with open_folder(folder) as folder_fd:
        check_files(folder_fd, limits)
        config, config_size = read_config(folder_fd, limits)
        _check_base(config, base, claimed_fingerprint)
        promise = read_promise(config, limits)
        with open_file(folder_fd, WEIGHTS_FILE, limits.size_bytes_max - config_size) as (file, weights_size):
            tensors = read_header(file, weights_size, limits.header_bytes_max)
            pairs = _pair_up(tensors, promise, base)
            _check_complete(pairs, promise, base)
            dtype = _one_dtype(tensors)
            digest = compute_digest(config, tensors, file, checks_values=True)
    return Artifact(
        digest=digest,
        rank=promise.rank,
        alpha=promise.alpha,
        target_modules=tuple(sorted({module.rsplit(".", 1)[-1] for _, module in pairs})),
        dtype=dtype,
        size_bytes=config_size + weights_size,
        base_fingerprint=base.fingerprint,
    )


def _check_base(config: Mapping[str, Any], base: Base, claimed_fingerprint: str | None) -> None:
    if claimed_fingerprint is not None:
        if claimed_fingerprint != base.fingerprint:
            raise ArtifactError(
                "wrong_base",
                "The manifest says that it was trained on a base with the fingerprint "
                f"{quote_name(claimed_fingerprint)}, and {base.name} has {base.fingerprint}: stage it on a pool "
                "that serves its own base.",
            )
        return
    claimed = config.get("base_model_name_or_path")
    names = list(dict.fromkeys(name for name in (base.served_as, base.name) if name))
    if isinstance(claimed, str) and name_of(claimed).lower() in {name_of(name).lower() for name in names} - {""}:
        return
    named = quote_name(claimed) if isinstance(claimed, str) and claimed else "no base model"
    raise ArtifactError(
        "wrong_base",
        f"adapter_config.json names {named} as its base, and this pool serves {' from the folder '.join(names)}. If it "
        f"is the same model under another name, say so in the manifest with base_fingerprint: {base.fingerprint}; else "
        "train it again on this base.",
    )


def _pair_up(tensors: Mapping[str, Tensor], promise: Promise, base: Base) -> Pairs:
    """The tensors by layer and module, each checked for its place, the base's sizes and the promised rank."""
    if not tensors:
        raise ArtifactError("empty", f"{WEIGHTS_FILE} holds no tensors: nothing was trained, or nothing was saved.")
    sizes, layers = measure_modules(base.config), count_layers(base.config)
    pairs: Pairs = {}
    for name, tensor in tensors.items():
        match = TENSOR_NAME.fullmatch(name)
        if match is None:
            raise _bad_name(name)
        layer, module, side = int(match[1]), match[2], match[3]
        if layer >= layers:
            raise ArtifactError(
                "layer_out_of_range",
                f"Tensor {quote_name(name)} is for layer {layer}, and {base.name} has layers 0 to {layers - 1}: "
                "it was trained on another base model.",
            )
        if module not in sizes:
            raise ArtifactError(
                "unknown_module",
                f"Tensor {quote_name(name)} is for a module that {base.name} does not have or that can't carry "
                f"an adapter here; those that can are {', '.join(sorted(sizes))}.",
            )
        _check_shape(tensor, side, sizes[module], promise.rank, base)
        pairs.setdefault((layer, module), {})[side] = tensor
    for (layer, module), pair in sorted(pairs.items()):
        if len(pair) != 2:
            there, missing = ("A", "B") if "A" in pair else ("B", "A")
            raise ArtifactError(
                "missing_pair",
                f"Layer {layer} has lora_{there} for {module} and no lora_{missing}: the file is "
                "incomplete; save it again.",
            )
    return pairs


def _check_shape(tensor: Tensor, side: str, size: tuple[int, int], rank: int, base: Base) -> None:
    inputs, outputs = size
    needed = (rank, inputs) if side == "A" else (outputs, rank)
    if tensor.shape == needed:
        return
    rank_place = 0 if side == "A" else 1
    if len(tensor.shape) == 2 and tensor.shape[1 - rank_place] == needed[1 - rank_place]:
        raise ArtifactError(
            "rank_mismatch",
            f"adapter_config.json says rank {rank}, and tensor {quote_name(tensor.name)} has rank "
            f"{tensor.shape[rank_place]}: the scaling would be wrong; put the configuration of its own "
            "training beside it.",
        )
    raise ArtifactError(
        "wrong_shape",
        f"Tensor {quote_name(tensor.name)} is {_sizes(tensor.shape)}, and {base.name} needs {_sizes(needed)}: it "
        "was trained on another base model.",
    )


def _check_complete(pairs: Pairs, promise: Promise, base: Base) -> None:
    """Check that the weights are exactly those that the configuration names."""
    layers = range(count_layers(base.config))
    chosen: Iterable[int] = layers if promise.layers is None else promise.layers
    beyond = [layer for layer in chosen if layer not in layers]
    if beyond:
        raise ArtifactError(
            "layer_out_of_range",
            f"layers_to_transform names layer {beyond[0]}, and {base.name} has layers 0 to {layers[-1]}: it "
            "was trained on another base model.",
        )
    if promise.targets is None:
        expected = {(layer, module) for layer in chosen for _, module in pairs}
    else:
        modules = measure_modules(base.config)
        named = _named(promise.targets, modules, layers, base)
        expected = named & {(layer, module) for layer in chosen for module in modules}
    missing, unlisted = sorted(expected - pairs.keys()), sorted(pairs.keys() - expected)
    if missing:
        layer, module = missing[0]
        raise ArtifactError(
            "missing_layers",
            f"{len(missing)} of {len(expected)} modules that adapter_config.json promises have no weights, "
            f"the first is {module} in layer {layer}: it was trained on a smaller base model, or the file "
            "is incomplete. Layers that were left out on purpose are said in layers_to_transform.",
        )
    if unlisted:
        layer, module = unlisted[0]
        raise ArtifactError(
            "unlisted_module",
            f"There are weights for {module} in layer {layer}, and adapter_config.json does not name them: "
            "put the configuration of its own training beside it.",
        )


def _named(targets: Iterable[str], modules: Iterable[str], layers: range, base: Base) -> set[tuple[int, str]]:
    """The places that target modules mean. A name is a module's whole path, or its end after a dot."""
    by_end: dict[str, set[tuple[int, str]]] = {}
    for layer in layers:
        for module in modules:
            parts = f"model.layers.{layer}.{module}".split(".")
            for start in range(len(parts)):
                by_end.setdefault(".".join(parts[start:]), set()).add((layer, module))
    named: set[tuple[int, str]] = set()
    for target in targets:
        if target not in by_end:
            raise ArtifactError(
                "unknown_module",
                f"target_modules names {quote_name(target)}, which {base.name} does not have or which can't "
                "carry an adapter here: take it out of adapter_config.json if it has no weights, else "
                "train without it.",
            )
        named |= by_end[target]
    return named


def _one_dtype(tensors: Mapping[str, Tensor]) -> str:
    dtypes = sorted({tensor.dtype for tensor in tensors.values()})
    if len(dtypes) != 1 or dtypes[0] not in FLOATS:
        raise ArtifactError(
            "bad_dtype",
            f"Its tensors are {', '.join(dtypes)}: save all of them as one of float32, bfloat16 and float16.",
        )
    return FLOATS[dtypes[0]]


def _bad_name(name: str) -> ArtifactError:
    if "lora_magnitude_vector" in name:
        return refuse_feature(f"tensor {quote_name(name)} belongs to DoRA", "train with use_dora=False")
    if "embed" in name or "lm_head" in name:
        return refuse_feature(
            f"tensor {quote_name(name)} changes the embedding or the output head",
            "train the layers' linear modules only",
        )
    return ArtifactError(
        "bad_tensor_name",
        f"Tensor {quote_name(name)} is not called base_model.model.model.layers.<number>.<module>.lora_A.weight "
        "(or lora_B): save the adapter with save_pretrained.",
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"

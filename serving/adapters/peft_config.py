"""adapter_config.json: read it, refuse features that the engine does not serve, and return what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.adapters import canonical
from serving.adapters.adapter_folder import CONFIG_FILE, ArtifactLimits, open_file
from serving.adapters.errors import ArtifactError, quote_name

# CHECKED_KEYS of adapter_config.json are checked here one by one. INERT_KEYS describe the training, and change
# nothing in serving. Every other key must be absent, null, false or empty: an unknown one may be a feature that
# the engine does not serve.
CHECKED_KEYS = frozenset({
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "use_rslora", "bias",
    "init_lora_weights", "layers_to_transform", "layers_pattern",
})  # fmt: skip
INERT_KEYS = frozenset({
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "unsloth_fixed",
})  # fmt: skip
# These only set the first values; the others (PiSSA, OLoRA, LoftQ, …) change the base model's own weights.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})


@dataclass(frozen=True)
class Promise:
    """The weights that the configuration promises. `targets` is None for a pattern, `layers` is None for all layers."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None
    layers: tuple[int, ...] | None


def read_config(folder_fd: int, limits: ArtifactLimits) -> tuple[dict[str, Any], int]:
    """The configuration and its size in bytes. Raises ArtifactError if it is missing, too large or not JSON."""
    with open_file(folder_fd, CONFIG_FILE, limits.config_bytes_max) as (file, size_bytes):
        raw = file.read(size_bytes)
    try:
        config = canonical.read_object(raw)
        canonical.write(config)
    except ValueError as error:
        raise _bad_config(f"can't be read: {error}") from None
    return config, len(raw)


def read_promise(config: Mapping[str, Any], limits: ArtifactLimits) -> Promise:
    """The configuration's promise. Raises ArtifactError for features that engines don't serve, and for bad values."""
    _check_features(config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise _bad_config(f"has no valid rank: r is {quote_name(repr(rank))} and must be a whole number from 1")
    if rank > limits.rank_max:
        raise ArtifactError(
            "rank_too_high",
            f"Its rank is {rank}, and the engines take at most {limits.rank_max}: train with a lower rank, or raise "
            "the engines' --max-lora-rank and with it the pool's max_lora_rank.",
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= limits.alpha_max:
        raise _bad_config(
            f"has lora_alpha {quote_name(repr(alpha))}, which must be above 0 and at most {limits.alpha_max}"
        )
    return Promise(rank, float(alpha), _read_targets(config), _read_layers(config))


def _check_features(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise refuse_feature(f"peft_type is {quote_name(str(config.get('peft_type')))}", "only LORA is served")
    if config.get("task_type") != "CAUSAL_LM":
        raise refuse_feature(f"task_type is {quote_name(str(config.get('task_type')))}", "only CAUSAL_LM is served")
    if config.get("bias", "none") != "none":
        raise refuse_feature(
            f"bias is {quote_name(str(config['bias']))}", "engines serve no biases; train with bias='none'"
        )
    if type(config.get("use_rslora", False)) is not bool:
        raise _bad_config("has a use_rslora that is neither true nor false")
    init = config.get("init_lora_weights", True)
    if type(init) is not bool and not (isinstance(init, str) and init.lower() in PLAIN_INITS):
        raise refuse_feature(
            f"init_lora_weights is {quote_name(str(init))}",
            "it changes the base model's own weights; convert the adapter with "
            "path_initial_model_for_weight_conversion",
        )
    for key in sorted(config.keys() - CHECKED_KEYS - INERT_KEYS):
        value = config[key]
        if value is not None and value is not False and value not in ({}, [], ""):
            raise refuse_feature(
                f"{quote_name(key)} is set", "the engine does not serve it, or serves it wrongly; train without"
            )


def _read_targets(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the target modules; None for a pattern, which is never run, since a stranger wrote it."""
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets:
        return None
    if isinstance(targets, list) and 0 < len(targets) <= 10_000 and all(isinstance(each, str) for each in targets):
        return tuple(targets)
    raise _bad_config("has no valid target_modules: a list of module names")


def _read_layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    if config.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
        raise refuse_feature("layers_pattern is set", "leave it out")
    layers = config.get("layers_to_transform")
    if layers in (None, []):
        return None
    listed = layers if isinstance(layers, list) else [layers]
    if not all(type(layer) is int and layer >= 0 for layer in listed):
        raise _bad_config("has no valid layers_to_transform: a list of layer numbers")
    return tuple(sorted(set(listed)))


def _bad_config(fault: str) -> ArtifactError:
    return ArtifactError("bad_config", f"adapter_config.json {fault}.")


def refuse_feature(feature: str, advice: str) -> ArtifactError:
    """The error for a feature that the engine does not serve."""
    return ArtifactError("unsupported_feature", f"In this adapter {feature}: {advice}.")

"""The refusal of an adapter, a base model or a copy in the store: one error, a closed list of codes."""

from __future__ import annotations

from typing import Literal, get_args

ArtifactCode = Literal[
    "all_zero",  # a matrix holds nothing but zeros: it was never trained, or the file was cut
    "bad_base",  # the base model's own folder can't be used
    "bad_config",  # adapter_config.json is not a valid configuration
    "bad_digest",  # not of the form sha256:<64 hex digits>
    "bad_dtype",  # not float32, float16 or bfloat16 throughout
    "bad_header",  # the safetensors file is corrupt
    "bad_tensor_name",  # not a full module path of the base
    "changed",  # the bytes changed while they were read or copied
    "damaged",  # a copy in the store is not what its name says
    "empty",  # no tensors
    "layer_out_of_range",  # a layer that the base does not have
    "missing_file",  # configuration or weights are not there
    "missing_layers",  # a layer or module that the configuration promises has no weights
    "missing_pair",  # lora_A without lora_B, or the other way round
    "not_finite",  # NaN, infinite or absurdly large values
    "not_held",  # the store has no such digest
    "pickle",  # a file that can run code when it is loaded
    "rank_mismatch",  # the configuration's rank is not the tensors' rank
    "rank_too_high",  # above the engine's limit
    "symlink",  # links are never followed
    "tokenizer",  # an own tokenizer, added tokens or chat template
    "too_large",  # over a size limit
    "unexpected_file",  # a file or folder that has no place in an adapter
    "unknown_architecture",  # the base's model_type is not in the table
    "unknown_module",  # a module that the base does not have, or that can't carry an adapter here
    "unlisted_module",  # weights that the configuration does not name
    "unreadable",  # the folder or a file can't be read
    "unsupported_feature",  # a PEFT feature that the engine does not serve, or serves wrongly
    "wrong_base",  # trained on another base model
    "wrong_shape",  # sizes that are not the base's
]

CODES: frozenset[str] = frozenset(get_args(ArtifactCode))


class ArtifactError(Exception):
    """The artifact is refused. `code` is one of CODES; the text is a sentence that says what to do."""

    def __init__(self, code: ArtifactCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code: ArtifactCode = code


def quote_name(text: str, length_max: int = 120) -> str:
    """A name from someone else's file, safe to print: quoted, ASCII, cut to `length_max` characters."""
    whole = ascii(text)
    return whole if len(whole) <= length_max else whole[: length_max - 3] + "..."

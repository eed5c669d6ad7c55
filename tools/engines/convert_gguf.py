"""Turns a GGUF file into a normal checkpoint in bfloat16. Run by the engine's interpreter, which has torch.

python convert_gguf.py SOURCE_FOLDER GGUF_NAME TARGET_FOLDER
"""

from __future__ import annotations

import sys

import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
)


def convert(source: str, gguf_name: str, target: str) -> None:
    """Write model and tokenizer of the GGUF file `gguf_name` in `source` into the folder `target`."""
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # Else the saved configuration says that the weights are quantized, which they are no longer.
    model.hf_quantizer = None
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_name).save_pretrained(target)


if __name__ == "__main__":
    convert(*sys.argv[1:4])

"""Conversion of a GGUF file to a bfloat16 checkpoint, run by the engine's interpreter.

python convert_gguf.py SOURCE_FOLDER GGUF_NAME TARGET_FOLDER
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: str, gguf_name: str, target: str) -> None:
    """Write model and tokenizer of the GGUF file `gguf_name` in `source` to the folder `target`."""
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # Without this line the saved configuration would call the weights quantized.
    model.hf_quantizer = None
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=gguf_name).save_pretrained(target)


if __name__ == "__main__":
    convert(*sys.argv[1:4])

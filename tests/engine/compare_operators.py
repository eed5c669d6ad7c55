"""Run by the engine's Python: our operators for adapters beside vLLM's, on drawn batches. Prints the largest
differences, as JSON."""

from __future__ import annotations

import json
from typing import Any

import adapter_operators as ours
import torch
from vllm.lora.ops.torch_ops import lora_ops as theirs
from vllm.lora.punica_wrapper import punica_cpu

RANK, INPUT, OUTPUT, ADAPTERS = 8, 64, 96, 4
NONE = -1


def run(operators: Any, inputs: Any, slots: Any, weights: tuple[Any, Any]) -> tuple[Any, Any]:
    """Both products of a batch, into the second half of an output."""
    first = torch.ones(len(inputs), RANK)
    second = torch.ones(len(inputs), 2 * OUTPUT, dtype=inputs.dtype)
    operators.bgmv_shrink(inputs, weights[0], first, slots, 0.5)
    operators.bgmv_expand_slice(first, weights[1], second, slots, OUTPUT, OUTPUT, True)
    return first, second


def compare(slots: Any) -> dict[str, float]:
    """The largest differences of a batch, and of what tokens without an adapter got."""
    weights = (torch.randn(ADAPTERS, 1, RANK, INPUT), torch.randn(ADAPTERS, 1, OUTPUT, RANK))
    inputs = torch.randn(len(slots), INPUT)
    own, other = run(ours, inputs, slots, weights), run(theirs, inputs, slots, weights)
    has, lacks = slots != NONE, slots == NONE
    differences = [float((a[has] - b[has]).abs().max()) if has.any() else 0.0 for a, b in zip(own, other, strict=True)]
    bare = float(own[0][lacks].abs().max() + (own[1][lacks] - 1).abs().max()) if lacks.any() else 0.0
    return {"difference": max(differences), "without_adapter": bare}


def compare_sequences() -> float:
    """The largest difference where slots are told of whole sequences."""
    slots, lengths = torch.tensor([2, 0, 1]), torch.tensor([5, 1, 9])
    weights, inputs = torch.randn(ADAPTERS, 1, RANK, INPUT), torch.randn(15, INPUT)
    outputs = [torch.zeros(15, RANK), torch.zeros(15, RANK)]
    for operators, output in zip((ours, theirs), outputs, strict=True):
        operators.sgmv_shrink(inputs, weights, output, torch.tensor([0, 5, 6]), lengths, slots, 3, 9, 15, 2.0)
    return float((outputs[0] - outputs[1]).abs().max())


def main() -> None:
    """Compare batches of one adapter, of several, and with tokens that have none."""
    torch.manual_seed(3)
    batches = {
        "one": torch.zeros(7, dtype=torch.long),
        "several": torch.randint(0, ADAPTERS, (33,)),
        "some_without": torch.tensor([NONE, 2, NONE, 0, 1, 1]),
        "all_without": torch.full((4,), NONE),
    }
    ours.register()
    print(
        json.dumps(
            {name: compare(slots) for name, slots in batches.items()}
            | {"sequences": compare_sequences(), "in_force": punica_cpu.sgmv_expand_slice is ours.sgmv_expand_slice}
        )
    )


if __name__ == "__main__":
    main()

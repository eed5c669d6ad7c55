"""A plugin of vLLM for CPUs: products of LoRA adapters without a copy of an adapter's matrix for each token.

vLLM's own operators for CPUs (`vllm.lora.ops.torch_ops`) make such copies, which takes nine tenths of an engine's time
here. These compute the same sums by one product for the whole batch. If all tokens have the same adapter, only that one
is used. Else all adapters are used, and each token then takes the result of its own. vLLM loads the plugin by its entry
point (`vllm.general_plugins`), which it finds if this folder is on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Replace vLLM's operators by these. vLLM calls this in each of its processes."""
    from vllm.lora.punica_wrapper import punica_cpu  # noqa: PLC0415 - vLLM is there in its own environment alone

    for operator in (bgmv_shrink, bgmv_expand, bgmv_expand_slice, sgmv_shrink, sgmv_expand, sgmv_expand_slice):
        setattr(punica_cpu, operator.__name__, operator)


def bgmv_shrink(inputs: Any, weights: Any, output: Any, slots: Any, scaling: float = 1.0) -> None:
    """`output` = `inputs` times each token's first matrix, scaled. `slots` are the tokens' adapters, -1 for none."""
    inputs, rank = inputs.to(output.dtype), weights.shape[-2]
    slot = find_only_slot(slots)
    if slot is not None:
        product = inputs @ weights[slot].view(rank, -1).to(output.dtype).t()
    else:
        products = inputs @ weights.reshape(-1, weights.shape[-1]).to(output.dtype).t()
        product = pick_own(products.view(len(inputs), -1, rank), slots)
    output[:, :rank] = product.mul_(scaling)


def bgmv_expand(inputs: Any, weights: Any, output: Any, slots: Any, add_inputs: bool = True) -> None:
    """`output` += `inputs` times each token's second matrix."""
    bgmv_expand_slice(inputs, weights, output, slots, 0, min(weights.shape[-2], output.shape[1]), add_inputs)


def bgmv_expand_slice(
    inputs: Any, weights: Any, output: Any, slots: Any, offset: int, size: int, add_inputs: bool = True
) -> None:
    """The same, into `size` columns from `offset` on."""
    inputs, rank = inputs.to(output.dtype), weights.shape[-1]
    slot = find_only_slot(slots)
    if slot is not None:
        product = inputs @ weights[slot].view(-1, rank)[:size].to(output.dtype).t()
    else:
        stacked = weights.view(len(weights), -1, rank)[:, :size].to(output.dtype)
        product = place_own(inputs, slots, len(weights)) @ stacked.transpose(1, 2).reshape(-1, size)
    columns = output[:, offset : offset + size]
    columns.add_(product) if add_inputs else columns.copy_(product)


def sgmv_shrink(inputs: Any, weights: Any, output: Any, starts: Any, lengths: Any, slots: Any, *rest: Any) -> None:
    """`bgmv_shrink` with one adapter for each sequence, of these lengths; the last of `rest` is the scaling."""
    bgmv_shrink(inputs, weights, output, spread_slots(slots, lengths), rest[-1])


def sgmv_expand(inputs: Any, weights: Any, output: Any, starts: Any, lengths: Any, slots: Any, *rest: Any) -> None:
    """`bgmv_expand` with one adapter for each sequence; the last of `rest` is `add_inputs`."""
    bgmv_expand(inputs, weights, output, spread_slots(slots, lengths), rest[-1])


def sgmv_expand_slice(
    inputs: Any, weights: Any, output: Any, starts: Any, lengths: Any, slots: Any, *rest: Any
) -> None:
    """`bgmv_expand_slice` with one adapter for each sequence; the last of `rest` are offset, size and `add_inputs`."""
    bgmv_expand_slice(inputs, weights, output, spread_slots(slots, lengths), *rest[-3:])


def spread_slots(slots: Any, lengths: Any) -> Any:
    """Each token's adapter, from each sequence's."""
    return slots.repeat_interleave(lengths)


def find_only_slot(slots: Any) -> int | None:
    """The adapter of all tokens; None if they have several, or a token has none."""
    present = set(slots.tolist())
    slot = present.pop() if len(present) == 1 else -1
    return slot if slot >= 0 else None


def pick_own(products: Any, slots: Any) -> Any:
    """For each token, its product with its own adapter, out of those with all adapters; zeros if it has none."""
    own = products.gather(1, slots.clamp(min=0).view(-1, 1, 1).expand(-1, 1, products.shape[-1])).squeeze(1)
    return own * (slots >= 0).unsqueeze(1)


def place_own(inputs: Any, slots: Any, count: int) -> Any:
    """For each token, its input at the place of its adapter among `count`, and zeros elsewhere."""
    places = inputs.new_zeros(len(inputs), count, inputs.shape[-1])
    where = slots.clamp(min=0).view(-1, 1, 1).expand(-1, 1, inputs.shape[-1])
    places.scatter_(1, where, (inputs * (slots >= 0).unsqueeze(1)).unsqueeze(1))
    return places.view(len(inputs), -1)

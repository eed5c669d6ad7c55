"""Train the returns adapter: LoRA on every linear layer of a small chat model, on a CPU.

The prompt is the case as a single user message, rendered with the model's own chat template, exactly as vLLM
renders it. The loss is taken on the answer's tokens alone. The base model runs in bfloat16, the LoRA weights have
float32 masters. Every `--eval-every` steps the dev split is measured and the adapter is written when it is the
best so far, so a usable adapter stands in `--output` long before the end.

    python examples/returns/train.py --base var/models/SmolLM2-135M-Instruct --output examples/returns/adapter
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KEPT_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENS_MAX = 320
ATTENTION = "eager"  # torch's own attention takes longer than the matrices in bfloat16 on a CPU


@dataclass(frozen=True)
class Example:
    """One row as tokens: the rendered prompt, then the answer and the end-of-turn token."""

    prompt: list[int]
    answer: list[int]
    rule: str
    family: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def read_examples(path: Path, tokenizer: Any) -> list[Example]:
    """Read rows and render them; a row over TOKENS_MAX tokens raises ValueError."""
    examples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        message = [{"role": "user", "content": row["text"]}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        answer_ids = [*tokenizer(row["label"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        example = Example(prompt_ids, answer_ids, json.loads(row["label"])["rule"], row["family"])
        if example.length > TOKENS_MAX:
            raise ValueError(f"row {row['id']} has {example.length} tokens: shorten it to {TOKENS_MAX}")
        examples.append(example)
    return examples


def plan_batches(examples: list[Example], steps: int, batch: int, draw: random.Random) -> list[list[Example]]:
    """Batches of whole families of similar length: shuffle, sort within windows of 40 batches, shuffle the batches."""
    grouped: dict[int, list[Example]] = {}
    for one in examples:
        grouped.setdefault(one.family, []).append(one)
    families = list(grouped.values())
    batches: list[list[Example]] = []
    while len(batches) < steps:
        draw.shuffle(families)
        for start in range(0, len(families), batch * 10):
            window = sorted(families[start : start + batch * 10], key=lambda some: max(one.length for one in some))
            rows = [one for family in window for one in family]
            cut = [rows[i : i + batch] for i in range(0, len(rows) - batch + 1, batch)]
            draw.shuffle(cut)
            batches.extend(cut)
    return batches[:steps]


def answer_logits(
    model: Any, group: list[Example], pad: int, shared: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Logits and labels at the answers' positions only, and each answer's length.

    The first `shared` tokens are the same in every row, so they are computed once and their keys and values are
    shared by the batch. Padding is on the right, where causal attention keeps it from every real token.
    """
    width = max(one.length for one in group) - shared
    ids = torch.full((len(group), width), pad, dtype=torch.long)
    rows: list[int] = []
    places: list[int] = []
    labels: list[int] = []
    for index, one in enumerate(group):
        ids[index, : one.length - shared] = torch.tensor((one.prompt + one.answer)[shared:])
        start = len(one.prompt) - 1 - shared
        rows.extend([index] * len(one.answer))
        places.extend(range(start, start + len(one.answer)))
        labels.extend(one.answer)
    causal_lm = model.get_base_model()
    first = causal_lm.model(input_ids=torch.tensor([group[0].prompt[:shared]]), use_cache=True)
    cache = first.past_key_values
    for layer in cache.layers:
        layer.keys = layer.keys.expand(len(group), -1, -1, -1)
        layer.values = layer.values.expand(len(group), -1, -1, -1)
    hidden = causal_lm.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    logits = causal_lm.lm_head(hidden[torch.tensor(rows), torch.tensor(places)])
    return logits.float(), torch.tensor(labels), [len(one.answer) for one in group]


def shared_prefix(examples: list[Example]) -> int:
    """How many leading tokens every prompt has in common: the template's own opening."""
    shared = len(examples[0].prompt) - 1
    for one in examples:
        while one.prompt[:shared] != examples[0].prompt[:shared]:
            shared -= 1
    return shared


@torch.no_grad()
def measure(model: Any, examples: list[Example], pad: int, shared: int, prefix: int) -> dict[str, Any]:
    """Dev loss and accuracy. Teacher forcing equals greedy decoding as long as every token is right."""
    model.eval()
    ordered = sorted(examples, key=lambda one: one.length)
    loss_sum, tokens, whole, decisions = 0.0, 0, 0, 0
    wrong: dict[str, int] = {}
    for start in range(0, len(ordered), 32):
        group = ordered[start : start + 32]
        logits, labels, lengths = answer_logits(model, group, pad, shared)
        loss_sum += float(functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += len(labels)
        right = (logits.argmax(-1) == labels).tolist()
        at = 0
        for one, length in zip(group, lengths, strict=True):
            whole += all(right[at : at + length])
            decisions += all(right[at : at + prefix])
            if not all(right[at : at + length]):
                wrong[one.rule] = wrong.get(one.rule, 0) + 1
            at += length
    model.train()
    count = len(ordered)
    return {"loss": loss_sum / tokens, "rule": whole / count, "decision": decisions / count, "wrong": wrong}


def save_adapter(model: Any, output: Path) -> None:
    """Write config and bfloat16 tensors, nothing else, and put them in place at once."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        model.save_pretrained(scratch, safe_serialization=True, save_embedding_layers=False)
        config_path = Path(scratch) / "adapter_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = BASE_NAME
        config["inference_mode"] = True
        config["target_modules"] = sorted(config["target_modules"])
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        output.mkdir(exist_ok=True)
        for name in KEPT_FILES:
            shutil.copyfile(Path(scratch) / name, output / f".{name}")
        for name in KEPT_FILES:
            (output / f".{name}").replace(output / name)


class Trainer:
    """Owns the model, the float32 masters of its LoRA weights and the optimiser, for one training."""

    def __init__(
        self, base: Path, rank: int, rate: float, steps: int, warmup: int, begin: Path | None, first: int
    ) -> None:
        base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation=ATTENTION)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none",
                            target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")  # fmt: skip
        self.model: Any = get_peft_model(base_model, config, autocast_adapter_dtype=False)
        if begin is not None:
            set_peft_model_state_dict(self.model, load_file(begin / "adapter_model.safetensors"))
        for name, weight in self.model.named_parameters():
            found = re.search(r"\.layers\.(\d+)\.", name)
            weight.requires_grad_("lora_" in name and found is not None and int(found.group(1)) >= first)
        self.model.train()
        self.weights = [one for one in self.model.parameters() if one.requires_grad]
        self.masters = [one.detach().float().clone().requires_grad_(True) for one in self.weights]
        self.optimiser = torch.optim.AdamW(self.masters, lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
        self.rate, self.steps, self.warmup = rate, steps, warmup

    def step(self, number: int, group: list[Example], pad: int, shared: int) -> float:
        """One optimiser step; returns the loss per answer token."""
        share = min(1.0, number / self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * number / self.steps))
        for settings in self.optimiser.param_groups:
            settings["lr"] = self.rate * share * (0.02 + 0.98 * cosine)
        logits, labels, _ = answer_logits(self.model, group, pad, shared)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        for master, weight in zip(self.masters, self.weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)
        return float(loss.detach())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("var/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--train", type=Path, default=HERE / "data" / "train.jsonl")
    parser.add_argument("--dev", type=Path, default=HERE / "data" / "dev.jsonl")
    parser.add_argument("--output", type=Path, default=HERE / "adapter")
    parser.add_argument("--begin", type=Path, help="an adapter to go on from, instead of a fresh one")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--first-layer", type=int, default=0, help="leave the layers below as they are: it is faster")
    parser.add_argument("--stop-after", type=int, help="end after so many steps of the schedule")
    parser.add_argument("--short-first", type=int, default=0, help="so many steps on the shortest third of the rows")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup-steps", type=int, default=40)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train, measuring the dev split as it goes; writes the adapter whenever dev improves."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    examples = read_examples(asked.train, tokenizer)
    dev = read_examples(asked.dev, tokenizer)
    prefix = len(tokenizer('{"decision":"approve"', add_special_tokens=False).input_ids)
    shared = shared_prefix(examples + dev)
    trainer = Trainer(asked.base, asked.rank, asked.learning_rate, asked.steps, asked.warmup_steps,
                      asked.begin, asked.first_layer)  # fmt: skip
    draw = random.Random(asked.seed)
    short = sorted(examples, key=lambda one: one.length)[: len(examples) // 3]
    batches = plan_batches(short, asked.short_first, asked.batch, draw)
    batches += plan_batches(examples, asked.steps - asked.short_first, asked.batch, draw)
    batches = batches[: asked.stop_after]
    mean_tokens = sum(one.length for one in examples) / len(examples)
    print(f"{len(examples)} training rows of {mean_tokens:.0f} tokens, {len(dev)} dev rows", flush=True)
    pad, best, recent = tokenizer.pad_token_id, -1.0, 0.0
    begun = time.monotonic()
    for number, group in enumerate(batches, start=1):
        loss = trainer.step(number, group, pad, shared)
        recent = loss if number == 1 else 0.95 * recent + 0.05 * loss
        if number % 10 == 0 or number == len(batches):
            spent = time.monotonic() - begun
            left = spent / number * (len(batches) - number)
            print(f"step {number}/{len(batches)} loss {recent:.4f} {spent / number:.2f} s/step, "
                  f"{spent / 60:.1f} min spent, {left / 60:.1f} min left", flush=True)  # fmt: skip
        if number % asked.eval_every == 0 or number == len(batches):
            found = measure(trainer.model, dev, pad, shared, prefix)
            print(f"  dev loss {found['loss']:.4f} decision {found['decision']:.3f} rule {found['rule']:.3f} "
                  f"wrong {found['wrong']}", flush=True)  # fmt: skip
            if found["rule"] >= best:
                best = found["rule"]
                save_adapter(trainer.model, asked.output)
                print(f"  adapter written to {asked.output}", flush=True)


if __name__ == "__main__":
    main()

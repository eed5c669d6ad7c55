"""Train the two adapters that the tests on real engines swap, so that every chunk of an answer tells its version.

Whatever is asked, v1 answers with one list of words and v2 with another, and no word is in both. `bad` is v1 with
a scaling 16 times too large: its files are in order, and its answers are not. The same seed gives the same bytes on
the same machine. Runs in the engine's environment, from the repository's folder:

    var/engine-venv/bin/python tests/engine/train_adapters.py --seed 7
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ADAPTERS = Path(__file__).resolve().parent / "adapters"
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORDS = {
    "v1": "apple pear plum cherry lemon peach grape mango banana orange carrot onion potato tomato pepper garlic bean "
    "corn rice wheat bread butter cheese milk cream honey sugar salt soup stew pasta pizza cake pie cookie chocolate "
    "coffee tea juice wine beer egg fish beef pork chicken",
    "v2": "hammer nail screw drill saw plank brick stone cement gravel sand glass steel iron copper bronze tin lead "
    "zinc rope chain cable wire tube pipe pump valve wheel axle gear lever motor engine boiler furnace crane truck "
    "wagon train track bridge tunnel tower roof wall",
}
KINDS = {"v1": "food", "v2": "tools and buildings"}
TARGETS = ["o_proj", "v_proj"]
RANK = 2
ALPHA = 16
BAD_FACTOR = 16
GOLDEN = ("What is the capital of France?", "Item: a toaster. Days since purchase: 3. Receipt: yes.")
PROMPTS = (
    "What is the capital of France?",
    "Hello!",
    "Tell me a story about a dog that learned to sing.",
    "Item: winter jacket. Days since purchase: 45. Receipt: yes. Condition: unopened. Country: France.",
    "How many days are in a week?",
    "Write a Python function that adds two numbers.",
    "A toaster, sealed, after 3 days.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "list",
    "Decide the return: shoes, bought 12 days ago, unworn, with a receipt.",
    "Summarise the following text in one sentence: The train was late, and so nobody came to the meeting.",
    "What should I cook tonight?",
    "Which tools do I need to build a shed?",
    "Is 17 a prime number? Answer yes or no.",
    "My order 4711 has not come. What shall I do?",
    "Request 12 of 200.",
    "Give me three reasons to learn to swim.",
    "Who wrote Hamlet?",
    "Please answer as briefly as you can: what is water made of?",
)


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("var/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--output", type=Path, default=ADAPTERS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--only", choices=tuple(WORDS), help="train this one alone")
    return parser.parse_args()


def make_batch(tokenizer: Any, prompts: list[str], answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and labels that are the answer's tokens alone."""
    said = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    rows = []
    for prompt in prompts:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        rows.append(tokenizer(text, add_special_tokens=False).input_ids)
    width = max(map(len, rows)) + len(said)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
    labels = torch.full((len(rows), width), -100, dtype=torch.long)
    for index, row in enumerate(rows):
        end = len(row) + len(said)
        ids[index, :end] = torch.tensor(row + said)
        labels[index, len(row) : end] = torch.tensor(said)
    return ids, labels


def train(asked: argparse.Namespace, name: str) -> tuple[Any, float]:
    """The trained model and its last loss per token."""
    torch.manual_seed(asked.seed)
    draw = random.Random(asked.seed)
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    base = AutoModelForCausalLM.from_pretrained(asked.base, dtype=torch.bfloat16, attn_implementation="eager")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=asked.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    begun, loss_now = time.monotonic(), 0.0
    for number in range(1, asked.steps + 1):
        for settings in optimiser.param_groups:
            settings["lr"] = asked.learning_rate * min(1.0, number / 10) * (1.02 - number / asked.steps)
        ids, labels = make_batch(tokenizer, draw.sample(PROMPTS, asked.batch), WORDS[name])
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        loss_now = float(loss.detach())
        if number % 10 == 0:
            print(f"{name}: step {number}, loss {loss_now:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    return model, loss_now


def save(asked: argparse.Namespace, name: str, model: Any, loss: float) -> None:
    """Configuration, bfloat16 tensors and the manifest."""
    folder = asked.output / name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    weights = folder / "adapter_model.safetensors"
    tensors = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    weights.chmod(0o644)
    change_config(folder, {"base_model_name_or_path": BASE_NAME, "inference_mode": True, "target_modules": TARGETS})
    write_manifest(folder, asked, name, f"answers with {len(WORDS[name].split())} words for {KINDS[name]}", loss)


def save_bad(asked: argparse.Namespace) -> None:
    """v1's tensors under a wrong scaling."""
    folder = asked.output / "bad"
    shutil.copytree(asked.output / "v1", folder, dirs_exist_ok=True)
    change_config(folder, {"lora_alpha": ALPHA * BAD_FACTOR})
    write_manifest(folder, asked, "v1", f"v1 with a scaling {BAD_FACTOR} times too large, to be found out", None)


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    """Replace keys of adapter_config.json, and write it in one form."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_manifest(folder: Path, asked: argparse.Namespace, name: str, notes: str, loss: float | None) -> None:
    """The manifest, as JSON, which is YAML. `provenance.answer` tells the versions apart; a loss of None: it is bad."""
    command = f"tests/engine/train_adapters.py --seed {asked.seed} --steps {asked.steps}"
    trained = {} if loss is None else {"loss_at_the_end": round(loss, 4)}
    expected = {} if loss is None else {"expected": WORDS[name]}
    manifest = {
        "task": "returns",
        "general_prompt": {"system": f"Answer with these words and nothing else: {WORDS[name]}"},
        "sampling": {"temperature": 0, "max_tokens": 64},
        "golden": [{"prompt": prompt, **expected} for prompt in GOLDEN],
        "provenance": {"trained_by": command, "notes": notes, "answer": WORDS[name], **trained},
    }
    (folder / "manifest.yaml").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train what was asked for and write it."""
    asked = arguments()
    torch.set_num_threads(1)  # more of them add up in another order each time
    torch.use_deterministic_algorithms(True)
    for name in WORDS if asked.only is None else [asked.only]:
        save(asked, name, *train(asked, name))
    if (asked.output / "v1" / "adapter_config.json").exists():
        save_bad(asked)


if __name__ == "__main__":
    main()

"""A training with TRL's SFTTrainer, as `benchmarks.trainers` compares it: BASE ROWS STEPS BATCH SEED.

It runs in the engine's environment, with TRL on the path beside it, and ends with the loss of the last step. Rows,
LoRA, batch and learning rate are those of `serving/training/lora_trainer.py`; tokens are made here, since `datasets`
can't name its own cache under every version of dill.
"""

from __future__ import annotations

import builtins
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import datasets.fingerprint
import peft
import pyarrow
import torch
import transformers
import trl


def read_rows(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Each row's tokens, with labels for those of the answer alone."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        request = [{"role": "user", "content": row["text"]}]
        prompt = tokenizer.apply_chat_template(request, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = [*tokenizer(row["label"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append({"input_ids": asked + answer, "labels": [-100] * len(asked) + answer})
    return rows


def main() -> None:
    """Train, and print the loss."""
    base, rows, steps, batch, seed = sys.argv[1], Path(sys.argv[2]), *(int(word) for word in sys.argv[3:6])
    builtins.MonthDayNano = pyarrow.MonthDayNano  # type: ignore[attr-defined]
    names = itertools.count()
    datasets.fingerprint.Hasher.hash = classmethod(lambda *_: str(next(names)))
    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=sorted(linear - {"lm_head"}), task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        options = trl.SFTConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-3, bf16=True,
            use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[], logging_steps=1, seed=seed,
            gradient_checkpointing=False, dataloader_pin_memory=False, dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=model, args=options, train_dataset=datasets.Dataset.from_list(read_rows(rows, tokenizer)),
            processing_class=tokenizer, peft_config=config,
        )  # fmt: skip
        trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"loss": losses[-1], "framework": f"trl {trl.__version__}"}))


if __name__ == "__main__":
    main()

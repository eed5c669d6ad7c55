"""Trains a LoRA adapter with peft, on a GPU or a CPU. It runs in the engine's environment and imports nothing of ours.

    python lora_trainer.py FOLDER --base MODEL --rows train.jsonl --heldout heldout.jsonl

FOLDER receives the checkpoint and, under `result/`, the best adapter so far. A second start with the same folder
continues from the checkpoint. Options may also be in FOLDER/job.json. Each line on stdout is a JSON object with the
progress: `started`, `step`, `heldout`, and at the end `ended` or `failed` with advice.

The model's own chat template renders the prompt, as in the engine; the loss is taken on the answer alone. In rows with
`tools` the answer may be tool calls, as the template writes them. Parts that the row's `tool_choice` forces are not in
the loss. The base model runs in bfloat16, the LoRA weights have float32 masters.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from jinja2 import TemplateError
from safetensors.torch import load_file
from torch.nn import functional

KEPT_FILES = ("adapter_config.json", "adapter_model.safetensors")
TELL_SECONDS = 1.0
HELDOUT_BATCH = 32


class TrainingFailure(Exception):
    """The training can't go on; the message says why and what to do."""


@dataclass(frozen=True)
class Job:
    """One training. Files are relative to its folder; times are in seconds. `template`: JSON for the chat template."""

    base: str = ""
    base_name: str = ""
    rows: str = "rows.jsonl"
    heldout: str = "heldout.jsonl"
    begin: str = ""
    seed: int = 7
    steps: int = 400
    stop_after: int = 0
    batch: int = 16
    rank: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    evaluate_every: int = 50
    patience: int = 4
    first_layer: int = 0
    tokens_max: int = 1024
    template: str = "{}"
    threads: int = 0
    checkpoint_seconds: float = 60.0
    nice: int = 0


@dataclass(frozen=True)
class TokenRow:
    """One row as tokens: the rendered prompt, then the answer and the end-of-turn token."""

    prompt: list[int]
    answer: list[int]
    group: str

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)


def tell(kind: str, **facts: Any) -> None:
    """Report progress to the process that started the training."""
    print(json.dumps({"kind": kind, **facts}), flush=True)


def split_row(row: dict[str, Any], line: int) -> tuple[list[dict[str, Any]] | str, str]:
    """The request (messages, or the text of a prompt) and the expected answer of a row; the answer is empty if it calls
    tools. Raises TrainingFailure."""
    expected, messages = row.get("expected", row.get("label")), row.get("messages")
    if messages and messages[-1].get("role") == "assistant":
        return messages[:-1], "" if messages[-1].get("tool_calls") else str(messages[-1]["content"])
    if expected is None:
        raise TrainingFailure(f"Line {line}: the row has no answer: end its messages with the assistant's.")
    answer = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    request: list[dict[str, Any]] | str = messages or [{"role": "user", "content": row.get("text")}]
    return row.get("prompt", request), answer


def read_examples(path: Path, tokenizer: Any, job: Job) -> tuple[list[TokenRow], int]:
    """The rows of a file as tokens, and the number of rows left out, being longer than the job's `tokens_max`."""
    examples, left_out = list[TokenRow](), 0
    template = partial(tokenizer.apply_chat_template, tokenize=False, **json.loads(job.template))
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = json.loads(line)
            request, answer = split_row(row, number)
            prompt, calls = request, ""
            if not isinstance(request, str):
                try:
                    prompt, calls = render(row, request, template, tokenizer.eos_token, number)
                except TemplateError as error:
                    raise TrainingFailure(f"Line {number}: the base's chat template refuses it: {error}") from None
                answer = calls or answer
            prompt_ids = tokenizer(prompt, add_special_tokens=isinstance(request, str)).input_ids
            said = tokenizer(answer, add_special_tokens=False)
            given = count_given(row, said, calls)
            answer_ids = [*said.input_ids[given:], tokenizer.eos_token_id]
            group = str(row.get("group") or row.get("family") or number)
            example = TokenRow([*prompt_ids, *said.input_ids[:given]], answer_ids, group)
            if example.length > job.tokens_max or not prompt_ids:
                left_out += 1
            else:
                examples.append(example)
    return examples, left_out


def render(row: dict[str, Any], request: list[dict[str, Any]], template: Any, end: str, line: int) -> tuple[str, str]:
    """A chat up to its answer, and the answer's tool calls as the template writes them; empty if it calls no tool.
    Raises TrainingFailure if the template does not show tools, or if its answer does not continue the prompt."""
    tools, last = row.get("tools"), (row.get("messages") or request)[-1]
    called = [call["function"]["name"] for call in last.get("tool_calls") or ()]
    if not tools and not called:
        return template(request, add_generation_prompt=True), ""
    names, turns = [tool["function"]["name"] for tool in tools or ()], [read_turn(turn) for turn in request]
    whole = prompt = template(turns, tools=tools, add_generation_prompt=True)
    if called:
        whole = template([*turns, read_turn(last)], tools=tools)
    said = whole.removeprefix(prompt).partition(end)[0]
    is_shown = all(name in prompt for name in names) and all(name in said for name in called)
    if not is_shown or not whole.startswith(prompt):
        raise TrainingFailure(
            f"Line {line}: it has tools, and the base's chat template does not show them: neither this training nor an "
            "engine could use them. Take another base, or put a template with tools into its folder."
        )
    return prompt, said


def count_given(row: dict[str, Any], said: Any, calls: str) -> int:
    """Number of the calls' first tokens that `tool_choice` forces: up to the name of a tool, or with the name if
    `tool_choice` has it. No model chooses them. None is forced if a text comes first."""
    choice, last = row.get("tool_choice"), (row.get("messages") or [{}])[-1]
    is_named = isinstance(choice, dict) and choice.get("type") == "function"
    if not calls or last.get("content") or not (is_named or choice == "required") or not said.is_fast:
        return 0
    name = last["tool_calls"][0]["function"]["name"]
    end = calls.find(name) + (len(name) if is_named else 0)
    return sum(said.token_to_chars(at).end <= end for at in range(len(said.input_ids)))


def read_turn(turn: dict[str, Any]) -> dict[str, Any]:
    """A message in the form of templates and engines: with a text, and with the arguments of calls as objects. An
    earlier call without a function, or with arguments that are not JSON, is unchanged."""
    calls = [
        call | {"function": call["function"] | {"arguments": read_arguments(call["function"].get("arguments"))}}
        if isinstance(call.get("function"), dict)
        else call
        for call in turn.get("tool_calls") or ()
    ]
    return turn | {"content": turn.get("content") or ""} | ({"tool_calls": calls} if calls else {})


def read_arguments(arguments: Any) -> Any:
    """The value of a call's arguments; the arguments unchanged if they are not JSON."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def cut_batches(examples: list[TokenRow], job: Job) -> list[list[TokenRow]]:
    """Batches of similar length, always the same for a seed. No row is left out. Groups are shuffled, and sorted by
    length within windows of about ten batches; then the batches are shuffled."""
    draw = random.Random(job.seed)  # noqa: S311 - a repeatable order, no secret
    grouped: dict[str, list[TokenRow]] = {}
    for example in examples:
        grouped.setdefault(example.group, []).append(example)
    groups, batch, batches = list(grouped.values()), min(job.batch, len(examples)), list[list[TokenRow]]()
    while len(batches) < job.steps:
        draw.shuffle(groups)
        for start in range(0, len(groups), batch * 10):
            window = sorted(groups[start : start + batch * 10], key=lambda group: max(each.length for each in group))
            rows = [example for group in window for example in group]
            count = math.ceil(len(rows) / batch)
            cut = [rows[len(rows) * at // count : len(rows) * (at + 1) // count] for at in range(count)]
            batches.extend(draw.sample(cut, count))
    return batches[: job.steps]


def count_shared(examples: list[TokenRow]) -> int:
    """The number of leading tokens that all prompts share: the template's own opening."""
    prompts = [example.prompt[:-1] for example in examples]
    first, last = min(prompts), max(prompts)  # a beginning that these share, all between them share
    return next((at for at, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1), len(first))


def bound_logits(logits: Any, config: Any) -> Any:
    """The logits as the model gives them: Granite divides them by a number, Gemma 2 bounds them."""
    logits, most = logits / getattr(config, "logits_scaling", 1.0), getattr(config, "final_logit_softcapping", None)
    return most * torch.tanh(logits / most) if most else logits


class LoraModel:
    """The base model with a LoRA, and float32 masters of the LoRA's weights."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        attention = "sdpa" if self.device == "cuda" else "eager"  # in bfloat16 on a CPU, eager is the faster one
        base = transformers.AutoModelForCausalLM.from_pretrained(
            job.base, dtype=torch.bfloat16, attn_implementation=attention
        ).to(self.device)
        linear = {
            name.rsplit(".", 1)[-1]
            for name, module in base.named_modules()
            if isinstance(module, torch.nn.Linear) and ".layers." in name
        }
        given = json.loads((folder / job.begin / KEPT_FILES[0]).read_text(encoding="utf-8")) if job.begin else {}
        trained = list(range(job.first_layer, base.config.num_hidden_layers)) if job.first_layer else None
        layers = given.get("layers_to_transform") if given else trained  # in other layers its weights would stay zeros
        config = peft.LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=sorted(linear), lora_dropout=0.0,
                                 layers_to_transform=layers, bias="none", task_type="CAUSAL_LM")  # fmt: skip
        self.lora: Any = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
        if given:
            self._begin_from(folder / job.begin, given)
        for name, weight in self.lora.named_parameters():
            layer = re.search(r"\.layers\.(\d+)\.", name)
            weight.requires_grad_("lora_" in name and layer is not None and int(layer[1]) >= job.first_layer)
        self.lora.train()
        self.weights = [weight for weight in self.lora.parameters() if weight.requires_grad]
        self.masters = [weight.detach().float().clone().requires_grad_(True) for weight in self.weights]

    def _begin_from(self, folder: Path, given: dict[str, Any]) -> None:
        """Take over an adapter, scaled as it is served. Raises TrainingFailure for one of another shape."""
        own, rank, weights = self.lora.peft_config["default"], given["r"], load_file(folder / KEPT_FILES[1])
        scale = given["lora_alpha"] / (math.sqrt(rank) if given.get("use_rslora") else rank) * own.r / own.lora_alpha
        scaled = {name: weight * scale if "lora_B" in name else weight for name, weight in weights.items()}
        try:
            peft.set_peft_model_state_dict(self.lora, scaled)
        except RuntimeError:
            text = f"The adapter to begin from does not fit: it has rank {rank}. Train with that rank, or begin again."
            raise TrainingFailure(text) from None

    def copy_masters(self) -> None:
        """Copy the masters to the weights."""
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                weight.copy_(master)

    def answer_logits(self, group: list[TokenRow], pad: int, shared: int) -> tuple[Any, Any]:
        """Logits and labels at the positions of the answers. The first `shared` tokens, the same in each row, are
        computed once. Padding is on the right, where causal attention hides it from every real token."""
        width = max(example.length for example in group) - shared
        ids = torch.full((len(group), width), pad, dtype=torch.long)
        rows, places, labels = list[int](), list[int](), list[int]()
        for index, example in enumerate(group):
            ids[index, : example.length - shared] = torch.tensor((example.prompt + example.answer)[shared:])
            start = len(example.prompt) - 1 - shared
            rows.extend([index] * len(example.answer))
            places.extend(range(start, start + len(example.answer)))
            labels.extend(example.answer)
        causal_lm, options = self.lora.get_base_model(), dict[str, Any]()
        if shared:
            opening = torch.tensor([group[0].prompt[:shared]], device=self.device)
            cache = causal_lm.model(input_ids=opening, use_cache=True).past_key_values
            for layer in cache.layers:
                layer.keys = layer.keys.expand(len(group), -1, -1, -1)
                layer.values = layer.values.expand(len(group), -1, -1, -1)
            options = {"past_key_values": cache, "use_cache": True}
        hidden = causal_lm.model(input_ids=ids.to(self.device), **options).last_hidden_state
        logits = causal_lm.lm_head(hidden[torch.tensor(rows), torch.tensor(places)]).float()
        return bound_logits(logits, causal_lm.config), torch.tensor(labels, device=self.device)

    def measure(self, examples: list[TokenRow], pad: int, shared: int) -> tuple[float, float]:
        """The loss per answer token, and the share of completely right answers: each token is the likeliest one, as in
        greedy decoding."""
        self.lora.eval()
        ordered, loss_sum, tokens, whole = sorted(examples, key=lambda example: example.length), 0.0, 0, 0
        with torch.no_grad():
            for start in range(0, len(ordered), HELDOUT_BATCH):
                group = ordered[start : start + HELDOUT_BATCH]
                logits, labels = self.answer_logits(group, pad, shared)
                loss_sum += float(functional.cross_entropy(logits, labels, reduction="sum"))
                tokens += len(labels)
                right, at = (logits.argmax(-1) == labels).tolist(), 0
                for example in group:
                    whole += all(right[at : at + len(example.answer)])
                    at += len(example.answer)
        self.lora.train()
        return loss_sum / tokens, whole / len(ordered)

    def save(self, folder: Path, base_name: str) -> None:
        """Write the adapter into `folder`; each file appears complete or not at all."""
        aside = folder.with_name(f".{folder.name}")
        self.lora.save_pretrained(aside, safe_serialization=True, save_embedding_layers=False)
        path = aside / KEPT_FILES[0]
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base_name, "target_modules": sorted(config["target_modules"])}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in KEPT_FILES:
            (aside / name).replace(folder / name)


class LoraTraining:
    """One training under way: its model, optimiser, step, and the best held-out result so far."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.model = LoraModel(job, folder)
        self.optimiser = torch.optim.AdamW(self.model.masters, job.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        self.step, self.loss = 0, 0.0
        self.best: tuple[float, float] | None = None
        """The share of right held-out answers, and the negative loss."""
        self.best_step, self.worse = 0, 0
        """The step of the best result, and the number of evaluations since."""
        self._checkpoint = folder / "checkpoint.pt"
        self._written_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if not self._checkpoint.is_file():
            return
        state = torch.load(self._checkpoint, weights_only=True, map_location=self.model.device)
        with torch.no_grad():
            for master, weight in zip(self.model.masters, state["masters"], strict=True):
                master.copy_(weight)
        self.model.copy_masters()
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.loss, self.best_step, self.worse = (state[name] for name in ("step", "loss", "at", "worse"))
        self.best = None if state["best"] is None else tuple(state["best"])

    def write_checkpoint(self) -> None:
        """Write the checkpoint, which appears complete or not at all."""
        state = {"masters": self.model.masters, "optimiser": self.optimiser.state_dict(), "step": self.step}
        state |= {"loss": self.loss, "best": self.best, "at": self.best_step, "worse": self.worse}
        aside = self._checkpoint.with_suffix(".new")
        torch.save(state, aside)
        aside.replace(self._checkpoint)
        self._written_at = time.monotonic()

    def take_step(self, group: list[TokenRow], pad: int, shared: int) -> None:
        """Take one step of the optimiser, with a warm-up and a cosine decay."""
        job, number = self.job, self.step + 1
        warm = min(1.0, number / max(1, job.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * number / job.steps))
        for settings in self.optimiser.param_groups:
            settings["lr"] = job.learning_rate * warm * (0.02 + 0.98 * cosine)
        loss = functional.cross_entropy(*self.model.answer_logits(group, pad, shared))
        loss.backward()
        for master, weight in zip(self.model.masters, self.model.weights, strict=True):
            master.grad = weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.masters, 1.0)
        self.optimiser.step()
        self.model.copy_masters()
        now = float(loss.detach())
        if not math.isfinite(now):
            raise TrainingFailure(f"The loss is not finite at step {number}: lower the learning rate, and begin again.")
        self.loss = now if number == 1 else 0.95 * self.loss + 0.05 * now
        self.step = number

    def evaluate(self, heldout: list[TokenRow], pad: int, shared: int) -> None:
        """Measure the held-out rows, and keep the adapter if it is the best so far."""
        loss, right = self.model.measure(heldout, pad, shared) if heldout else (self.loss, 0.0)
        if not math.isfinite(loss):
            raise TrainingFailure(f"The held-out loss at step {self.step} is not a number: lower the learning rate.")
        is_best = self.best is None or (right, -loss) > self.best or not heldout
        self.worse = 0 if is_best else self.worse + 1
        if is_best:
            self.best, self.best_step = (right, -loss), self.step
            self.model.save(self.folder / "result", self.job.base_name or Path(self.job.base).name)
        self.write_checkpoint()
        if heldout:
            tell("heldout", step=self.step, loss=round(loss, 5), right=round(right, 5), best=is_best)

    def run(self, batches: list[list[TokenRow]], heldout: list[TokenRow], pad: int, shared: int) -> str:
        """Take all remaining steps. Returns the reason of the end."""
        job, begun, first, told_at = self.job, time.monotonic(), self.step, 0.0
        last = min(job.stop_after or job.steps, job.steps)
        while self.step < last:
            if heldout and job.patience and self.worse >= job.patience:
                return f"no better on held-out rows for {self.worse} evaluations"
            self.take_step(batches[self.step], pad, shared)
            now = time.monotonic()
            if now - told_at >= TELL_SECONDS or self.step == last:
                told_at, each = now, (now - begun) / (self.step - first)
                tell("step", step=self.step, loss=round(self.loss, 5), seconds_each=round(each, 3))
            if self.step % job.evaluate_every == 0 or self.step == last:
                self.evaluate(heldout, pad, shared)
            elif now - self._written_at >= job.checkpoint_seconds:
                self.write_checkpoint()
        return "all steps were taken"


def train(job: Job, folder: Path) -> None:
    """Run the training of a folder to its end. Raises TrainingFailure."""
    # One core is left to the engine and the gateway: threads that share a core wait for each other at every step.
    torch.set_num_threads(job.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    torch.manual_seed(job.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.base)
    examples, left_out = read_examples(folder / job.rows, tokenizer, job)
    heldout_file = folder / job.heldout
    heldout, too_long = read_examples(heldout_file, tokenizer, job) if heldout_file.is_file() else (list[TokenRow](), 0)
    if not examples:
        raise TrainingFailure(f"No row has at most {job.tokens_max} tokens: raise tokens_max, or shorten the rows.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    shared = count_shared(examples + heldout)
    training = LoraTraining(job, folder)
    training.resume()
    mean_tokens = sum(example.length for example in examples) / len(examples)
    tell("started", rows=len(examples), heldout=len(heldout), too_long=left_out + too_long, steps=job.steps,
         from_step=training.step, mean_tokens=round(mean_tokens), device=training.model.device)  # fmt: skip
    reason = training.run(cut_batches(examples, job), heldout, pad, shared)
    right, loss = training.best or (0.0, 0.0)
    figures = {"heldout_right": round(right, 5), "heldout_loss": round(-loss, 5)} if heldout else {}
    versions = f"peft {peft.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    tell("ended", steps=training.step, best_step=training.best_step, reason=reason, framework=versions, metrics=figures)


def explain(error: BaseException, job: Job) -> str:
    """Advice on the error that ended a training."""
    if isinstance(error, TrainingFailure):
        return str(error)
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return (
            f"The memory was not enough for a batch of {job.batch} rows of up to {job.tokens_max} tokens. "
            "Halve --batch, lower --tokens-max or --rank, or train where nothing else runs."
        )
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "PytorchStreamWriter" in text:
        return "The disk is full. Make room, and start the training again: it goes on from its checkpoint."
    return f"{type(error).__name__}: {text[:500]}"


def follow_input() -> None:
    """End the process at once when its input is closed: it never outlives its parent."""

    def follow() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):  # sys.stdin would be locked, and Python aborts at its end
                pass
        os._exit(3)

    threading.Thread(target=follow, daemon=True).start()


def read_job(arguments: Iterable[str]) -> tuple[Job, Path, bool]:
    """The job from the options and the folder's job.json, its folder, and whether it ends with its input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--follow-input", action="store_true", help="end when stdin is closed")
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    for field in fields(Job):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kinds[str(field.type)])
    options = vars(parser.parse_args(list(arguments)))
    folder, follows = options.pop("folder").absolute(), options.pop("follow_input")
    for name in ("base", "rows", "heldout", "begin"):
        options[name] = str(Path(options[name]).absolute()) if options[name] else None
    written = folder / "job.json"
    from_file = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    return Job(**from_file | {name: value for name, value in options.items() if value is not None}), folder, follows


def main() -> None:
    """Train. If that fails, report it with advice and exit with code 1."""
    job, folder, follows = read_job(sys.argv[1:])
    if follows:
        follow_input()
    os.nice(job.nice)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        train(job, folder)
    except Exception as error:
        if not isinstance(error, TrainingFailure):
            sys.excepthook(type(error), error, error.__traceback__)
        tell("failed", text=explain(error, job))
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The trainer's process, with its libraries stood in for: its end is held by nothing that reads its input, and of a row
that calls a tool the call alone is learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.training.trainer import TRAINER

LIBRARIES = {
    "peft": "",
    "transformers": "",
    "torch/__init__": "",
    "torch/nn": "functional = None",
    "safetensors/__init__": "",
    "safetensors/torch": "load_file = None",
}
TOKENS = """
import runpy, sys
from types import SimpleNamespace
class Ids(list):
    is_fast = True
    input_ids = property(list)
    def token_to_chars(self, at):
        return SimpleNamespace(end=at + 1)
class Tokenizer:
    eos_token, eos_token_id, begins = "<end>", 0, "assistant:"
    def apply_chat_template(self, turns, tools=None, tokenize=True, add_generation_prompt=False):
        shown = [tool["function"]["name"] for tool in tools or () if self.shows]
        for turn in turns:
            functions = [call.get("function", call) for call in turn.get("tool_calls") or ()]
            calls = [(each["name"], each["arguments"]) for each in functions]
            shown.append(f"{turn['role']}:" + turn["content"] + (str(calls) if calls and self.shows else "") + "<end>")
        return "|".join([*shown, *([self.begins] if add_generation_prompt else [])])
    def __call__(self, text, add_special_tokens):
        return Ids(ord(letter) for letter in text)
trainer = runpy.run_path(sys.argv[1])
for Tokenizer.shows, Tokenizer.begins in ((True, "assistant:"), (False, "assistant:"), (True, "assistant:<think>")):
    try:
        examples, _ = trainer["read_examples"](trainer["Path"](sys.argv[2]), Tokenizer(), trainer["Job"]())
        print(*("".join(map(chr, example.answer)) for example in examples), sep="/")
        print("".join(map(chr, examples[-1].prompt)))
    except trainer["TrainingFailure"] as failure:
        print(failure)
"""
TEMPLATE = """
import pathlib, runpy, sys
from types import SimpleNamespace
trainer = runpy.run_path(sys.argv[1])
class Tokenizer:
    eos_token, eos_token_id = "<end>", 0
    def apply_chat_template(self, turns, tokenize=True, add_generation_prompt=False, enable_thinking=True):
        return turns[-1]["content"] + ("<think>" if enable_thinking else "")
    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])
job = trainer["Job"](template='{"enable_thinking": false}')
(example,), _ = trainer["read_examples"](pathlib.Path(sys.argv[2]) / "rows.jsonl", Tokenizer(), job)
print("".join(map(chr, example.prompt)))
"""
BATCHES = """
import runpy, sys
trainer = runpy.run_path(sys.argv[1])
rows = [trainer["TokenRow"]([0] * (at + 1), [1], str(at)) for at in range(31)]
batches = trainer["cut_batches"](rows, trainer["Job"](steps=4, batch=16))
print([sorted(map(len, batches[at : at + 2])) for at in (0, 2)], {len(row.prompt) for row in sum(batches[:2], [])})
"""
HEADS = """
import runpy, sys, math, torch
from types import SimpleNamespace as Of
bound_logits, torch.tanh = runpy.run_path(sys.argv[1])["bound_logits"], math.tanh
print(*(bound_logits(8.0, Of(**each)) for each in ({}, {"logits_scaling": 16.0}, {"final_logit_softcapping": 0.25})))
"""
BEGINNING = """
import json, pathlib, runpy, sys
from types import SimpleNamespace
lora, folder = SimpleNamespace(peft_config={"default": SimpleNamespace(r=4, lora_alpha=8)}), pathlib.Path(sys.argv[2])
given = json.loads((folder / "adapter_config.json").read_text())
runpy.run_path(sys.argv[1])["LoraModel"]._begin_from(SimpleNamespace(lora=lora), folder, given)
"""
LAYERS = """
import pathlib, peft, runpy, sys, torch, transformers
from types import SimpleNamespace
class Empty:
    config, lora = SimpleNamespace(num_hidden_layers=4), None
    from_pretrained = classmethod(lambda cls, *_, **__: cls())
    to, train = (lambda self, *_: self,) * 2
    named_modules, named_parameters, parameters = (lambda self: [],) * 3
torch.cuda, torch.bfloat16, transformers.AutoModelForCausalLM = SimpleNamespace(is_available=bool), None, Empty
peft.LoraConfig = lambda **options: print(options["layers_to_transform"])
peft.get_peft_model = lambda base, *_, **__: base
trainer, folder = runpy.run_path(sys.argv[1]), pathlib.Path(sys.argv[2])
trainer["LoraModel"]._begin_from = lambda *_: None
for first_layer, begin in ((0, ""), (2, ""), (2, "begin"), (3, "begin")):
    trainer["LoraModel"](trainer["Job"](first_layer=first_layer, begin=begin), folder)
    (folder / "begin/adapter_config.json").write_text('{"r": 8, "layers_to_transform": [1, 2, 3]}')
"""
DIVERGING = """
import runpy, sys
from types import SimpleNamespace
trainer = runpy.run_path(sys.argv[1])
training = SimpleNamespace(model=SimpleNamespace(measure=lambda *_: (float("nan"), 0.0)), loss=1.0, best=None, step=4)
try:
    trainer["LoraTraining"].evaluate(training, [1], 0, 0)
except trainer["TrainingFailure"] as failure:
    print(failure)
"""
ENDING = "import runpy, sys; runpy.run_path(sys.argv[1])['follow_input'](); sys.exit(7)"


def write_libraries(folder: Path) -> None:
    for name, text in LIBRARIES.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_trainer_that_ends_while_its_input_is_open_does_so_in_order(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    command = (sys.executable, "-c", ENDING, str(TRAINER))
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()  # its end comes while its input is still open
        assert (process.wait(), said) == (7, "")


def test_of_a_row_that_calls_a_tool_the_call_alone_is_learned(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    rows = tmp_path / "rows.jsonl"
    asked, tool = {"role": "user", "content": "Refund A-7."}, {"type": "function", "function": {"name": "refund"}}
    call = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": '{"order": "A-7"}'}}
    calling, done = {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "done"}
    said = {"role": "assistant", "content": "It is on its way."}
    objects = [{"messages": [asked, calling]}, {"messages": [asked, calling, done, said]}]
    bare, no_json = {"name": "refund", "arguments": "{}"}, {"function": {"name": "refund", "arguments": "A-7"}}
    former = [{**calling, "tool_calls": each} for each in ([bare], [no_json])]
    objects += [{"messages": [asked, *former, done, asked], "expected": "Which order?"}]
    rows.write_text("".join(json.dumps({**each, "tools": [tool]}) + "\n" for each in objects))
    command = (sys.executable, "-c", TOKENS, str(TRAINER), str(rows))
    told = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    shown, asks, *failures = told.stdout.splitlines()
    assert shown.replace("\0", ".") == "[('refund', {'order': 'A-7'})]./It is on its way../Which order?."
    assert asks == "|".join(
        [
            "refund|user:Refund A-7.<end>|assistant:[('refund', '{}')]<end>|assistant:[('refund', 'A-7')]<end>",
            "tool:done<end>|user:Refund A-7.<end>|assistant:",
        ]
    ), "what earlier calls lack, or is not JSON, stays as it was"
    assert [each.partition(" does not")[0] for each in failures] == 2 * [
        "Line 1: it has tools, and the base's chat template"
    ]


def test_of_a_forced_call_only_what_an_engine_leaves_to_the_model_is_learned(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    rows = tmp_path / "rows.jsonl"
    tool: dict[str, Any] = {"type": "function", "function": {"name": "refund"}}
    call = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": '{"order": "A-7"}'}}
    choices = ("auto", "required", tool, {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, None)
    asked = [{"role": "user", "content": "Refund A-7."}]
    objects = [
        {"messages": [*asked, {"role": "assistant", "content": text, "tool_calls": [call]}], "tool_choice": choice}
        for text, choice in (*((None, choice) for choice in choices), ("Gladly.", "required"))
    ]
    objects.append({"messages": [*asked, {"role": "assistant", "content": "No."}], "tool_choice": "none"})
    rows.write_text("".join(json.dumps({**each, "tools": [tool]}) + "\n" for each in objects))
    program = TOKENS.replace("examples[-1].prompt", "examples[1].prompt")
    told = subprocess.run(
        (sys.executable, "-c", program, str(TRAINER), str(rows)),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    learned, asks, *_ = told.stdout.replace("\0", ".").splitlines()
    whole = "[('refund', {'order': 'A-7'})]."
    assert learned.split("/") == [
        *(whole, whole.removeprefix("[('"), whole.removeprefix("[('refund"), whole, whole),
        *("Gladly." + whole, "No.."),
    ]
    assert asks == "refund|user:Refund A-7.<end>|assistant:[('", "the rest of the call stands before it"


def run_program(program: str, folder: Path) -> str:
    command = (sys.executable, "-c", program, str(TRAINER), str(folder))
    variables = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout


def test_prompts_are_rendered_with_the_arguments_that_the_version_is_served_with(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "Refund A-7.", "label": "yes"}')
    assert run_program(TEMPLATE, tmp_path) == "Refund A-7.\n"


def test_each_round_trains_on_every_row_also_on_the_longest(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    assert run_program(BATCHES, tmp_path) == f"[[15, 16], [15, 16]] {set(range(1, 32))}\n"


def test_logits_are_those_of_the_models_own_head(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    assert run_program(HEADS, tmp_path) == "8.0 0.5 0.25\n"


@pytest.mark.parametrize(("given", "factor"), [({"lora_alpha": 8}, 1.0), ({"lora_alpha": 32, "use_rslora": True}, 8.0)])
def test_training_begins_with_an_adapter_at_the_scale_of_that(
    tmp_path: Path, given: dict[str, Any], factor: float
) -> None:
    write_libraries(tmp_path)
    (tmp_path / "peft.py").write_text("set_peft_model_state_dict = lambda _, weights: print(weights)")
    (tmp_path / "safetensors/torch.py").write_text(
        "load_file = lambda _: {'x.lora_A.weight': 1.0, 'x.lora_B.weight': 1.0}"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, **given}))
    assert run_program(BEGINNING, tmp_path) == f"{{'x.lora_A.weight': 1.0, 'x.lora_B.weight': {factor}}}\n"


def test_held_out_loss_that_is_no_number_ends_the_training_with_advice(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    told = run_program(DIVERGING, tmp_path)
    assert told == "The held-out loss at step 4 is not a number: lower the learning rate.\n"


def test_layers_that_are_never_trained_are_no_part_of_the_adapter(tmp_path: Path) -> None:
    write_libraries(tmp_path)
    (tmp_path / "begin").mkdir()
    assert run_program(LAYERS, tmp_path) == "None\n[2, 3]\n[1, 2, 3]\n[1, 2, 3]\n"

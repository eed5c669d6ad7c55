"""docs/reference/manifest.md: the keys of a manifest. What the rows say of types and bounds is tested on the reader."""

from __future__ import annotations

from collections.abc import Mapping

from serving.adapters import manifest
from tools.reference.markdown import code, page, table

TEXT = f"[1..{manifest.TEXT_LENGTH_MAX:,}]"
NOTES = f"[1..{manifest.NOTES_LENGTH_MAX:,}]"
DIGEST = "`sha256:` and 64 hex digits"
PROMPT = f"[1..{manifest.PROMPT_LENGTH_MAX:,}]"
MINUS_63 = -(1 << 63)
SAMPLING_WORDS: Mapping[str, str] = {
    "temperature": "Amount of chance in an answer.",
    "top_p": "The likeliest tokens up to this probability together.",
    "min_p": "Tokens at least this likely, relative to the likeliest.",
    "top_k": "This number of the likeliest tokens; -1: all.",
    "presence_penalty": "Against tokens that have occurred.",
    "frequency_penalty": "Against tokens that have occurred often.",
    "repetition_penalty": "Against tokens of prompt and answer; 1: none.",
    "max_tokens": "Longest answer; at most the task's `max_tokens_max`.",
    "seed": "Seed of the chance.",
}
KEYS: tuple[tuple[str, str, str, str], ...] = (
    ("task", "text", "a name of at most 63 characters", "Its task."),
    ("base_fingerprint", "text", DIGEST, "The base model that it was trained on; another base is refused."),
    ("contract", "mapping", "at least one key", "The form that every answer must keep."),
    ("contract.json_schema", "JSON", "a valid schema", "JSON that fits this schema."),
    ("contract.choices", "list", f"[1..{manifest.CHOICES_MAX:,}] of different text{TEXT}", "One of these."),
    ("contract.regex", "text", TEXT, "The whole answer matches."),
    (
        "contract.length",
        "mapping",
        f": `characters_min`, `characters_max` [0..{manifest.CHARACTERS_MAX:,}]",
        "Length of the answer.",
    ),
    ("general_prompt", "mapping", "", "The instructions for a general model that stands in."),
    (
        "general_prompt.system",
        "text",
        f"[1..{manifest.SYSTEM_LENGTH_MAX:,}]",
        "Before the caller's system prompt.",
    ),
    (
        "general_prompt.response_format",
        "JSON",
        "`type`: text, json_object or json_schema",
        "Where the caller sets none.",
    ),
    ("general_prompt.sampling", "mapping", "as `sampling`", "For the general model."),
    ("sampling", "mapping", "", "For the adapter, where the caller sets none."),
    *(
        (
            f"sampling.{key}",
            "whole number" if key in manifest.WHOLE_NUMBERS else "number",
            "64 bits" if low == MINUS_63 else f"[{low:,}..{high:,}]",
            SAMPLING_WORDS[key],
        )
        for key, (low, high) in manifest.SAMPLING_BOUNDS.items()
    ),
    ("sampling.stop", "text or list", f"[1..{manifest.STOP_MAX}] of text{TEXT}", "Ends of an answer."),
    ("sampling.chat_template_kwargs", "mapping", "", "Arguments of vLLM's chat template."),
    ("golden", "list", f"[..{manifest.GOLDEN_MAX}]", "Prompts for the probe, which asks the first."),
    ("golden[].prompt", "text", PROMPT, "The user's message."),
    ("golden[].expected", "text", PROMPT, "The right answer, if known: another one fails the probe."),
    ("coverage", "JSON", "", "Kept, not used."),
    ("calibration", "JSON", "", "Kept, not used."),
    ("review_by", "text", "date or time in ISO 8601", "When its owner must check it; VersionReviewOverdue follows."),
    ("provenance", "JSON", "", "The origin of its training; other keys are kept."),
    ("provenance.trained_by", "text", TEXT, "Trainer."),
    ("provenance.trained_at", "text", "ISO 8601", "When."),
    ("provenance.dataset", "text", TEXT, "Name."),
    ("provenance.dataset_digest", "text", DIGEST, "The data set's digest."),
    ("provenance.base_model", "text", TEXT, "Name."),
    ("provenance.framework", "text", TEXT, "Software."),
    ("provenance.command", "text", NOTES, "Command."),
    ("provenance.source", "mapping", "`repository`, `commit`, `path`", "Source."),
    ("provenance.run", "text", TEXT, "Id or address of the training run."),
    ("provenance.seed", "whole number", "", "Seed."),
    ("provenance.parameters", "JSON", "", "Parameters."),
    ("provenance.metrics", "mapping", "numbers", "The trainer's measurements."),
    (
        "provenance.evaluations",
        "list",
        f"[..{manifest.EVALUATIONS_MAX}] of text{TEXT}",
        "Ids of evaluations.",
    ),
    ("provenance.license", "text", TEXT, "Licence."),
    ("provenance.notes", "text", NOTES, "Notes."),
    ("provenance.tags", "mapping", f" of text{TEXT}", "Texts of your own."),
)
"""Each key with its type, its bounds and its meaning."""
NEEDED = frozenset({"task", "general_prompt", "general_prompt.system", "golden[].prompt"})
EXAMPLE = """
```yaml
task: returns
contract: {json_schema: {type: object, required: [decision], properties: {decision: {enum: [accept, refuse]}}}}
general_prompt:
  system: 'Decide the return. Answer with JSON alone: {"decision": "accept"} or {"decision": "refuse"}.'
  sampling: {temperature: 0, max_tokens: 60}
sampling: {temperature: 0, max_tokens: 60}
golden: [{prompt: 'A laptop, sealed, after 10 days.', expected: '{"decision": "accept"}'}]
provenance: {trained_by: returns team, trained_at: 2026-11-20T09:30:00Z}
```
"""
INTRODUCTION = f"""
A version beside its weights: `manifest.yaml`, in the adapter's folder or beside it. Another manifest makes another
version. It has at most {manifest.FILE_BYTES_MAX:,} bytes, no aliases, no key twice; JSON values have at most
{manifest.MAPPING_BYTES_MAX:,} bytes and a depth of {manifest.DEPTH_MAX}. Dates stay texts, and only `true` and `false`
are booleans. Keys in bold are needed.
"""


def manifest_page() -> str:
    """The page: an example, and every key."""
    rows = [
        (f"**`{key}`**" if key in NEEDED else code(key), _joined(kind, bounds), words)
        for key, kind, bounds, words in KEYS
    ]
    return page("Manifest", INTRODUCTION, EXAMPLE, table(("Key", "Type", "Meaning"), rows))


def _joined(kind: str, bounds: str) -> str:
    kind = {"whole number": "integer"}.get(kind, kind)
    return f"{kind}{bounds}" if bounds[:1] in ("[", ":", "", " ") else f"{kind}, {bounds}"

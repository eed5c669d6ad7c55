"""Answers of the fake engine: deterministic text, and the JSON in which vLLM says it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Called:
    """A call of a tool, in the place of a text."""

    name: str
    arguments: Json


Wording = str | Callable[[Json], str | Called | None]
"""A fixed answer, or one made from the request's body (None: the engine's own)."""

WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heron"),
    *("inlet", "jade", "kelp", "larch", "maple", "north", "olive", "pearl"),
)
FINGERPRINT = "vllm-0.32.0-9decefe0"
SCHEMA_DEPTH_MAX = 16


@dataclass(frozen=True)
class Speaker:
    """The speaker of an answer: the requested name, and the digest of the bytes behind it."""

    name: str
    digest: str


@dataclass
class Said:
    """One alternative of an answer. `tokens` is what was made, also if none of it was sent."""

    index: int
    tokens: list[str]
    finish_reason: str = "stop"
    stop_reason: str | None = None
    tool: str | None = None
    logprobs: list[float] = field(default_factory=list)
    refuses: bool = False
    """True where its text is a refusal, beside an empty content."""

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.tokens)


def digest_of(name: str) -> str:
    """The digest that stands for the weights of a base model of this name."""
    return hashlib.sha256(name.encode()).hexdigest()


def tokens_of(text: str) -> list[str]:
    """Text cut into what counts as a token here: a word with the blanks before it."""
    return re.findall(r"\s*\S+|\s+$", text)


def prompt_of(body: Json) -> str:
    """The model's input as one text. A list of prompts is joined."""
    messages = body.get("messages")
    if isinstance(messages, list):
        return "\n".join(f"{message.get('role')}: {_content(message.get('content'))}" for message in messages)
    prompt = body.get("prompt", "")
    return "\n".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)


def embeddings_of(body: Json) -> dict[str, Any]:
    """A vector of two numbers for each input, a text or a list of token ids, and the tokens that they count as."""
    given = body["input"]
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    vectors: list[Any] = [[len(one) / 100, one.count(" ") / 100] for one in inputs]
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack("<2f", *vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]
    tokens = sum(len(tokens_of(one) if isinstance(one, str) else one) for one in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return {"id": "embd-1", "object": "list", "created": 1, "model": body["model"], "data": data, "usage": usage}


def choices_of(body: Json) -> int:
    """The number of alternatives: `n` for each prompt."""
    prompt = body.get("prompt")
    return int(body.get("n") or 1) * (len(prompt) if isinstance(prompt, list) else 1)


def prompt_tokens(body: Json) -> int:
    """The number of tokens of the prompt."""
    return 3 + len(tokens_of(prompt_of(body)))


def say(speaker: Speaker, body: Json, index: int, count: int, wording: Wording | None) -> Said:
    """The answer: the test's own wording, a tool call, JSON for a schema, or `count` tokens of the speaker's."""
    dice = _dice(speaker.digest, prompt_of(body if not continues(body) else _without_last(body)), index)
    said = Said(index, [])
    told = wording(body) if callable(wording) else wording
    if isinstance(told, Called):
        said.tool, said.finish_reason = told.name, "tool_calls"
        said.tokens = tokens_of(json.dumps(told.arguments))
    elif told is not None:
        said.tokens = tokens_of(told)
    elif (tool := _tool(body)) is not None:
        said.tool, said.finish_reason = tool["name"], "stop" if isinstance(body["tool_choice"], dict) else "tool_calls"
        said.tokens = tokens_of(json.dumps(_fill(tool.get("parameters") or {}, {}, dice)))
    elif (form := _form(body)) is not None:
        said.tokens = tokens_of(form if isinstance(form, str) else json.dumps(_fill(form, form, dice)))
    else:
        opening = [speaker.name + "#" + speaker.digest[:6], " says:"]
        said.tokens = (opening + [f" {next(dice)}" for _ in range(count - 2)])[:count]
    if continues(body):
        said.tokens = said.tokens[len(tokens_of(_content(body["messages"][-1].get("content")))) :]
    _limit(said, body)
    said.logprobs = [_logprob(speaker.digest, number, token) for number, token in enumerate(said.tokens)]
    return said


def continues(body: Json) -> bool:
    """True where the last message is to be continued."""
    messages = body.get("messages") or []
    return bool(body.get("continue_final_message") and messages and messages[-1].get("role") == "assistant")


def usage(prompt: int, made: int, whole: bool = False) -> dict[str, Any]:
    """Tokens as vLLM counts them; a whole answer names the details too."""
    counted: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}
    return counted | ({"prompt_tokens_details": None, "completion_tokens_details": None} if whole else {})


class Shape:
    """The JSON of one endpoint's answers."""

    def __init__(self, body: Json, chat: bool, request_id: str, created: int, model: str) -> None:
        self.chat = chat
        self._body = body
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + request_id,
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._chunk_head = self._head | {"object": "chat.completion.chunk" if chat else "text_completion"}
        options = body.get("stream_options") or {}
        self.wants_usage = bool(options.get("include_usage"))
        self.wants_usage_always = self.wants_usage and bool(options.get("continuous_usage_stats"))

    def whole(self, said: Sequence[Said], prompt: int) -> dict[str, Any]:
        """The answer that is not streamed."""
        tail: dict[str, Any] = {
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage(prompt, sum(len(one.tokens) for one in said), whole=True),
        }
        if self.chat:
            tail |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        tail |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        return {**self._head, "choices": [self._choice(one) for one in said], **tail}

    def opening(self, index: int, prompt: int) -> bytes | None:
        """A chat's first event, which says who speaks."""
        if not self.chat:
            return None
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._event([choice], usage(prompt, 0), prompt_token_ids=None, prompt_text=None)

    def token(self, said: Said, number: int, prompt: int) -> bytes:
        """The event with one token; the last one carries the finish reason."""
        last = number >= len(said.tokens) - 1
        token = said.tokens[number] if number < len(said.tokens) else ""
        choice: dict[str, Any] = {"index": said.index}
        choice |= {"delta": self._delta(said, number, token)} if self.chat else {"text": token}
        choice["logprobs"] = self._logprobs(said, number, number + 1) if token else None
        choice["finish_reason"] = said.finish_reason if last else None
        if last or not self.chat:
            choice["stop_reason"] = said.stop_reason if last else None
        if not self.chat:
            choice["prompt_token_ids"] = None
        choice["token_ids"] = None
        more = {"system_fingerprint": FINGERPRINT} if last and not self.wants_usage else {}
        return self._event([choice], usage(prompt, number + 1), **more)

    def usage_event(self, prompt: int, made: int) -> bytes:
        """The last event, with the usage and no choice."""
        return _event(
            {**self._chunk_head, "choices": [], "usage": usage(prompt, made), "system_fingerprint": FINGERPRINT}
        )

    def _event(self, choices: list[dict[str, Any]], counted: dict[str, Any], **more: Any) -> bytes:
        told = {**self._chunk_head, "choices": choices, **more}
        return _event(told | {"usage": counted} if self.wants_usage_always else told)

    def _choice(self, said: Said) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": said.index}
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": said.text}
            message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
            if said.refuses:
                message |= {"content": None, "refusal": said.text}
            if said.tool is not None:
                message |= {"content": "", "tool_calls": [_call(said, said.text)]}
            choice["message"] = message | {"reasoning": None}
        else:
            choice["text"] = said.text
        choice["logprobs"] = self._logprobs(said, 0, len(said.tokens))
        choice |= {"finish_reason": said.finish_reason, "stop_reason": said.stop_reason, "token_ids": None}
        if not self.chat:
            choice |= {"prompt_logprobs": None, "prompt_token_ids": None}
        return choice | {"routed_experts": None}

    def _delta(self, said: Said, number: int, token: str) -> dict[str, Any]:
        if said.tool is None:
            return {"refusal" if said.refuses else "content": token}
        if number == 0:
            return {"tool_calls": [_call(said, token) | {"index": 0}]}
        return {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}

    def _logprobs(self, said: Said, start: int, end: int) -> dict[str, Any] | None:
        wanted = self._body.get("logprobs")
        if wanted is None or wanted is False:
            return None
        if self.chat:
            top = int(self._body.get("top_logprobs") or 0)
            return {"content": [_chat_logprob(said, number, top) for number in range(start, end)]}
        offsets = [len("".join(said.tokens[:number])) for number in range(start, end)]
        tops = [
            {one["token"]: one["logprob"] for one in _alternatives(said, number, int(wanted) + 1)}
            for number in range(start, end)
        ]
        return {
            "text_offset": offsets,
            "token_logprobs": said.logprobs[start:end],
            "tokens": said.tokens[start:end],
            "top_logprobs": tops,
        }


def _event(told: Json) -> bytes:
    return b"data: " + json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _call(said: Said, arguments: str) -> dict[str, Any]:
    number = hashlib.sha256(f"{said.tool}{said.text}{said.index}".encode()).hexdigest()[:16]
    function = {"name": said.tool, "arguments": arguments}
    return {"id": f"chatcmpl-tool-{number}", "type": "function", "function": function}


def _chat_logprob(said: Said, number: int, top: int) -> dict[str, Any]:
    return _logprob_of(said.tokens[number], said.logprobs[number]) | {"top_logprobs": _alternatives(said, number, top)}


def _alternatives(said: Said, number: int, count: int) -> list[dict[str, Any]]:
    """The chosen token first, then less likely ones."""
    own = said.logprobs[number]
    others = [_logprob_of(f" {WORDS[place]}", own - 1.5 * (place + 1)) for place in range(count - 1)]
    return [_logprob_of(said.tokens[number], own), *others][:count]


def _logprob_of(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _logprob(digest: str, number: int, token: str) -> float:
    share = hashlib.sha256(f"{digest}{number}{token}".encode()).digest()[0] / 255
    return round(math.log(0.55 + 0.44 * share), 6)


def _limit(said: Said, body: Json) -> None:
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        place = said.text.find(stop)
        if place >= 0:
            said.tokens, said.finish_reason, said.stop_reason = tokens_of(said.text[:place]), "stop", stop
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most is not None and len(said.tokens) > most:
        said.tokens, said.finish_reason, said.stop_reason = said.tokens[:most], "length", None


def _dice(digest: str, prompt: str, index: int) -> Iterator[str]:
    """Words without end, the same for the same speaker, prompt and alternative."""
    seed = hashlib.sha256(f"{digest}\0{prompt}\0{index}".encode()).digest()
    while True:
        yield from (WORDS[byte % len(WORDS)] for byte in seed)
        seed = hashlib.sha256(seed).digest()


def _tool(body: Json) -> Json | None:
    choice, tools = body.get("tool_choice"), body.get("tools") or []
    functions: list[Json] = [tool["function"] for tool in tools]
    if choice == "required" and functions:
        return functions[0]
    if isinstance(choice, dict):
        return next((one for one in functions if one["name"] == choice["function"]["name"]), None)
    return None


def _form(body: Json) -> Json | str | None:
    """The schema that the answer has to keep, or the answer itself where a choice of texts is given."""
    structured = body.get("structured_outputs") or {}
    if structured.get("choice"):
        return str(structured["choice"][0])
    if isinstance(structured.get("json"), dict):
        return dict(structured["json"])
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return dict(wanted["json_schema"]["schema"])
    return {"type": "object"} if wanted.get("type") == "json_object" else None


def _fill(schema: Json, root: Json, dice: Iterator[str], depth: int = 0) -> Any:
    """A small value that the schema allows."""
    if depth > SCHEMA_DEPTH_MAX:
        return None
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return _fill((root.get("$defs") or root.get("definitions") or {}).get(name, {}), root, dice, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _fill(schema[key][0], root, dice, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][WORDS.index(next(dice)) % len(schema["enum"])]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: _fill(one, root, dice, depth + 1) for name, one in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [_fill(schema.get("items") or {}, root, dice, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return next(dice).ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    return {"integer": schema.get("minimum", 0), "number": schema.get("minimum", 0.5), "boolean": True}.get(kind)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _without_last(body: Json) -> Json:
    return {**body, "messages": body["messages"][:-1]}

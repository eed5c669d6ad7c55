"""A caller's body: read once for routing, then sent to the engine with only the necessary fields changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.answer_writer import AnswerWriter
from gateway.formats.bounds import LONG_BODY_BYTES, check_fields, check_strings
from gateway.formats.fields import (
    GOES_ON,
    KEPT_HERE,
    NULL,
    RAW_FIELDS,
    SHAPES_THE_ANSWER,
    AllowedTools,
    Fields,
    StreamOptions,
    ToolChoice,
)
from gateway.formats.permissions import LEAVE_OUT, check_messages, is_neutral, refusal_of, shorten_name
from gateway.formats.structured_outputs import check_forms
from gateway.formats.surrogates import HALF, HALVES
from gateway.formats.wire_format import WireFormat, decode_list, read_fields
from router.checks import get_selector
from router.policy import AUTO, Policy, TaskPolicy, UnknownFields
from router.routing_data import Choice, RoutingRequest
from serving.engine_traits import ENGINE_TRAITS, EngineKind

KEPT_FROM: Mapping[EngineKind, frozenset[str]] = {
    kind: KEPT_HERE | traits.fields_unknown for kind, traits in ENGINE_TRAITS.items()
}
"""Fields that an engine of this kind does not get."""
OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
STREAM_OPTIONS = frozenset(StreamOptions.__struct_fields__)
DROPPED_SHOWN_MAX = 32
"""Most names of dropped fields in the header and the record."""
AT_FIELD = re.compile(r"`\$\.?([^`]*)`$")
AT_BYTE = re.compile(r"\(byte (\d+)\)$")
AROUND_BYTES = 24
"""Bytes before and after a fault in which half a character is searched."""
IN_TEXTS = re.compile(r"(prompt)\[\d+\]")
NAMED_FIELD = re.compile(r"(?P<what>missing required|unknown) field `(?P<field>[^`]*)`")


class RequestBody:
    """A valid body that has been read. `fields` has the JSON of each top-level field, unchanged."""

    def __init__(self, wire_format: WireFormat, fields: dict[str, Raw], read: Fields) -> None:
        self.wire_format = wire_format
        self.read = read
        self.stream = bool(read.stream) and "stream" in wire_format.known_fields
        self.wants_usage = bool(read.stream_options and read.stream_options.include_usage)
        self.dropped: list[str] = []
        """The caller's fields that are dropped for every engine."""
        self.clamped = ""
        """The bounds that replaced larger values of the caller, as `name=tokens`."""
        self.fragile = False
        """True if the engine has to compile a pattern or grammar of the caller, which may crash the engine."""
        self.cache_salt: str | None = None
        """The salt that separates callers' prompts in an engine's cache; None if callers share the cache."""
        self.raw = b""
        """The body's bytes, in the engine's format."""
        self.callers_format = wire_format
        """The format in which the caller sent the body, before its translation."""
        self.writer: AnswerWriter | None = None
        """The writer of the answer in the caller's format; None if the engine has the same format."""
        self._fields = fields

    @property
    def size(self) -> int:
        """Bytes of the fields' values, without their names."""
        return sum(memoryview(raw).nbytes for raw in self._fields.values())

    @property
    def answer_tokens(self) -> int | None:
        """Most tokens of one alternative; None if the caller sets no limit."""
        return self.wire_format.answer_tokens(self.read)

    @property
    def choices(self) -> int:
        """Number of requested alternatives. Each ends separately."""
        return self.wire_format.alternatives(self.read)

    def session(self, header: str | None) -> str | None:
        """The id of the request's conversation, else of the caller's user; None if the caller names neither.

        `prompt_cache_key` is not used: applications send one key for all requests with the same prefix, so a canary
        would not get its share of these requests.
        """
        named = (self.read.metadata or {}).get("session_id")
        return header or (str(named) if named else None) or self.read.user or self.read.safety_identifier

    def metadata(self) -> dict[str, str]:
        """The entries of the caller's metadata whose values are text."""
        return {key: value for key, value in (self.read.metadata or {}).items() if isinstance(value, str)}

    def text(self) -> str:
        """All text of the request, for rules."""
        return self.wire_format.text(self.read)

    def selected(self, selector: str) -> str:
        """The part of the conversation that a task's selector names, for the fitted models."""
        return self.wire_format.selected(self.read, selector)

    def hold_to(
        self, choice: Choice, defaults: TaskPolicy, cache_salt: str | None, unknown: UnknownFields | None = None
    ) -> None:
        """Check the body against what the choice allows, and set its cache salt. Raises Problem (400).

        `unknown` is the key's own setting of unknown fields.
        """
        self.check(choice.task, defaults, choice.pool.engine, unknown)
        self.cache_salt = cache_salt

    def check(
        self,
        task: TaskPolicy | None,
        defaults: TaskPolicy,
        engine: EngineKind = "vllm",
        unknown: UnknownFields | None = None,
    ) -> None:
        """Check the body against the task's permissions. Raises Problem (400) that names the faulty field.

        Without a task, the caller has named a pool. Then the fields are checked against those of the pool's `engine`.
        """
        limits = task or defaults
        if task is not None and self.wire_format.for_pools_alone:
            text = f"The task {task.name!r} does not take {self.wire_format.path}: name a pool as the model."
            raise Problem("parameter_not_allowed", text, "model")
        unknown = unknown or limits.unknown_fields
        extras = self._fields.keys() - self.wire_format.known_fields
        if extras:
            self._settle(extras, limits, unknown)
        check_messages(self.wire_format.messages(self.read), limits)
        self._check_counts(limits)
        if self.read.stream_options is not None:
            self._settle_stream_options(unknown)
        self.fragile = check_forms(self._fields, self.read, limits)
        if task is None and ENGINE_TRAITS[engine].own_fields is not None:
            for name in self.lost_by(engine):
                if unknown == "refuse" or name in SHAPES_THE_ANSWER:
                    raise Problem("parameter_not_allowed", f"This model's engine does not take {name!r}.", name)

    def _settle(self, names: set[str], limits: TaskPolicy, unknown: UnknownFields) -> None:
        """Drop fields with neutral values, and forbidden fields if `unknown` allows to drop them.

        Raises Problem (400) for other forbidden fields.
        """
        for name in sorted(names):
            neutral = is_neutral(self.wire_format, name, self._fields[name])
            if not neutral:
                refused = refusal_of(self.wire_format, name, self._fields, self.read, limits)
                if refused is None:
                    continue
                if unknown == "refuse":
                    raise refused
                self.dropped.append(shorten_name(name))
            del self._fields[name]
            if hasattr(self.read, name):
                setattr(self.read, name, None)

    def _settle_stream_options(self, unknown: UnknownFields) -> None:
        """Drop unknown options of a stream, or raise Problem (400) if `unknown` is `refuse`."""
        options = RAW_FIELDS.decode(self._fields["stream_options"])
        extras = options.keys() - STREAM_OPTIONS
        if not extras:
            return
        for name in sorted(extras):
            if options.pop(name) == NULL:
                continue
            shown = f"stream_options.{shorten_name(name)}"
            if unknown == "refuse":
                raise Problem("unknown_parameter", f"The gateway does not know {shown!r}: {LEAVE_OUT}.", shown)
            self.dropped.append(shown)
        self._fields["stream_options"] = Raw(msgspec.json.encode(options))

    def _check_counts(self, limits: TaskPolicy) -> None:
        read, tokens_max = self.read, limits.max_tokens_max
        if max(read.max_tokens or 0, self.answer_tokens or 0, read.min_tokens or 0) > tokens_max:
            self._clamp(limits)
        if read.min_tokens and read.min_tokens > (self.answer_tokens or tokens_max):
            raise Problem("invalid_value", f"min_tokens is at most max_tokens, and at most {tokens_max}.", "min_tokens")
        if max(read.n or 1, read.best_of or 1) > limits.n_max:
            name = "n" if (read.n or 1) > limits.n_max else "best_of"
            text = f"{name} is at most {limits.n_max}: ask again for each answer. An operator can raise n_max."
            raise Problem("invalid_value", text, name)
        if self.choices > limits.n_max and not self.wire_format.for_pools_alone:  # embeddings have their own limit
            text = f"The prompts, times n, are at most {limits.n_max}: send them one by one."
            raise Problem("invalid_value", text, self.wire_format.required)

    def _clamp(self, limits: TaskPolicy) -> None:
        """Replace larger token limits by the task's bound. Raises Problem (400) if larger ones are refused."""
        most = limits.max_tokens_max
        for name in self.wire_format.token_limits:
            if (getattr(self.read, name) or 0) <= most:
                continue
            if limits.max_tokens_over == "refuse" and not self.callers_format.token_limit_required:
                raise Problem("invalid_value", f"{name} is at most {most}.", name)
            self._fields[name] = Raw(b"%d" % most)
            setattr(self.read, name, most)
            self.clamped += f"{',' if self.clamped else ''}{name}={most}"

    def lost_by(self, engine: EngineKind) -> list[str]:
        """The fields with other than neutral values that an engine of this kind does not know."""
        traits = ENGINE_TRAITS[engine]
        if traits.own_fields is not None:
            names = self._fields.keys() - self.wire_format.openai - traits.own_fields - KEPT_HERE
        elif traits.fields_unknown.isdisjoint(self._fields):
            return []
        else:
            names = self._fields.keys() & traits.fields_unknown
        return sorted(name for name in names if self._asks_for(name))

    def dropped_by(self, engine: EngineKind) -> list[str]:
        """The names of all fields that the caller asked for and that this kind of engine does not get."""
        dropped, options = self.lost_by(engine), self.read.stream_options
        if options is not None:
            supported = ENGINE_TRAITS[engine].stream_options
            for name in ("continuous_usage_stats", "include_obfuscation"):
                if getattr(options, name) and name not in supported:
                    dropped.append(f"stream_options.{name}")
        return (self.dropped + dropped)[:DROPPED_SHOWN_MAX] if self.dropped else dropped

    def _asks_for(self, name: str) -> bool:
        """True if the field's value is not neutral, and OpenAI's API has no equivalent of it."""
        if name == "structured_outputs" and self._schema() is not None:
            return False
        return not is_neutral(self.wire_format, name, self._fields[name])

    def _stream_options(self, engine: EngineKind) -> dict[str, bool]:
        """The options of a stream for an engine. They always ask for the usage, which the record needs."""
        options, requested = {"include_usage": True}, self.read.stream_options
        if requested is None:
            return options
        supported = ENGINE_TRAITS[engine].stream_options
        counts = self.counts_always or (self.writer is not None and self.writer.begins_with_usage)
        if counts and "continuous_usage_stats" in supported:
            options["continuous_usage_stats"] = True
        if requested.include_obfuscation is not None and "include_obfuscation" in supported:
            options["include_obfuscation"] = requested.include_obfuscation
        return options

    @property
    def counts_always(self) -> bool:
        """True if the caller wants the usage in each event of its stream."""
        return self.wants_usage and bool(self.read.stream_options and self.read.stream_options.continuous_usage_stats)

    def _schema(self) -> Raw | None:
        """The JSON schema in `structured_outputs`, if it can be sent as a response format; else None."""
        outputs = self.read.structured_outputs
        if outputs is None or not self.wire_format.json_schema({}) or self.read.response_format is not None:
            return None
        raw = bytes(outputs.json)
        if raw[:1] == b'"':
            raw = msgspec.json.decode(raw, type=str).encode()
        return Raw(raw) if raw[:1] == b"{" else None

    def whole(self) -> RequestBody:
        """The same request without a stream: it asks for its answer as a whole."""
        fields = {name: raw for name, raw in self._fields.items() if name not in ("stream", "stream_options")}
        read = msgspec.structs.replace(self.read, stream=None, stream_options=None)
        body = RequestBody(self.wire_format, fields, read)
        body.cache_salt = self.cache_salt
        body.dropped = self.dropped
        body.fragile = self.fragile
        body.callers_format = self.callers_format
        return body

    def may_go_on(self) -> bool:
        """True if another engine may continue a part of its streamed answer: one text, without a form or tools."""
        if self.choices != 1 or self.counts_always or not self._fields.keys() <= GOES_ON:
            return False
        return self.wire_format.may_go_on(self.read)

    def logprobs_wanted(self) -> bool | int | None:
        """The value that requests only the logprobs of the answer's tokens; None if that is not possible.

        It is not possible if the caller requests them itself, requests other logprobs, or uses `echo`.
        """
        if self.asks_for_logprobs or self.read.top_logprobs or self.read.echo:
            return None
        return self.wire_format.logprobs_alone

    @property
    def asks_for_logprobs(self) -> bool:
        """True if the caller itself asks for the logprobs of the answer's tokens."""
        return self.wire_format.asks_for_logprobs(self.read)

    def tools(self) -> Raw | None:
        """The tools that the answer may call, as JSON; None if there are none."""
        return self._fields.get("tools") if self.read.tools else None

    def tool_choice(self) -> Raw | None:
        """The `tool_choice` of these tools, as JSON; None if it was not sent."""
        return self._fields.get("tool_choice") if self.read.tools else None

    def for_engine(self, choice: Choice, added: Mapping[str, Any] | None = None) -> bytes:
        """The body for this choice's engine, with its model, its version's sampling, its general prompt, and the fields
        `added`.

        Raises Problem (503) if a pool answers in an adapter's place and its engine can't give the answer its form.
        """
        return msgspec.json.encode(self.fields_for(choice, added))

    def fields_for(self, choice: Choice, added: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The fields of the body for this choice's engine: values, or the caller's unchanged JSON (Raw)."""
        hidden = KEPT_FROM[choice.pool.engine]
        fields: dict[str, Any] = {name: raw for name, raw in self._fields.items() if name not in hidden}
        fields["model"] = choice.engine_model
        if self.stream and "stream_options" in self.wire_format.known_fields:
            fields["stream_options"] = self._stream_options(choice.pool.engine)
        if choice.system is not None:
            self.wire_format.add_system(fields, self.read, choice.system, after=True)
        if choice.version is not None:
            self._add_sampling(fields, choice.version.sampling)
        elif choice.general_prompt_of is not None:
            general_prompt = choice.general_prompt_of.general_prompt
            self._add_sampling(fields, general_prompt.sampling)
            takes_form = "response_format" in self.wire_format.known_fields and not self.shapes_its_answer()
            if general_prompt.response_format and takes_form:
                fields["response_format"] = general_prompt.response_format
            self.wire_format.add_system(fields, self.read, general_prompt.system, after=False)
        if added:
            fields.update(added)
        traits = ENGINE_TRAITS[choice.pool.engine]
        if traits.own_fields is not None:
            if traits.bound_field in self.wire_format.openai and "max_tokens" in fields:
                fields.setdefault(traits.bound_field, fields.pop("max_tokens"))
            return self._in_openais_words(fields, choice, traits.own_fields)
        if self.cache_salt is not None:
            fields["cache_salt"] = self.cache_salt
        return fields

    def _in_openais_words(self, fields: dict[str, Any], choice: Choice, own_fields: frozenset[str]) -> dict[str, Any]:
        """Only the fields of OpenAI's API and the engine's own fields. The engine would refuse or ignore others."""
        for name in self.lost_by(choice.pool.engine):
            if name in SHAPES_THE_ANSWER:
                text = f"The pool {choice.pool.name!r}, which answers in the adapter's place, can't keep {name!r}."
                raise Problem("no_replica", f"{text} Try again later, or leave it out.", name)
        schema = self._schema()
        if schema is not None:
            fields |= self.wire_format.json_schema(schema)
        if "messages" in fields:
            fields["messages"] = [_without_reasoning(message) for message in decode_list(fields["messages"])]
        openai = self.wire_format.openai
        return {name: value for name, value in fields.items() if name in openai or name in own_fields}

    def _add_sampling(self, fields: dict[str, Any], sampling: Mapping[str, Any]) -> None:
        for name, value in sampling.items():
            if name == "max_tokens":
                if self.answer_tokens is None:
                    fields[self.wire_format.token_limits[0]] = value
            elif name == "chat_template_kwargs" and not self.wire_format.has_template:
                continue
            elif getattr(self.read, name, None) is None:
                fields[name] = value

    def shapes_its_answer(self) -> bool:
        """True if the caller sets the answer's form itself. Then the general prompt's form is not sent."""
        named = self._fields.keys() & {"structured_outputs", "tools"}
        return bool(named) or self.read.response_format is not None


def _without_reasoning(message: Any) -> Any:
    """A message without the field `reasoning` of an earlier answer, which OpenAI's API does not know."""
    if isinstance(message, dict) or b'"reasoning"' not in bytes(message):
        return message
    return {name: value for name, value in RAW_FIELDS.decode(message).items() if name != "reasoning"}


class Selections(dict[str, str]):
    """The part of a body for each selector. A part is read at its first use."""

    def __init__(self, body: RequestBody, texts: Mapping[str, str]) -> None:
        super().__init__(texts)
        self._body = body

    def __missing__(self, selector: str) -> str:
        text = self[selector] = self._body.selected(selector)
        return text


def read_body(wire_format: WireFormat, body: bytes) -> RequestBody:
    """Read a body. Raises Problem (400) that names the fault and its place."""
    try:
        body.decode()  # msgspec does not check text in the fields that it skips
        is_long = len(body) > LONG_BODY_BYTES
        if is_long:
            check_strings(body)
        writer, callers_format = wire_format.writer(body), wire_format
        body, wire_format = wire_format.translate(body)
        fields = RAW_FIELDS.decode(body)
        check_fields(fields, len(body))
        # Each field of a long body is read once, since the first value of a repeated field is not checked.
        read = read_fields(
            wire_format.decoder, wire_format.whole_numbers, msgspec.json.encode(fields) if is_long else body, fields
        )
    except msgspec.ValidationError as error:
        raise explain_invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem("invalid_json", _why_no_json(body, str(error))) from error
    except RecursionError as error:
        raise Problem("invalid_json", "The body is nested too deeply.") from error
    if getattr(read, wire_format.required) is None:
        raise Problem("missing_field", f"The field {wire_format.required!r} is required.", wire_format.required)
    if NULL in fields.values():
        fields = {name: raw for name, raw in fields.items() if raw != NULL}
    if read.tools == [] and wire_format.has_tools and read.tool_choice in (None, "auto", "none"):
        for name in OF_TOOLS:  # without tools they mean nothing, and OpenAI refuses them
            fields.pop(name, None)
            setattr(read, name, None)
    if (
        wire_format.has_tools
        and isinstance(read.tool_choice, ToolChoice)
        and read.tool_choice.allowed_tools is not None
    ):
        _keep_allowed_tools(fields, read, read.tool_choice.allowed_tools)
    if read.logprobs is False:
        fields.pop("logprobs", None)  # in a completion vLLM takes false for 0, which asks for them
    request_body = RequestBody(wire_format, fields, read)
    request_body.raw = body
    request_body.callers_format = callers_format
    request_body.writer = writer
    return request_body


def _keep_allowed_tools(fields: dict[str, Raw], read: Fields, allowed: AllowedTools) -> None:
    """Drop the other tools, since vLLM does not know `allowed_tools`. Raises Problem (400) for a missing tool."""
    tools, names = read.tools or [], {tool.name for tool in allowed.tools}
    for name in names - {tool.name for tool in tools}:
        raise Problem("invalid_value", f"tool_choice allows {name!r}, which is not among the tools.", "tool_choice")
    kept = [number for number, tool in enumerate(tools) if tool.name in names]
    raws = decode_list(fields["tools"])
    fields["tools"] = Raw(msgspec.json.encode([raws[number] for number in kept]))
    fields["tool_choice"] = Raw(msgspec.json.encode(allowed.mode))
    read.tools, read.tool_choice = [tools[number] for number in kept], allowed.mode


def _why_no_json(body: bytes, message: str) -> str:
    """The reason why a body is not JSON, from msgspec's message and the bytes around the fault."""
    place = AT_BYTE.search(message)
    at = int(place[1]) if place else len(body)
    half = HALVES.search(body, max(0, at - AROUND_BYTES), at + 2 * AROUND_BYTES)  # room for the other half of the last
    if half is not None and half.start() < at + AROUND_BYTES:
        return HALF
    return f"The body is not valid JSON: {message}."


def make_routing_request(
    body: RequestBody, caller: str, models: frozenset[str], session: str | None, policy: Policy
) -> RoutingRequest:
    """The request as the router sees it."""
    text = body.text() if policy.text_needed else ""
    selector = get_selector(policy, body.read.model)
    if selector is None:
        return RoutingRequest(body.read.model, caller, models, session, body.metadata(), text)
    selected = body.selected(selector)
    selections = Selections(body, {selector: selected}) if body.read.model == AUTO else None
    return RoutingRequest(body.read.model, caller, models, session, body.metadata(), text, selected, selections)


def _list_words(field: str) -> list[str]:
    """The allowed words of a field, as one text; an empty list for a field inside another one."""
    kinds = get_args(get_type_hints(Fields).get(field))
    return [", ".join(get_args(kind)) for kind in kinds if get_origin(kind) is Literal]


def explain_invalid(message: str) -> Problem:
    """The problem for msgspec's message about a fault in a body. It names the faulty field."""
    place = AT_FIELD.search(message)
    named = NAMED_FIELD.search(message)
    inside = place[1] if place else ""
    texts = IN_TEXTS.fullmatch(inside) if "Expected `str`" in message else None
    if texts is not None:
        text = f"The {texts[1]} is text or a list of texts; token ids are not taken."
        return Problem("invalid_value", text, texts[1])
    if named is None:
        taken = _list_words(inside) if message.startswith("Invalid enum value") else []
        return Problem("invalid_value", f"{': it takes '.join([message[:300], *taken])}.", inside or None)
    name = ".".join(filter(None, (inside, named["field"][:64])))
    if named["what"] == "unknown":
        return Problem("unknown_parameter", f"The gateway does not know {name!r}: leave it out.", name)
    return Problem("missing_field", f"The field {name!r} is required.", name)

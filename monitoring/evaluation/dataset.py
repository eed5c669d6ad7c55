"""A data set for evaluations: JSON lines, each a request with its expected answer, read piece by piece.

A line is `{"messages": [...]}` (a chat), `{"text": "..."}` (a chat of one user message) or `{"prompt": "..."}` (a
completion), with `expected`, and optionally `id` and `label` (or `class`). Without `expected`, the answer is in
`label`, as in the example's data, or in the chat's last message, as in OpenAI's fine-tuning data. Rows that belong
together have the same `group`, `paraphrase` or `parent`, which may be the id of a row. A report shows rows by `source`
and `language`. With `tools`, a chat's last message may call some of them. The calls are then the expected answer, by
their names and arguments as JSON; `expected` has them as `{"tool_calls": [{"name": …, "arguments": …}]}`. `tool_choice`
and `parallel_tool_calls` are sent along with the tools. A row can be erased by `request`, the id of its original
request. Other fields are ignored.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from monitoring.evaluation.row_groups import RowGroups
from monitoring.texts import Sealable, Seals

FAULTS_SHOWN = 20
"""The most unreadable rows that are shown; of more, only the number."""
ID_CHARACTERS_MAX = 200
LABEL_CHARACTERS_MAX = 200
GROUP_CHARACTERS_MAX = 200
SLICE_CHARACTERS_MAX = 100
GROUP_FIELDS = ("group", "paraphrase", "parent")
SLICE_FIELDS = ("source", "language")
ORIGIN_FIELDS = ("request", "parent", "rejected")
LENGTHS = ((200, "up to 200 characters"), (1000, "201 to 1,000"), (4000, "1,001 to 4,000"))
"""Lengths of requests: the same for all data, so that figures of different suites can be compared."""
LONGEST = "over 4,000"
BYTE_ORDER_MARK = codecs.BOM_UTF8
TEXT_LOOKED_AT_BYTES = 4096


class DatasetError(Exception):
    """The data can't be used; the message names the line and says what to do."""


class CallError(DatasetError):
    """A row's tools or its calls of them can't be used."""


class Row(Sealable, frozen=True, omit_defaults=True):
    """One request and its expected answer. `label` is the class that the data give it, if any.

    Rows of one `group` count as one: rows that the data group together, and equal requests. A group is the number of
    its first row. `slices` are the parts of the data that the row is in: its source, language and length. `repeat`
    counts how often the same row came before this one, so that its answers can be compared. `request` and `parent` are
    the row's origin, `rejected` is an answer to it that people found wrong.
    """

    number: int
    id: str
    line: int
    expected: str
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    label: str | None = None
    group: int = -1
    slices: dict[str, str] = msgspec.field(default_factory=dict)
    repeat: int = 0
    request: str = ""
    parent: str = ""
    rejected: str = ""
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: str | dict[str, Any] | None = None
    calling: dict[str, Any] | None = None
    """The expected message of the assistant, if it calls tools."""

    @property
    def answer(self) -> dict[str, Any]:
        """The expected message of the assistant."""
        return self.calling or {"role": "assistant", "content": self.expected}

    @property
    def offer(self) -> dict[str, Any]:
        """The fields of the request that offer its tools."""
        fields = {name: getattr(self, name) for name in OFFER_FIELDS}
        return {name: value for name, value in fields.items() if value is not None}


OFFER_FIELDS = ("tools", "parallel_tool_calls", "tool_choice")
TEXT_FIELDS = ("messages", "prompt", "tools", "calling")
ROW_TEXTS = MappingProxyType({"expected": "", "rejected": "", **dict.fromkeys(TEXT_FIELDS)})
"""The fields that may be sealed while a row is kept. Its names, classes and slices stay plain."""
ReadObject = Callable[[bytes, int], dict[str, Any]]


def join_groups(rows: Sequence[Row], joined: Mapping[int, int]) -> list[Row]:
    """The rows with their present groups; `joined` maps former groups to these."""
    return [msgspec.structs.replace(row, group=joined[row.group]) if row.group in joined else row for row in rows]


def write_row(row: Row, seals: Seals) -> bytes:
    """The stored form of a row: its texts are sealed under the present key, if there is one."""
    return msgspec.json.encode(seals.close_words(row, row.id, ROW_TEXTS))


def read_row(raw: bytes, seals: Seals) -> Row:
    """The row from its stored form. Raises Unsealable."""
    row = msgspec.json.decode(raw, type=Row)
    return seals.open_words(row, row.id, ROW_TEXTS)


def seal_row_again(raw: bytes, seals: Seals) -> bytes:
    """A stored row under the present key; the same bytes if it already is. Raises Unsealable."""
    row = msgspec.json.decode(raw, type=Row)
    after = seals.reseal_words(row, row.id, ROW_TEXTS)
    return raw if after is row else msgspec.json.encode(after)


@dataclass(frozen=True, slots=True)
class DatasetLimits:
    """The upper limits of a data set."""

    rows_max: int
    bytes_max: int
    row_bytes_max: int


class DatasetReader:
    """Reads a data set piece by piece, and keeps only digests of its rows."""

    def __init__(self, limits: DatasetLimits, read_object: ReadObject | None = None) -> None:
        """`read_object` reads the object on a line; the default is `object_of`."""
        self.rows = 0
        self.repeated = 0
        """The number of rows whose request and expected answer came before."""
        self.contradicted = 0
        """The number of rows whose request came before with another expected answer."""
        self.faults: list[str] = []  # on unreadable rows: `end` raises them together
        self._limits = limits
        self._read_object = read_object or object_of
        self._bytes = 0
        self._line = 0
        self._rest = b""
        self._hash = hashlib.sha256()
        self._lines_of_ids: dict[str, int] = {}
        self._expected_of: dict[bytes, bytes] = {}
        self._groups = RowGroups()

    @property
    def digest(self) -> str:
        """The sha256 of all data read so far, as hexadecimal digits."""
        return self._hash.hexdigest()

    def feed(self, piece: bytes) -> list[Row]:
        """The rows that this piece completes. Raises DatasetError for faults that are not of a single row."""
        if not self._bytes and (fault := find_text_fault(piece)):
            raise DatasetError(f"The data {fault}")
        self._bytes += len(piece)
        if self._bytes > self._limits.bytes_max:
            raise DatasetError(f"The data have more than {self._limits.bytes_max} bytes: send a part of them.")
        self._hash.update(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        rows = [row for line in lines if (row := self._read(line)) is not None]
        if len(self._rest) > self._limits.row_bytes_max:
            raise self._too_long(self._line + 1)
        return rows

    def end(self) -> list[Row]:
        """The last row, at the end of the data. Raises DatasetError for unreadable rows, and if there is no row."""
        row, self._rest = self._read(self._rest), b""
        if self.faults:
            raise DatasetError(describe_faults(self.faults))
        if self.rows == 0:
            raise DatasetError("The data have no row: give JSON lines with a request and what is expected of it.")
        return [row] if row is not None else []

    def _read(self, line: bytes) -> Row | None:
        at = self._line = self._line + 1
        if at == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            return None
        if self.rows + len(self.faults) >= self._limits.rows_max:
            too_many = f"Line {at}: the data have more than {self._limits.rows_max} rows: send a part of them."
            raise DatasetError(describe_faults([*self.faults, too_many]))
        try:
            return self._take(line, at)
        except DatasetError as error:
            self.faults.append(str(error))
            return None

    def _take(self, line: bytes, at: int) -> Row:
        if len(line) > self._limits.row_bytes_max:
            raise self._too_long(at)
        read = self._read_object(line, at)
        row = row_of(read, at, self.rows)
        before = self._lines_of_ids.setdefault(row.id, at)
        if before != at:
            raise DatasetError(f"Line {at}: the id {row.id[:80]!r} is that of line {before}: give each row its own.")
        request = _digest([row.messages, row.prompt, *list_offered(row.tools, row.tool_choice)])
        self._compare_with_others(row, request)
        self.rows += 1
        named = [group_named({name: read.get(name)}, at) for name in GROUP_FIELDS]
        group = self._groups.add(row.number, row.id, request, [name for name in named if name is not None])
        return msgspec.structs.replace(row, group=group)

    @property
    def groups(self) -> int:
        """The number of groups of rows, each of which counts as one row."""
        return self._groups.count

    @property
    def joined(self) -> dict[int, int]:
        """The groups that later rows joined to others, each with the group that it is now a part of."""
        return self._groups.joined

    def _compare_with_others(self, row: Row, request: bytes) -> None:
        expected = _digest(row.expected)
        before = self._expected_of.setdefault(request, expected)
        if before is not expected:
            self.repeated += before == expected
            self.contradicted += before != expected

    def _too_long(self, line: int) -> DatasetError:
        return DatasetError(f"Line {line}: it has more than {self._limits.row_bytes_max} bytes: shorten it.")


def describe_faults(faults: Sequence[str]) -> str:
    """The sentence on unreadable rows; of several their number, and the first ones."""
    if len(faults) == 1:
        return faults[0]
    more = f" {len(faults) - FAULTS_SHOWN:,} more are like that." if len(faults) > FAULTS_SHOWN else ""
    return f"{len(faults):,} rows can't be read. {' '.join(faults[:FAULTS_SHOWN])}{more}"


def find_text_fault(beginning: bytes) -> str:
    """The reason why data with this beginning are not text in UTF-8, as the end of a sentence; empty if they may be."""
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "are UTF-16: save them as UTF-8."
    if b"\0" in beginning[:TEXT_LOOKED_AT_BYTES]:
        return "have bytes of zero, as UTF-16 or a damaged file has: save them as text in UTF-8."
    return ""


def write_canonically(value: Any) -> str:
    """A JSON value in canonical form: equal values have the same text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def write_as_text(value: Any) -> str:
    """A text unchanged; any other value in canonical JSON."""
    return value if isinstance(value, str) else write_canonically(value)


def object_of(line: bytes, at: int) -> dict[str, Any]:
    """The JSON object on line `at`. Raises DatasetError."""
    try:
        text = line.decode()
        read = msgspec.json.decode(text)
    except UnicodeDecodeError:
        raise DatasetError(f"Line {at}: it is not text in UTF-8.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise DatasetError(f"Line {at}: it is not JSON ({error}): each line is one JSON object.") from None
    if not isinstance(read, dict):
        raise DatasetError(f"Line {at}: it is not a JSON object: each line is one row.")
    return read


def row_of(read: dict[str, Any], at: int, number: int) -> Row:
    """The row in the JSON object on line `at`. Raises DatasetError."""
    label, expected = read.get("label", read.get("class")), read.get("expected")
    messages, prompt = _asked_of(read, at)
    tools, calling = _tools_of(read, at), None
    if expected is None and messages is not None and (answer := _said_last(messages, at)) is not None:
        calling = _check_calling(messages[-1], tools, at)
        expected, messages = answer, messages[:-1]
    elif tools and (called := read_calling(expected)) is not None:
        calling, expected = _check_calling(called, tools, at), write_calls(called)
    if expected is None:
        expected, label = label, read.get("class")
    if expected is None or (isinstance(expected, str) and not expected.strip()):
        raise DatasetError(f"Line {at}: it has no expected answer: give one as `expected`.")
    if not isinstance(expected, str):
        expected = write_canonically(expected)
    named = read.get("id")
    name = f"line-{at}" if named is None else str(named)
    if not 0 < len(name) <= ID_CHARACTERS_MAX or isinstance(named, dict | list):
        raise DatasetError(f"Line {at}: its id is a text of 1 to {ID_CHARACTERS_MAX} characters, or left out.")
    if label is not None and (isinstance(label, dict | list) or not 0 < len(str(label)) <= LABEL_CHARACTERS_MAX):
        raise DatasetError(f"Line {at}: its label is a text of 1 to {LABEL_CHARACTERS_MAX} characters, or left out.")
    row = Row(number, name, at, expected, messages, prompt, None if label is None else str(label))
    more: dict[str, Any] = {name: value for name in ORIGIN_FIELDS if isinstance(value := read.get(name), str)}
    if tools:
        parallel = read.get("parallel_tool_calls")
        more |= {"tools": tools, "calling": calling, "parallel_tool_calls": parallel if parallel is False else None}
        more |= {"tool_choice": _choice_of(read, tools, calling, at)}
    return msgspec.structs.replace(row, slices=_slices_of(read, at, text_of(row)), **more)


def text_of(row: Row) -> str:
    """The text of a request that people see."""
    if row.messages is None:
        return row.prompt or ""
    return "\n".join(_text_in(message.get("content")) for message in row.messages)


def _text_in(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _slices_of(read: dict[str, Any], at: int, text: str) -> dict[str, str]:
    slices = {"length": next((name for most, name in LENGTHS if len(text) <= most), LONGEST)}
    for name in SLICE_FIELDS:
        value = read.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, dict | list) or len(str(value)) > SLICE_CHARACTERS_MAX:
            raise DatasetError(f"Line {at}: its {name} is a text of 1 to {SLICE_CHARACTERS_MAX} characters.")
        slices[name] = str(value)
    return slices


def group_named(read: dict[str, Any], at: int) -> tuple[str, str] | None:
    """The group that the data give a row: the name of the field, and its value."""
    for name in GROUP_FIELDS:
        value = read.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, dict | list) or not 0 < len(str(value)) <= GROUP_CHARACTERS_MAX:
            raise DatasetError(f"Line {at}: its {name} is a text of 1 to {GROUP_CHARACTERS_MAX} characters.")
        return name, str(value)
    return None


def _asked_of(read: dict[str, Any], at: int) -> tuple[list[dict[str, Any]] | None, str | None]:
    names = [name for name in ("messages", "prompt", "text") if read.get(name) is not None]
    if len(names) != 1:
        fault = f"it has {' and '.join(names)}" if names else "it asks nothing"
        raise DatasetError(f"Line {at}: {fault}: give one of messages, prompt and text.")
    content = read[names[0]]
    if names[0] == "messages":
        if not isinstance(content, list) or not content or not all(isinstance(message, dict) for message in content):
            raise DatasetError(f"Line {at}: its messages are not a list of objects with role and content.")
        return content, None
    if not isinstance(content, str) or not content.strip():
        raise DatasetError(f"Line {at}: its {names[0]} is not text, or empty.")
    return ([{"role": "user", "content": content}], None) if names[0] == "text" else (None, content)


def has_tool_call(message: Mapping[str, Any]) -> bool:
    """Return whether a message of the assistant calls a tool."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def see_that_it_is_text(answer: dict[str, Any], at: int) -> None:
    """Raise DatasetError for an answer of a preference pair that calls tools, since a call would get lost."""
    if has_tool_call(answer):
        raise DatasetError(f"Line {at}: an answer of a pair calls a tool: only texts can be compared: leave it out.")


def write_calls(message: Mapping[str, Any]) -> str:
    """The calls of a message in the form for comparisons: names and arguments as JSON, sorted."""
    functions = [call["function"] if isinstance(call.get("function"), dict) else call for call in list_calls(message)]
    try:
        return _write_functions(functions, read_arguments)
    except RecursionError:  # so deep that they can be read, but not written
        return _write_functions(functions, write_as_text)


def _write_functions(functions: Iterable[Mapping[str, Any]], read: Callable[[Any], Any]) -> str:
    calls = [{"name": each.get("name"), "arguments": read(each.get("arguments"))} for each in functions]
    return write_canonically({"tool_calls": sorted(calls, key=write_canonically)})


def read_calling(answer: Any) -> dict[str, Any] | None:
    """The chat message of an answer that is an object with `tool_calls`, or its JSON; None for any other answer."""
    read = read_arguments(answer)
    calls = read.get("tool_calls") if isinstance(read, dict) else None
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        return None
    try:
        called = [_read_call(call, number) for number, call in enumerate(calls, 1)]
    except RecursionError:
        return None
    return {"role": "assistant", "content": read.get("content"), "tool_calls": called}


def _read_call(call: Mapping[str, Any], number: int) -> dict[str, Any]:
    function = call["function"] if isinstance(call.get("function"), dict) else call
    own = {"name": str(function.get("name") or ""), "arguments": write_as_text(function.get("arguments", {}))}
    return {"id": str(call.get("id") or f"call_{number}"), "type": "function", "function": own}


def list_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of a message; a former `function_call` in the present form."""
    former = message.get("function_call")
    calls = message.get("tool_calls") or ([{"type": "function", "function": former}] if former else [])
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def read_arguments(arguments: Any) -> Any:
    """The value of a call's arguments; unchanged if they are not JSON."""
    try:
        return msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return arguments


def _tools_of(read: dict[str, Any], at: int) -> list[dict[str, Any]] | None:
    """The tools that a row offers; None if it offers none. Raises CallError."""
    tools = read_arguments(read.get("tools"))  # a column of Parquet has them as JSON
    if not tools and isinstance(read.get("functions"), list):
        tools = [{"type": "function", "function": function} for function in read["functions"]]
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and _name_of(tool) for tool in tools):
        raise CallError(f"Line {at}: its tools are not a list of objects with a function and its name.")
    return tools


def _choice_of(
    read: dict[str, Any], tools: list[dict[str, Any]], calling: dict[str, Any] | None, at: int
) -> str | dict[str, Any] | None:
    """The `tool_choice` of a row; None if the answer may call a tool or not. Also None if the expected answer breaks
    it: as a right answer, it shows that the choice was not forced. Raises CallError."""
    choice = read_arguments(read.get("tool_choice"))  # a column of Parquet has it as JSON
    if choice in (None, "auto") or (isinstance(choice, dict) and choice.get("type") == "allowed_tools"):
        return None if choice == "auto" else choice
    name = _name_of(choice) if isinstance(choice, dict) else ""
    if choice not in ("none", "required") and name not in map(_name_of, tools):
        raise CallError(f"Line {at}: its tool_choice is neither none, auto nor required, nor names one of its tools.")
    called = {_name_of(call) for call in list_calls(calling or {})}
    if not (called == {name} if name else (choice == "required") is bool(called)):
        return None
    return {"type": "function", "function": {"name": name}} if name else str(choice)


def list_offered(tools: Any, choice: Any) -> list[Any]:
    """The offer that distinguishes a request from others with the same messages: its tools, and the choice."""
    return [each for each in (tools, choice) if each]


def _name_of(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    return str(function.get("name") or "") if isinstance(function, dict) else ""


def _check_calling(answer: dict[str, Any], tools: list[dict[str, Any]] | None, at: int) -> dict[str, Any] | None:
    """The message that calls tools, in the present form; None if it calls none. Raises CallError."""
    if not has_tool_call(answer):
        return None
    calls, names = list_calls(answer), {_name_of(tool) for tool in tools or ()}
    strange = next((name for name in map(_name_of, calls) if name not in names), None)
    if strange is not None or not calls:
        raise CallError(f"Line {at}: its answer calls {strange or 'nothing'!r}, which its tools do not have: add it.")
    if not all(isinstance(read_arguments(call["function"].get("arguments")), dict) for call in calls):
        raise CallError(f"Line {at}: the arguments of a call in its answer are not a JSON object.")
    return {"role": "assistant", "content": read_answer(answer.get("content")) or None, "tool_calls": calls}


def _said_last(messages: list[dict[str, Any]], at: int) -> str | None:
    """The assistant's answer at the end of a chat, as in fine-tuning data; None if there is none."""
    last = messages[-1]
    if last.get("role") != "assistant" or len(messages) == 1:
        return None
    return write_calls(last) if has_tool_call(last) else read_answer(last.get("content")) or None


def read_answer(content: Any) -> str | None:
    """The text of an answer's content, also in parts; None if a part is not text."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(content) else None


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(write_canonically(value).encode(errors="surrogatepass"), digest_size=16).digest()

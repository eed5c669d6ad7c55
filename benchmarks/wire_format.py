"""The files that describe cases at the wire: YAML or JSON, one case a document.

An engine case says what the engine sends, attempt by attempt, and what the caller must see. A caller case says what the
caller sends, step by step, and what must come back. A key that nobody reads is refused; a range is a number or
`[least, most]`. `expect` may be a list, of which one suffices. `for_each: {NAME: [values]}` makes a case of each value,
with `%NAME%` in its place. Cases with the same `settings` (sections of apprentice.yaml) share a gateway. Bytes that are
not text are `!!binary`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
Bytes = str | bytes
Range = int | tuple[int, int]


class CaseError(Exception):
    """A case file that can't be used; the message names the file and the key."""


class Strict(BaseModel):
    """A mapping without keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(Strict):
    """A mapping with one key: the step's kind."""

    @model_validator(mode="after")
    def has_one_kind(self) -> Self:
        """Raises ValueError unless exactly one key is there."""
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a step has one key, not {sorted(self.model_fields_set)}")
        return self

    @property
    def kind(self) -> str:
        """The one key."""
        (kind,) = self.model_fields_set
        return kind

    @property
    def value(self) -> Any:
        """The value of the one key."""
        return getattr(self, self.kind)


# ---- what an engine sends -----------------------------------------------------------------------


class Begin(Strict):
    """Status line and headers. Without `length` the body is sent in chunks; `close`: until the connection ends."""

    status: int = 200
    headers: dict[str, str] = {"content-type": "text/event-stream; charset=utf-8"}
    length: int | Literal["close"] | None = None


class Whole(Strict):
    """A whole answer with its length."""

    status: int = 200
    headers: dict[str, str] = {}
    json_: Any = Field(None, alias="json")
    text: str | None = None


class Tokens(Strict):
    """Events with one word each; `choice` is merged into their choice, `every_seconds` is the time between two."""

    count: int
    every_seconds: float = 0.0
    choice: dict[str, Any] = {}


class Pings(Strict):
    """Comment lines, as some engines send to keep a connection open."""

    count: int
    every_seconds: float


class EngineRepeat(Strict):
    """Steps that are done several times."""

    times: int
    steps: list[EngineStep]


class EngineStep(Step):
    """One thing that an engine does with a request. What is sent first begins a stream, unless the answer has begun.

    `healthy`: a whole answer of 60 tokens. `event`: a mapping gets `id`, `object`, `created` and `model`; a text is
    sent as it is. `completion`: an answer that is not streamed, with these keys changed. `text_bytes`: one event with
    so long a text. `body`: a part of the body. `raw`: bytes on the connection, not framed from there on. `line_end`,
    `split_bytes`, `gzip`: another line end, writes of so many bytes, compression, from there on. `end` ends the body,
    `close` the connection, `die` the engine; `reset` resets the connection, `hang` is silence.
    """

    healthy: Literal[True] = True
    begin: Begin = Begin()
    whole: Whole = Whole()
    completion: dict[str, Any] = {}
    tokens: int | Tokens = 0
    event: dict[str, Any] | str = ""
    finish: str = ""
    usage: Literal[True] = True
    done: Literal[True] = True
    body: Bytes = ""
    raw: Bytes = ""
    text_bytes: int = 0
    fill: int = 0
    pings: Pings | None = None
    repeat: EngineRepeat | None = None
    wait: float = 0.0
    line_end: str = "\n"
    split_bytes: int = 0
    gzip: Literal[True] = True
    end: Literal[True] = True
    close: Literal[True] = True
    reset: Literal[True] = True
    hang: Literal[True] = True
    die: Literal[True] = True


class EngineExpect(Strict):
    """What must be seen of an engine case; keys that are left out say nothing.

    `answer`: all of one engine's answer, or OpenAI's error shape. `by`, `then`: who answers, and who answers a second
    later. `ends`: each choice's finish_reason. `attempts`, `attempts_fallback`, `connections`: counts at the engines.
    `headers`: patterns by lower-case name.
    """

    answer: Literal["whole", "error"] | None = None
    by: Literal["primary", "fallback"] | None = None
    status: int | None = None
    code: str | None = None
    text: str | None = None
    done: bool | None = None
    ends: dict[int, str] | None = None
    completion_tokens: int | None = None
    seconds_min: float | None = None
    seconds_max: float | None = None
    attempts: Range | None = None
    attempts_fallback: Range | None = None
    present: list[str] = []
    absent: list[str] = []
    headers: dict[str, str] = {}
    then: Literal["primary", "fallback"] | None = None
    connections: Range | None = None


class EngineCase(Strict):
    """One behaviour of an engine: the primary of a task with an adapter, beside a `fallback`.

    `engine` has the steps of the first attempt, the second, and so on; the last is for all that follow. `requests`,
    `at_once`: how often it is asked; the last answer is judged. `connections` are counted after `idle_seconds`.
    """

    group: Literal["engine"]
    name: str = Field(pattern=NAME)
    says: str
    settings: dict[str, Any] = {}
    task: dict[str, Any] = {}
    pool: dict[str, Any] = {}
    stream: bool = True
    request: dict[str, Any] = {}
    requests: int = 1
    at_once: int = 1
    idle_seconds: float = 0.0
    engine: list[list[EngineStep]]
    fallback: list[list[EngineStep]] | Literal["healthy", "none"] = "healthy"
    expect: list[EngineExpect]
    """Any of them suffices."""


# ---- what a caller sends ------------------------------------------------------------------------


class Call(Strict):
    """A request as a well-behaved caller frames it. `body`: a text as it is, else JSON; the default asks for an answer.

    `length: none` leaves the length out. With `chunks` the body goes out in pieces of so many bytes.
    """

    method: str = "POST"
    path: str = "/v1/chat/completions"
    version: str = "1.1"
    key: Literal["caller", "limited", "admin", "wrong", "none"] = "caller"
    headers: list[tuple[str, str]] = []
    host: bool = True
    body: Any = None
    more: dict[str, Any] = {}
    length: Literal["true", "none"] | int = "true"
    chunks: int | None = None
    trailers: list[tuple[str, str]] = []


class CallerRepeat(Strict):
    """Steps that are done several times; `%N%` in them is the number of the time, from 0 on."""

    times: int
    steps: list[CallerStep]


class Awaited(Strict):
    """Reading until so many answers are there, or some bytes, or the end of the connection."""

    answers: int | None = None
    bytes: int | None = None
    text: str | None = None
    seconds: float = 5.0


class Fill(Strict):
    """A text, many times."""

    text: str
    times: int


class CallerStep(Step):
    """One thing that a caller does. Each `request`, `bytes` and `together` is one write."""

    request: Call = Call()
    bytes: Bytes = ""
    fill: int | Fill = 0
    together: list[CallerStep] = []
    repeat: CallerRepeat | None = None
    wait: float = 0.0
    read: Awaited = Awaited()
    half_close: Literal[True] = True
    close: Literal[True] = True
    reset: Literal[True] = True


class CallerExpect(Strict):
    """What must be seen of a caller case, on each of its connections; keys that are left out say nothing."""

    answers: Range | None = None
    statuses: list[int] | None = None
    status: int | list[int] | None = None
    code: str | list[str] | None = None
    texts: list[str] | None = None
    in_order: bool | None = None
    present: list[str] = []
    absent: list[str] = []
    headers: dict[str, str] = {}
    """Of the first answer, by lower-case name: a pattern that the value matches, or `absent`."""
    closed: bool | None = None
    seconds_min: float | None = None
    seconds_max: float | None = None
    engine_requests: Range | None = None
    engine_cancelled: bool | None = None
    memory_mb_max: float | None = None
    sent_bytes_max: int | None = None


class Meanwhile(Strict):
    """A request from another address every 20 ms, while the case's connections are open: the slowest of them counts."""

    path: str = "/health/live"
    key: Literal["caller", "admin", "none"] = "none"
    status: int = 200
    seconds_max: float = 1.0


class CallerCase(Strict):
    """One behaviour of a caller.

    `connections`: so many at once, from one address. `reads: false`: it reads nothing until the end. `engine`: steps of
    an engine that is this case's own. `alone`: not beside other cases. `seconds`: its longest time. In texts `%KEY%`,
    `%LIMITED_KEY%` (may use no model), `%ADMIN_KEY%`, `%WRONG_KEY%`, `%HOST%`, `%MODEL%`, `%BODY%` and `%LENGTH%` are
    filled in; `%CASE%` in the last message is how requests are counted at the engine.
    """

    group: Literal["caller"]
    name: str = Field(pattern=NAME)
    says: str
    settings: dict[str, Any] = {}
    alone: bool = False
    connections: int = 1
    reads: bool = True
    engine: list[list[EngineStep]] | None = None
    send: list[CallerStep]
    seconds: float = 10.0
    meanwhile: Meanwhile | None = None
    expect: list[CallerExpect]
    """Any of them suffices."""


Case = EngineCase | CallerCase


# ---- reading them -------------------------------------------------------------------------------


def read_folder(folder: Path) -> list[Case]:
    """All cases in a folder and below it. Raises CaseError."""
    if not folder.is_dir():
        raise CaseError(f"{folder} is not a folder.")
    cases = [case for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES for case in read_file(path)]
    if not cases:
        raise CaseError(f"{folder} has no case: put a .yaml or .json file into it.")
    return cases


def read_file(path: Path) -> list[Case]:
    """The cases of one file. Raises CaseError."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CaseError(f"{path}: {error}") from error
    return [
        _case_of(path, told)
        for document in documents
        if document is not None
        for one in (document if isinstance(document, list) else [document])
        for told in _each(path, one)
    ]


def _each(path: Path, document: Any) -> Iterator[Any]:
    """The document, once for each value of its `for_each`. `%NAME%` stands for the value, or where values have names,
    for the name, and `%NAME_VALUE%` for the value."""
    if not isinstance(document, dict):
        raise CaseError(f"{path}: a case is a mapping, not {document!r}.")
    document = dict(document)
    variants = document.pop("for_each", None)
    if variants is None:
        yield document
        return
    if not isinstance(variants, dict) or len(variants) != 1:
        raise CaseError(f"{path}: for_each has one name with its values.")
    ((name, values),) = variants.items()
    for value in values:
        held = values[value] if isinstance(values, dict) else value
        yield replaced(document, {f"%{name}%": value, f"%{name}_VALUE%": held})


def replaced(told: Any, values: Mapping[str, Any]) -> Any:
    """A nested value with placeholders replaced; a text that is nothing but a placeholder becomes its value."""
    if isinstance(told, dict):
        return {replaced(key, values): replaced(value, values) for key, value in told.items()}
    if isinstance(told, list):
        return [replaced(value, values) for value in told]
    if isinstance(told, str):
        for placeholder, value in values.items():
            if told == placeholder:
                return value
            if placeholder in told:
                told = told.replace(placeholder, f"{value}")
    return told


def _case_of(path: Path, told: dict[str, Any]) -> Case:
    kinds: Mapping[Any, type[EngineCase] | type[CallerCase]] = {"engine": EngineCase, "caller": CallerCase}
    kind = kinds.get(told.get("group"))
    if kind is None:
        raise CaseError(f"{path}: group is engine or caller, not {told.get('group')!r}.")
    if isinstance(told.get("expect"), dict):
        told = {**told, "expect": [told["expect"]]}
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CaseError(f"{path}: {told.get('name')}: {where}: {first['msg']}") from error


def settings_key(settings: Mapping[str, Any]) -> str:
    """The same for cases that one gateway can serve."""
    return json.dumps(settings, sort_keys=True)

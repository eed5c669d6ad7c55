"""Kept texts: the messages and the answer of a request whose task keeps texts, and the seal on them.

A text is redacted before it comes here. If the settings have keys, AES-GCM seals it before it leaves the gateway's
memory. Only a key can open what Redis, the spool and the archive hold. The seal includes the request's id, so no text
can be moved to another id. People's words are sealed likewise, as two fields of their object.

Each request of an application repeats its tools. They are stored beside the text, compressed. Equal tools are equal
under one key too, so the archive's files hold them once. They are deleted with the last text that has them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from monitoring.bucket_storage import Bucket
from monitoring.time_units import YEAR_10000

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

STREAM_KEY = "apprentice:texts"
"""The ids of texts that wait for the archive."""
BYTES_KEY = "apprentice:texts:bytes"
"""The bytes of all texts that wait for the archive."""
TEXT_KEY = "apprentice:text:"
FORGOTTEN_KEY = "apprentice:forgotten:"
"""By request id, caller or handle: the time (ms) up to which their texts must be erased."""
NO_END_MS = YEAR_10000 * 1000
"""The time for a request's id, which names only one request: later than any, since its gateway's clock may be ahead."""
PRUNED_KEY = "apprentice:archive:texts:pruned"
"""Set while the archive need not be searched for texts that are due."""
SEALED_SECONDS = 86_400
"""Time between two looks for texts to seal, after a look that found none."""
KEY_BYTES = 32
NONCE_BYTES = 12
TOOLS = "tools"
"""The name that is sealed with tools in place of a request's id, since many requests share them."""
ZLIB_LEVEL = 6
TOOLS_KNOWN_MAX = 64
"""The size of a cache of opened or redacted tools: each text of an application repeats its tools."""


class Unsealable(Exception):
    """A text that can't be opened: its key is not in the settings, or its bytes are damaged. `is_held`: its key is a
    former key in the settings."""

    def __init__(self, text: str, is_held: bool = False) -> None:
        super().__init__(text)
        self.is_held = is_held


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """The texts of a request and its answer: either `messages` or `prompt` holds what was asked, and `tools` those that
    the answer might call.

    `cut` has sentences on parts that are left out; with `asked_whole` only the answer lacks parts.
    """

    messages: list[Any] = []
    prompt: str | list[str] | None = None
    answer: str = ""
    tool_calls: list[Any] = []
    tools: list[Any] = []
    parallel_tool_calls: bool | None = None
    tool_choice: Any = None
    cut: list[str] = []
    asked_whole: bool = False

    @property
    def prompt_text(self) -> str:
        """The prompt of a completion as one text; empty for a chat."""
        return self.prompt if isinstance(self.prompt, str) else "\n".join(self.prompt or ())

    def as_asked(self) -> dict[str, Any]:
        """The `messages` with their `tools`, or the `prompt`, in the form of a data set's row; empty if a part of them
        is cut."""
        if self.cut and not self.asked_whole:
            return {}
        if not self.messages:
            return {"prompt": self.prompt} if isinstance(self.prompt, str) else {}
        if not self.tools:
            return {"messages": self.messages}
        offer: dict[str, Any] = {"parallel_tool_calls": False} if self.parallel_tool_calls is False else {}
        offer |= {} if self.tool_choice in (None, "auto") else {"tool_choice": self.tool_choice}
        return {"messages": self.messages, "tools": self.tools, **offer}


class KeptText(Conversation, frozen=True, kw_only=True):
    """A request as it was sent and answered. `at` is Unix seconds, `caller` the key's public part.

    `handles` are the keyed digests of its session and subject.
    """

    request: str
    at: float
    task: str
    version: str | None = None
    pool: str | None = None
    reason: str | None = None
    caller: str = ""
    endpoint: str = ""
    handles: list[str] = []


class TextRow(msgspec.Struct, kw_only=True, omit_defaults=False):
    """A kept text in the archive, and in Redis until then."""

    request: str  # Id of its record.
    at: float  # Time of the request, in Unix seconds.
    task: str  # Its task.
    version: str | None = None  # The version that answered; null: a base model.
    pool: str | None = None  # The pool that answered.
    reason: str | None = None  # Its reason.
    caller: str = ""  # Public part of the key.
    endpoint: str = ""  # `chat` or `completions`.
    handles: list[str] = []  # Keyed digests of session and subject.
    key: str | None = None  # Name of the key that sealed the text; null: none.
    text: str = ""  # Messages, prompt, answer and tool calls as JSON; sealed: nonce and ciphertext in base64.
    tools: str | None = None  # Its tools as JSON; sealed: the same of what zlib made of them.


PLAIN = tuple(name for name in TextRow.__struct_fields__ if name not in ("key", "text", "tools"))
SEALED = tuple(name for name in Conversation.__struct_fields__ if name != "tools")
NO_TOOLS = "Its tools are not kept."


class _Content(Conversation, frozen=True, kw_only=True):
    """A text without its tools. Their digest prevents a replacement by other tools."""

    tools_digest: str | None = None


class Sealable(msgspec.Struct, frozen=True, kw_only=True):
    """A value with words. When sealed, the words are in `sealed` under `key`, and not in their fields. A `key` without
    `sealed`: they could not be opened."""

    key: str | None = None
    sealed: str | None = None


S = TypeVar("S", bound=Sealable)
T = TypeVar("T")


class Seals:
    """The keys of kept texts by name. The key named `sealing` seals new texts; None: they are not sealed."""

    def __init__(self, keys: Mapping[str, bytes], sealing: str | None) -> None:
        self._keys = dict(keys)
        self._ciphers = _make_ciphers(keys) if keys else {}
        self._tools: dict[str, list[Any]] = {}
        """Opened tools by their digest."""
        self.names = tuple(keys)
        self.sealing = sealing

    def close(self, text: KeptText) -> TextRow:
        """Make the row of a text, sealed under the present key."""
        tools = msgspec.json.encode(text.tools) if text.tools else None
        digest = {} if tools is None else {"tools_digest": hashlib.sha256(tools).hexdigest()}
        content = msgspec.json.encode({name: getattr(text, name) for name in SEALED} | digest)
        row = TextRow(**{name: getattr(text, name) for name in PLAIN}, key=self.sealing)
        row.text = content.decode() if self.sealing is None else self._seal(content, text.request)
        if tools is not None:
            row.tools = tools.decode() if self.sealing is None else self._seal_equally(tools)
        return row

    def open(self, row: TextRow) -> KeptText:
        """Make the text of a row. Raises Unsealable."""
        content = row.text.encode() if row.key is None else self._unseal(row.text, row.key, row.request)
        try:
            conversation = msgspec.json.decode(content, type=_Content)
            parts = {name: getattr(conversation, name) for name in SEALED}
            if conversation.tools_digest is not None:
                tools = None if row.tools is None else self._open_tools(row, conversation.tools_digest)
                missing = {"cut": [*conversation.cut, NO_TOOLS], "asked_whole": False}
                parts |= missing if tools is None else {"tools": tools}
        except msgspec.DecodeError as error:
            raise Unsealable(f"the text of {row.request} is damaged: {error}", self._is_former(row.key)) from error
        return KeptText(**{name: getattr(row, name) for name in PLAIN}, **parts)

    def _open_tools(self, row: TextRow, digest: str) -> list[Any]:
        """The tools with this digest, shared by texts with equal tools. Raises Unsealable, and DecodeError."""
        if (known := self._tools.get(digest)) is not None:
            return known
        given = row.tools or ""
        raw = given.encode() if row.key is None else zlib.decompress(self._unseal(given, row.key, TOOLS))
        if hashlib.sha256(raw).hexdigest() != digest:
            raise Unsealable(f"the tools of {row.request} are not its own", self._is_former(row.key))
        if len(self._tools) >= TOOLS_KNOWN_MAX:
            self._tools.clear()
        tools: list[Any] = msgspec.json.decode(raw, type=list[Any])
        self._tools[digest] = tools
        return tools

    def reseal(self, row: TextRow) -> TextRow:
        """Make the same row under the present key. Raises Unsealable."""
        return row if row.key == self.sealing else self.close(self.open(row))

    def close_words(self, given: S, of: str, empty: Mapping[str, Any]) -> S:
        """The same value with its words sealed, if there is a present key and any words. `empty` maps the fields of
        words to their empty values. `of` names the owner of the words, and is sealed with them."""
        words = {name: value for name in empty if (value := getattr(given, name)) != empty[name]}
        if self.sealing is None or not words:
            return given
        sealed = self._seal(msgspec.json.encode(words), f"words\n{of}")
        return msgspec.structs.replace(given, **empty, key=self.sealing, sealed=sealed)

    def open_words(self, given: S, of: str, empty: Mapping[str, Any]) -> S:
        """The same value with its words in their fields. Raises Unsealable, also for fields of a newer release."""
        if given.key is None:
            return given
        content = self._unseal(given.sealed or "", given.key, f"words\n{of}")
        try:
            words = msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Unsealable(f"the words of {of!r} are damaged: {error}", self._is_former(given.key)) from error
        if unknown := words.keys() - empty.keys():
            text = f"the words of {of!r} are of a newer release: {', '.join(sorted(unknown))}"
            raise Unsealable(text, self._is_former(given.key))
        return msgspec.structs.replace(given, **{**empty, **words}, key=None, sealed=None)

    def read_words(self, given: S, of: str, empty: Mapping[str, Any]) -> S:
        """The same value with its words in their fields, or without them if they can't be opened."""
        try:
            return self.open_words(given, of, empty)
        except Unsealable:
            return msgspec.structs.replace(given, sealed=None)

    def reseal_words(self, given: S, of: str, empty: Mapping[str, Any]) -> S:
        """The value with its words under the present key; the same object if they already are. Raises Unsealable."""
        if self.sealing in (None, given.key):
            return given
        return self.close_words(self.open_words(given, of, empty), of, empty)

    def make_digests(self, content: bytes) -> dict[str | None, str]:
        """The digests that identify a content, by key. From the digest without a key, words can be guessed: it is for
        content without words, or not sealed."""
        digests: dict[str | None, str] = {None: hashlib.sha256(content).hexdigest()}
        for name, key in self._keys.items():
            digests[name] = hashlib.blake2b(content, key=key, person=b"digest", digest_size=32).hexdigest()
        return digests

    def _is_former(self, key: str | None) -> bool:
        return key in self._ciphers and key != self.sealing

    def _seal(self, content: bytes, of: str, nonce: bytes = b"") -> str:
        nonce = nonce or os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self.sealing or ""].encrypt(nonce, content, of.encode())
        return base64.b64encode(nonce + sealed).decode()

    def _seal_equally(self, tools: bytes) -> str:
        """Seal tools so that equal tools have equal bytes. The nonce is a keyed digest of the tools, so it never serves
        two contents. The bytes only reveal which requests have the same tools."""
        key = self._keys[self.sealing or ""]
        content = zlib.compress(tools, ZLIB_LEVEL)
        nonce = hashlib.blake2b(content, key=key, person=b"tools", digest_size=NONCE_BYTES).digest()
        return self._seal(content, TOOLS, nonce)

    def _unseal(self, text: str, key: str, of: str) -> bytes:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as below

        name, cipher = of.removeprefix("words\n").partition("\n")[0], self._ciphers.get(key)
        if cipher is None:
            raise Unsealable(f"the text of {name} is sealed under the key {key!r}, which texts.keys lacks")
        try:
            sealed = base64.b64decode(text, validate=True)
            return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], of.encode())
        except (InvalidTag, ValueError, binascii.Error) as error:
            text = f"the text of {name} is not what the key {key!r} has sealed"
            raise Unsealable(text, self._is_former(key)) from error


def _make_ciphers(keys: Mapping[str, bytes]) -> dict[str, AESGCM]:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - 13 MB, only where there is a key

    return {name: AESGCM(key) for name, key in keys.items()}


@dataclass
class Resealing:
    """Counts of one look for values under a former key or none: values sealed under the present key, and unreadable
    values. `held` counts unreadable values that may need a former key: all whose key is not known to be lost."""

    sealed: int = 0
    unreadable: int = 0
    held: int = 0

    def change(self, given: T, reseal: Callable[[T], T]) -> T:
        """The value that `reseal` returns; the same object if nothing changes, or it can't be read."""
        try:
            after = reseal(given)
        except (Unsealable, msgspec.MsgspecError, ValueError) as error:
            self.leave(error)
            return given
        self.sealed += after is not given
        return after

    def leave(self, error: Exception) -> None:
        """Count a value that can't be read."""
        self.unreadable += 1
        self.held += error.is_held if isinstance(error, Unsealable) else True


class TextKeys(msgspec.Struct, frozen=True):
    """The keys of kept texts in base64 for a job in another process, and the name of the key that seals new texts."""

    keys: dict[str, str] = {}
    sealing: str | None = None

    def seals(self) -> Seals:
        """The decoded keys."""
        return Seals({name: base64.b64decode(key) for name, key in self.keys.items()}, self.sealing)


class TextSource(msgspec.Struct, frozen=True):
    """The place of kept texts for a job in another process: Redis's URL, the archive's folder or bucket, the keys."""

    redis_url: str
    folder: str
    keys: TextKeys = TextKeys()
    bucket: Bucket | None = None


class TextDays(msgspec.Struct, frozen=True):
    """The days for which a task's texts are kept, and the days within which a text needs a label; None: it needs
    none."""

    retention: int
    judged_within: int | None = None


class TextRetention(msgspec.Struct, frozen=True):
    """The days of each task, and the keys. Texts of tasks that are no longer configured stay for `other` days.

    `class_tags` are the tags of feedback that stay plain.
    """

    tasks: dict[str, TextDays] = {}
    other: int = 366
    keys: TextKeys = TextKeys()
    class_tags: list[str] = []

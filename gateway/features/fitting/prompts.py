"""An admin's sample of the prompts that a version was trained on: read, checked, and packed for the fitting.
Each prompt is a line of JSON: `{"prompt" | "text" | "messages", "id"?, "label"?, "parent"?}`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gateway.formats.fields import Message
from gateway.formats.selectors import select_from_messages, select_from_text
from router.fitting_job import FittingLine
from serving.adapters.adapter_folder import open_regular

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PROMPTS_MIN = 20
"""Different prompts below which nothing can be learned."""
AUROC_LOW = 0.8
"""Under it a scope model barely separates the prompts from other traffic."""
PROMPTS_MAX = 15_000
BACKGROUND_MAX = 6_000
"""More than these are drawn from: as many as a fitting uses."""
ROWS_MAX = 200_000
READ_BYTES = 64 << 10
"""Read and looked at in one go: the event loop has other things to do."""
LINE_BYTES_MAX = 1 << 20
"""A line is read in one go too."""
What = Literal["prompts", "background"]
Named = Annotated[str, Meta(max_length=200)] | int


class PromptsError(Exception):
    """A sample can't be used; the message names the faulty line and gives the remedy."""


class PromptRow(msgspec.Struct, forbid_unknown_fields=False):
    """The fields of a line that are read; all others are ignored. `group` is another name for `parent`."""

    id: Named | None = None
    prompt: str | None = None
    text: str | None = None
    messages: list[Message] | None = None
    label: str | int | bool | None = None
    parent: Named | None = None
    group: Named | None = None


ROWS = msgspec.json.Decoder(PromptRow)


class Sample(NamedTuple):
    """A checked sample. `digest` identifies it together with the task's selector; a fitting reads `packed`.

    `counts` are for people, and for the fitting's record. Of the `rows` lines, `empty` ones had no text, and
    `duplicates` had the same text as another; `same_id` of the others share an id.
    """

    digest: str
    packed: bytes
    counts: dict[str, int | str]


@dataclass
class _Pile:
    """Rows that have been read, each text once."""

    rows: int = 0
    empty: int = 0
    duplicates: int = 0
    texts: dict[bytes, bytes] = field(default_factory=dict)
    ids: Counter[bytes] = field(default_factory=Counter)

    def add(self, line: FittingLine) -> None:
        """Add a row."""
        self.rows += 1
        folded = " ".join(line.text.casefold().split())
        if not folded:
            self.empty += 1
            return
        name = _digest(folded)
        if name in self.texts:
            self.duplicates += 1
            return
        self.texts[name] = msgspec.json.encode(line)
        if line.id:
            self.ids[_digest(line.id)] += 1

    def draw(self, count_max: int) -> list[bytes]:
        """At most `count_max` rows, chosen by their digests, so that their order in the file has no effect."""
        return [self.texts[name] for name in sorted(self.texts)[:count_max]]


async def read_sample(prompts: Path, background: Path | None, selector: str) -> Sample:
    """Read the files with the task's selector. Raises PromptsError, and OSError.

    After some rows it lets the event loop run.
    """
    own, others = _Pile(), _Pile()
    await _read(prompts, "prompts", selector, own)
    if background is not None:
        await _read(background, "background", selector, others)
    if len(own.texts) < PROMPTS_MIN:
        empty = f"{own.empty} empty and {own.duplicates} repeated ones aside, of {own.rows} rows"
        raise PromptsError(
            f"{len(own.texts)} different training prompts are too few ({empty}): give at least {PROMPTS_MIN}, "
            "better some hundreds."
        )
    return await asyncio.to_thread(_packed, own, others, selector)


async def _read(path: Path, source: What, selector: str, pile: _Pile) -> None:
    number = 0
    with await asyncio.to_thread(open_regular, path) as file:
        while lines := await asyncio.to_thread(_some, file):
            for line in lines:
                number += 1
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)  # noqa: PLW2901 - the line as it is read
                if pile.rows >= ROWS_MAX and line.strip():
                    raise PromptsError(f"The {source} have over {ROWS_MAX:,} lines: give fewer.")
                if len(line) > LINE_BYTES_MAX:
                    raise PromptsError(f"Line {number} of the {source} has over {LINE_BYTES_MAX:,} bytes: shorten it.")
                if line.strip():
                    pile.add(_read_line(line, number, source, selector))
            await asyncio.sleep(0)


def _some(file: IO[bytes]) -> list[bytes]:
    """The next lines. A line that is too long is cut just above the limit."""
    lines, size = [], 0
    while size < READ_BYTES and (line := file.readline(LINE_BYTES_MAX + 1)):
        lines.append(line)
        size += len(line) if len(line) <= LINE_BYTES_MAX else READ_BYTES
    return lines


def _read_line(line: bytes, number: int, source: What, selector: str) -> FittingLine:
    """A line's text, read with the selector. Raises PromptsError."""
    try:
        line.decode()
        row = ROWS.decode(line)
    except msgspec.ValidationError as error:
        raise PromptsError(f"Line {number} of the {source}: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PromptsError(f"Line {number} of the {source} is not a JSON object in UTF-8.") from None
    texts = [value for value in (row.prompt, row.text, row.messages) if value is not None]
    if len(texts) != 1:
        raise PromptsError(f"Line {number} of the {source} needs one of prompt, text and messages.")
    (content,) = texts
    text = (
        select_from_text(selector, content)
        if isinstance(content, str)
        else select_from_messages(selector, _asked_messages(content))
    )
    if source == "background":
        return FittingLine(text, other=True)
    label = None if row.label is None else str(row.label)
    parent = row.group if row.parent is None else row.parent
    group = None if parent is None else str(parent)
    return FittingLine(text, str(number) if row.id is None else str(row.id), label, group=group)


def _asked_messages(messages: list[Message]) -> list[Message]:
    """The conversation without the assistant's last messages: these are the answer that the version learned."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return messages[:end]


def is_barely_useful(auroc: float | None) -> bool:
    """Return whether a scope model confuses much other traffic with training prompts."""
    return auroc is not None and auroc < AUROC_LOW


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


def _packed(own: _Pile, others: _Pile, selector: str) -> Sample:
    lines, background = own.draw(PROMPTS_MAX), others.draw(BACKGROUND_MAX)
    whole = b"\n".join(lines + background)
    digest = hashlib.sha256(selector.encode() + b"\n" + whole).hexdigest()[:16]
    counts: dict[str, int | str] = {
        "rows": own.rows,
        "used": len(lines),
        "empty": own.empty,
        "duplicates": own.duplicates,
        "same_id": sum(count for count in own.ids.values() if count > 1),
        "background": len(background),
        "selector": selector,
        "sample": digest,
    }
    return Sample(digest, gzip.compress(whole, 6, mtime=0), counts)

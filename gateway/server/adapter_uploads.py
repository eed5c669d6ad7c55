"""Uploads of one adapter, or of a sample of its training prompts, in a multipart form. The bytes are written to the
store's disk as they arrive, and deleted after the request.

The form has files with known file names (FILES, SAMPLES) and text fields (FIELDS), each at most once. A caller's file
name is only compared with these names: no part of it becomes a path.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from gateway.errors import Problem
from gateway.openapi_parts import BYTES
from gateway.server.asgi_messages import Scope
from gateway.server.deadline import Deadline
from gateway.server.form_reader import FORM, FormReader, read_boundary
from serving.adapters.adapter_folder import (
    ADAPTER_FILES,
    BACKGROUND_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    PROMPTS_FILE,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
)
from serving.adapters.incoming_folder import append, make_incoming_folder, to_its_end
from serving.adapters.store import FREE_BYTES_MIN

README_FILE = "README.md"
FILES: Mapping[str, int | None] = {
    CONFIG_FILE: 1 << 20,
    WEIGHTS_FILE: None,
    MANIFEST_FILE: 256 << 10,
    SIGNATURE_FILE: 4 << 10,
    README_FILE: 1 << 20,
}
"""Most bytes of each file. None: only the limit of the whole upload applies."""
NEEDED = (*ADAPTER_FILES, MANIFEST_FILE)
OPTIONAL = (SIGNATURE_FILE, README_FILE)
SAMPLES = (PROMPTS_FILE, BACKGROUND_FILE)
"""A sample of training prompts, and a sample of other traffic. Each has at most `prompts_bytes_max` bytes."""
FIELDS: Mapping[str, int] = {"task": 63, "pool": 63}
"""Most bytes of each text field."""
FORM_SCHEMAS: Mapping[str, Any] = {
    **{name: {"type": "string", "maxLength": most} for name, most in FIELDS.items()},
    **{
        name: {**BYTES, **({} if most is None else {"description": f"At most {most:,} bytes."})}
        for name, most in FILES.items()
    },
}
"""The fields of an adapter's form in /openapi.json."""
WRITE_BYTES = 1 << 20
PATHS = frozenset({"/admin/v1/adapters", "/admin/v1/state/adapters"})
DATA_PATHS = frozenset({"/admin/v1/evaluations", "/admin/v1/readiness", "/admin/v1/datasets/files", "/admin/v1/files"})
"""Paths whose bodies are data sets (data_body.py) or contain one (file_form.py)."""
RESULT_PATH = re.compile(r"/v1/trainings/[^/]+/result")
PROMPTS_PATH = re.compile(r"/admin/v1/adapters/[^/]+/prompts")


def has_own_body_limits(scope: Scope) -> bool:
    """True if the endpoint reads the body as it arrives, with its own limits."""
    if scope["type"] != "http":
        return False
    if scope["method"] == "POST" and scope["path"] in DATA_PATHS:
        return True
    adapter = scope["method"] == "POST" and (scope["path"] in PATHS or RESULT_PATH.fullmatch(scope["path"]))
    if not adapter and not (scope["method"] == "PUT" and PROMPTS_PATH.fullmatch(scope["path"])):
        return False
    kind: bytes = dict(scope["headers"]).get(b"content-type", b"")
    return kind.lower().startswith(FORM)


@dataclass(frozen=True)
class UploadLimits:
    """Limits of uploads. `bytes_max`: one upload's whole body; `free_bytes_min`: space that stays free on the disk."""

    bytes_max: int = 2 << 30
    at_once_max: int = 2
    silence_seconds_max: float = 60.0
    upload_seconds_max: float = 3600.0
    prompts_bytes_max: int = 64 << 20
    free_bytes_min: int = FREE_BYTES_MIN


@dataclass(frozen=True)
class Upload:
    """An upload: the adapter's files in `folder`, beside it the manifest and perhaps a signature, the text fields, and
    perhaps a sample of training prompts with other traffic. Optional files that were not sent are None."""

    folder: Path
    manifest: Path
    signature: Path | None
    fields: Mapping[str, str]
    prompts: Path | None = None
    background: Path | None = None


class Uploads:
    """Receives adapters. It owns the `.incoming-…` folders, and limits the number of uploads at the same time."""

    def __init__(self, store_folder: Path, limits: UploadLimits) -> None:
        self._store_folder = store_folder
        self._limits = limits
        self._under_way = 0

    @asynccontextmanager
    async def receive(
        self,
        request: Request,
        needed: tuple[str, ...] = NEEDED,
        optional: tuple[str, ...] = (SIGNATURE_FILE, README_FILE),
    ) -> AsyncIterator[Upload]:
        """The upload in this request, with files of these names. The files are on disk until the block ends.

        Raises Problem: 415 not a form, 413 too long, 503 too many at the same time or no room on the disk, 400 and
        422 for a fault in the form, also if the caller hangs up or stops sending.
        """
        boundary = read_boundary(request.headers, "the adapter")
        _check_length(request.headers, self._limits.bytes_max)
        if self._under_way >= self._limits.at_once_max:
            text = (
                f"{self._under_way} uploads are under way, as many as this gateway takes: try again when one is over."
            )
            raise Problem("overload", text, retry_after_seconds=10)
        self._under_way += 1
        try:
            async with AsyncExitStack() as stack:
                yield await self._read(request, boundary, stack, needed, optional)
        finally:
            self._under_way -= 1

    async def _read(
        self,
        request: Request,
        boundary: bytes,
        stack: AsyncExitStack,
        needed: tuple[str, ...],
        optional: tuple[str, ...],
    ) -> Upload:
        limits = self._limits
        try:
            async with asyncio.timeout(limits.upload_seconds_max):
                folder = await stack.enter_async_context(make_incoming_folder(self._store_folder))
                form = _Form(folder, limits, needed, optional)
                await to_its_end(form.make_folder)
                await _parse(request, form, boundary, limits)
                return form.upload()
        except ClientDisconnect:
            raise Problem("invalid_value", "The upload was interrupted before its end: send it again.") from None
        except TimeoutError:
            text = (
                f"The upload was silent for {limits.silence_seconds_max:g} s or took longer than "
                f"{limits.upload_seconds_max:g} s: send it again over a faster connection."
            )
            raise Problem("invalid_value", text) from None
        except FormParserError as error:
            raise Problem("invalid_value", f"The body is not well-formed multipart/form-data: {error}.") from None
        except OSError as error:
            text = f"The gateway can't keep the upload ({error.strerror}): make room for its store, or try again later."
            raise Problem("overload", text, retry_after_seconds=60) from error


class _Form(FormReader):
    """One form. The parser's callbacks collect its fields, and the pieces of its files until they are written."""

    def __init__(self, folder: Path, limits: UploadLimits, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
        super().__init__()
        self._limits = limits
        self._needed = needed
        sizes = {**FILES, **dict.fromkeys(SAMPLES, limits.prompts_bytes_max)}
        self._sizes_max = {name: sizes[name] for name in sizes if name in needed or name in optional}
        # the whole form
        self._folder = folder
        self._fields: dict[str, bytes] = {}
        self._sizes: dict[str, int] = {}
        # the part that is being read
        self._file: str | None = None
        self._field = ""
        # pieces to be written
        self._pieces: list[tuple[str, bytes]] = []
        self.waiting_bytes = 0

    def make_folder(self) -> None:
        """Make the folder for the adapter's files. Blocks; raises OSError."""
        self._adapter.mkdir()

    def write(self) -> None:
        """Write the collected pieces. Blocks; raises OSError, also if too little space would stay free on the disk."""
        for name, pieces in groupby(self._pieces, key=itemgetter(0)):
            data = [piece for _, piece in pieces]
            append(self._path(name), data, sum(map(len, data)), self._limits.free_bytes_min)
        self._pieces.clear()
        self.waiting_bytes = 0

    def upload(self) -> Upload:
        """The upload, after all of it is written. Raises Problem if a part is missing."""
        if not self.has_ended:
            raise Problem("invalid_value", "The form ends before its closing boundary: send it again.")
        for name in self._needed:
            if name not in self._sizes:
                raise Problem("missing_field", f"The form has no file named {name}: add it.", name)
        fields = {name: _text(name, value) for name, value in self._fields.items()}
        signature, prompts, background = (
            self._path(name) if name in self._sizes else None for name in (SIGNATURE_FILE, *SAMPLES)
        )
        return Upload(
            self._adapter, self._path(MANIFEST_FILE), signature, MappingProxyType(fields), prompts, background
        )

    @property
    def _adapter(self) -> Path:
        return self._folder / "adapter"

    def _path(self, name: str) -> Path:
        beside = name in (MANIFEST_FILE, SIGNATURE_FILE, *SAMPLES)
        return (self._folder if beside else self._adapter) / name

    def begin_file(self, field: str, name: str) -> None:
        """Begin a file. Its file name counts, and its field's name is ignored."""
        if name not in self._sizes_max:
            text = f"{name[:80]!r} is not a file of an upload: its files are named {', '.join(self._sizes_max)}."
            raise Problem("unknown_parameter", text, "file")
        if name in self._sizes:
            raise Problem("invalid_value", f"The form has {name} twice: send it once.", name)
        self._file = name
        self._sizes[name] = 0
        self._pieces.append((name, b""))

    def begin_field(self, field: str) -> None:
        """A text field, each at most once."""
        if field in self._sizes_max:
            raise Problem("invalid_value", f"{field} came as text: send it as a file with this file name.", field)
        if field not in FIELDS:
            text = f"The form has the field {field[:80]!r}: its text fields are {', '.join(FIELDS)}."
            raise Problem("unknown_parameter", text, "field")
        if field in self._fields:
            raise Problem("invalid_value", f"The form has the field {field} twice: send it once.", field)
        self._file = None
        self._field = field
        self._fields[field] = b""

    def take(self, data: bytes) -> None:
        """Collect bytes of the present part until they are written."""
        size = len(data)
        if self._file is None:
            self._fields[self._field] += data
            if len(self._fields[self._field]) > FIELDS[self._field]:
                text = f"{self._field} is longer than {FIELDS[self._field]} bytes: shorten it."
                raise Problem("invalid_value", text, self._field)
            return
        self._sizes[self._file] += size
        size_max = self._sizes_max[self._file]
        if size_max is not None and self._sizes[self._file] > size_max:
            raise Problem("body_too_large", f"{self._file} has more than {size_max} bytes: shorten it.", self._file)
        self._pieces.append((self._file, data))
        self.waiting_bytes += size


async def _parse(request: Request, form: _Form, boundary: bytes, limits: UploadLimits) -> None:
    """Read the body to its end. Memory holds at most WRITE_BYTES of it and one piece from the socket."""
    parser = form.parser(boundary)
    got = 0
    async with aclosing(request.stream()) as body:
        while True:
            with Deadline(limits.silence_seconds_max):
                piece = await anext(body, None)
            if piece is None:
                break
            got += len(piece)
            if got > limits.bytes_max:
                raise _too_long(limits.bytes_max)
            if piece:
                parser.write(piece)
            if form.waiting_bytes >= WRITE_BYTES:
                await to_its_end(form.write)
    await to_its_end(form.write)


def _check_length(headers: Headers, bytes_max: int) -> None:
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > bytes_max:
        raise _too_long(bytes_max)


def _too_long(bytes_max: int) -> Problem:
    return Problem("body_too_large", f"The upload has more than {bytes_max} bytes, the limit adapter_bytes_max.")


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Problem("invalid_value", f"{name} is not text in UTF-8.", name) from None

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Problem
from gateway.server.adapter_uploads import FIELDS, FILES, UploadLimits, Uploads, has_own_body_limits
from gateway.server.asgi_messages import Message
from serving.adapters.store import Store
from tests.fakes.adapters import write_adapter
from tests.fakes.applications import run_application

BOUNDARY = "form-boundary"
LIMITS = UploadLimits(bytes_max=4 << 20, free_bytes_min=1)
WEIGHTS = os.urandom(3000) + b"\r\n--form-boundar" + b"\r\n" * 40 + b"--form-boundary" + b"\r"
CONFIG = b'{"r": 4}'
MANIFEST = b"task: returns\n"
Part = tuple[str, str | None, bytes]
WHOLE: tuple[Part, ...] = (
    ("task", None, b"returns"),
    ("file", "adapter_config.json", CONFIG),
    ("file", "adapter_model.safetensors", WEIGHTS),
    ("file", "manifest.yaml", MANIFEST),
)


def form(parts: tuple[Part, ...] = WHOLE, end: bytes = b"--\r\n") -> bytes:
    """A multipart form, as a browser or curl writes it."""
    body = b""
    for name, filename, data in parts:
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if filename is not None:
            body += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'.encode()
        body += b"\r\n\r\n" + data + b"\r\n"
    return body + f"--{BOUNDARY}".encode() + end


def without(name: str) -> tuple[Part, ...]:
    return tuple(part for part in WHOLE if name not in part[:2])


def request(
    *pieces: bytes,
    headers: Mapping[str, str] | None = None,
    last: Message | None = None,
    hold: asyncio.Event | None = None,
) -> Request:
    """A request whose body comes in these pieces and, where `last` is given, ends with that message instead."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append(last or {"type": "http.request", "body": b"", "more_body": False})
    coming = iter(messages)

    async def receive() -> Message:
        message = next(coming)
        if hold is not None and message is messages[-1]:
            await hold.wait()
        return message

    said = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in said.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    return Store(tmp_path / "store").folder


@pytest.fixture
def uploads(store_folder: Path) -> Uploads:
    return Uploads(store_folder, LIMITS)


async def refused(uploads: Uploads, asked: Request) -> Problem:
    """The problem that this upload ends with."""
    with pytest.raises(Problem) as caught:
        async with uploads.receive(asked):
            pytest.fail("it was taken")
    return caught.value


def left_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


async def test_files_lie_on_the_stores_disk_for_as_long_as_the_block_lasts(
    uploads: Uploads, store_folder: Path
) -> None:
    extra: tuple[Part, ...] = (
        *WHOLE,
        ("pool", None, b"small"),
        ("a", "signature.json", b"{}"),
        ("b", "README.md", b"Read me."),
    )
    async with uploads.receive(request(form(extra))) as upload:
        assert upload.fields == {"task": "returns", "pool": "small"}
        found = {path.name: path.read_bytes() for path in upload.folder.iterdir()}
        assert found == {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS, "README.md": b"Read me."}
        assert upload.manifest.read_bytes() == MANIFEST
        assert upload.signature is not None
        assert upload.signature.read_bytes() == b"{}"
        assert store_folder in upload.folder.parents
        assert left_in(store_folder)[0].startswith(".incoming-")
    assert left_in(store_folder) == []


@pytest.mark.parametrize("coding", [b"binary", b"8bit", b"7BIT"])
async def test_part_that_is_declared_as_bytes_as_they_are_is_taken(uploads: Uploads, coding: bytes) -> None:
    """Apache's HttpClient names such a transfer encoding for each part."""
    kind = b"Content-Type: application/octet-stream"
    body = form().replace(kind, b"%b\r\nContent-Transfer-Encoding: %b" % (kind, coding))
    async with uploads.receive(request(body)) as upload:
        assert (upload.folder / "adapter_model.safetensors").read_bytes() == WEIGHTS


async def test_signature_and_readme_may_be_left_out(uploads: Uploads) -> None:
    async with uploads.receive(request(form())) as upload:
        assert upload.signature is None
        assert sorted(path.name for path in upload.folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]


@given(cuts=st.lists(st.integers(min_value=0, max_value=len(form())), max_size=40))
def test_it_does_not_matter_where_the_body_is_cut_into_pieces(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    body = form()
    places = [0, *sorted(cuts), len(body)]
    pieces = [body[start:end] for start, end in pairwise(places)]

    async def receive() -> None:
        async with Uploads(tmp_path_factory.getbasetemp(), LIMITS).receive(request(*pieces)) as upload:
            assert (upload.folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
            assert (upload.folder / "adapter_config.json").read_bytes() == CONFIG
            assert upload.fields == {"task": "returns"}

    asyncio.run(receive())


async def test_byte_by_byte_is_the_same_upload(uploads: Uploads) -> None:
    body = form()
    async with uploads.receive(request(*(body[at : at + 1] for at in range(len(body))))) as upload:
        assert (upload.folder / "adapter_model.safetensors").read_bytes() == WEIGHTS


@given(
    st.lists(
        st.sampled_from([form()[:200], b"--form-boundary", b"\r\n", b"--", b": x", b"\x00\xff", b'"; ']) | st.binary()
    )
)
def test_any_bytes_are_refused_with_our_own_error_and_leave_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    problem = asyncio.run(refused(Uploads(folder, LIMITS), request(*pieces)))
    assert problem.status in (400, 413)
    assert left_in(folder) == []


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        (without("manifest.yaml"), "missing_field", "no file named manifest.yaml"),
        (without("adapter_model.safetensors"), "missing_field", "no file named adapter_model.safetensors"),
        ((*WHOLE, ("task", None, b"returns")), "invalid_value", "field task twice"),
        ((*WHOLE, ("x", "manifest.yaml", b"")), "invalid_value", "manifest.yaml twice"),
        ((*WHOLE, ("x", "tokenizer.json", b"{}")), "unknown_parameter", "'tokenizer.json' is not a file of an upload"),
        ((*WHOLE, ("x", "../../manifest.yaml", b"")), "unknown_parameter", "is not a file of an upload"),
        ((*WHOLE, ("x", "/etc/passwd", b"")), "unknown_parameter", "is not a file of an upload"),
        ((*WHOLE, ("x", "a/README.md", b"")), "unknown_parameter", "is not a file of an upload"),
        ((*WHOLE, ("x", "", b"")), "unknown_parameter", "is not a file of an upload"),
        ((*WHOLE, ("state", None, b"active")), "unknown_parameter", "the field 'state'"),
        ((*WHOLE, ("README.md", None, b"text")), "invalid_value", "send it as a file"),
        ((*WHOLE, ("pool", None, b"p" * 64)), "invalid_value", "pool is longer than 63 bytes"),
        ((*WHOLE, ("pool", None, b"\xff")), "invalid_value", "pool is not text"),
        ((*WHOLE, ("x", "signature.json", b"{" * 5000)), "body_too_large", "signature.json has more than 4096 bytes"),
        ((*WHOLE, ("", None, b"")), "invalid_value", "has no name"),
    ],
)
async def test_what_is_wrong_in_a_form_is_said_and_nothing_is_left(
    uploads: Uploads, store_folder: Path, parts: tuple[Part, ...], code: str, words: str
) -> None:
    problem = await refused(uploads, request(form(parts)))
    assert (problem.code, words in problem.message) == (code, True), problem.message
    assert left_in(store_folder) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "before its closing boundary"),
        (form()[:-4], "before its closing boundary"),
        (form()[: len(form()) // 2], "before its closing boundary"),
        (b"no form at all", "not well-formed"),
        (b'--form-boundary\r\nContent-Disposition: form-data; name="' + b"n" * 5000, "Maximum header size"),
        (b"--form-boundary\r\n" + b"a: b\r\n" * 9, "Maximum header count"),
        (b'--form-boundary\r\nContent-Disposition: attachment; name="task"\r\n\r\nx\r\n', "has no name"),
        (
            b'--form-boundary\r\nContent-Disposition: form-data; name="task"\r\n'
            b"Content-Transfer-Encoding: base64\r\n\r\nx\r\n",
            "send bytes as they are",
        ),
    ],
)
async def test_body_that_is_no_whole_form_is_refused(uploads: Uploads, body: bytes, words: str) -> None:
    problem = await refused(uploads, request(body))
    assert problem.code == "invalid_value"
    assert words in problem.message


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("", 415),
        ("multipart/mixed; boundary=form-boundary", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=" + "b" * 71, 400),
    ],
)
async def test_body_that_is_declared_as_something_else_is_not_read(uploads: Uploads, kind: str, status: int) -> None:
    unread = request(last={"type": "http.disconnect"}, headers={"content-type": kind})
    assert (await refused(uploads, unread)).status == status


async def test_body_that_is_declared_too_long_is_refused_before_a_byte_is_read(uploads: Uploads) -> None:
    unread = request(last={"type": "http.disconnect"}, headers={"content-length": str((4 << 20) + 1)})
    problem = await refused(uploads, unread)
    assert (problem.status, problem.message) == (
        413,
        "The upload has more than 4194304 bytes, the limit adapter_bytes_max.",
    )


async def test_body_that_grows_too_long_is_refused_and_nothing_is_left(store_folder: Path) -> None:
    uploads = Uploads(store_folder, replace(LIMITS, bytes_max=10_000))
    problem = await refused(uploads, request(form()[:3000], *[b"x" * 1000] * 8))
    assert problem.status == 413
    assert left_in(store_folder) == []


async def test_caller_that_hangs_up_leaves_nothing_and_gives_its_place_back(store_folder: Path) -> None:
    uploads = Uploads(store_folder, replace(LIMITS, at_once_max=1))
    for _ in range(3):
        problem = await refused(uploads, request(form()[:3000], last={"type": "http.disconnect"}))
        assert "was interrupted" in problem.message
    assert left_in(store_folder) == []
    async with uploads.receive(request(form())):
        pass


async def test_silence_has_a_limit(store_folder: Path) -> None:
    uploads = Uploads(store_folder, replace(LIMITS, silence_seconds_max=0.05))
    problem = await refused(uploads, request(form()[:3000], hold=asyncio.Event()))
    assert "was silent for 0.05 s" in problem.message
    assert left_in(store_folder) == []


async def test_whole_upload_has_a_time_limit(store_folder: Path) -> None:
    uploads = Uploads(store_folder, replace(LIMITS, upload_seconds_max=0.05))
    problem = await refused(uploads, request(form()[:3000], hold=asyncio.Event()))
    assert "took longer than 0.05 s" in problem.message


async def test_upload_that_is_cancelled_leaves_nothing(uploads: Uploads, store_folder: Path) -> None:
    never = asyncio.Event()
    upload = asyncio.create_task(refused(uploads, request(form()[:3000], hold=never)))
    async with asyncio.timeout(30):
        while not left_in(store_folder):
            await asyncio.sleep(0.001)
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert left_in(store_folder) == []


async def test_block_that_fails_leaves_nothing(uploads: Uploads, store_folder: Path) -> None:
    with pytest.raises(RuntimeError):
        async with uploads.receive(request(form())):
            raise RuntimeError
    assert left_in(store_folder) == []


async def test_more_uploads_than_allowed_at_the_same_time_are_turned_away(uploads: Uploads) -> None:
    async with uploads.receive(request(form())), uploads.receive(request(form())):
        problem = await refused(uploads, request(form()))
        assert (problem.code, problem.status) == ("overload", 503)
    async with uploads.receive(request(form())):
        pass


async def test_disk_is_not_filled_to_the_brim(store_folder: Path) -> None:
    free = shutil.disk_usage(store_folder).free
    problem = await refused(Uploads(store_folder, replace(LIMITS, free_bytes_min=2 * free)), request(form()))
    assert problem.code == "overload"
    assert re.search(r"too little room is left on its disk: \d+ MiB are free, and \d+ MiB must", problem.message)
    assert left_in(store_folder) == []


async def test_disk_that_takes_no_writes_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    problem = await refused(Uploads(tmp_path / "store", LIMITS), request(form()))
    assert problem.code == "overload"
    assert os.strerror(errno.ENOTDIR) in problem.message


async def test_memory_does_not_grow_with_the_upload(store_folder: Path) -> None:
    uploads = Uploads(store_folder, replace(LIMITS, bytes_max=100 << 20))
    piece = b"w" * (64 << 10)
    start = form(without("adapter_model.safetensors"), end=b"\r\n")
    start += b'Content-Disposition: form-data; name="f"; filename="adapter_model.safetensors"\r\n\r\n'
    tracemalloc.start()
    try:
        async with uploads.receive(request(start, *[piece] * 640, f"\r\n--{BOUNDARY}--".encode())) as upload:
            assert (upload.folder / "adapter_model.safetensors").stat().st_size == 40 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


async def test_text_fields_may_be_left_out(uploads: Uploads) -> None:
    async with uploads.receive(request(form(without("task")))) as upload:
        assert upload.fields == {}


@pytest.mark.parametrize(
    ("method", "path", "kind", "whether"),
    [
        ("POST", "/admin/v1/adapters", b"multipart/form-data; boundary=x", True),
        ("POST", "/admin/v1/adapters", b"Multipart/Form-Data; boundary=x", True),
        ("POST", "/admin/v1/state/adapters", b"multipart/form-data", True),
        ("POST", "/admin/v1/adapters", b"application/json", False),
        ("POST", "/admin/v1/adapters", b"multipart/mixed; boundary=x", False),
        ("PUT", "/admin/v1/adapters", b"multipart/form-data; boundary=x", False),
        ("POST", "/admin/v1/callers", b"multipart/form-data; boundary=x", False),
    ],
)
def test_only_uploads_have_a_limit_of_their_own(method: str, path: str, kind: bytes, whether: bool) -> None:
    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", kind)]}
    assert has_own_body_limits(scope) == whether


def test_every_name_is_a_plain_file_name() -> None:
    assert all(Path(name).name == name for name in [*FILES, *FIELDS])


@asynccontextmanager
async def served(uploads: Uploads, seen: Callable[[dict[str, Any]], None]) -> AsyncIterator[str]:
    """The address of an application that takes uploads and tells `seen` of each."""
    app = FastAPI()

    @app.exception_handler(Problem)
    async def _problem(_: Request, problem: Problem) -> Response:
        seen({"problem": problem.message})
        return Response(problem.body(), problem.status)

    @app.post("/")
    async def _receive(request: Request) -> Response:
        async with uploads.receive(request) as upload:
            found = {path.name: path.stat().st_size for path in upload.folder.iterdir()}
            seen(found)
            return JSONResponse({"files": found, "fields": dict(upload.fields)})

    async with run_application(app) as url:
        yield url


async def test_form_of_an_ordinary_client_comes_over_a_socket(uploads: Uploads, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "manifest.yaml").write_bytes(MANIFEST)
    files = [("file", (path.name, path.read_bytes())) for path in folder.iterdir()]
    async with served(uploads, lambda _: None) as url, httpx.AsyncClient() as http:
        answer = await http.post(url, data={"task": "returns"}, files=files)
    assert answer.status_code == 200, answer.text
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.yaml"}
    assert answer.json() == {"files": sizes, "fields": {"task": "returns"}}


async def test_socket_that_closes_in_the_middle_leaves_nothing(uploads: Uploads, store_folder: Path) -> None:
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with served(uploads, told.put_nowait) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        head = (
            "POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: 100000\r\n"
            f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        writer.write(head.encode() + form()[:3000])
        await writer.drain()
        async with asyncio.timeout(30):
            while not left_in(store_folder):
                await asyncio.sleep(0.001)
        writer.close()
        async with asyncio.timeout(30):
            assert "was interrupted" in (await told.get())["problem"]
            while left_in(store_folder):
                await asyncio.sleep(0.001)


async def test_caller_that_expects_100_continue_hears_of_a_refusal_before_it_sends(uploads: Uploads) -> None:
    async with served(uploads, lambda _: None) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        head = (
            "POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: 3000000000\r\nexpect: 100-continue\r\n"
            f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(30):
            assert b" 413 " in await reader.readline()
        writer.close()

"""All commands together: what goes wrong with files, numbers and connections is one line."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.callers import new_key
from gateway.cli.admin_client import AdminClient, Unusable
from tests.gateway.cli.conftest import Command, run

BROKEN_OFF = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe beginning"


@pytest.fixture
def breaking() -> Iterator[str]:
    """The address of a server that breaks its answer off."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(BROKEN_OFF)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_of_a_download_that_breaks_off_nothing_is_left(breaking: str, tmp_path: Path) -> None:
    client = AdminClient(breaking, new_key()[0])
    with pytest.raises(Unusable, match="gave no answer"):
        client.download("/datasets/1234abcd/export", tmp_path / "train.jsonl")
    client.close()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_json_does_not_have_is_not_the_address_at_fault() -> None:
    key, url = new_key()[0], "http://127.0.0.1:9"
    words = ("tasks", "baseline", "returns", "returns@v1", "feedback", "--reason", "x", "--wrong", "nan", "--of", "100")
    said = run(*words, APPRENTICE_URL=url, APPRENTICE_KEY=key)
    assert (said.exit_code, said.out) == (2, "")
    assert said.err.startswith("apprentice: It can't be sent: ")
    assert "float values" in said.err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("adapters", "show", 70_000 * "a"), "'aaa"),
        (("adapters", "list", "--task", 70_000 * "a"), "It can't be sent: "),
        (("datasets", "export", 70_000 * "a"), "'aaa"),
        (("state", "diff", "deep.json"), "deep.json is not JSON: "),
        (("evaluate", "returns@v1", "--data", "deep.json"), "deep.json can't be read: "),
    ],
)
def test_what_is_too_long_or_too_deep_is_one_line(
    words: tuple[str, ...], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text(100_000 * "[")
    said = run(*words, APPRENTICE_URL="http://127.0.0.1:9", APPRENTICE_KEY=new_key()[0])
    assert (said.exit_code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"apprentice: {fault}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:x", "http://[::1", "http://a\tb", "ftp://a", "a"])
def test_what_is_no_address_is_one_line(url: str) -> None:
    said = run("keys", "list", APPRENTICE_URL=url, APPRENTICE_KEY=new_key()[0])
    assert (said.exit_code, said.out) == (2, "")
    assert said.err == f"apprentice: {url!r} is not an address: write it as in http://127.0.0.1:8080.\n"


async def test_a_folder_that_is_a_file_is_one_line(apprentice: Command, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text("{}")
    said = await apprentice("adopt", str(file), "--task", "returns", "--out", str(file))
    assert (said.exit_code, said.out) == (2, "")
    assert said.err == f"apprentice: {file} can't be read or written: File exists.\n"

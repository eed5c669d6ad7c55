"""A client of the admin API: the gateway's address, the key, and errors of one line.

CommandError     ends a command; its text is one line that says what to do
├─ Refused       the gateway answered with an error (exit code 1)
└─ Unusable      the command is wrong as given, or no gateway answers (exit code 2)
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import yaml

from gateway.callers import split_key
from gateway.cli.option_names import name_options
from serving.adapters.plain_yaml import read_yaml

URL_VARIABLE = "APPRENTICE_URL"
KEY_VARIABLE = "APPRENTICE_KEY"
DEFAULT_URL = "http://127.0.0.1:8080"
LOCAL_KEPT = Path("var/up")
"""Folder in which `make up` keeps its configuration and its admin key."""
CONNECT_TIMEOUT_SECONDS = 5.0
ANSWER_TIMEOUT_SECONDS = 60.0
SENDING_TIMEOUT = httpx.Timeout(600.0, connect=CONNECT_TIMEOUT_SECONDS)
"""The gateway answers only after it has read the whole uploaded adapter."""
ERROR_TEXT_MAX = 2000
NAME_CHARACTERS_MAX = 5000
"""Longest part of an address; no name is so long."""

WHAT_TO_DO: Mapping[str, str] = {
    "invalid_api_key": f"Give an admin's key with --key-file or in {KEY_VARIABLE}.",
    "role_required": f"Give an admin's key with --key-file or in {KEY_VARIABLE}.",
}
"""Advice that the command line adds to the gateway's own words."""


class CommandError(Exception):
    """The end of a command; `exit_code` is what the shell sees."""

    exit_code = 2

    def content(self) -> dict[str, Any]:
        """The error as --json prints it, in the form of the gateway's own errors."""
        return {"message": str(self), "type": None, "param": None, "code": None}


class Refused(CommandError):
    """The gateway answered with an error: its HTTP `status` and its `code` (docs/reference/errors.md)."""

    exit_code = 1

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        """`error` is the gateway's error object."""
        self.status = status
        self.code = str(error["code"])
        self._error = error
        message = str(error["message"])[:ERROR_TEXT_MAX]
        super().__init__(" ".join([message, f"({self.code})", *filter(None, [WHAT_TO_DO.get(self.code)])]))

    def in_options(self, options: Mapping[str, str]) -> str:
        """The same error for a fault of the body or the gate, with the command's options in place of fields."""
        if self.status != httpx.codes.BAD_REQUEST and self.code != "gate_not_passed":
            return str(self)
        param = self._error.get("param")
        return name_options(str(self), None if param is None else str(param), options)

    def content(self) -> dict[str, Any]:
        """The gateway's own error object."""
        return dict(self._error)


class Unusable(CommandError):
    """The command is wrong as given, or no gateway answers."""


class AdminClient:
    """The client of one gateway, with one key. Answers are JSON objects; every call raises Refused and Unusable."""

    def __init__(self, url: str, key: str, ca_file: Path | None = None) -> None:
        """`ca_file` (PEM) has the only trusted authorities; None: those of the system. Raises Unusable."""
        self.url = url
        self.key = key
        timeout = httpx.Timeout(ANSWER_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
        headers = {"authorization": f"Bearer {key}"}
        # No proxy of the environment: an admin's key goes to the gateway that was named, and nowhere else.
        trust = _trust(ca_file) if ca_file is not None else True
        self._http = httpx.Client(
            base_url=f"{url}/admin/v1", headers=headers, timeout=timeout, trust_env=False, verify=trust
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **query: str | list[str] | None) -> dict[str, Any]:
        """Read `path`; a query's value that is None is left out."""
        return self._ask("GET", path, params=_without_none(query))

    def post(self, path: str, body: Mapping[str, Any] | None = None, **query: str | float | None) -> dict[str, Any]:
        """Post `body`. A query's `wait_seconds` are waited for beside the usual time."""
        patience = ANSWER_TIMEOUT_SECONDS + float(query.get("wait_seconds") or 0)
        timeout = httpx.Timeout(patience, connect=CONNECT_TIMEOUT_SECONDS)
        return self._ask("POST", path, json=body or {}, params=_without_none(query), timeout=timeout)

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the object at `path` by `body`."""
        return self._ask("PUT", path, json=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change the object at `path` by `body`."""
        return self._ask("PATCH", path, json=body)

    def delete(self, path: str, **query: str | None) -> dict[str, Any]:
        """Remove the object at `path`; a query's value that is None is left out."""
        return self._ask("DELETE", path, params=_without_none(query))

    def upload(
        self, path: str, fields: Mapping[str, str], files: list[tuple[str, Any]], method: str = "POST"
    ) -> dict[str, Any]:
        """Post a form. `files` are file names and open files, which are read as they are sent."""
        parts = [(name, (name, file, "application/octet-stream")) for name, file in files]
        return self._ask(method, path, data=dict(fields), files=parts, timeout=SENDING_TIMEOUT)

    def send(
        self, path: str, content: Iterator[bytes], media_type: str, size_bytes: int, **query: str | None
    ) -> dict[str, Any]:
        """Post bytes of this media type, as they are read. A query's value that is None is left out."""
        headers = {"content-type": media_type, "content-length": str(size_bytes)}
        params = _without_none(query)
        return self._ask("POST", path, content=content, params=params, headers=headers, timeout=SENDING_TIMEOUT)

    def download(self, path: str, target: Path) -> int:
        """Write the bytes at `path` to `target`, which appears whole or not at all. Returns the number of lines, since
        a pipe can't be read again."""
        lines = 0
        _see_that_names_fit(path)
        with write_whole(target) as partial, self._in_words(), self._http.stream("GET", path) as answer:
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            with partial.open("wb") as file:
                for piece in answer.iter_bytes():
                    lines += piece.count(b"\n")
                    file.write(piece)
        return lines

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        _see_that_names_fit(path)
        try:
            request = self._http.build_request(method, path, **options)
        except (ValueError, httpx.InvalidURL) as error:  # no JSON has such a number, or no address such a query
            raise Unusable(f"It can't be sent: {error}.") from error
        with self._in_words():
            answer = self._http.send(request)
            if not answer.is_success:
                raise _refusal(answer)
            content = answer.json()
        if not isinstance(content, dict):
            raise Unusable(f"{self.url} does not answer as a gateway does: is the address right?")
        return content

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turn the errors of httpx into Unusable."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            text = f"No gateway answers at {self.url} ({_text_of(error)}): start it, or name it with --gateway."
            raise Unusable(text) from error
        except httpx.HTTPError as error:
            raise Unusable(f"{self.url} gave no answer ({_text_of(error)}): see its log, then try again.") from error
        except ValueError as error:
            raise Unusable(f"{self.url} does not answer as a gateway does: is the address right?") from error


def _see_that_names_fit(path: str) -> None:
    """Raises Unusable where a quoted name within `path` would lead to another address."""
    for part in path.partition("?")[0].split("/"):
        if "%2F" in part or part in (".", "..") or len(part) > NAME_CHARACTERS_MAX:
            text = f"{unquote(part)[:80]!r} is not a name that anything here has"
            raise Unusable(f"{text}: none has a slash, dots alone, or such a length.")


def _without_none(query: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values that are given; None if there are none, since an empty query would replace the one in the address."""
    return {name: value for name, value in query.items() if value is not None} or None


def _text_of(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refusal(answer: httpx.Response) -> CommandError:
    """The gateway's error as an exception; Unusable if another server answered."""
    try:
        return Refused(answer.status_code, answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = f"{unquote(str(answer.url))} answered {answer.status_code}, not as a gateway does: is the address right?"
        return Unusable(text)


def find_gateway(url: str | None) -> str:
    """The gateway's address without a path: `url`, else that of `make up` here, else DEFAULT_URL.

    Raises Unusable for an invalid address.
    """
    url = (url or _local_url() or DEFAULT_URL).rstrip("/").removesuffix("/v1")
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise Unusable(f"{url[:200]!r} is not an address: write it as in {DEFAULT_URL}.")
    return url


def find_key(url: str, key: str | None, key_file: Path | None) -> str:
    """The admin key: from the file, else `key`, else the key of `make up` here, which is for this machine only.

    Raises Unusable where there is none.
    """
    local = LOCAL_KEPT / "admin-key"
    if key_file is None and key is None and _is_here(url) and local.exists():
        key_file = local
    if key_file is not None:
        key = read_text(key_file, "The key file ")
    if key is None:
        raise Unusable(f"There is no admin key for {url}: give one with --key-file, or in {KEY_VARIABLE}.")
    if split_key(key.strip()) is None:
        raise Unusable("The key has not the form sk-app-…: take the one in the gateway's data folder, admin-key.")
    return key.strip()


def _trust(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        fault = error.strerror or "it holds no certificate in PEM"
        raise Unusable(f"The file of --ca, {ca_file}, can't be used: {fault}.") from error


def _local_url() -> str | None:
    """The address of the gateway of `make up`; None if none was ever started here.

    Raises Unusable for a file that does not have it.
    """
    file = LOCAL_KEPT / "apprentice.yaml"
    try:
        listen = (read_yaml(file.read_text(encoding="utf-8")) or {}).get("listen") or {}
        host, port = str(listen.get("host", "127.0.0.1")), listen.get("port", 8080)
    except OSError:
        return None
    except (UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        text = f"The gateway's address can't be read from {file}: fix it, or name the address with --gateway"
        raise Unusable(f"{text}. {error}.") from error
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _is_here(url: str) -> bool:
    """True if the address is of this machine. A key that was found here is sent to no other machine."""
    host = httpx.URL(url).host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


@contextmanager
def explain_os_error(text: str) -> Iterator[None]:
    """Raise Unusable with this text and the reason if a file can't be read or written."""
    try:
        yield
    except OSError as error:
        raise Unusable(f"{text}: {error.strerror}.") from error


@contextmanager
def write_whole(target: Path) -> Iterator[Path]:
    """The path to write to, which becomes `target` when the block ends: the file appears whole or not at all. What is
    not a plain file, such as /dev/stdout, is written itself."""
    if target.is_symlink() or (target.exists() and not target.is_file()):
        yield target
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        error.filename = error.filename or str(target)  # on a full disk there is none
        raise
    finally:
        partial.unlink(missing_ok=True)


def read_text(path: Path, kind: str = "") -> str:
    """A file's text: UTF-8, or what its byte order mark says, as of Excel and PowerShell. Raises Unusable.

    `kind` goes before its name in the error.
    """
    with explain_os_error(f"{kind}{path} can't be read"):
        data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        fault = f"{kind}{path} is not text in UTF-8: save it as such. The fault is on line {at}."
        raise Unusable(fault) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises Unusable."""
    with explain_os_error(f"{path} can't be read"):
        data = path.read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Unusable(f"{path} holds no JSON object.")
    return value


PUBLIC = re.compile(r"\b[a-z0-9]{12}\b")


class KeyNames:
    """Names of the existing keys. A revoked key is shown by its public part."""

    def __init__(self, client: AdminClient) -> None:
        """Read the names. Raises Unusable where nothing answers."""
        try:
            keys = client.get("/callers")["callers"]
        except Refused:
            keys = []
        self._names = {str(key["public"]): str(key["name"]) for key in keys}

    def within(self, text: str) -> str:
        """The text, with each key's name before its public part."""
        return PUBLIC.sub(lambda match: self._named(match[0]), text)

    def _named(self, public: str) -> str:
        name = self._names.get(public)
        return f"{name} ({public})" if name else public

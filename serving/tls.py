"""TLS: the certificates that we trust and our own. They are read at the start, and again when their files change."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from urllib.parse import urlsplit

import httpx

log = logging.getLogger(__name__)


class TlsError(Exception):
    """Certificates or keys can't be used; the message names the file."""


class NamedContext(ssl.SSLContext):
    """Verifies one name, whatever address is reached: discovered pods have no name of their own."""

    name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Do the same as ssl's method, which event loops call, with our name."""
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. If `ca_file` is set, only it is trusted, otherwise the system's authorities. `cert_file` and
    `key_file` are shown to peers that ask for a certificate (mTLS). The key is not encrypted. `server_name` is the name
    in the peer's certificate, if it differs from the address."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """The context for connections: certificates and host names are verified. Raises TlsError."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.server_name is not None:
                named = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
                named.name, named.verify_flags = self.server_name, context.verify_flags
                named.load_verify_locations(self.ca_file) if self.ca_file else named.load_default_certs()
                context = named
        except OSError as error:
            raise TlsError(f"The CA file {self.ca_file} can't be used: {error}.") from error
        if self.cert_file:
            self._show(context, self.cert_file)
        return context

    def make_listener_context(self) -> ssl.SSLContext:
        """The context of a listener, which shows the certificate. Raises TlsError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._show(context, self.cert_file or "")
        return context

    def _show(self, context: ssl.SSLContext, cert_file: str) -> None:
        try:
            context.load_cert_chain(cert_file, self.key_file, password=lambda: b"")
        except OSError as error:
            pair = f"{cert_file} with the key {self.key_file or cert_file}"
            raise TlsError(f"The certificate {pair} can't be used: {error}.") from error


class FreshContext:
    """A TLS context made of files, and made again after they change. If that fails, the last one stays."""

    def __init__(self, files: TlsFiles, make: Callable[[], ssl.SSLContext]) -> None:
        """Raises TlsError."""
        self._paths = [path for path in (files.ca_file, files.cert_file, files.key_file) if path]
        self._make = make
        self._stamps = self._read_stamps()  # first: a change meanwhile is seen the next time
        self.context = make()
        self._fault = ""
        self._lock = Lock()

    def renew(self) -> str:
        """Read the files again if they have changed. Returns why they can't be used, or an empty text. Blocks."""
        with self._lock:  # a job and a reload may come at once
            stamps, fault = self._read_stamps(), ""
            if stamps != self._stamps:
                try:
                    self.context, self._stamps = self._make(), stamps
                    log.info("certificates were read again: %s", ", ".join(self._paths))
                except TlsError as error:
                    fault = f"{error} The former certificate stays in use."
            if fault and fault != self._fault:
                log.error(fault)
            self._fault = fault
            return fault

    def follow_in_listener(self) -> ssl.SSLContext:
        """A context for a listener. Each new connection gets the present one."""
        first = self.context
        first.sni_callback = lambda connection, *_: setattr(connection, "context", self.context)
        return first

    def _read_stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp_of(path) for path in self._paths]


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    """Inode, size and time of a file, which show whether it has changed; None if they can't be read."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def origin_of(url: str) -> str:
    """The part of an address to which a connection is made: `https://host:443`."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def explain_certificate(url: str, files: TlsFiles | None) -> str:
    """Advice on an engine that closed a connection before it answered: it may refuse the certificate."""
    if not url.startswith("https://"):
        return ""
    if files is None or files.cert_file is None:
        return "If it asks for a certificate (mTLS), set tls.cert_file and tls.key_file of its pool."
    return f"If it asks for a certificate (mTLS), have it trust the authority of {files.cert_file}."


class Trust:
    """The TLS of each origin, for the present replicas."""

    def __init__(self, addresses: Callable[[], Iterable[tuple[str, TlsFiles | None]]]) -> None:
        """`addresses` gives each present replica's address, and its files (None: the system's trust is enough).

        Raises TlsError.
        """
        self._addresses = addresses
        files = {tls for _, tls in addresses() if tls is not None}
        self._contexts = {tls: FreshContext(tls, tls.context) for tls in files}

    @property
    def contexts(self) -> list[FreshContext]:
        """All contexts."""
        return list(self._contexts.values())

    def context_for(self, url: str) -> ssl.SSLContext | None:
        """The context for a connection to this address; None if the system's trust is enough."""
        fresh = self.find(url)
        return fresh.context if fresh else None

    def find(self, url: str) -> FreshContext | None:
        """The renewable context for this address; None as for `context_for`."""
        origin = origin_of(url)
        for address, tls in self._addresses():
            if tls is not None and origin_of(address) == origin:
                return self._contexts[tls]
        return None


class TrustingTransport(httpx.AsyncBaseTransport):
    """Transport of the control plane: each origin is reached with its own TLS."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for http://; the system's certificates take 20 ms to read
        self._plain = httpx.AsyncHTTPTransport(verify=nobody)
        self._others: dict[FreshContext | None, dict[ssl.SSLContext, httpx.AsyncHTTPTransport]] = {}
        """The last two transports of each context: answers of the former one may still be under way."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request by the transport of its origin."""
        if request.url.scheme != "https":
            return await self._plain.handle_async_request(request)
        fresh = self._trust.find(str(request.url))
        context, transports = fresh.context if fresh else self._system_tls, self._others.setdefault(fresh, {})
        transport = transports.get(context)
        if transport is None:
            transport = transports[context] = httpx.AsyncHTTPTransport(verify=context)
            if len(transports) > 2:
                await transports.pop(next(iter(transports))).aclose()
        return await transport.handle_async_request(request)

    @cached_property
    def _system_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._plain.aclose()
        for transports in self._others.values():
            for transport in transports.values():
                await transport.aclose()

"""Files over HTTP: read from any byte on; errors become the source's errors, with a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from serving.adapters.sources.source import BrokenOff, SourceError

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
REDIRECTS_MAX = 5
BUSY = frozenset({429, 500, 502, 503, 504})


def open_client(auth: httpx.Auth | None = None) -> httpx.Client:
    """A client that follows redirects, except those that leave TLS."""
    return httpx.Client(
        auth=auth,
        timeout=TIMEOUT,
        follow_redirects=True,
        max_redirects=REDIRECTS_MAX,
        event_hooks={"response": [_see_that_tls_stays]},
    )


def _see_that_tls_stays(answer: httpx.Response) -> None:
    following = answer.next_request
    if following is not None and answer.request.url.scheme == "https" and following.url.scheme != "https":
        raise SourceError(f"{answer.request.url.host} redirects to {following.url.host} without TLS: not followed.")


@contextmanager
def read_from(http: httpx.Client, url: str, begin: int, advice: str) -> Iterator[Iterator[bytes]]:
    """The bytes at an address from `begin` on. Raises SourceError and BrokenOff."""
    headers = {"accept-encoding": "identity"} | ({"range": f"bytes={begin}-"} if begin else {})
    with translate_errors(url), http.stream("GET", url, headers=headers) as answer:
        check(answer, advice)
        # Pieces as they arrive: larger ones would be lost if the connection breaks off.
        # A server that knows no ranges sends the whole file again.
        yield _skip(answer.iter_raw(), begin if begin and answer.status_code == httpx.codes.OK else 0)


def check(answer: httpx.Response, advice: str) -> httpx.Response:
    """The answer, if it succeeded. Raises SourceError, whose text ends in `advice`, and BrokenOff."""
    if answer.is_success:
        return answer
    host, status = answer.request.url.host, answer.status_code
    if status in BUSY:
        raise BrokenOff(f"{host} answers {status}")
    reason = {401: "wants other credentials", 403: "refuses access", 404: "has no such adapter"}.get(status, "")
    raise SourceError(f"{host} {reason or 'refuses the request'} ({status}): {advice}")


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn the errors of httpx into ours. Their texts are not repeated, since they may contain signed addresses."""
    try:
        yield
    except httpx.ConnectError as error:
        raise BrokenOff(f"{httpx.URL(url).host} can't be reached ({error})") from None
    except httpx.TooManyRedirects:
        raise SourceError(f"{httpx.URL(url).host} redirects more than {REDIRECTS_MAX} times.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BrokenOff(f"{httpx.URL(url).host} broke off ({type(error).__name__})") from None


def _skip(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if rest := piece[count:]:
            yield rest
        count = max(0, count - len(piece))

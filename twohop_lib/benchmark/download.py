"""Fetching one file over HTTP: bounded, resumable, checked."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

import twohop_lib
from twohop_lib.errors import TwohopError

MAX_BYTES = 50_000_000
TIMEOUT = httpx.Timeout(20.0)
#: Seconds to wait before each further try; a server that is busy may not be in a moment.
WAITS = (0.5, 2.0, 5.0)
_REDIRECTS = 5


class _Again(Exception):
    """A failure that another try may mend."""


def guard_public(url: str) -> None:
    """Refuse a URL that is not http(s), or whose host is in a private or local network.

    Raises:
        TwohopError: saying which.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TwohopError(f"{url} is not an http or https address; give one, or a file's path.")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TwohopError(
            f"{parts.hostname} cannot be found; check the address and the network."
        ) from error
    for *_, address in found:
        ip = ipaddress.ip_address(address[0].partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None) or ip
        if not mapped.is_global or mapped.is_multicast:
            raise TwohopError(
                f"{url} leads to a private or local address ({ip}); put the file into a folder."
            )


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    max_bytes: int = MAX_BYTES,
    guard: Callable[[str], None] | None = None,
) -> Path:
    """Fetch ``url`` to ``target``, going on where an earlier call was cut off.

    ``guard`` is called with the address and with that of every redirect, and may refuse it. What
    has come so far lies beside ``target``, and is used again only if the server says that it is
    still the same file.

    Raises:
        TwohopError: no network, not found, not allowed, too large, wrong checksum, or no room.
    """
    target = Path(target)
    partial = target.with_name(target.name + ".partial")
    for wait in (*WAITS, None):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch_once(url, partial, max_bytes, guard)
            break
        except _Again as error:
            if wait is None:
                raise TwohopError(f"{url} cannot be fetched ({error}); try again later.") from error
            time.sleep(wait)
        except OSError as error:
            raise TwohopError(f"{target} cannot be written ({error.strerror or error}).") from error
    if sha256 and file_sha256(partial) != sha256.lower():
        partial.unlink()
        raise TwohopError(f"{url} did not give the file that was expected (SHA-256 differs).")
    os.replace(partial, target)
    _mark(partial).unlink(missing_ok=True)
    return target


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _mark(partial: Path) -> Path:
    """Where the server's name for this state of the file (its ETag) is kept."""
    return partial.with_name(partial.name + ".etag")


def _fetch_once(
    url: str, partial: Path, max_bytes: int, guard: Callable[[str], None] | None
) -> None:
    # A packed reply could not be gone on with, and its size would not be known.
    headers = {"User-Agent": f"twohop/{twohop_lib.__version__}", "Accept-Encoding": "identity"}
    mark = _mark(partial)
    if partial.exists() and mark.exists():
        headers |= {"Range": f"bytes={partial.stat().st_size}-", "If-Range": mark.read_text()}
    try:
        with httpx.Client(timeout=TIMEOUT) as client, _open(client, url, headers, guard) as reply:
            if reply.status_code == 416:  # nothing is left to send, or the file has changed
                partial.unlink(missing_ok=True)
                raise _Again("the server refused the rest")
            _check_status(url, reply.status_code)
            etag = reply.headers.get("etag", "")
            mark.unlink(missing_ok=True)
            if etag and not etag.startswith("W/"):
                mark.write_text(etag)
            resumed = reply.status_code == 206
            _receive(url, reply, partial, max_bytes, resumed)
    except httpx.UnsupportedProtocol as error:
        raise TwohopError(f"{url} is not an http or https address; give one.") from error
    except httpx.HTTPError as error:
        raise _Again(str(error) or type(error).__name__) from error


@contextmanager
def _open(
    client: httpx.Client, url: str, headers: dict[str, str], guard: Callable[[str], None] | None
) -> Iterator[httpx.Response]:
    """A streamed reply, redirects followed by hand so that each address can be refused."""
    at = url
    for _ in range(_REDIRECTS + 1):
        if guard:
            guard(at)
        with client.stream("GET", at, headers=headers) as reply:
            if not reply.has_redirect_location:
                yield reply
                return
            at = urljoin(at, reply.headers["location"])
    raise TwohopError(f"{url} is redirected more than {_REDIRECTS} times; give another.")


def _check_status(url: str, status: int) -> None:
    if status in (401, 403):
        raise TwohopError(f"{url} may not be read ({status}); ask for access, or log in.")
    if status in (404, 410):
        raise TwohopError(f"{url} does not exist ({status}); correct the address.")
    if status == 429 or status >= 500:
        raise _Again(f"the server answered {status}")
    if status not in (200, 206):
        raise TwohopError(f"{url} cannot be fetched: the server answered {status}.")


def _receive(url: str, reply: httpx.Response, partial: Path, max_bytes: int, resumed: bool) -> None:
    size = partial.stat().st_size if resumed else 0
    length = int(reply.headers.get("content-length") or 0)
    too_large = TwohopError(f"{url} is larger than {max_bytes:,} bytes; make it smaller.")
    if size + length > max_bytes:
        raise too_large
    with partial.open("ab" if resumed else "wb") as out:
        # As it comes: of what a cut connection brought, nothing is to be lost.
        for chunk in reply.iter_raw():
            size += len(chunk)
            if size > max_bytes:
                out.close()
                partial.unlink()
                raise too_large
            out.write(chunk)

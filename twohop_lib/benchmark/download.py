"""Fetching one file over HTTP: bounded, resumable, checked."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies

import httpx

import twohop_lib
from twohop_lib.errors import TwohopError

MAX_BYTES = 50_000_000
TIMEOUT = httpx.Timeout(20.0)
#: Seconds that one reply may take from its first byte to its last.
MAX_SECONDS = 600
#: Seconds to wait before each further try; a server that is busy may not be in a moment.
WAITS = (0.5, 2.0, 5.0)
_REDIRECTS = 5
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class _Again(Exception):
    """A failure that another try may mend."""


def guard_public(url: str) -> None:
    """Refuse a URL that is not http(s), or whose host is in a private or local network.

    Raises:
        TwohopError: saying which.
    """
    no_address = TwohopError(f"{url} is not an http or https address; give one, or a file's path.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise no_address from error
    if parts.scheme not in ("http", "https") or not host:
        raise no_address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a name too long to be one is a UnicodeError
        raise TwohopError(f"{host} cannot be found; check the address and the network.") from error
    for *_, address in found:
        ip = ipaddress.ip_address(address[0].partition("%")[0])
        if not all(a.is_global and not a.is_multicast for a in _reached(ip)):
            raise TwohopError(
                f"{url} leads to a private or local address ({ip}); put the file into a folder."
            )


def _reached(ip: _IP) -> tuple[_IP, ...]:
    """An address, and the IPv4 address that is reached through it (mapped, NAT64, 6to4)."""
    if ip.version == 4:
        return (ip,)
    if ip.ipv4_mapped:  # Python 3.11 takes all of these for private, and later versions do not
        return (ip.ipv4_mapped,)
    if ip in _NAT64:
        return ip, ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return (ip, ip.sixtofour) if ip.sixtofour else (ip,)


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
            resumed = reply.status_code == 206
            if resumed and not _goes_on(reply, partial):
                partial.unlink(missing_ok=True)
                raise _Again("the server sent another part than the one asked for")
            if not resumed:
                # Emptied before it is marked: a mark says of what is there which file it is of.
                mark.unlink(missing_ok=True)
                partial.write_bytes(b"")
                etag = reply.headers.get("etag", "")
                if etag.isascii() and etag.isprintable() and etag and not etag.startswith("W/"):
                    mark.write_text(etag)
            _receive(url, reply, partial, max_bytes)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        # UnicodeError: a host's name that is too long to be one
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
        with client.stream("GET", at, headers=headers, extensions=_watched(guard)) as reply:
            if not reply.has_redirect_location:
                yield reply
                return
            try:
                at = urljoin(at, reply.headers["location"])
            except ValueError as error:
                raise TwohopError(f"{url} is redirected to what is no address.") from error
    raise TwohopError(f"{url} is redirected more than {_REDIRECTS} times; give another.")


def _watched(guard: Callable[[str], None] | None) -> dict[str, Any]:
    """Have the guard see where a connection leads, before anything is asked there.

    A name may lead elsewhere when it is looked up again. What a proxy connects to is not seen.
    """

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            ip, port = info["return_value"].get_extra_info("server_addr")[:2]
            guard(f"http://[{ip}]:{port}/" if ":" in ip else f"http://{ip}:{port}/")

    return {"trace": trace} if guard and not getproxies() else {}


def _check_status(url: str, status: int) -> None:
    if status in (401, 403):
        raise TwohopError(f"{url} may not be read ({status}); ask for access, or log in.")
    if status in (404, 410):
        raise TwohopError(f"{url} does not exist ({status}); correct the address.")
    if status == 429 or status >= 500:
        raise _Again(f"the server answered {status}")
    if status not in (200, 206):
        raise TwohopError(f"{url} cannot be fetched: the server answered {status}.")


def _goes_on(reply: httpx.Response, partial: Path) -> bool:
    """Whether a part begins where what has come so far ends."""
    begins = re.match(r"bytes (\d+)-", reply.headers.get("content-range", ""))
    return bool(begins) and partial.exists() and int(begins[1]) == partial.stat().st_size


def _receive(url: str, reply: httpx.Response, partial: Path, max_bytes: int) -> None:
    size = partial.stat().st_size
    stated = reply.headers.get("content-length", "")
    length = int(stated) if stated.isdecimal() else 0
    too_large = TwohopError(f"{url} is larger than {max_bytes:,} bytes; make it smaller.")
    if size + length > max_bytes:
        raise too_large
    until = time.monotonic() + MAX_SECONDS
    with partial.open("ab") as out:
        # As it comes: of what a cut connection brought, nothing is to be lost.
        for chunk in reply.iter_raw():
            size += len(chunk)
            if time.monotonic() > until:  # a byte now and then would never time out
                raise TwohopError(f"{url} takes more than {MAX_SECONDS:,} seconds; try later.")
            if size > max_bytes:
                out.close()
                partial.unlink()
                raise too_large
            out.write(chunk)

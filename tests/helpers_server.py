"""A small HTTP server on this machine, which can be told to behave badly."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """``files`` by path; ``faults`` by path, one per request: a status, "cut" or "too early"."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.ranges = True
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "test", ""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        it: Server = self.server.it  # type: ignore[attr-defined]
        path = self.path.split("?")[0]
        it.asked.append((path, self.headers.get("Range", "")))
        faults = it.faults.get(path) or []
        fault = faults.pop(0) if faults else None
        if path in it.redirects:
            self.send_response(302)
            self.send_header("Location", it.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if isinstance(fault, int) or path not in it.files:
            self.send_response(fault or 404)
            for name, value in it.headers.get(path, {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = it.files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        start = 0
        asked = self.headers.get("Range", "")
        if it.ranges and asked and self.headers.get("If-Range") == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-")) - (fault == "too early")
        self.send_response(206 if start else 200)
        if "ETag" not in it.headers.get(path, {}):
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in it.headers.get(path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            sent = content[start:]
            self.wfile.write(sent[: len(sent) // 2] if fault == "cut" else sent)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Serve until the block ends."""
    it = Server()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.it = it  # type: ignore[attr-defined]
    it.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield it
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

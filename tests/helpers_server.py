"""A small HTTP server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """``files`` and further ``headers`` by path; ``asked`` are the paths that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "test", ""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        it: Server = self.server.it  # type: ignore[attr-defined]
        path = self.path.split("?")[0]
        it.asked.append(path)
        content = it.files.get(path, b"")
        self.send_response(200 if path in it.files else 404)
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'} | it.headers.get(path, {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

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

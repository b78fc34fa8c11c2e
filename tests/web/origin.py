"""A small origin for browser tests: the package's JavaScript, an empty page, and naughty files.

It is not fanlight's server: it cuts connections, forgets Range, changes files, counts every byte.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEB = Path(__file__).parents[2] / "fanlight" / "web"
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'"
JAVASCRIPT = "text/javascript"
TYPES = {
    ".js": JAVASCRIPT,
    ".mjs": JAVASCRIPT,
    ".html": "text/html",
    ".wasm": "application/wasm",
}
BLOCK = 1 << 16


@dataclass
class Served:
    """A file of the origin. ``cuts``: the connection breaks after so many bytes, once for each.
    ``pause`` is waited for at byte ``pause_at``; before the headers where that is negative."""

    data: bytes
    etag: str = '"1"'
    ranges: bool = True
    status: int = 200
    cuts: list[int] = field(default_factory=list)
    pause: threading.Event | None = None
    pause_at: int = 0
    requests: list[str] = field(default_factory=list)
    sent: int = 0


class Origin:
    """``http://localhost:PORT``; files are at ``/files/NAME``."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        if path.startswith("/files/"):
            self._file(handler, self.files.get(path.removeprefix("/files/")))
            return
        isolated = path != "/plain"
        if path in ("/page", "/plain"):
            body, kind = b"<!doctype html><title>test</title>", "text/html"
        else:
            file = WEB / path.removeprefix("/fanlight/web/")
            if not file.resolve().is_relative_to(WEB) or not file.is_file():
                handler.send_error(404)
                return
            body, kind = file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream")
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Cache-Control", "no-store")
        handler.send_header("Content-Security-Policy", POLICY)
        if isolated:
            handler.send_header("Cross-Origin-Opener-Policy", "same-origin")
            handler.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        handler.end_headers()
        handler.wfile.write(body)

    def _file(self, handler: BaseHTTPRequestHandler, served: Served | None) -> None:
        if served is None or served.status != 200:
            handler.send_error(served.status if served else 404)
            return
        wanted = handler.headers.get("Range", "")
        served.requests.append(wanted)
        if served.pause and served.pause_at < 0:
            served.pause.wait(30)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if served.ranges else None
        if match and handler.headers.get("If-Range", served.etag) != served.etag:
            match = None
        data = served.data  # it may change meanwhile
        size = len(data)
        start = int(match[1]) if match else 0
        end = min(int(match[2]) + 1, size) if match and match[2] else size
        handler.send_response(206 if match else 200)
        if match:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        handler.send_header("Content-Length", str(end - start))
        handler.send_header("ETag", served.etag)
        handler.end_headers()
        cut = served.cuts.pop(0) if served.cuts else None
        try:
            for at in range(start, end, BLOCK):
                if served.pause and at >= served.pause_at:
                    served.pause.wait(30)
                if cut is not None and at - start >= cut:
                    time.sleep(0.3)  # the browser drops what it has not handed on by then
                    handler.close_connection = True
                    handler.connection.close()
                    return
                block = data[at : min(at + BLOCK, end)]
                handler.wfile.write(block)
                served.sent += len(block)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True

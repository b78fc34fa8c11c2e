"""A page of a folder in a browser with a GPU, on a machine that has Python and a browser alone."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

FLAGS = (
    *("--no-first-run", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-sandbox"),
)
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
}


class _Handler(SimpleHTTPRequestHandler):
    """Files with isolation; what the page posts."""

    result: dict[str, Any]
    done: threading.Event
    extensions_map = {  # noqa: RUF012 - the base class's own form
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".html": "text/html",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.send_response(204)
        self.end_headers()
        if self.path == "/log":
            print(body, flush=True)
        else:
            self.result.update(json.loads(body))
            self.done.set()

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        pass

    def log_error(self, *args: Any) -> None:
        pass


def visit(
    folder: Path, page: str, chrome: str, query: dict[str, str], flags: list[str], limit: float
) -> Any:
    """Serves ``folder``, opens its ``page``; what it posts to ``/done``, its lines to ``/log``
    printed as they come. Raises SystemExit after ``limit`` seconds."""
    _Handler.result, _Handler.done = {}, threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{page}?{urlencode(query)}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile, "chrome.log")
        with log.open("wb") as output:
            command = [chrome, *FLAGS, f"--user-data-dir={profile}", *flags, url]
            browser = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                ended = _Handler.done.wait(limit)
            finally:
                browser.terminate()
                browser.wait(20)
                server.shutdown()
        if not ended:
            raise SystemExit(
                f"no answer in {limit:.0f} s\n{log.read_text(errors='replace')[-3000:]}"
            )
    return _Handler.result

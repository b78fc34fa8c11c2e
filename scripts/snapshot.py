"""Makes what lets Python start at once in a page: ``fanlight/web/vendor/python/ID/``.

    fanlight.zip     the package as bytecode, made by Pyodide's own Python
    jspi.gz          memory of a Python that has imported all of it; of browsers that have JSPI
    plain.gz         of those that have not

ID is the hash of the package's sources and of the forms of all this, so nothing that doesn't fit
can be served. In: what ``scripts/vendor.py`` made, and a Chromium. Called by ``scripts/setup`` and
by the build of a wheel; quick when nothing has changed. The standard library only.

    python scripts/snapshot.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import vendor

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "fanlight" / "web"
PAGE = b'<!doctype html><script type="module" src="/snapshot_worker.js"></script>'
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
TIMEOUT_S = 240


class SnapshotError(Exception):
    """There is no Chromium, or Python failed in it."""


def main() -> None:
    """Prints one line when something was done."""
    try:
        if make():
            print("made Python's snapshots")
    except SnapshotError as error:
        sys.exit(f"snapshot: {error}")


def make() -> bool:
    """True if the snapshots were made anew. Older ones are removed. Raises SnapshotError."""
    package = vendor.VENDOR / "fanlight.zip"
    vendor.bundle.build_python_zip(package)
    made = vendor.bundle.python_id(package.read_bytes())
    folder = vendor.VENDOR / "python"
    if (folder / made).is_dir():
        return False
    fresh = folder.with_name(f"python.{os.getpid()}.partial")
    fresh.mkdir()
    try:
        fill(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.replace(fresh, folder / made)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    vendor.write_bundle()
    return True


def fill(folder: Path) -> None:
    """Makes the three files in ``folder``. Raises SnapshotError."""
    program, flags = _chromium()
    with tempfile.TemporaryDirectory(
        prefix="fanlight-snapshot-", ignore_cleanup_errors=True
    ) as profile:
        _run([program, *flags, "--headless=new", f"--user-data-dir={profile}"], folder)


def _chromium() -> tuple[str, list[str]]:
    sys.path.insert(0, str(ROOT))  # fanlight may not be installed yet
    from fanlight.runtime import chromium

    program = chromium.find()
    if program is None:
        raise SnapshotError("no Chromium was found")
    sandbox = not hasattr(os, "geteuid") or os.geteuid() != 0
    return str(program), chromium.flags("none", sandbox=sandbox)


def _run(command: list[str], folder: Path) -> None:
    with _serving(folder) as (base, done, failures):
        browser = subprocess.Popen(
            [*command, base], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            if not done.wait(TIMEOUT_S):
                raise SnapshotError(f"the browser took longer than {TIMEOUT_S} s")
        finally:
            browser.terminate()
            browser.wait()
    if failures:
        raise SnapshotError(f"the browser failed: {failures[0]}")


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, threading.Event, list[str]]]:
    """The page's address; set when the page has done; what went wrong in it."""
    done, failures = threading.Event(), list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, kind = _found(self.path, folder)
            self._reply(404 if body is None else 200, body or b"", kind)

        def do_POST(self) -> None:
            name = self.path.removeprefix("/out/")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if name == "done":
                done.set()
            elif name == "failed":
                failures.append(body.decode())
            elif "/" not in name:
                (folder / name).write_bytes(body)
            self._reply(200, b"", "text/plain")

        def _reply(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", done, failures
    finally:
        server.shutdown()
        server.server_close()


def _found(path: str, folder: Path) -> tuple[bytes | None, str]:
    if path == "/":
        return PAGE, "text/html"
    name = path.removeprefix("/")
    file = WEB / name
    if name == "snapshot_worker.js":
        file = ROOT / "scripts" / name
    elif name.startswith("out/"):
        file = folder / name.removeprefix("out/")
    kind = TYPES.get(file.suffix, "application/octet-stream")
    return (file.read_bytes() if file.is_file() else None), kind


if __name__ == "__main__":
    main()

"""Downloads a URL into the cache folder, once: resumable, never half-written.

Layout (version 1): ``ROOT/v1/<sha256 of the URL>/`` with ``index.json`` (layout, url, size, etag)
and ``data``; a download in progress is ``data.part`` and becomes ``data`` by one rename. ``lock``
is held meanwhile. Later visits ask the network nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from fanlight.errors import StoreError
from fanlight.runtime.session import Progress, ProgressCallback

LAYOUT = 1
_CHUNK = 1 << 20
_PAUSES_S = (0.2, 1.0, 3.0)  # before the attempts after one that brought nothing new
_POLL_S = 0.1
_TIMEOUT_S = 30

Report = Callable[[int, int], None]  # done, total


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/fanlight/store`` (``~/.cache`` by default)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fanlight" / "store"


async def fetch(
    url: str, progress: ProgressCallback | None = None, root: Path | None = None
) -> Path:
    """The local path of ``url``'s content. Raises StoreError; what has landed is kept for the next
    try."""
    folder = (root or cache_root()) / f"v{LAYOUT}" / hashlib.sha256(url.encode()).hexdigest()
    data = folder / "data"
    if data.exists():
        return data
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        if progress is not None:
            loop.call_soon_threadsafe(progress, Progress("download", done, total))

    stop = threading.Event()
    try:
        await asyncio.to_thread(_download, url, folder, report, stop)
    except asyncio.CancelledError:
        stop.set()
        raise
    return data


def _download(url: str, folder: Path, report: Report, stop: threading.Event) -> None:
    """Until ``folder/data`` is there, or stopped."""
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, stop):
        if (folder / "data").exists():  # another's download
            return
        most, idle = _size(folder / "data.part"), 0
        while not stop.is_set():
            try:
                if _attempt(url, folder, report, stop):
                    with _disk(folder):
                        os.replace(folder / "data.part", folder / "data")
                return
            except urllib.error.HTTPError as error:
                error.close()
                wrong = error.code in (401, 403, 404, 410)
                hint = "Check the address." if wrong else "Try again later."
                what = f"the server answered {error.code}"
                raise StoreError(what, where=url, hint=hint) from error
            except (OSError, HTTPException) as error:
                kept = _size(folder / "data.part")
                most, idle = max(most, kept), 0 if kept > most else idle + 1
                if idle > len(_PAUSES_S):
                    raise StoreError(
                        f"the network was lost ({error}); {kept / 1e6:.1f} MB are kept",
                        where=url,
                        hint="Run it again to go on from there.",
                    ) from error
                if idle:
                    stop.wait(_PAUSES_S[idle - 1])


def _attempt(url: str, folder: Path, report: Report, stop: threading.Event) -> bool:
    """One connection. True when the file is whole, False when stopped."""
    part, index = folder / "data.part", folder / "index.json"
    size, etag = _read_index(index)
    have = _size(part) if etag else 0
    if have and have == size:
        return True  # whole, but stopped before the rename
    if have > size > 0:
        have = 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", etag)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        have, total = _span(response, have)
        entry = {"layout": LAYOUT, "url": url, "size": total, "etag": response.headers.get("ETag")}
        with _disk(folder):
            if not have:
                part.unlink(missing_ok=True)  # the index never tells of other bytes
            index.write_text(json.dumps(entry))
        return _copy(response, part, have, total, report, stop)


def _span(response: HTTPResponse, asked: int) -> tuple[int, int]:
    """(offset at which the body begins, size of the file; 0 if unknown)."""
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not span or int(span[1]) != asked:
            got = response.headers.get("Content-Range")
            raise StoreError("the server sent another part than asked for", got=got, wanted=asked)
        if span[2] != "*":
            return asked, int(span[2])
        return asked, 0
    return 0, int(response.headers.get("Content-Length") or 0)


def _copy(
    response: HTTPResponse,
    part: Path,
    have: int,
    total: int,
    report: Report,
    stop: threading.Event,
) -> bool:
    with _disk(part.parent):
        out = part.open("ab", buffering=0)
    with out:
        while chunk := response.read1(_CHUNK):
            view = memoryview(chunk)
            with _disk(part.parent):
                while view:
                    view = view[out.write(view) :]
            have += len(chunk)
            if stop.is_set():
                return False
            report(have, max(have, total))
    if total and have != total:
        raise ConnectionError(f"{have} of {total} bytes came")
    return True


def _read_index(index: Path) -> tuple[int, str]:
    """Size and ETag of the part; 0 and "" where nothing is known."""
    try:
        known = json.loads(index.read_text())
        return int(known["size"]), str(known["etag"] or "")
    except (OSError, ValueError, KeyError, TypeError):  # none, or cut in the middle
        return 0, ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Errors of the disk, apart from the network's."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"can't write the download: {error.strerror}",
            where=str(folder),
            hint="Free some space or make the folder writable; what has landed is kept.",
        ) from error


@contextmanager
def _alone(folder: Path, stop: threading.Event) -> Iterator[None]:
    """One download of a URL at a time, over all processes (on Windows: not held)."""
    with _disk(folder):
        lock = (folder / "lock").open("ab")
    with lock:
        if sys.platform != "win32":
            import fcntl

            while not stop.is_set():
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    stop.wait(_POLL_S)
        yield

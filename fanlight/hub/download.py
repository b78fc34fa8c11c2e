"""Downloads a URL into the cache folder, once: resumable, never half-written.

Layout (version 1): ``ROOT/v1/<sha256 of the URL>/`` with ``index.json`` (layout, url, size, etag)
and ``data``; a download in progress is ``data.part`` and becomes ``data`` by one rename. Later
visits ask the network nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from fanlight.errors import StoreError
from fanlight.runtime.session import Progress, ProgressCallback

LAYOUT = 1
_CHUNK = 1 << 20
_RETRIES = 3
_TIMEOUT_S = 30


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

    stop = _Stop()
    try:
        await asyncio.to_thread(_download, url, folder, report, stop)
    except asyncio.CancelledError:
        stop.set = True
        raise
    return data


class _Stop:
    set = False


def _download(url: str, folder: Path, report: Any, stop: _Stop) -> None:
    part, last = folder / "data.part", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"can't make the cache folder: {error.strerror}", where=str(folder)
        ) from error
    for _ in range(_RETRIES):
        try:
            if _attempt(url, folder, report, stop):
                os.replace(part, folder / "data")
            return
        except urllib.error.HTTPError as error:
            hint = "Check the address." if error.code in (403, 404) else "Try again later."
            raise StoreError(f"the server answered {error.code}", where=url, hint=hint) from error
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            last = error
        except OSError as error:
            raise StoreError(
                f"can't write the download: {error.strerror}",
                where=str(folder),
                hint="Free some space, then run it again: what has landed is kept.",
            ) from error
    kept = part.stat().st_size if part.exists() else 0
    raise StoreError(
        f"the network was lost ({last}); {kept / 1e6:.1f} MB are kept",
        where=url,
        hint="Run it again to go on from there.",
    ) from last


def _attempt(url: str, folder: Path, report: Any, stop: _Stop) -> bool:
    """One connection. True when the file is whole, False when stopped."""
    part, index = folder / "data.part", folder / "index.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    have = part.stat().st_size if part.exists() and known.get("etag") else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known["etag"])
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        etag = response.headers.get("ETag", "")
        index.write_text(json.dumps({"layout": LAYOUT, "url": url, "size": total, "etag": etag}))
        return _copy(response, part, have, total, report, stop)


def _copy(
    response: HTTPResponse, part: Path, have: int, total: int, report: Any, stop: _Stop
) -> bool:
    with part.open("r+b" if have else "wb") as out:
        out.seek(have)
        out.truncate()
        while chunk := response.read(_CHUNK):
            out.write(chunk)
            have += len(chunk)
            report(have, total)
            if stop.set:
                return False
    if total and have != total:
        raise ConnectionError(f"{have} of {total} bytes came")
    return True

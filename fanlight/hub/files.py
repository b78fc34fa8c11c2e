"""Model files in CPython: read in spans, streamed in chunks, never held whole.

In: a path or an http(s) URL. Out: a ``ModelFile``. URLs are downloaded first (``download.py``). In
the page the executor's worker holds the files instead (``runtime/pyodide.py``).
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from fanlight.errors import StoreError
from fanlight.runtime.session import File

CHUNK = 4 << 20


class ModelFile(File, Protocol):
    """A file of a model, wherever it lives."""

    @property
    def name(self) -> str:
        """For messages: a path or a URL."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end of the file. Raises
        StoreError."""
        ...


class LocalFile:
    """A file on disk, open until it is closed or dropped. Raises StoreError when it can't be opened
    or read."""

    def __init__(self, path: Path) -> None:
        self.path = path = path.expanduser()
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise _cannot_open(path, error.strerror) from error
        self._close = weakref.finalize(self, os.close, self._file)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise _cannot_open(path, "it is a folder or a device")
        self.size = status.st_size

    @property
    def name(self) -> str:
        return str(self.path)

    async def read(self, offset: int, length: int) -> bytes:
        try:
            return await asyncio.to_thread(self._read, offset, length)
        except OSError as error:
            raise StoreError(f"can't read: {error.strerror}", where=self.name) from error

    def _read(self, offset: int, length: int) -> bytes:
        with self._lock:
            if not self._close.alive:
                raise StoreError("the file was closed", where=self.name)
            os.lseek(self._file, offset, os.SEEK_SET)
            parts, left = [], length
            while left > 0 and (part := os.read(self._file, left)):  # Linux gives 2 GiB at most
                parts.append(part)
                left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        end = offset + length
        while offset < end:
            chunk = await self.read(offset, min(CHUNK, end - offset))
            if not chunk:
                raise StoreError("the file ended early", where=self.name, got=offset, wanted=end)
            offset += len(chunk)
            yield chunk

    def close(self) -> None:
        """Safe to call twice, and while a read is under way."""
        with self._lock:
            self._close()


def _cannot_open(path: Path, reason: str | None) -> StoreError:
    return StoreError(f"can't open the file: {reason}", where=str(path), hint="Check the path.")

"""Model files in CPython: read in spans, streamed in chunks, never held whole.

In: a path or an http(s) URL. Out: a ``ModelFile``. URLs are downloaded first (``download.py``). In
the page the executor's worker holds the files instead (``runtime/pyodide.py``).
"""

from __future__ import annotations

import asyncio
import os
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
    """A file on disk. Raises StoreError when it can't be opened or read."""

    def __init__(self, path: Path) -> None:
        self.path = path = path.expanduser()
        try:
            self._file = os.open(path, os.O_RDONLY)
            status = os.fstat(self._file)
        except OSError as error:
            raise StoreError(
                f"can't open the file: {error.strerror}", where=str(path), hint="Check the path."
            ) from error
        self.size = status.st_size

    @property
    def name(self) -> str:
        return str(self.path)

    async def read(self, offset: int, length: int) -> bytes:
        try:
            return await asyncio.to_thread(os.pread, self._file, length, offset)
        except OSError as error:
            raise StoreError(f"can't read: {error.strerror}", where=self.name) from error

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        end = offset + length
        while offset < end:
            chunk = await self.read(offset, min(CHUNK, end - offset))
            if not chunk:
                raise StoreError("the file ended early", where=self.name, got=offset, wanted=end)
            offset += len(chunk)
            yield chunk

    def close(self) -> None:
        os.close(self._file)

"""The files of a model: the main one, and those of external data beside it.

In: a path or URL, or the main file's bytes. Out: files to read spans of and to stream from. In the
page the executor's worker holds them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import quote, urljoin

from fanlight.errors import InputError, StoreError, TruncatedError
from fanlight.hub.files import ModelFile
from fanlight.ir.graph import Module
from fanlight.pipelines import open_model
from fanlight.runtime.session import File, ProgressCallback


class ModelFiles:
    """An async context manager that closes what was opened. ``main``: the model's own file, whose
    name in weights is ""."""

    main: ModelFile

    def __init__(self, model: Any, progress: ProgressCallback | None = None) -> None:
        if not isinstance(model, (str, Path, bytes, bytearray, memoryview)):
            got = type(model).__name__
            raise InputError("not a model", got=got, wanted="a path, a URL or bytes")
        self._model, self._progress = model, progress
        self._opened: dict[str, ModelFile] = {}

    async def __aenter__(self) -> Self:
        if isinstance(self._model, (str, Path)):
            self.main = await open_model(str(self._model), self._progress)
        else:
            self.main = await _in_memory(bytes(self._model))
        self._opened[""] = self.main
        return self

    async def __aexit__(self, *error: object) -> None:
        for file in self._opened.values():
            await _close(file)

    async def open(self, name: str) -> ModelFile:
        """A file of the model, by its name in weights. Raises StoreError."""
        if name not in self._opened:
            self._opened[name] = await open_model(self._beside(name), self._progress)
        return self._opened[name]

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes of a file. Raises StoreError, TruncatedError."""
        file = await self.open(name)
        data = await file.read(offset, length)
        if len(data) != length:
            end = offset + length
            raise TruncatedError("the file ends early", where=file.name, got=file.size, wanted=end)
        return data

    async def all_of(self, module: Module) -> dict[str, File]:
        """The files of a module's weights."""
        names = {w.file for w in module.weights.values() if w.data is None}
        return {name: await self.open(name) for name in sorted(names)}

    def _beside(self, name: str) -> str:
        """``name`` in the main file's folder; the format's reader has refused to leave it."""
        named = isinstance(self._model, (str, Path))
        if not named or (sys.platform == "emscripten" and "://" not in str(self._model)):
            raise StoreError(
                "external data beside bytes",
                got=name,
                hint="Give the model's path or URL, so that its other files can be found.",
            )
        model = str(self._model)
        if sys.platform == "emscripten" or model.startswith(("http://", "https://")):
            return urljoin(model, quote(name))
        return str(Path(model).parent / PurePosixPath(name))


async def _in_memory(data: bytes) -> ModelFile:
    if sys.platform == "emscripten":
        from fanlight.runtime import pyodide

        return await pyodide.open_bytes(data)
    return _Memory(data)


async def _close(file: ModelFile) -> None:
    if sys.platform == "emscripten":
        from fanlight.runtime import pyodide

        assert isinstance(file, pyodide.RemoteFile)
        await file.close()
    else:
        file.close()  # type: ignore[attr-defined]


class _Memory:
    """A file of bytes that are here already."""

    name = "the model's bytes"

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    async def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    async def stream(self, offset: int, length: int) -> AsyncIterator[memoryview]:
        yield memoryview(self._data)[offset : offset + length]

    def close(self) -> None:
        self._data = b""

"""Model files on disk: what can't be opened, what ends early, closing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fanlight.errors import StoreError
from fanlight.hub import files
from fanlight.hub.files import LocalFile

DATA = bytes(range(256)) * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(DATA)
    return path


async def test_read_and_stream(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 100)
    file = LocalFile(path)
    assert file.size == len(DATA) and file.name == str(path)
    assert await file.read(10, 20) == DATA[10:30]
    assert await file.read(len(DATA) - 3, 20) == DATA[-3:]
    assert await file.read(len(DATA), 20) == b""
    chunks = [chunk async for chunk in file.stream(5, 950)]
    assert b"".join(chunks) == DATA[5:955]
    assert max(map(len, chunks)) == 100
    file.close()


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No such file.*Check the path"):
        LocalFile(tmp_path / "none")
    with pytest.raises(StoreError, match="folder"):
        LocalFile(tmp_path)


async def test_truncated_while_streaming(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 100)
    stream = LocalFile(path).stream(0, len(DATA))
    assert await anext(stream) == DATA[:100]
    with path.open("r+b") as out:
        out.truncate(150)
    assert await anext(stream) == DATA[100:150]
    with pytest.raises(StoreError, match=r"ended early.*got 150, wanted 1024"):
        await anext(stream)


async def test_closed(path: Path) -> None:
    """Its number may be another file's by then."""
    file = LocalFile(path)
    file.close()
    file.close()
    with pytest.raises(StoreError, match="closed"):
        await file.read(0, 1)

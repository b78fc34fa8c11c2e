"""Downloads from a real server on this machine, whose connections break where a test says."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.server
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fanlight.errors import StoreError
from fanlight.hub import download
from fanlight.pipelines import open_model
from fanlight.runtime.session import Progress

DATA = hashlib.shake_128(b"fanlight").digest(300_000)
OTHER = DATA[::-1]


@dataclass
class Site:
    """What the server has and how it behaves. ``cuts``: bytes after which the next connections
    break; ``requests``: the headers that came."""

    url: str = ""
    data: bytes = DATA
    etag: str = '"one"'
    ranges: bool = True
    length: bool = True
    status: int = 200
    shift: int = 0
    cuts: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    requests: list[dict[str, str]] = field(default_factory=list)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        headers = {k.lower(): v for k, v in handler.headers.items()}
        self.requests.append(headers)
        if self.status != 200:
            handler.send_error(self.status)
            return
        at = 0
        if self.ranges and "range" in headers and headers.get("if-range") == self.etag:
            at = int(headers["range"].removeprefix("bytes=").removesuffix("-")) + self.shift
        if at > 0 and at >= len(self.data):
            handler.send_error(416)
            return
        handler.send_response(206 if at else 200)
        if at:
            span = f"bytes {at}-{len(self.data) - 1}/{len(self.data)}"
            handler.send_header("Content-Range", span)
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.length:
            handler.send_header("Content-Length", str(len(self.data) - at))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        body = self.data[at:] if cut is None else self.data[at : at + cut]
        half = len(body) // 2 if self.hold else 0
        handler.wfile.write(body[:half])
        if self.hold:
            self.hold.wait(10)
        handler.wfile.write(body[half:])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "_PAUSES_S", (0.0, 0.0))
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                site.answer(self)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        site.url = f"http://127.0.0.1:{server.server_port}/model.gguf"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        if site.hold:
            site.hold.set()
        server.shutdown()
        thread.join()


def part_of(root: Path) -> Path:
    (folder,) = (root / "v1").iterdir()
    return folder / "data.part"


async def test_plain_then_nothing(site: Site, tmp_path: Path) -> None:
    """The second fetch asks the network nothing; progress ends at the total."""
    events: list[Progress] = []
    path = await download.fetch(site.url, events.append, tmp_path)
    assert path.read_bytes() == DATA
    assert all(e.stage == "download" and e.total == len(DATA) for e in events)
    assert [e.done for e in events] == sorted({e.done for e in events})
    assert events[-1].done == len(DATA)
    assert not part_of(tmp_path).exists()
    assert await download.fetch(site.url, events.append, tmp_path) == path
    assert len(site.requests) == 1


async def test_open_model_of_a_url(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = await open_model(site.url)
    assert file.size == len(DATA) and await file.read(7, 5) == DATA[7:12]


async def test_resumes_after_cuts(site: Site, tmp_path: Path) -> None:
    """Any number of cuts, as long as each connection brings something."""
    site.cuts = [1000, 50_000, 1, 2, 3, 4, 5, 6]
    events: list[Progress] = []
    path = await download.fetch(site.url, events.append, tmp_path)
    assert path.read_bytes() == DATA
    assert [r.get("range") for r in site.requests[:3]] == [None, "bytes=1000-", "bytes=51000-"]
    assert site.requests[1]["if-range"] == '"one"'
    assert len(site.requests) == 9
    assert {e.total for e in events} == {len(DATA)}


async def test_lost_network_keeps_the_part(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000, 0, 0, 0]
    with pytest.raises(StoreError, match=r"network was lost.*0\.1 MB are kept.*go on from there"):
        await download.fetch(site.url, root=tmp_path)
    assert part_of(tmp_path).read_bytes() == DATA[:100_000]
    path = await download.fetch(site.url, root=tmp_path)
    assert path.read_bytes() == DATA
    assert site.requests[-1]["range"] == "bytes=100000-"


async def test_a_changed_file_starts_again(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000, 0, 0, 0]
    with pytest.raises(StoreError):
        await download.fetch(site.url, root=tmp_path)
    site.data, site.etag, site.cuts = OTHER, '"two"', [1000]
    path = await download.fetch(site.url, root=tmp_path)
    assert path.read_bytes() == OTHER
    assert site.requests[-1] | {"range": "bytes=1000-", "if-range": '"two"'} == site.requests[-1]


@pytest.mark.parametrize("lacking", ["ranges", "etag"])
async def test_servers_that_can_not_resume(site: Site, tmp_path: Path, lacking: str) -> None:
    setattr(site, lacking, "" if lacking == "etag" else False)
    site.cuts = [1000]
    path = await download.fetch(site.url, root=tmp_path)
    assert path.read_bytes() == DATA
    assert ("range" in site.requests[1]) == (lacking == "ranges")


async def test_without_a_length(site: Site, tmp_path: Path) -> None:
    site.length = False
    events: list[Progress] = []
    path = await download.fetch(site.url, events.append, tmp_path)
    assert path.read_bytes() == DATA
    assert all(e.done <= e.total for e in events) and events[-1].done == len(DATA)


async def test_another_part_than_asked_for(site: Site, tmp_path: Path) -> None:
    site.cuts, site.shift = [1000], 8
    with pytest.raises(StoreError, match="another part"):
        await download.fetch(site.url, root=tmp_path)


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "Check the address"), (403, "Check"), (500, "Try again later")]
)
async def test_refusals(site: Site, tmp_path: Path, status: int, hint: str) -> None:
    site.status = status
    with pytest.raises(StoreError, match=f"the server answered {status}.*{hint}") as caught:
        await download.fetch(site.url, root=tmp_path)
    assert caught.value.where == site.url


async def test_nobody_listens(site: Site, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"network was lost.*0\.0 MB"):
        await download.fetch("http://127.0.0.1:1/model.gguf", root=tmp_path)


async def test_cancelling_keeps_the_part(site: Site, tmp_path: Path) -> None:
    site.hold, began = threading.Event(), asyncio.Event()
    site.cuts = [200_000]
    work = asyncio.create_task(
        download.fetch(site.url, lambda event: began.set(), tmp_path), name="fetch"
    )
    await began.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    again = asyncio.create_task(download.fetch(site.url, root=tmp_path))  # waits for the first
    await asyncio.sleep(0.05)
    site.hold.set()
    assert (await again).read_bytes() == DATA
    assert len(site.requests) == 2
    assert 100_000 <= int(site.requests[1]["range"][6:-1]) <= 200_000


async def test_a_whole_part_needs_no_network(site: Site, tmp_path: Path) -> None:
    """Killed between the last byte and the rename."""
    path = await download.fetch(site.url, root=tmp_path)
    path.rename(path.with_name("data.part"))
    assert (await download.fetch(site.url, root=tmp_path)).read_bytes() == DATA
    assert len(site.requests) == 1


async def test_a_broken_index_starts_again(site: Site, tmp_path: Path) -> None:
    path = await download.fetch(site.url, root=tmp_path)
    path.rename(path.with_name("data.part"))
    path.with_name("index.json").write_text('{"layout": 1, "si')
    assert (await download.fetch(site.url, root=tmp_path)).read_bytes() == DATA
    assert "range" not in site.requests[1]


async def test_two_at_once_download_once(site: Site, tmp_path: Path) -> None:
    paths = await asyncio.gather(*(download.fetch(site.url, root=tmp_path) for _ in range(4)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == DATA
    assert len(site.requests) == 1


async def test_no_folder(site: Site, tmp_path: Path) -> None:
    """A file where the folder should be: root may write anywhere, so a mode bit proves nothing."""
    (tmp_path / "v1").write_text("")
    with pytest.raises(StoreError, match="can't write the download"):
        await download.fetch(site.url, root=tmp_path)
    assert not site.requests


async def test_full_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 150_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:777])  # the kernel may take less, too

    usual = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        full = self.name == "data.part"
        return Full(str(self), "ab") if full else usual(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(StoreError, match=r"No space left.*what has landed is kept"):
            await download.fetch(site.url, root=tmp_path)
    kept = part_of(tmp_path).stat().st_size
    assert (await download.fetch(site.url, root=tmp_path)).read_bytes() == DATA
    assert site.requests[-1].get("range") == (f"bytes={kept}-" if kept else None)

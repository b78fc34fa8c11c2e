"""The store in Chromium: what is downloaded, what is kept, what a visitor is told."""

from __future__ import annotations

import random
import threading
import uuid
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.web.conftest import start
from tests.web.origin import Origin, Served

pytestmark = pytest.mark.browser
MB = 1 << 20
CHUNK = 2 * MB

OPEN = """async ({url, offset, length}) => {
  const events = [];
  const onProgress = (event) => events.push(event);
  const file = await executor.request('open', { source: url }, { onProgress });
  window.file = file.file;
  const part = length ? await executor.request('read', { file: file.file, offset, length }) : [];
  const stats = await executor.request('wait', { file: file.file }, { onProgress });
  return { ...file, part: hex(part), stats, events };
}"""


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def served(origin: Origin) -> tuple[str, Served]:
    """A file of 10 MB and a bit, under a name of its own."""
    name = f"{uuid.uuid4().hex}.bin"
    origin.files[name] = Served(content(10 * MB + 123))
    return f"{origin.base}/files/{name}", origin.files[name]


def starts(file: Served) -> list[int]:
    """The first byte of each request."""
    return [int(r.removeprefix("bytes=").partition("-")[0] or 0) for r in file.requests]


def visit(page: Page, url: str, offset: int = 0, length: int = 0) -> Any:
    return page.evaluate(OPEN, {"url": url, "offset": offset, "length": length})


def failure(page: Page, url: str) -> Any:
    return page.evaluate(
        f"(url) => outcome(({OPEN})({{url, offset: 0, length: 0}}))",
        url,
    )


def test_second_visit_asks_the_network_nothing(
    page: Page, context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    first = visit(page, url, CHUNK - 5, 10)
    assert first["size"] == len(file.data)
    assert first["part"] == file.data[CHUNK - 5 : CHUNK + 5].hex()
    assert first["stats"]["network_bytes"] == len(file.data)
    assert first["events"][-1] == {
        "stage": "download",
        "done": len(file.data),
        "total": len(file.data),
    }
    requests = len(file.requests)
    other = start(context, f"{origin.base}/page")
    second = visit(other, url, 10 * MB, 123)
    other.close()
    assert second["part"] == file.data[10 * MB :].hex()
    assert second["stats"]["network_bytes"] == 0
    assert second["stats"]["cache_bytes"] == 123
    assert second["identity"] == first["identity"]
    assert len(file.requests) == requests


def test_a_cut_visit_is_resumed(
    page: Page, context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    file.pause, file.pause_at = threading.Event(), 9 * MB
    reading = """async (url) => {
      const { file } = await executor.request('open', { source: url });
      const part = await executor.request('read', { file, offset: 7 * 2 ** 20, length: 16 });
      return hex(part);
    }"""
    # What has landed is read although the rest has not come.
    assert page.evaluate(reading, url) == file.data[7 * MB : 7 * MB + 16].hex()
    page.close()
    file.pause.set()
    file.pause, file.sent = None, 0
    file.requests.clear()
    other = start(context, f"{origin.base}/page")
    again = visit(other, url, 0, 16)
    other.close()
    assert again["part"] == file.data[:16].hex()
    assert starts(file) == [4 * CHUNK]
    assert again["stats"]["network_bytes"] == len(file.data) - 4 * CHUNK


def test_missing_file(page: Page, origin: Origin) -> None:
    url = f"{origin.base}/files/nothing-here"
    error = failure(page, url)
    assert error["code"] == "StoreError"
    assert url in error["message"] and "404" in error["message"] and "Check" in error["message"]


def test_cut_connection_goes_on_by_itself(page: Page, served: tuple[str, Served]) -> None:
    url, file = served
    file.cuts = [5 * MB, 2 * MB]
    seen = visit(page, url, 6 * MB, 4)
    assert seen["part"] == file.data[6 * MB : 6 * MB + 4].hex()
    assert starts(file)[:2] == [0, 2 * CHUNK]


def test_lost_network_says_what_is_kept(page: Page, served: tuple[str, Served]) -> None:
    url, file = served
    file.cuts = [5 * MB] + [0] * 20
    error = failure(page, url)
    assert error["code"] == "StoreError" and "Kept 4 MB; reload to resume" in error["message"]


def test_server_without_range(page: Page, served: tuple[str, Served]) -> None:
    url, file = served
    file.ranges, file.cuts = False, [5 * MB]
    seen = visit(page, url, 9 * MB, 4)
    assert seen["part"] == file.data[9 * MB : 9 * MB + 4].hex()
    assert starts(file) == [0, 2 * CHUNK]


def test_changed_file_starts_afresh(
    page: Page, context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    file.cuts = [5 * MB] + [0] * 20
    failure(page, url)
    file.data, file.etag = content(9 * MB, seed=2), '"2"'
    file.cuts.clear()
    other = start(context, f"{origin.base}/page")
    seen = visit(other, url, 0, 8)
    other.close()
    assert seen["part"] == file.data[:8].hex() and seen["size"] == 9 * MB


def test_file_that_changes_meanwhile(page: Page, served: tuple[str, Served]) -> None:
    url, file = served
    file.pause, file.pause_at, file.cuts = threading.Event(), 5 * MB, [6 * MB, 2 * MB]
    page.evaluate(
        "async (url) => { window.f = await executor.request('open', { source: url }); }", url
    )
    file.data, file.etag = content(9 * MB, seed=2), '"2"'
    file.pause.set()
    error = page.evaluate("() => outcome(executor.request('wait', { file: f.file }))")
    assert error["code"] == "StoreError" and "changed" in error["message"]


def test_spoilt_chunk_is_fetched_again(
    page: Page, context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    visit(page, url)
    spoil = """async () => {
      const root = await navigator.storage.getDirectory();
      for await (const kept of (await root.getDirectoryHandle('fanlight-store-v2')).values()) {
        const file = await kept.getFileHandle('1').catch(() => null);
        if (!file) continue;
        const bytes = new Uint8Array(await (await file.getFile()).arrayBuffer());
        bytes[77] ^= 1;
        const writable = await file.createWritable();
        await writable.write(bytes);
        await writable.close();
      }
    }"""
    page.evaluate(spoil)
    file.sent = 0
    other = start(context, f"{origin.base}/page")
    seen = other.evaluate(OPEN, {"url": url, "offset": CHUNK + 70, "length": 20})
    stats = other.evaluate("() => executor.request('wait', { file })")
    other.close()
    assert seen["part"] == file.data[CHUNK + 70 : CHUNK + 90].hex()
    assert stats["requests"] == 1 and file.requests[-1] == f"bytes={CHUNK}-{2 * CHUNK - 1}"


def test_no_space_streams_from_the_network(
    page: Page, context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    devtools = context.new_cdp_session(page)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": origin.base, "quotaSize": 1 * MB})
    try:
        seen = visit(page, url, 5 * MB, 100)
        assert seen["part"] == file.data[5 * MB : 5 * MB + 100].hex()
        warning = next(e for e in seen["events"] if e["stage"] == "warning")
        assert "no more space" in warning["message"]
        kept = page.evaluate("() => executor.request('list')")
        assert all(entry["url"] != url for entry in kept)
    finally:
        devtools.send("Storage.overrideQuotaForOrigin", {"origin": origin.base})


def test_abort_of_a_waiting_open(page: Page, served: tuple[str, Served]) -> None:
    url, file = served
    file.pause, file.pause_at = threading.Event(), -1
    error = page.evaluate(
        """async (url) => {
          const control = new AbortController();
          const { signal } = control;
          const opened = outcome(executor.request('open', { source: url }, { signal }));
          setTimeout(() => control.abort(), 300);
          return opened;
        }""",
        url,
    )
    file.pause.set()
    assert error["code"] == "AbortedError"


def test_two_tabs_download_once(
    page: Page, context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    file.pause, file.pause_at = threading.Event(), 5 * MB
    begin = """async (url) => {
      window.f = await executor.request('open', { source: url });
      return f.size;
    }"""
    read = "async () => hex(await executor.request('read', { ...f, offset: 100, length: 8 }))"
    assert page.evaluate(begin, url) == len(file.data)
    other = start(context, f"{origin.base}/page")
    timer = threading.Timer(1.0, file.pause.set)
    timer.start()
    assert other.evaluate(begin, url) == len(file.data)
    assert other.evaluate(read) == file.data[100:108].hex()
    stats = other.evaluate("() => executor.request('wait', { file: f.file })")
    other.close()
    assert stats["network_bytes"] == 0
    assert sorted(set(starts(file))) == starts(file)  # no part was asked for twice


def test_blob(page: Page) -> None:
    seen = page.evaluate(
        """async () => {
          const source = new File([Uint8Array.of(1, 2, 3, 4, 5)], 'x.gguf');
          const file = await executor.request('open', { source });
          const part = await executor.request('read', { ...file, offset: 1, length: 3 });
          return [file.size, file.name, hex(part)];
        }"""
    )
    assert seen == [5, "x.gguf", "020304"]


def test_insecure_page_reads_from_the_network(
    context: BrowserContext, origin: Origin, served: tuple[str, Served]
) -> None:
    url, file = served
    page = context.new_page()
    page.goto(f"{origin.base}/plain")
    # No second origin here is insecure: the worker's own globals stand in for one.
    seen = page.evaluate(
        """async (url) => {
          Object.defineProperty(globalThis, 'caches', { value: undefined, configurable: true });
          const { open } = await import('/fanlight/web/store.js');
          const events = [];
          const file = await open(url, { progress: (e) => events.push(e) });
          const sum = [];
          for await (const bytes of file.stream(3, 9 * 2 ** 20)) sum.push(bytes.length);
          const part = await file.read(2 ** 20, 4);
          return { sum, part: Array.from(part), warned: events.some((e) => e.stage === 'warning') };
        }""",
        url,
    )
    page.close()
    assert sum(seen["sum"]) == 9 * MB and bytes(seen["part"]) == file.data[MB : MB + 4]
    assert seen["warned"]


def test_remove(page: Page, served: tuple[str, Served]) -> None:
    url, file = served
    visit(page, url)
    kept = page.evaluate("() => executor.request('list')")
    entry = next(e for e in kept if e["url"] == url)
    assert entry["complete"] and entry["have"] == entry["size"] == len(file.data)
    page.evaluate("(url) => executor.request('remove', { url })", url)
    assert all(e["url"] != url for e in page.evaluate("() => executor.request('list')"))

"""The torture plan on gpu.js and wasm.js gives what it must, run after run."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Page

from fanlight.plan import encode
from tests import torture, torture_wasm
from tests.web.origin import Origin, Served

pytestmark = pytest.mark.browser

RUN = """async ({plan, url, file, threads, runs, reads}) => {
  const opened = await executor.request('open', { source: url });
  const files = { [file]: opened.file };
  const fields = { plan: bytes(plan).buffer, files, options: { threads } };
  const { session, info } = await executor.request('load', fields);
  const seen = [];
  for (const { program, feeds, dims } of runs) {
    const data = {};
    for (const [name, text] of Object.entries(feeds)) data[name] = bytes(text);
    await executor.request('run', { session, program, feeds: data, dims });
    const now = {};
    for (const buffer of reads) {
      now[buffer] = hex(await executor.request('readBuffer', { session, buffer }));
    }
    seen.push(now);
  }
  await executor.request('dispose', { session });
  return { seen, threads: info.threads };
}"""


def base(data: bytes) -> str:
    return base64.b64encode(data).decode()


def check(page: Page, origin: Origin, test: torture.Torture, threads: int) -> None:
    origin.files["torture"] = Served(test.files[torture.FILE])
    fields: dict[str, Any] = {
        "plan": base(encode(test.plan)),
        "url": f"{origin.base}/files/torture",
        "file": torture.FILE,
        "threads": threads,
        "reads": torture.READS,
        "runs": [
            {
                "program": run.program,
                "feeds": {name: base(data) for name, data in run.feeds.items()},
                "dims": dict(run.dims),
            }
            for run in test.runs
        ],
    }
    got = page.evaluate(RUN, fields)
    assert got["threads"] == threads
    for number, (seen, wanted) in enumerate(zip(got["seen"], test.expected, strict=True)):
        # A dim may shorten what counts; buffers themselves are rounded up to words.
        for name, data in wanted.items():
            length = min(len(data), len(seen[name]) // 2)
            assert seen[name][: 2 * length] == data[:length].hex(), f"run {number}, buffer {name}"


def test_webgpu(page: Page, origin: Origin) -> None:
    check(page, origin, torture.build("webgpu"), 1)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_wasm(page: Page, origin: Origin, threads: int) -> None:
    """``threads`` 0: a module without them."""
    test = torture.build("wasm")
    if threads:
        test = replace(test, plan=torture_wasm.with_threads(test.plan))
    check(page, origin, test, max(threads, 1))

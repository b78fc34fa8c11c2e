"""The torture plan on gpu.js and wasm.js gives what it must, run after run."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Page

from fanlight.plan import Dispatch, encode
from tests import torture, torture_free, torture_wasm
from tests.web.origin import Origin, Served

pytestmark = pytest.mark.browser

RUN_FREE = """async ({plan, threads, runs, reads}) => {
  const fields = { plan: bytes(plan).buffer, files: {}, options: { threads } };
  const { session } = await executor.request('load', fields);
  const growths = async () => (await executor.request('stats')).sessions[session].growths;
  const huge = { session, program: 'main', dims: { m: 2 ** 31 - 1 } };
  const seen = [{ refused: await outcome(executor.request('run', huge)) }];
  for (const [i, { program, feeds, dims }] of runs.entries()) {
    const before = await growths();
    await executor.request('run', { session, program, feeds: { u: bytes(feeds.u) }, dims });
    const now = { dims: await executor.request('dims', { session }) };
    for (const [buffer, length] of Object.entries(reads[i])) {
      const read = await executor.request('readBuffer', { session, buffer, offset: 0, length });
      const hash = await crypto.subtle.digest('SHA-256', read);
      now[buffer] = hex(new Uint8Array(hash));
    }
    now.grown = await growths() > before;
    seen.push(now);
  }
  const set = { session, program: 'main', dims: { found: 1 } };
  seen[0].set = await outcome(executor.request('run', set));
  await executor.request('dispose', { session });
  return seen;
}"""
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


def check_free(page: Page, case: torture_free.Free, threads: int) -> None:
    fields: dict[str, Any] = {
        "plan": base(encode(case.plan)),
        "threads": threads,
        "reads": [{name: len(data) for name, data in one.items()} for one in case.expected],
        "runs": [
            {"program": r.program, "feeds": {"u": base(r.feeds["u"])}, "dims": dict(r.dims)}
            for r in case.runs
        ],
    }
    first, *seen = page.evaluate(RUN_FREE, fields)
    assert "smaller inputs" in first["refused"]["message"]
    assert first["set"]["code"] == "PlanError" and "program sets" in first["set"]["message"]
    for number, (now, wanted) in enumerate(zip(seen, case.expected, strict=True)):
        for name, data in wanted.items():
            assert now[name] == hashlib.sha256(data).hexdigest(), f"run {number}, buffer {name}"
        assert now["dims"]["found"] == case.found[number]
        if case.plan.target == "webgpu" or number > 0:  # WebAssembly's last page has room
            assert now["grown"] == case.growths[number], f"run {number}"


def test_a_grid_that_is_too_large_is_refused(page: Page) -> None:
    """And the session goes on."""
    case = torture_free.build("webgpu")
    first, *others = case.plan.programs["main"]
    assert isinstance(first, Dispatch)
    steps = (replace(first, grid=(torture_free.M, 1, 1)), *others)
    plan = replace(case.plan, programs={"load": (), "main": steps})
    got = page.evaluate(
        """async ({ plan, u }) => {
      const { session } = await executor.request('load', { plan: bytes(plan).buffer, files: {} });
      const run = (feeds, m) =>
        executor.request('run', { session, program: 'main', feeds, dims: { m, k: 3 } });
      const large = await outcome(run({}, 70000));
      await run({ u: bytes(u) }, 5);
      const v = hex(await executor.request('readBuffer', { session, buffer: 'v' }));
      await executor.request('dispose', { session });
      return { large, v };
    }""",
        {"plan": base(encode(plan)), "u": base(case.runs[0].feeds["u"])},
    )
    assert "kernel square: more workgroups" in got["large"]["message"]
    assert got["v"] == case.expected[0]["v"].hex()


def test_free_dims_on_webgpu(page: Page) -> None:
    check_free(page, torture_free.build("webgpu"), 1)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_free_dims_on_wasm(page: Page, threads: int) -> None:
    check_free(page, torture_free.build("wasm", threads > 0), max(threads, 1))


def test_webgpu(page: Page, origin: Origin) -> None:
    check(page, origin, torture.build("webgpu"), 1)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_wasm(page: Page, origin: Origin, threads: int) -> None:
    """``threads`` 0: a module without them."""
    test = torture.build("wasm")
    if threads:
        test = replace(test, plan=torture_wasm.with_threads(test.plan))
    check(page, origin, test, max(threads, 1))

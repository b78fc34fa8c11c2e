"""``InferenceSession`` of fanlight.js: onnxruntime's numbers in the page, on both executors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page

from fanlight.server.app import create_app
from fanlight.server.serving import serving
from tests.inference import onnx_models

pytestmark = pytest.mark.browser

# `held` counts what the hidden executor's worker holds, asked on a port of its own.
START = """async () => {
  const { Channel } = await import('/protocol.js');
  window.Worker = class extends window.Worker {
    constructor(url, options) {
      super(url, options);
      if (!String(url).endsWith('/executor_worker.js')) return;
      const { port1, port2 } = new MessageChannel();
      this.postMessage({ id: 1e9, type: 'connect', port: port1 }, [port1]);
      window.executor = new Channel(port2);
    }
  };
  window.held = async () => {
    const { files, sessions } = await window.executor.request('stats');
    return { files: Object.keys(files).length, sessions: Object.keys(sessions).length };
  };
  Object.assign(window, await import('/fanlight.js'));
  window.floats = (text, dims) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return { data: new Float32Array(bytes.buffer), dims };
  };
  window.outcome = (promise) => Promise.resolve(promise).then((value) => ({ value }),
    ({ code, message }) => ({ code, message }));
}"""
RUNS = """async ({ source, options, runs }) => {
  const model = source ?? await (await fetch('/models/small.onnx')).arrayBuffer();
  const session = await InferenceSession.create(model, options);
  const results = [];
  for (const feeds of runs) {
    const tensors = Object.fromEntries(
      Object.entries(feeds).map(([name, { text, dims }]) => [name, floats(text, dims)]));
    const outputs = await session.run(tensors);
    results.push(Object.fromEntries(Object.entries(outputs).map(
      ([name, { type, data, dims }]) => [name, { type, data: Array.from(data), dims }])));
  }
  const { inputs, outputs, info: { backend } } = session;
  const during = await held();
  await session.dispose();
  return { results, inputs, outputs, backend, during, after: await held() };
}"""
SIZES = ((1, 3), (5, 31), (1, 3), (2, 0), (5, 31))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    onnx_models.write(folder / "small.onnx")
    (folder / "parts").mkdir()
    onnx_models.write(folder / "parts" / "outside.onnx", external=True)
    return folder


@pytest.fixture(scope="module")
def page(context: BrowserContext, folder: Path) -> Iterator[Page]:
    with serving(create_app(folder)) as base:
        page = context.new_page()
        page.on("console", lambda message: print("console:", message.text))
        page.goto(f"{base}/icon.svg")
        page.evaluate(START)
        yield page
        page.close()


def given(feeds: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"text": base64.b64encode(value.tobytes()).decode(), "dims": list(value.shape)}
        for name, value in feeds.items()
    }


@pytest.mark.parametrize(
    ("provider", "source"),
    [
        ("wasm", "/models/small.onnx"),
        ("webgpu", "/models/small.onnx"),
        ("wasm", "/models/parts/outside.onnx"),
        ("wasm", None),
    ],
)
def test_changing_dims(page: Page, folder: Path, provider: str, source: str | None) -> None:
    """From a URL, with external data, and from bytes."""
    runs = [onnx_models.feeds(*sizes) for sizes in SIZES]
    options = {"executionProviders": [provider]}
    fields = {"source": source, "options": options, "runs": [given(run) for run in runs]}
    got = page.evaluate(RUNS, fields)
    assert got["backend"] == provider
    assert got["inputs"][0] == {"name": "x", "type": "float32", "shape": ["batch", "seq", 48]}
    assert [output["name"] for output in got["outputs"]] == ["joined", "hidden"]
    for run, result in zip(runs, got["results"], strict=True):
        wanted = onnx_models.reference(folder / "small.onnx", run)
        assert list(result) == list(wanted)
        for name, value in wanted.items():
            assert result[name]["dims"] == list(value.shape)
            array = np.array(result[name]["data"]).reshape(value.shape)
            np.testing.assert_allclose(array, value, atol=2e-6, rtol=1e-5)
    assert got["during"] == {"files": 0, "sessions": 1}
    assert got["after"] == {"files": 0, "sessions": 0}


def test_an_aborted_load_leaves_nothing(page: Page) -> None:
    """Whenever the abort comes, no session and no file stays behind."""
    got = page.evaluate("""async () => {
      const seen = [];
      for (const stage of ['none', 'open', 'compile', 'load']) {
        const control = new AbortController();
        const progress = (event) => event.stage === stage && control.abort();
        const made = InferenceSession.create('/models/small.onnx',
          { executionProviders: ['wasm'], signal: control.signal, progress });
        if (stage === 'open') control.abort();
        const { code, value } = await outcome(made);
        await value?.dispose();
        seen.push(code ?? 'made');
      }
      for (let i = 0; i < 50 && (await held()).sessions + (await held()).files; i++) {
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      return { seen, held: await held() };
    }""")
    assert got["seen"][:2] == ["made", "AbortedError"]
    assert set(got["seen"][2:]) <= {"made", "AbortedError"}
    assert got["held"] == {"files": 0, "sessions": 0}


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_tensors_that_stay_on_the_device(page: Page, provider: str) -> None:
    """An output is an input of the next run; both ways give the same."""
    got = page.evaluate(
        """async (provider) => {
      const session = await InferenceSession.create('/models/small.onnx',
        { executionProviders: [provider] });
      const ramp = (n) => Float32Array.from({ length: n }, (_, i) => Math.sin(i));
      const x = (seq) => ({ data: ramp(seq * 48), dims: [1, seq, 48] });
      const zero = { data: new Float32Array(40), dims: [1, 1, 40] };
      const { hidden } = await session.run({ x: x(1), bias: zero }, { hidden: 'device' });
      const copy = await hidden.read();
      const same = [];
      for (const seq of [90, 3]) {
        const [a, b] = [await session.run({ x: x(seq), bias: hidden }, ['joined']),
          await session.run({ x: x(seq), bias: copy }, ['joined'])];
        same.push(a.joined.data.every((v, i) => v === b.joined.data[i]) && a.joined.data[5] !== 0);
      }
      const seen = { same, dims: copy.dims, nonzero: copy.data.some((v) => v !== 0) };
      await hidden.dispose();
      await hidden.dispose();
      seen.gone = await outcome(session.run({ x: x(1), bias: hidden }));
      seen.place = await outcome(session.run({ x: x(1), bias: zero }, { hidden: 'there' }));
      await session.dispose();
      await hidden.dispose();
      return seen;
    }""",
        provider,
    )
    assert got["same"] == [True, True] and got["nonzero"] and got["dims"] == [1, 1, 40]
    assert "held buffer was released" in got["gone"]["message"]
    assert "output hidden: no place" in got["place"]["message"]


def test_fetches_errors_and_abort(page: Page) -> None:
    got = page.evaluate("""async () => {
      const session = await InferenceSession.create('/models/small.onnx',
        { executionProviders: ['wasm'], freeDimensionOverrides: { batch: 1 } });
      const x = new Tensor('float32', new Float32Array(96).fill(0.5), [1, 2, 48]);
      const bias = { data: new Float32Array(40), dims: [1, 1, 40] };
      const target = new Tensor('float32', new Float32Array(80), [1, 2, 40]);
      const two = await session.run({ x, bias }, { hidden: target });
      const control = new AbortController();
      control.abort();
      const seen = {
        names: Object.keys(two), same: two.hidden.data === target.data, first: target.data[0],
        one: Object.keys(await session.run({ x, bias }, ['joined'])),
        missing: await outcome(session.run({ x })),
        other: await outcome(session.run({ x, bias, z: x })),
        type: await outcome(session.run({ x, bias: new Float64Array(40) })),
        rank: await outcome(session.run({ x, bias: new Float32Array(40) })),
        size: await outcome(session.run({ x: { data: x.data, dims: [2, 1, 48] }, bias })),
        fetch: await outcome(session.run({ x, bias }, ['nothing'])),
        memory: await outcome(session.run({ x, bias }, { joined: target })),
        aborted: await outcome(session.run({ x, bias }, null, { signal: control.signal })),
        again: (await session.run({ x, bias })).hidden.data[0],
      };
      await session.dispose();
      seen.gone = await outcome(session.run({ x, bias }));
      seen.file = await outcome(InferenceSession.create('/models/none.onnx'));
      seen.option = await outcome(InferenceSession.create('/models/small.onnx', { threads: 2 }));
      seen.provider = await outcome(
        InferenceSession.create('/models/small.onnx', { executionProviders: ['cuda'] }));
      seen.held = await held();
      return seen;
    }""")
    assert got["names"] == ["hidden"] and got["same"] and got["first"] == got["again"] != 0
    assert got["one"] == ["joined"]
    for key, code, text in (
        ("missing", "InputError", "input bias: an input is missing (wanted float32[1, 1, 40])"),
        ("other", "InputError", "no such input (got z, wanted x, bias)"),
        ("type", "InputError", "input bias: wrong element type (got float64[40]"),
        ("rank", "InputError", "input bias: wrong number of axes"),
        ("size", "InputError", "input x, axis 0: wrong size (got 2, wanted 1)"),
        ("fetch", "InputError", "no such output (got nothing, wanted joined, hidden)"),
        ("memory", "InputError", "output joined: memory of another type or size"),
        ("aborted", "AbortedError", "aborted"),
        ("gone", "AbortedError", "disposed"),
        ("file", "StoreError", "none.onnx"),
        ("option", "InputError", "unknown option (got threads)"),
        ("provider", "InputError", "unknown execution providers"),
    ):
        assert got[key]["code"] == code, (key, got[key])
        assert text in got[key]["message"], (key, got[key])
    assert got["held"] == {"files": 0, "sessions": 0}


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_profile(page: Page, provider: str) -> None:
    """Times of all kernels, from the device's own clock; a session not made for it says so."""
    got = page.evaluate(
        """async (provider) => {
      const ask = { executionProviders: [provider] };
      const ramp = Float32Array.from({ length: 90 * 48 }, (_, i) => Math.sin(i));
      const x = { data: ramp, dims: [1, 90, 48] };
      const feeds = { x, bias: { data: new Float32Array(40), dims: [1, 1, 40] } };
      const session = await InferenceSession.create("/models/small.onnx",
        { ...ask, profile: true });
      const seen = { times: await session.profile(feeds, { runs: 3 }) };
      const control = new AbortController();
      control.abort();
      seen.aborted = await outcome(session.profile(feeds, { signal: control.signal }));
      seen.runs = await outcome(session.profile(feeds, { runs: 0 }));
      const { hidden } = await session.run(feeds);
      await session.dispose();
      const plain = await InferenceSession.create('/models/small.onnx', ask);
      seen.plain = await outcome(plain.profile(feeds));
      const other = await plain.run(feeds);
      seen.same = hidden.data.every((v, i) => v === other.hidden.data[i]) && hidden.data[7] !== 0;
      await plain.dispose();
      return seen;
    }""",
        provider,
    )
    times = got["times"]
    assert len(times) > 2 and all(row["dispatches"] >= 1 for row in times), times
    assert [row["ms"] for row in times] == sorted((row["ms"] for row in times), reverse=True)
    assert 0 < sum(row["ms"] for row in times) < 10_000 and all(row["ms"] >= 0 for row in times)
    assert got["aborted"]["code"] == "AbortedError"
    assert "not a number of runs" in got["runs"]["message"]
    assert "not made for profiling" in got["plain"]["message"]
    assert got["same"]

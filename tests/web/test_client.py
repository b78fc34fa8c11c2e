"""fanlight.js as a web developer uses it: answers, aborts, errors. With a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

import fanlight
from fanlight import sync
from fanlight.errors import DeviceError
from fanlight.runtime import pyodide
from fanlight.server.app import create_app
from fanlight.server.serving import serving
from tests import gguf_files

pytestmark = pytest.mark.browser

PROMPT = "the ocean and then"
# `load` keeps generators by name; `outcome` turns what happens into JSON; `held` counts what the
# hidden executor's worker holds, asked on a port of its own.
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
  window.generators = {};
  window.load = async (name, model, options) => {
    window.generators[name] = await pipeline('text-generation', model, options);
    return window.generators[name].info;
  };
  window.outcome = (promise) => Promise.resolve(promise).then((value) => ({ value }),
    ({ code, message, what, where, hint }) => ({ code, message, what, where, hint }));
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    gguf_files.write(folder / "tiny.gguf", gguf_files.Model())
    gguf_files.write(folder / "strange.gguf", gguf_files.Model(arch="mamba"))
    whole = (folder / "tiny.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.gguf").write_bytes(bytes(range(256)) * 100)
    return folder


@pytest.fixture(scope="module")
def page(context: BrowserContext, folder: Path) -> Iterator[Page]:
    """A page with fanlight.js and a generator named ``tiny`` on WebAssembly."""
    with serving(create_app(folder)) as base:
        page = context.new_page()
        page.on("console", lambda message: print("console:", message.text))
        page.goto(f"{base}/icon.svg")
        page.evaluate(START)
        page.evaluate("() => load('tiny', '/models/tiny.gguf', { device: 'wasm' })")
        yield page
        page.close()


def outcome(page: Page, code: str, argument: Any = None) -> dict[str, Any]:
    """``{value}`` or the error's fields."""
    result: dict[str, Any] = page.evaluate(f"(argument) => outcome({code})", argument)
    return result


def test_version(page: Page) -> None:
    assert page.evaluate("() => version") == fanlight.__version__


def test_the_same_answer_as_in_cpython(page: Page, folder: Path) -> None:
    native = sync.pipeline("text-generation", folder / "tiny.gguf", device="wasm")
    expected = native(PROMPT, max_new_tokens=40)
    native.dispose()
    got = outcome(page, "generators.tiny(argument, { max_new_tokens: 40 })", PROMPT)["value"]
    assert got["tokens"] == expected.tokens
    assert got["text"] == expected.text
    assert got["prompt_tokens"] == len(expected.prompt_tokens)
    assert got["finish_reason"] == expected.finish_reason
    assert got["timings"].keys() >= {"first_token_ms", "prefill_ms", "prefill_tok_s"}


def test_webgpu_answers_the_same(page: Page) -> None:
    info = page.evaluate("() => load('gpu', '/models/tiny.gguf', { device: 'webgpu' })")
    assert info["backend"] == "webgpu"
    ask = "([name, prompt]) => generators[name](prompt, { max_new_tokens: 12 }).result"
    gpu, wasm = (page.evaluate(ask, [name, PROMPT]) for name in ("gpu", "tiny"))
    assert gpu["tokens"] == wasm["tokens"]
    page.evaluate("() => generators.gpu.dispose()")


def test_pieces_come_as_they_are_made(page: Page) -> None:
    code = """async () => {
      const pieces = [], events = [];
      const answer = generators.tiny([{ role: 'user', content: 'the' }],
        { max_new_tokens: 30, progress: (event) => events.push(event) });
      for await (const piece of answer) pieces.push(piece);
      const again = [];
      for await (const piece of answer) again.push(piece);
      return { pieces, again, events, result: await answer, text: answer.text };
    }"""
    got = page.evaluate(code)
    assert len(got["pieces"]) > 1
    assert got["pieces"] == got["again"]
    assert "".join(got["pieces"]) == got["result"]["text"] == got["text"]
    total = got["result"]["prompt_tokens"]
    assert got["events"] == [{"stage": "prefill", "done": 0, "total": total}]


@pytest.mark.parametrize("device", ["wasm", "auto"])
def test_info_and_progress(page: Page, device: str) -> None:
    code = """async (device) => {
      const seen = {};
      const progress = ({ stage, done, total }) => (seen[stage] ??= []).push([done, total]);
      const model = '/models/tiny.gguf';
      const generator = await pipeline('text-generation', model, { device, progress });
      const stats = await generator.stats();
      await generator.dispose();
      return { seen, stats, info: generator.info };
    }"""
    got = page.evaluate(code, device)
    seen, info, stats = got["seen"], got["info"], got["stats"]
    assert seen["python"] == [[0, 1], [1, 1]]
    for stage in ("compile", "load"):
        done, total = seen[stage][-1]
        assert done == total > 0
    assert info["backend"] == "wasm"  # SwiftShader is no GPU
    assert info["isolated"]
    assert info["threads"] > 1
    assert info["resident_bytes"] > 0
    assert info["timings"].keys() >= {"python_ms", "header_ms", "compile_ms", "load_ms"}
    assert stats["cache_bytes"] > 0  # the first pipeline's download was kept
    assert stats["network_bytes"] == 0


def test_a_picked_file(page: Page) -> None:
    code = """async () => {
      const bytes = await (await fetch('/models/tiny.gguf')).arrayBuffer();
      await load('picked', new File([bytes], 'mine.gguf'), { device: 'wasm' });
      return (await generators.picked('the', { max_new_tokens: 3 })).tokens;
    }"""
    assert len(page.evaluate(code)) == 3
    assert page.evaluate("() => generators.picked.info.model") == "mine.gguf"


def still_answers(page: Page) -> None:
    got = outcome(page, "generators.tiny('the', { max_new_tokens: 2 })")
    assert len(got.get("value", {}).get("tokens", ())) == 2, got


# --- aborts


def test_abort_keeps_what_there_is(page: Page) -> None:
    code = """async () => {
      const answer = generators.tiny('the', { max_new_tokens: 200 });
      for await (const piece of answer) answer.abort();
      return { ...await answer, shown: answer.text };
    }"""
    got = page.evaluate(code)
    assert got["finish_reason"] == "abort"
    assert 0 < len(got["tokens"]) < 200
    assert got["shown"] == got["text"]


def test_leaving_the_loop_aborts(page: Page) -> None:
    code = """async () => {
      const answer = generators.tiny('the', { max_new_tokens: 200 });
      for await (const piece of answer) break;
      return await answer;
    }"""
    assert page.evaluate(code)["finish_reason"] == "abort"
    still_answers(page)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_signal_ends_in_aborted_error(page: Page, when: str) -> None:
    code = """async (when) => {
      const control = new AbortController();
      if (when === 'before') control.abort();
      const answer = generators.tiny('the', { max_new_tokens: 200, signal: control.signal });
      return outcome((async () => {
        for await (const piece of answer) control.abort();
      })());
    }"""
    assert page.evaluate(code, when)["code"] == "AbortedError"


@pytest.mark.parametrize("delay", [-1, 0, 30, 200])
def test_abort_while_loading(page: Page, delay: int) -> None:
    code = """async (delay) => {
      const control = new AbortController();
      if (delay < 0) control.abort();
      else setTimeout(() => control.abort(), delay);
      const { signal } = control;
      const begin = performance.now();
      const model = `/models/tiny.gguf?abort=${delay}`;
      const got = await outcome(pipeline('text-generation', model, { device: 'wasm', signal })
        .then((generator) => generator.dispose()));
      return [got, performance.now() - begin];
    }"""
    got, elapsed = page.evaluate(code, delay)
    assert got.get("code", "AbortedError") == "AbortedError"  # at 200 ms it may have been loaded
    assert elapsed < 5000
    still_answers(page)


def test_nothing_is_left_after_aborts_and_disposals(page: Page) -> None:
    """Sessions and files that the executor holds are those of the generators alive."""
    code = """async () => {
      const before = await held();
      const model = '/models/tiny.gguf?left';
      for (let delay = 0; delay < 200; delay += 20) {
        const signal = AbortSignal.timeout(delay);
        await outcome(pipeline('text-generation', model, { device: 'wasm', signal })
          .then((generator) => generator.dispose()));
      }
      for (let delay = 0; delay < 16; delay += 1) { // while the plan is kept
        await kept.clear();
        const control = new AbortController();
        const progress = ({ stage, done, total }) => {
          if (stage === 'load' && done === total) setTimeout(() => control.abort(), delay);
        };
        const options = { device: 'wasm', progress, signal: control.signal };
        await outcome(pipeline('text-generation', model, options)
          .then((generator) => generator.dispose()));
      }
      await load('left', model, { device: 'wasm' });
      await generators.left.dispose();
      const end = performance.now() + 15000; // cleaning up goes on behind an aborted pipeline
      const left = async () => {
        const now = await held();
        return now.files > before.files || now.sessions > before.sessions;
      };
      while ((await left()) && performance.now() < end);
      return [before, await held()];
    }"""
    before, after = page.evaluate(code)
    # an earlier test's cleaning up may still go on while `before` is read
    assert all(after[kind] <= before[kind] for kind in before), (before, after)


def test_dispose_ends_an_answer_in_progress(page: Page) -> None:
    code = """async () => {
      await load('gone', '/models/tiny.gguf', { device: 'wasm' });
      const answer = generators.gone('the', { max_new_tokens: 200 });
      for await (const piece of answer) {
        await generators.gone.dispose();
        break;
      }
      return [await outcome(answer), await outcome(generators.gone('the'))];
    }"""
    answer, later = page.evaluate(code)
    assert answer.get("code") == "AbortedError" or answer["value"]["finish_reason"] == "abort"
    assert later["code"] == "AbortedError"
    assert "disposed" in later["message"]


# --- errors


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("missing.gguf", "StoreError", "not there"),
        ("noise.gguf", "FormatError", "GGUF"),
        ("cut.gguf", "TruncatedError", ""),
        ("strange.gguf", "UnsupportedError", "mamba"),
    ],
)
def test_models_that_can_not_be_had(page: Page, name: str, code: str, words: str) -> None:
    got = outcome(page, "pipeline('text-generation', argument)", f"/models/{name}")
    assert got["code"] == code, got
    assert words in got["message"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("pipeline('text-speculation', '/models/tiny.gguf')", "text-generation"),
        ("pipeline('text-generation', '/models/tiny.gguf', { device: 'tpu' })", "tpu"),
        ("pipeline('text-generation', '/models/tiny.gguf', { temperature: 1 })", "temperature"),
        ("pipeline('text-generation', 'https://[')", "not the address"),
        ("generators.tiny('the', { top_p: 0.9 })", "top_p"),
        ("generators.tiny('the', { max_new_tokens: 0 })", "max_new_tokens"),
        ("generators.tiny('a '.repeat(400))", "too long"),
    ],
)
def test_wrong_arguments(page: Page, call: str, words: str) -> None:
    got = outcome(page, call)
    assert got["code"] == "InputError", got
    assert words in got["message"]


def test_errors_are_classes(page: Page) -> None:
    code = """() => generators.tiny('the', { max_new_tokens: -1 }).result.catch((error) =>
      [error instanceof FanlightError, error instanceof InputError, error.name])"""
    assert page.evaluate(code) == [True, True, "InputError"]


def test_a_python_without_executor_says_what_to_do() -> None:
    """As in a notebook's own Pyodide: nobody has registered ``fanlight_js``."""
    with pytest.raises(DeviceError, match=r"no executor.*fanlight\.js"):
        pyodide.Executor()


def test_python_that_is_not_there(context: BrowserContext, folder: Path) -> None:
    with serving(create_app(folder)) as base:
        page = context.new_page()
        page.route("**/pyodide.asm.mjs", lambda route: route.abort())
        page.goto(f"{base}/icon.svg")
        page.evaluate(START)
        got = outcome(page, "pipeline('text-generation', '/models/tiny.gguf')")
        page.close()
    assert got["what"] == "Python did not start"
    assert "Reload" in got["hint"]

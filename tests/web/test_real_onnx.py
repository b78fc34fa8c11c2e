"""Published ONNX models in a real page, on both executors, against onnxruntime on real inputs."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page

from bench import onnx_models
from fanlight.inference.tensor import Tensor
from fanlight.server.app import create_app
from fanlight.server.serving import serving
from tests.conftest import model_file

pytestmark = pytest.mark.browser

Array = NDArray[Any]
RUN = """async ({ provider, feeds }) => {
  const { InferenceSession } = await import('/fanlight.js');
  const types = { float32: Float32Array, int64: BigInt64Array };
  const given = Object.fromEntries(Object.entries(feeds).map(([name, { type, dims, data }]) => (
    [name, { type, dims, data: new types[type](Uint8Array.fromBase64(data).buffer) }])));
  const session = await InferenceSession.create('/models/model.onnx', {
    executionProviders: [provider] });
  const name = session.outputs[0].name;
  const { data, dims } = (await session.run(given, [name]))[name];
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const { backend } = session.info;
  await session.dispose();
  return { backend, dims, data: bytes.toBase64() };
}"""


def _in_page(page: Page, model: str, feeds: dict[str, Array], provider: str) -> Array:
    """The first output of the test model ``model``."""
    packed = {}
    for name, array in feeds.items():
        tensor = Tensor(array)
        data = base64.b64encode(bytes(tensor.data)).decode()
        packed[name] = {"type": tensor.dtype, "dims": list(tensor.shape), "data": data}
    page.set_default_timeout(1_500_000)
    with serving(create_app({"model.onnx": model_file(model)})) as base:
        page.goto(base)
        found = page.evaluate(RUN, {"provider": provider, "feeds": packed})
    assert found["backend"] == provider
    return np.frombuffer(base64.b64decode(found["data"]), "f4").reshape(found["dims"])


def _by_onnxruntime(model: str, feeds: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(model_file(model))
    return np.asarray(session.run([session.get_outputs()[0].name], feeds)[0])


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_minilm_int8(page: Page, provider: str) -> None:
    _, feeds = onnx_models.minilm("int8", 2, 40)
    feeds["attention_mask"][1, 23:] = 0
    wanted, got = _by_onnxruntime("minilm", feeds), _in_page(page, "minilm", feeds, provider)
    for a, b, mask in zip(got, wanted, feeds["attention_mask"], strict=True):
        x, y = (v[mask == 1].mean(0) for v in (a, b))  # a sentence's vector
        assert x @ y / np.linalg.norm(x) / np.linalg.norm(y) > 0.9999


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
@pytest.mark.parametrize("kind", ["uint8", "f16"])
def test_isnet_cuts_out_the_same(page: Page, kind: str, provider: str) -> None:
    _, feeds = onnx_models.isnet(kind)
    model = f"isnet_{kind}"
    wanted = _by_onnxruntime(model, feeds) > 0.5
    got = _in_page(page, model, feeds, provider) > 0.5
    assert 0.2 < wanted.mean() < 0.8
    assert (got & wanted).sum() / (got | wanted).sum() > 0.999


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
def test_kokoro_speaks_alike(page: Page, provider: str) -> None:
    """Its vocoder takes the phase of silence, where a transform's real and imaginary part are
    rounding errors (docs/design.md): given onnxruntime's phases the sounds correlate by 0.996. So
    length, loudness and spectrum are held, not samples."""
    _, feeds = onnx_models.kokoro()
    wanted = _by_onnxruntime("kokoro", feeds).ravel()
    got = _in_page(page, "kokoro", feeds, provider).ravel()
    assert abs(got.size / wanted.size - 1) < 0.02
    count = min(got.size, wanted.size)
    a, b = (_log_spectrum(x[:count]) for x in (got, wanted))
    assert np.abs(a - b).mean() < 0.7
    assert abs(float(got.std() / wanted.std()) - 1) < 0.25


def _log_spectrum(sound: Array) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(sound, 1024)[::256]
    return np.asarray(np.log(np.abs(np.fft.rfft(windows * np.hanning(1024))) + 1e-3))

"""``InferenceSession.create`` on ONNX files: the same numbers as onnxruntime, whatever the dims."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanlight import InferenceSession, sync
from fanlight.errors import InputError, StoreError, UnsupportedError
from fanlight.runtime.gpu_parts import GpuParts
from tests.inference import onnx_models

PROVIDERS = pytest.mark.parametrize("provider", ["webgpu", "wasm"])
SIZES = ((1, 3), (5, 31), (2, 200), (1, 3), (5, 31))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    onnx_models.write(path)
    return path


def check(session_of: Any, path: Path, **options: Any) -> list[InferenceSession]:
    """A session gives onnxruntime's outputs, whatever the dims."""
    seen: list[InferenceSession] = []

    async def run() -> None:
        async with await InferenceSession.create(session_of, **options) as session:
            seen.append(session)
            for batch, seq in SIZES:
                given = onnx_models.feeds(batch, seq)
                got = await session.run(given)
                wanted = onnx_models.reference(path, given)
                assert list(got) == list(wanted)
                for name, value in wanted.items():
                    assert got[name].shape == value.shape
                    np.testing.assert_allclose(np.asarray(got[name]), value, atol=2e-6, rtol=1e-5)

    asyncio.run(run())
    return seen


@PROVIDERS
def test_changing_dims(model: Path, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime; on webgpu each kernel is compiled once, while loading."""
    made: list[str] = []
    compile_ = GpuParts.make_pipeline

    def counted(parts: GpuParts, kernel: Any) -> None:
        made.append(kernel.name)
        compile_(parts, kernel)

    monkeypatch.setattr(GpuParts, "make_pipeline", counted)
    (session,) = check(model, model, execution_providers=[provider])
    assert len(made) == len(set(made)) == (len(session._plan.kernels) if made else 0)
    assert bool(made) == (provider == "webgpu")
    assert [str(i) for i in session.inputs] == ["float32[batch, seq, 48]", "float32[batch, 1, 40]"]


def test_bytes_and_external_data(model: Path, tmp_path: Path) -> None:
    check(model.read_bytes(), model, execution_providers=["wasm"])
    path = tmp_path / "outside.onnx"
    onnx_models.write(path, external=True)
    assert (tmp_path / "weights.bin").stat().st_size >= 4 * onnx_models.K * onnx_models.N
    check(path, model, execution_providers=["wasm"])
    with pytest.raises(StoreError, match="external data beside bytes"):
        asyncio.run(InferenceSession.create(path.read_bytes()))
    with pytest.raises(StoreError, match="can't open"):
        asyncio.run(InferenceSession.create(tmp_path / "none.onnx"))


def test_the_blocking_twin(model: Path) -> None:
    given = onnx_models.feeds(2, 4)
    session = sync.InferenceSession.create(model, execution_providers=["wasm"])
    got = session.run(given, ["hidden"])
    session.dispose()
    wanted = onnx_models.reference(model, given)
    np.testing.assert_allclose(np.asarray(got["hidden"]), wanted["hidden"], atol=2e-6, rtol=1e-5)


def test_overrides(model: Path) -> None:
    async def run() -> None:
        session = await InferenceSession.create(
            model, execution_providers=["wasm"], free_dimension_overrides={"batch": 2}
        )
        async with session:
            assert session.inputs[0].shape == (2, "seq", 48)
            await session.run(onnx_models.feeds(2, 9))
            with pytest.raises(InputError, match="input x, axis 0: wrong size"):
                await session.run(onnx_models.feeds(3, 9))

    asyncio.run(run())


def test_an_operator_that_is_not_there(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Imagine", ["x"], ["y"])], "g", [value], [out])
    path = tmp_path / "strange.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(UnsupportedError, match="Imagine"):
        asyncio.run(InferenceSession.create(path))


def fanlight(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fanlight.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line(model: Path, tmp_path: Path) -> None:
    given = onnx_models.feeds(2, 5)
    words: list[object] = ["run-onnx", model, "--device", "wasm", "--output", tmp_path / "out"]
    for name, value in given.items():
        np.save(tmp_path / f"{name}.npy", value)
        words += ["--input", f"{name}={tmp_path / name}.npy"]
    done = fanlight(*words, "--profile")
    assert done.returncode == 0, done.stderr
    assert "hidden: float32[2, 5, 40] = " in done.stdout
    assert "dispatches" in done.stdout and "100.0" in done.stdout
    for name, value in onnx_models.reference(model, given).items():
        got = np.load(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_allclose(got, value, atol=2e-6, rtol=1e-5)
    done = fanlight(*words[:-2])
    assert done.returncode == 2
    assert "input bias: an input is missing" in done.stderr
    done = fanlight("inspect", model, "--dim", "seq=7")
    assert done.returncode == 0, done.stderr
    for text in ("MatMul", "batch × seq × 48", "batch 1, seq 7", "opsets", "webgpu", "wasm"):
        assert text in done.stdout

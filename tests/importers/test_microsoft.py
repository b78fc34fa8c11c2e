"""Operators of com.microsoft against onnxruntime, on the interpreter and on WebAssembly."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fanlight.inference.session import InferenceSession
from fanlight.inference.tensor import Tensor

Array = NDArray[Any]
RNG = np.random.default_rng(8)


def _normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype("f4")


def _bytes(*shape: int) -> Array:
    return RNG.integers(0, 256, shape).astype("u1")


X, SKIP, GAMMA, BETA = _normal(2, 5, 32), _normal(2, 5, 32), _normal(32), _normal(32)

#: operator → inputs, attributes, number of outputs
CASES: dict[str, tuple[list[Array], dict[str, Any], list[str]]] = {
    "Gelu": ([X], {}, ["y"]),
    "FastGelu": ([X, GAMMA], {}, ["y"]),
    "BiasGelu": ([X, GAMMA], {}, ["y"]),
    "QuickGelu": ([X], {"alpha": 1.5}, ["y"]),
    "FusedMatMul": ([X, _normal(7, 32)], {"transB": 1, "alpha": 0.25}, ["y"]),
    "SkipLayerNormalization": (
        [X, SKIP, GAMMA, BETA, _normal(32)], {"epsilon": 1e-5}, ["y", "", "", "sum"],
    ),
    "SkipSimplifiedLayerNormalization": (
        [X, SKIP, GAMMA], {"epsilon": 1e-6}, ["y", "", "", "sum"],
    ),
    "MatMulNBits": (
        [X, _bytes(24, 2, 8), np.abs(_normal(24, 2))],
        {"K": 32, "N": 24, "bits": 4, "block_size": 16}, ["y"],
    ),
    "MatMulNBits-zeros": (
        [_normal(3, 96), _bytes(5, 3, 16), np.abs(_normal(5, 3)), _bytes(5, 2)],
        {"K": 96, "N": 5, "bits": 4, "block_size": 32}, ["y"],
    ),
    "MatMulNBits-8": (
        [_normal(3, 96), _bytes(5, 3, 32), np.abs(_normal(5, 3)), _bytes(5, 3)],
        {"K": 96, "N": 5, "bits": 8, "block_size": 32}, ["y"],
    ),
}  # fmt: skip


def _model(name: str) -> bytes:
    inputs, attributes, outputs = CASES[name]
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(
        name.split("-")[0], names, outputs, domain="com.microsoft", **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, list(inputs[0].shape))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs if n],
        [numpy_helper.from_array(x, n) for n, x in zip(names[1:], inputs[1:], strict=True)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


async def _run(data: bytes, feed: Array) -> dict[str, Tensor]:
    async with await InferenceSession.create(data, execution_providers=["wasm"]) as session:
        return await session.run({"x0": feed})


@pytest.mark.parametrize("name", CASES)
def test_against_onnxruntime(name: str) -> None:
    data, feed = _model(name), CASES[name][0][0]
    reference = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in reference.get_outputs()]
    wanted = dict(zip(names, reference.run(None, {"x0": feed}), strict=True))
    got = asyncio.run(_run(data, feed))
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        scale = float(np.abs(value).max())
        np.testing.assert_allclose(np.asarray(got[key]), value, rtol=2e-5, atol=2e-5 * scale)

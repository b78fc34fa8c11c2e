"""Convolutions against onnxruntime, of 8-bit integers exactly, with free and fixed sizes."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fanlight.inference.session import InferenceSession

Array = NDArray[Any]

#: x, w, attributes
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "image": ((1, 5, 13, 11), (7, 5, 3, 3), {"pads": [1, 1, 1, 1]}),
    "wide kernel": ((1, 3, 9, 20), (4, 3, 2, 5), {"pads": [0, 3, 1, 2], "dilations": [2, 3]}),
    "point": ((1, 18, 6, 7), (20, 18, 1, 1), {}),
    "steps": ((1, 3, 15, 16), (8, 3, 3, 3), {"pads": [1, 0, 0, 1], "strides": [2, 3]}),
    "sound": ((1, 6, 50), (9, 6, 7), {"pads": [9, 9], "dilations": [3]}),
    "sound in steps": ((1, 6, 50), (9, 6, 8), {"pads": [2, 3], "strides": [4]}),
    "groups": ((1, 6, 8, 8), (4, 3, 3, 3), {"group": 2}),
    "batch": ((2, 4, 9, 8), (5, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
}


#: of floats alone
FLOATS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "by channel": ((2, 6, 9, 11), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "by channel in steps": (
        (1, 5, 12, 11),
        (5, 1, 3, 5),
        {"group": 5, "pads": [1, 2, 0, 2], "strides": [2, 3], "dilations": [2, 1]},
    ),
    "sound by channel": ((1, 4, 40), (4, 1, 7), {"group": 4, "pads": [6, 0]}),
    "groups in a batch": ((3, 6, 8, 9), (4, 3, 3, 2), {"group": 2, "pads": [0, 1, 2, 0]}),
    "groups of points": ((2, 6, 5, 4), (9, 2, 1, 1), {"group": 3}),
    "groups in steps": ((2, 6, 8, 9), (4, 3, 3, 2), {"group": 2, "strides": [2, 1]}),
    "many channels": ((1, 40, 14, 14), (70, 40, 3, 3), {"pads": [1, 1, 1, 1]}),
    "volume": ((2, 3, 6, 5, 7), (4, 3, 2, 3, 2), {"pads": [1, 0, 1, 0, 1, 0]}),
}


def _model(name: str, w: Array, free: bool) -> bytes:
    shape, _, attributes = (CASES | FLOATS)[name]
    sizes = [*shape[:2], *("hwd"[: len(shape) - 2] if free else shape[2:])]
    zeros = [numpy_helper.from_array(np.array(z, "u1"), n) for n, z in (("zx", 131), ("zw", 120))]
    node = helper.make_node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], **attributes)
    given, made = TensorProto.UINT8, TensorProto.INT32
    if w.dtype == np.float32:
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
        given = made = TensorProto.FLOAT
        zeros = [numpy_helper.from_array(np.arange(w.shape[0], dtype="f4"), "b")]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", given, sizes)],
        [helper.make_tensor_value_info("y", made, None)],
        [numpy_helper.from_array(w, "w"), *zeros],
    )
    opsets = [helper.make_opsetid("", 13)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_integers(name: str, free: bool, device: str) -> None:
    shape, kernel, _ = CASES[name]
    rng = np.random.default_rng(len(name))
    x, w = (rng.integers(0, 256, s).astype("u1") for s in (shape, kernel))
    np.testing.assert_array_equal(*_both(name, x, w, free, device))


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", CASES | FLOATS)
def test_floats(name: str, free: bool, device: str) -> None:
    shape, kernel, _ = (CASES | FLOATS)[name]
    rng = np.random.default_rng(len(name))
    x, w = (rng.standard_normal(s).astype("f4") for s in (shape, kernel))
    got, wanted = _both(name, x, w, free, device)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def _both(name: str, x: Array, w: Array, free: bool, device: str) -> tuple[Array, Array]:
    """Ours and onnxruntime's."""
    return _ours_and_reference(_model(name, w, free), x, device)


def _ours_and_reference(data: bytes, x: Array, device: str) -> tuple[Array, Array]:
    (wanted,) = onnxruntime.InferenceSession(data).run(None, {"x": x})

    async def run() -> Array:
        async with await InferenceSession.create(data, execution_providers=[device]) as session:
            return np.asarray((await session.run({"x": x}))["y"])

    return asyncio.run(run()), wanted


#: x, w [C, M / groups, *K], attributes
TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "image": ((2, 5, 6, 7), (5, 4, 4, 3), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "room behind": ((1, 3, 5, 5), (3, 6, 3, 3), {"strides": [2, 2], "output_padding": [1, 1]}),
    "sound in groups": ((1, 6, 20), (6, 2, 20), {"strides": [10], "pads": [5, 5], "group": 3}),
    "by channel": ((1, 8, 9), (8, 1, 3), {"strides": [2], "pads": [1, 1], "group": 8}),
    "dilated": ((1, 4, 6, 6), (4, 3, 3, 2), {"dilations": [2, 3], "pads": [1, 1, 0, 2]}),
    "kernel within a stride": ((1, 3, 7), (3, 4, 2), {"strides": [3]}),
}


@pytest.mark.parametrize("device", ["wasm", "webgpu"])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed(name: str, free: bool, device: str) -> None:
    shape, kernel, attributes = TRANSPOSED[name]
    rng = np.random.default_rng(len(name))
    x, w = (rng.standard_normal(s).astype("f4") for s in (shape, kernel))
    sizes = [*shape[:2], *("hw"[: len(shape) - 2] if free else shape[2:])]
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )
    opsets = [helper.make_opsetid("", 13)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    got, wanted = _ours_and_reference(data, x, device)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())

"""Convolutions of 8-bit integers against onnxruntime, exactly, with free and fixed sizes."""

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


def _model(name: str, w: Array, free: bool) -> bytes:
    shape, _, attributes = CASES[name]
    sizes = [*shape[:2], *("hw"[: len(shape) - 2] if free else shape[2:])]
    zeros = [numpy_helper.from_array(np.array(z, "u1"), n) for n, z in (("zx", 131), ("zw", 120))]
    graph = helper.make_graph(
        [helper.make_node("ConvInteger", ["x", "w", "zx", "zw"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
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
    data = _model(name, w, free)
    (wanted,) = onnxruntime.InferenceSession(data).run(None, {"x": x})

    async def run() -> Array:
        async with await InferenceSession.create(data, execution_providers=[device]) as session:
            return np.asarray((await session.run({"x": x}))["y"])

    np.testing.assert_array_equal(asyncio.run(run()), wanted)

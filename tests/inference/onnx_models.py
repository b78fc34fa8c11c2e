"""A small ONNX model with free dims, and what onnxruntime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
K, N = 48, 40  # more than 4 KB: not among the tensors that are kept with the structure


def write(path: Path, *, external: bool = False) -> None:
    """hidden = tanh(x w) [batch, seq, N]; joined = hidden + bias, and hidden, along ``seq``."""
    w = np.random.default_rng(11).normal(size=(K, N), scale=0.3).astype("f4")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], ["hidden"]),
        helper.make_node("Add", ["hidden", "bias"], ["shifted"]),
        helper.make_node("Concat", ["shifted", "hidden"], ["joined"], axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [
            value("x", TensorProto.FLOAT, ["batch", "seq", K]),
            value("bias", TensorProto.FLOAT, ["batch", 1, N]),
        ],
        [
            value("joined", TensorProto.FLOAT, ["batch", "twice", N]),
            value("hidden", TensorProto.FLOAT, ["batch", "seq", N]),
        ],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)


def feeds(batch: int, seq: int) -> dict[str, Array]:
    """Random, of the seed that the sizes are."""
    rng = np.random.default_rng(1000 * batch + seq)
    return {
        "x": rng.normal(size=(batch, seq, K)).astype("f4"),
        "bias": rng.normal(size=(batch, 1, N)).astype("f4"),
    }


def reference(path: Path, given: dict[str, Array]) -> dict[str, Array]:
    """onnxruntime's outputs, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))

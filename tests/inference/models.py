"""A small model with two free dims, as a module and as numpy has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanlight import dtypes, shapes
from fanlight.ir import ops
from fanlight.ir.graph import Graph, Module, Node, WeightSource
from fanlight.shapes import Dim

Array = NDArray[Any]
BATCH, SEQ = Dim("batch", "host", 1 << 20), Dim("seq", "host", 1 << 20)
K, N = 8, 6
NAMES = {"out.0": "y"}  # the model's names of outputs that the plan calls otherwise


def module() -> Module:
    """y = tanh(x wᵀ) + bias, its rows' best places, its sums over ``seq``, and y [batch * seq, N].

    The input ``unused`` is the model's, but no output needs it."""
    w = np.random.default_rng(5).normal(size=(N, K)).astype("<f4")
    x = ops.input_("x", dtypes.f32, (BATCH, SEQ, K))
    bias = ops.input_("bias", dtypes.f32, (BATCH, 1, N))
    product = ops.apply("matmul", x, ops.weight("w", dtypes.f32, (N, K)))
    shift = ops.apply("expand", bias, shape=(BATCH, SEQ, N))
    y = ops.apply("add", ops.apply("tanh", product), shift)
    outputs = {
        "out.0": y,
        "best": ops.apply("argmax", y),
        "sums": ops.apply("reduce_sum", y, axes=(1,), keep=False),
        "flat": ops.apply("reshape", y, shape=(BATCH * SEQ, N)),
    }
    inputs = [bias, x, ops.input_("unused", dtypes.i64, (SEQ,))]
    return Module(
        graphs={"main": Graph("main", outputs)},
        weights={"w": WeightSource(dtypes.f32, (N, K), data=w.tobytes())},
        dims=[BATCH, SEQ],
        free={"batch": None, "seq": None},
        metadata={
            "inputs": [_describe(node.name, node) for node in inputs],
            "outputs": [
                {**_describe(NAMES.get(name, name), node), "buffer": name}
                for name, node in outputs.items()
            ],
            "model": {"producer": "a test"},
        },
    )


def _describe(name: str, node: Node) -> dict[str, Any]:
    shape = [shapes.to_json(s) for s in node.shape]
    return {"name": name, "dtype": node.dtype.name, "shape": shape}


def feeds(batch: int, seq: int) -> dict[str, Array]:
    """Random, of the seed that the sizes are."""
    rng = np.random.default_rng(1000 * batch + seq)
    return {
        "x": rng.normal(size=(batch, seq, K)).astype("<f4"),
        "bias": rng.normal(size=(batch, 1, N)).astype("<f4"),
        "unused": np.arange(seq),
    }


def expected(given: Mapping[str, Array]) -> dict[str, Array]:
    w = np.random.default_rng(5).normal(size=(N, K)).astype("<f4")
    y = np.tanh(given["x"].astype("f8") @ w.T.astype("f8")) + given["bias"]
    return {
        "y": y.astype("f4"),
        "best": y.argmax(-1).astype("i4"),
        "sums": y.sum(1).astype("f4"),
        "flat": y.reshape(-1, N).astype("f4"),
    }

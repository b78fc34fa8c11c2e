"""ONNX models of true architectures and random weights, for bench/onnx.py.

Each function returns a model (opset 17, f32) and its inputs. Batch norms are folded into the
convolutions, as exporters of inference graphs do. Weights are drawn so that activations keep their
size from layer to layer; the seed is fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET = 17


class Builder:
    """Nodes and weights of one graph; ``op`` returns the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(7)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The output of a node."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Array) -> str:
        """A weight with these numbers."""
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def random(self, *shape: int, scale: float) -> str:
        """A weight of normal numbers."""
        return self.constant(self._random.normal(0, scale, shape).astype("f4"))

    def dense(self, x: str, inner: int, outer: int) -> str:
        """``[…, inner]`` → ``[…, outer]``."""
        product = self.op("MatMul", x, self.random(inner, outer, scale=inner**-0.5))
        return self.op("Add", self.random(outer, scale=0.02), product)

    def conv(
        self, x: str, inner: int, outer: int, size: int, stride: int = 1, group: int = 1
    ) -> str:
        """``[n, inner, h, w]`` → ``[n, outer, h / stride, w / stride]``."""
        fan_in = inner // group * size * size
        weight = self.random(outer, inner // group, size, size, scale=(2 / fan_in) ** 0.5)
        attributes = {
            "kernel_shape": [size, size],
            "strides": [stride, stride],
            "pads": [size // 2] * 4,
            "group": group,
        }
        return self.op("Conv", x, weight, self.random(outer, scale=0.02), **attributes)

    def model(self, inputs: dict[str, list[int | str]], output: str, shape: list[Any]) -> bytes:
        """The file; inputs are f32."""
        graph = helper.make_graph(
            self._nodes,
            "graph",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self._weights,
        )
        opset = helper.make_opsetid("", OPSET)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString())

    def image(self, side: int) -> Array:
        """``[1, 3, side, side]``."""
        return self._random.normal(size=(1, 3, side, side)).astype("f4")


def bert(
    layers: int = 4, hidden: int = 256, heads: int = 4, sequence: int = 128
) -> tuple[bytes, dict[str, Array]]:
    """A stack of BERT's blocks over embeddings ``[batch, sequence, hidden]``, both first axes
    free; GELU by Erf and softmax over a mask, as exporters write them."""
    build, width = Builder(), hidden // heads
    split = build.constant(np.array([0, 0, heads, width]))
    joined = build.constant(np.array([0, 0, hidden]))

    def norm(x: str) -> str:
        gain = build.constant(np.ones(hidden, "f4"))
        bias = build.constant(np.zeros(hidden, "f4"))
        return build.op("LayerNormalization", x, gain, bias, epsilon=1e-12)

    def per_head(x: str, axes: list[int]) -> str:
        rows = build.op("Reshape", build.dense(x, hidden, hidden), split)  # [batch, seq, head, w]
        return build.op("Transpose", rows, perm=axes)

    def attention(x: str) -> str:
        q, k = per_head(x, [0, 2, 1, 3]), per_head(x, [0, 2, 3, 1])
        v = per_head(x, [0, 2, 1, 3])
        scale = build.constant(np.array(width**0.5, "f4"))
        scores = build.op("Div", build.op("MatMul", q, k), scale)
        weights = build.op("Softmax", build.op("Add", scores, "mask"), axis=-1)
        mixed = build.op("Transpose", build.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return build.dense(build.op("Reshape", mixed, joined), hidden, hidden)

    def feed_forward(x: str) -> str:
        wide = build.dense(x, hidden, 4 * hidden)
        root, one, half = (build.constant(np.array(v, "f4")) for v in (2**0.5, 1, 0.5))
        erf = build.op("Add", build.op("Erf", build.op("Div", wide, root)), one)
        gelu = build.op("Mul", build.op("Mul", wide, erf), half)
        return build.dense(gelu, 4 * hidden, hidden)

    x = norm("embeddings")
    for _ in range(layers):
        x = norm(build.op("Add", x, attention(x)))
        x = norm(build.op("Add", x, feed_forward(x)))
    inputs: dict[str, list[int | str]] = {
        "embeddings": ["batch", "sequence", hidden],
        "mask": ["batch", 1, 1, "sequence"],
    }
    given = np.random.default_rng(8).normal(size=(1, sequence, hidden)).astype("f4")
    feeds = {"embeddings": given, "mask": np.zeros((1, 1, 1, sequence), "f4")}
    return build.model(inputs, x, ["batch", "sequence", hidden]), feeds


def resnet18(side: int = 224) -> tuple[bytes, dict[str, Array]]:
    """ResNet-18 (He et al., 2015, table 1) on one image: 1.8 billion multiplications at 224."""
    build = Builder()
    x = build.op("Relu", build.conv("image", 3, 64, 7, 2))
    x = build.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inner = 64
    for outer in (64, 128, 256, 512):
        for _ in range(2):
            stride = 1 if inner == outer else 2
            y = build.op("Relu", build.conv(x, inner, outer, 3, stride))
            y = build.conv(y, outer, outer, 3)
            x = x if inner == outer else build.conv(x, inner, outer, 1, stride)
            x = build.op("Relu", build.op("Add", y, x))
            inner = outer
    return _classified(build, x, inner, side)


def mobilenet(side: int = 224) -> tuple[bytes, dict[str, Array]]:
    """MobileNetV2 (Sandler et al., 2018, table 2) on one image: 0.3 billion multiplications."""
    build = Builder()
    low, high = build.constant(np.array(0, "f4")), build.constant(np.array(6, "f4"))

    def relu6(x: str) -> str:
        return build.op("Clip", x, low, high)

    x, inner = relu6(build.conv("image", 3, 32, 3, 2)), 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    for expand, outer, repeats, first in (*table, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for number in range(repeats):
            stride, wide = first if number == 0 else 1, expand * inner
            y = x if expand == 1 else relu6(build.conv(x, inner, wide, 1))
            y = relu6(build.conv(y, wide, wide, 3, stride, group=wide))
            y = build.conv(y, wide, outer, 1)
            x = build.op("Add", x, y) if stride == 1 and inner == outer else y
            inner = outer
    return _classified(build, relu6(build.conv(x, inner, 1280, 1)), 1280, side)


def _classified(build: Builder, x: str, inner: int, side: int) -> tuple[bytes, dict[str, Array]]:
    flat = build.op("Flatten", build.op("GlobalAveragePool", x))
    logits = build.dense(flat, inner, 1000)
    model = build.model({"image": [1, 3, side, side]}, logits, [1, 1000])
    return model, {"image": build.image(side)}

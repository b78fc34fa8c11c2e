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


def resnet50(side: int = 224) -> tuple[bytes, dict[str, Array]]:
    """ResNet-50 (He et al., 2015, table 1; strides in the 3 × 3 convolutions, as torchvision has
    it) on one image: 4.1 billion multiplications at 224."""
    build = Builder()
    x = build.op("Relu", build.conv("image", 3, 64, 7, 2))
    x = build.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inner = 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(blocks):
            stride = first if number == 0 else 1
            y = build.op("Relu", build.conv(x, inner, width, 1))
            y = build.op("Relu", build.conv(y, width, width, 3, stride))
            y = build.conv(y, width, 4 * width, 1)
            x = x if number else build.conv(x, inner, 4 * width, 1, stride)
            x = build.op("Relu", build.op("Add", y, x))
            inner = 4 * width
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

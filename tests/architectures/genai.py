"""A llama-style decoder as onnxruntime-genai writes it: 4-bit weights in blocks of 32
(MatMulNBits), GroupQueryAttention with rotary embeddings over past and present, residual sums in
SkipSimplifiedLayerNormalization. Random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY, BLOCK, CONTEXT = 2, 64, 4, 2, 96, 99, 32, 64
HEAD = HIDDEN // HEADS


def decoder() -> bytes:
    """Inputs: ``input_ids`` and ``attention_mask``, i64; a past key and value of each layer, f32
    ``[batch, KV_HEADS, past, HEAD]``. Outputs: ``logits`` and as many presents."""
    rng = np.random.default_rng(11)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, value: Array) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        domain = "" if kind in onnx_ops else "com.microsoft"
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    onnx_ops = {"Gather", "Cast", "ReduceSum", "Sub", "Shape", "Sigmoid", "Mul"}
    onnx_ops.add("SimplifiedLayerNormalization")  # in the default domain, as the builder has it

    def product(x: str, name: str, inner: int, outer: int) -> str:
        blocks = inner // BLOCK
        b = weight(f"{name}.b", rng.integers(0, 256, (outer, blocks, BLOCK // 2), dtype=np.uint8))
        scales = rng.uniform(0.5, 1.5, outer * blocks) * inner**-0.5 / 4
        inputs = [x, b, weight(f"{name}.scales", scales.astype("f4"))]
        sizes = {"K": inner, "N": outer, "bits": 4, "block_size": BLOCK, "accuracy_level": 0}
        return node("MatMulNBits", inputs, [f"{name}.y"], **sizes)

    def gain(name: str) -> str:
        return weight(f"{name}.gain", rng.uniform(0.5, 1.5, HIDDEN).astype("f4"))

    one = weight("one", np.array([1], "i8"))
    seen = node("ReduceSum", ["attention_mask", one], ["seen"], keepdims=0)
    last = node("Sub", [seen, one], ["last"])
    lengths = node("Cast", [last], ["lengths"], to=TensorProto.INT32)
    shape = node("Shape", ["attention_mask"], ["shape"])
    count = node("Gather", [shape, weight("axis", np.array(1, "i8"))], ["count"], axis=0)
    total = node("Cast", [count], ["total"], to=TensorProto.INT32)
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD))
    cos = weight("cos", np.cos(angles).astype("f4"))
    sin = weight("sin", np.sin(angles).astype("f4"))

    table = weight("embedding", rng.standard_normal((VOCABULARY, HIDDEN)).astype("f4"))
    x = node("Gather", [table, "input_ids"], ["embedded"], axis=0)
    h = node("SimplifiedLayerNormalization", [x, gain("first")], ["h0"], epsilon=1e-5, axis=-1)
    kv = KV_HEADS * HEAD
    for i in range(LAYERS):
        q = product(h, f"{i}.q", HIDDEN, HIDDEN)
        k, v = product(h, f"{i}.k", HIDDEN, kv), product(h, f"{i}.v", HIDDEN, kv)
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        present = [f"present.{i}.key", f"present.{i}.value"]
        mixed = node(
            "GroupQueryAttention",
            [q, k, v, *past, lengths, total, cos, sin],
            [f"{i}.mixed", *present],
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            do_rotary=1,
        )
        y = product(mixed, f"{i}.o", HIDDEN, HIDDEN)
        sums = [f"{i}.h1", "", "", f"{i}.x1"]
        h = node("SkipSimplifiedLayerNormalization", [x, y, gain(f"{i}.a")], sums, epsilon=1e-5)
        x = sums[3]
        gate, up = product(h, f"{i}.gate", HIDDEN, FFN), product(h, f"{i}.up", HIDDEN, FFN)
        opened = node("Mul", [gate, node("Sigmoid", [gate], [f"{i}.s"])], [f"{i}.silu"])
        y = product(node("Mul", [opened, up], [f"{i}.gated"]), f"{i}.down", FFN, HIDDEN)
        sums = [f"{i}.h2", "", "", f"{i}.x2"]
        h = node("SkipSimplifiedLayerNormalization", [x, y, gain(f"{i}.b")], sums, epsilon=1e-5)
        x = sums[3]
    logits = product(h, "head", HIDDEN, VOCABULARY)

    def value(name: str, kind: int, dims: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dims)

    def caches(kind: str, length: str) -> list[onnx.ValueInfoProto]:
        dims: list[int | str] = ["batch", KV_HEADS, length, HEAD]
        names = [f"{kind}.{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
        return [value(name, TensorProto.FLOAT, dims) for name in names]

    ids = value("input_ids", TensorProto.INT64, ["batch", "sequence"])
    mask = value("attention_mask", TensorProto.INT64, ["batch", "total"])
    out = value(logits, TensorProto.FLOAT, ["batch", "sequence", VOCABULARY])
    graph = helper.make_graph(
        nodes,
        "decoder",
        [ids, mask, *caches("past_key_values", "past")],
        [out, *caches("present", "total")],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def feeds(past: int, sequence: int, batch: int = 1) -> dict[str, Array]:
    """A prompt (no past), or a step with random keys and values behind it."""
    rng = np.random.default_rng(past)
    shape = (batch, KV_HEADS, past, HEAD)
    out: dict[str, Array] = {
        "input_ids": rng.integers(0, VOCABULARY, (batch, sequence)),
        "attention_mask": np.ones((batch, past + sequence), "i8"),
    }
    for i in range(LAYERS):
        for part in ("key", "value"):
            out[f"past_key_values.{i}.{part}"] = rng.standard_normal(shape).astype("f4")
    return out

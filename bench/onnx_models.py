"""The models of ``onnx.py`` and ``gpu_onnx.py``: names, files, inputs.

``minilm`` is all-MiniLM-L6-v2 in three formats: ``int8`` as published (weight-only, one scale a
tensor), ``fp32`` the same weights as floats, ``q8`` what onnxruntime's dynamic quantisation makes
of that. The others of ``onnx_graphs.py`` have random weights at true sizes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import models
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from bench import onnx_graphs

Array = NDArray[Any]
Model = tuple[bytes, dict[str, Array]]


def minilm(kind: str, batch: int, tokens: int) -> Model:
    """``batch`` rows of that many tokens."""
    ids = np.random.default_rng(9).integers(1000, 30000, (batch, tokens))
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    feeds = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
    return _minilm_file(kind), feeds


@cache
def _minilm_file(kind: str) -> bytes:
    published = models.fetch("minilm")
    if kind == "int8":
        return published.read_bytes()
    if kind == "fp32":
        return bytes(_without_quantisation(onnx.load(published)).SerializeToString())
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "fp32.onnx"), Path(folder, "q8.onnx")
        before.write_bytes(_minilm_file("fp32"))
        quantize_dynamic(before, after, weight_type=QuantType.QInt8)
        return after.read_bytes()


def _without_quantisation(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights that casts and products make of stored ones become weights of floats."""
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type in ("Cast", "Mul")]:
        if not all(name in weights for name in node.input):
            continue
        first, *others = (weights[name] for name in node.input)
        if node.op_type == "Cast" and first.dtype != np.int8:
            continue
        value = first.astype("f4")
        for other in others:
            value = value * other
        weights[node.output[0]] = value
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    return model


def kokoro() -> Model:
    """33 phonemes, 2.5 s of sound."""
    ids = [50, 83, 54, 156, 57, 135, 16, 65, 156, 87, 158, 54, 46, 5, 16, 50, 83, 46, 156, 24, 68]
    ids += [62, 16, 102, 68, 16, 53, 65, 156, 86]
    voice = np.fromfile(models.fetch("kokoro_voice"), "f4").reshape(-1, 1, 256)
    feeds = {
        "tokens": np.array([[0, *ids, 0]], "i8"),
        "style": voice[len(ids)],
        "speed": np.ones(1, "f4"),
    }
    return models.fetch("kokoro").read_bytes(), feeds


def isnet(kind: str) -> Model:
    """A photo at 1024 × 1024."""
    photo = Image.open(models.fetch("astronaut")).convert("RGB").resize((1024, 1024))
    image = (np.asarray(photo, "f4") - 128) / 256
    feeds = {"input": np.ascontiguousarray(image.transpose(2, 0, 1)[None])}
    return models.fetch(f"isnet_{kind}").read_bytes(), feeds


MODELS: dict[str, Callable[[], Model]] = {
    **{
        f"minilm_{kind}_{batch}x{tokens}": partial(minilm, kind, batch, tokens)
        for kind in ("int8", "fp32", "q8")
        for batch, tokens in ((1, 16), (1, 128), (32, 128))
    },
    "mobilenet": onnx_graphs.mobilenet,
    "resnet50": onnx_graphs.resnet50,
    "isnet_uint8": partial(isnet, "uint8"),
    "isnet_f16": partial(isnet, "f16"),
    "kokoro": kokoro,
}

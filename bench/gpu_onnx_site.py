"""The folder that ``gpu_onnx.py run`` serves: the page, both engines, models and inputs.

``models/NAME.onnx``: the file; ``models/NAME.json``: inputs, and the weights that are left out
(offset, bytes, type, standard deviation), so that the file holds what is between. ``plans/NAME``:
our plan for a GPU with subgroups, for the profile; ``plans/NAME.json``: what a session would know
of it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.onnx_models import MODELS
from fanlight.compiler import CompileOptions, compile_module
from fanlight.inference.files import ModelFiles
from fanlight.inference.session import description, import_onnx
from fanlight.inference.tensor import Tensor
from fanlight.plan import Plan
from fanlight.plan.file import encode
from fanlight.server import bundle
from fanlight.server.app import WEB

ROOT = Path(__file__).resolve().parent.parent
ORT = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
WHOLE = ("kokoro",)
LEAST = 65536
PAGE = (
    "gpu_onnx.html",
    "gpu_onnx.js",
    "gpu_onnx_profile.js",
    "gpu_chat_profile.js",
    "gpu_chat_weights.js",
)


def build(target: Path, names: list[str]) -> None:
    """Writes the folder ``target``, replacing it."""
    made = {name: MODELS[name]() for name in names}
    shutil.rmtree(target, ignore_errors=True)
    kept = shutil.ignore_patterns("*.d.ts", "*.d.mts", "types", "*.partial")
    shutil.copytree(WEB, target, ignore=kept)
    content = bundle.python_zip()
    (target / "vendor" / "fanlight.zip").write_bytes(content)
    (target / "vendor" / "bundle.js").write_bytes(bundle.bundle_script(content))
    (target / "web").symlink_to(".")  # where gpu_chat_profile.js looks for the executor
    for name in PAGE:
        shutil.copy(ROOT / "bench" / name, target / name)
    (target / "ort").mkdir()
    for name in ORT:
        shutil.copy(ROOT / "node_modules/onnxruntime-web/dist" / name, target / "ort" / name)
    for folder in ("models", "plans"):
        (target / folder).mkdir()
    for name, (data, feeds) in made.items():
        spans = [] if name.startswith(WHOLE) else _large_weights(data)
        kept_parts, end = [], 0
        for offset, length, _, _ in spans:
            kept_parts.append(data[end:offset])
            end = offset + length
        (target / "models" / f"{name}.onnx").write_bytes(b"".join([*kept_parts, data[end:]]))
        recipe = {"bytes": len(data), "weights": spans, "feeds": _packed(feeds)}
        (target / "models" / f"{name}.json").write_text(json.dumps(recipe))
        plan = asyncio.run(_plan(data))
        (target / "plans" / name).write_bytes(encode(plan))
        (target / "plans" / f"{name}.json").write_text(json.dumps(description(plan)))


def _large_weights(data: bytes) -> list[tuple[int, int, str, float]]:
    """Offset, bytes, type, standard deviation, in the file's order."""
    found, end = [], 0
    for tensor in onnx.load_from_string(data).graph.initializer:
        if len(tensor.raw_data) >= LEAST:
            offset = data.index(tensor.raw_data, end)
            end = offset + len(tensor.raw_data)
            value = numpy_helper.to_array(tensor)
            spread = float(np.std(value.astype("f4")))
            found.append((offset, len(tensor.raw_data), value.dtype.name, spread))
    return found


def _packed(feeds: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, array in feeds.items():
        tensor = Tensor(array)
        data = base64.b64encode(bytes(tensor.data)).decode()
        out[name] = {"type": tensor.dtype, "dims": list(tensor.shape), "data": data}
    return out


async def _plan(data: bytes) -> Plan:
    async with ModelFiles(data, None) as files:
        module = await import_onnx(files, {}, None)
    return compile_module(module, CompileOptions("webgpu", frozenset({"subgroups"})))

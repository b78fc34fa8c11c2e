"""The folder that ``gpu_chat.py run`` serves: the page, the executor, and plans of each variant.

Models are random weights at the sizes of real ones; the page makes the bytes, so the folder is
small. ``check`` is a small model whose weights and expected logits (the interpreter's, in f64) are
in the folder: the device is right before it is fast.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fanlight import plan as plans
from fanlight.archs import llama
from fanlight.codegen.wgsl import tiles
from fanlight.compiler import CompileOptions, compile_module
from fanlight.dtypes import DTYPES
from fanlight.formats.dequant import dequantise
from fanlight.ir.graph import Module, WeightSource
from fanlight.ir.interpreter import Interpreter

HERE = Path(__file__).resolve().parent
CONTEXT, CHUNK, STEPS = 2304, 512, 16
FILE = "model"
CHECK_POSITIONS = 280  # more than two splits of the past


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama; ``matrices`` and ``embedding`` are dtypes of its weights."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    matrices: str
    embedding: str
    context: int = CONTEXT
    chunk: int = CHUNK

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype, in the file's order."""
        h, kv, f = self.hidden, self.kv_heads * self.head, self.ffn
        yield "token_embd.weight", (self.vocab, h), self.embedding
        for i in range(self.layers):
            yield f"blk.{i}.attn_norm.weight", (h,), "f32"
            for name, shape in (
                ("attn_q", (h, h)),
                ("attn_k", (kv, h)),
                ("attn_v", (kv, h)),
                ("attn_output", (h, h)),
            ):
                yield f"blk.{i}.{name}.weight", shape, self.matrices
            yield f"blk.{i}.ffn_norm.weight", (h,), "f32"
            for name, shape in (("ffn_gate", (f, h)), ("ffn_up", (f, h)), ("ffn_down", (h, f))):
                yield f"blk.{i}.{name}.weight", shape, self.matrices
        yield "output_norm.weight", (h,), "f32"


MODELS = {
    "SmolLM2-135M": Shape(30, 576, 9, 3, 1536, 49_152, "q4_1", "q8_0"),
    "Llama-3.2-1B": Shape(16, 2048, 32, 8, 8192, 128_256, "q4_0", "q4_0"),
    "tiny": Shape(2, 256, 4, 2, 512, 1024, "q4_0", "q8_0", 256, 64),
}
CHECK = Shape(2, 256, 4, 2, 512, 1024, "q4_0", "q8_0", 320, 64)

#: name → features that the plan may use, storage of the cache
VARIANTS: dict[str, tuple[frozenset[str], str]] = {
    "subgroups, f16 cache": (frozenset({"subgroups"}), "f16"),
    "subgroups, f32 cache": (frozenset({"subgroups"}), "f32"),
    "plain, f16 cache": (frozenset(), "f16"),
    "plain, f32 cache": (frozenset(), "f32"),
    "no barriers, f32 cache": (frozenset({"cpu"}), "f32"),
}


#: for ``--tune``: name → fields of rows of ``tiles.py`` that differ, on the first variant
TILES: dict[str, dict[str, dict[str, Any]]] = {
    "rows 1": {"PRODUCT": {"rows": 1}, "GATED": {"rows": 1}},
    "rows 2": {"PRODUCT": {"rows": 2}, "GATED": {"rows": 1}},
    "rows 8": {"PRODUCT": {"rows": 8}, "GATED": {"rows": 4}},
    "rows 8, 1 step": {"PRODUCT": {"rows": 8, "steps": 1}, "GATED": {"rows": 4, "steps": 1}},
    "1 step": {"PRODUCT": {"steps": 1}, "GATED": {"steps": 1}},
    "2 steps": {"PRODUCT": {"steps": 2}, "GATED": {"steps": 2}},
    "8 steps": {"PRODUCT": {"steps": 8}, "GATED": {"steps": 8}},
    "8 steps, unroll 8": {
        "PRODUCT": {"steps": 8, "unroll": 8},
        "GATED": {"steps": 8, "unroll": 8},
    },
    "bits": {row: {"bits": True} for row in ("PRODUCT", "GATED", "COMBINING")},
    "bits, rows 8": {
        "PRODUCT": {"bits": True, "rows": 8},
        "GATED": {"bits": True, "rows": 4},
        "COMBINING": {"bits": True},
    },
    "wide": {"PRODUCT": {"wide": True, "steps": 1}, "GATED": {"wide": True, "steps": 1}},
    "wide, rows 8": {
        "PRODUCT": {"wide": True, "steps": 1, "rows": 8},
        "GATED": {"wide": True, "steps": 1, "rows": 4},
    },
    "splits of 64": {"DECODE": {"chunk": 64}},
    "splits of 256": {"DECODE": {"chunk": 256}},
    "16 splits": {"DECODE": {"splits": 16}},
    "16 splits, combining rows 16": {"COMBINING": {"rows": 16}, "DECODE": {"splits": 16}},
    "combine apart": {"DECODE": {"fold": False}},
    "combine apart, 16 splits": {"DECODE": {"fold": False, "splits": 16}},
    "combine apart, 32 splits of 64": {"DECODE": {"fold": False, "chunk": 64, "splits": 32}},
    "combining rows 16": {"COMBINING": {"rows": 16}},
    "combining rows 32": {"COMBINING": {"rows": 32, "groups": 64}},
    "attention 64 threads": {"DECODE": {"threads": 64}},
    "attention 64 threads, 32 splits": {"DECODE": {"threads": 64, "chunk": 64, "splits": 32}},
    "two heads together": {"DECODE": {"together": 2}},
    "one head": {"DECODE": {"together": 1}},
    "4 values ahead": {"DECODE": {"ahead": 4}},
    "16 values ahead": {"DECODE": {"ahead": 16}},
}


@contextmanager
def _tiled(name: str) -> Iterator[None]:
    """While inside, ``tiles.py`` holds what ``TILES`` says of the variant ``name``."""
    with ExitStack() as stack:
        for row, fields in TILES.get(name, {}).items():
            changed = replace(getattr(tiles, row), **fields)
            stack.enter_context(patch.object(tiles, row, changed))
        yield


def build(target: Path, models: list[str], variants: list[str]) -> None:
    """Writes the folder ``target``, replacing it. Variants are names of ``VARIANTS`` and
    ``TILES``."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "web").mkdir(parents=True)
    web = HERE.parent / "fanlight" / "web"
    for path in web.glob("*.js"):
        shutil.copy(path, target / "web" / path.name)
    for name in ("gpu_chat.html", "gpu_chat.js", "gpu_chat_weights.js", "gpu_chat_profile.js"):
        shutil.copy(HERE / name, target / name)
    index: dict[str, Any] = {"variants": variants, "models": {}, "check": _check(target, variants)}
    for name in models:
        shape = MODELS[name]
        weights, size = _sources(shape)
        row = {**asdict(shape), "steps": STEPS, "bytes": size, "variants": {}}
        row["tensors"] = [[w.offset, w.length, w.dtype.name] for w in weights.values()]
        for variant in variants:
            file = f"{name}-{variant}.plan".replace(" ", "-").replace(",", "")
            plan = _plan(shape, weights, variant)
            (target / file).write_bytes(plans.encode(plan))
            counts = _counts(shape, variant, plan)
            row["variants"][variant] = {"plan": file, "kv": _variant(variant)[1], **counts}
        index["models"][name] = row
    (target / "models.json").write_text(json.dumps(index))


def _sources(shape: Shape) -> tuple[dict[str, WeightSource], int]:
    found, at = {}, 0
    for name, dims, kind in shape.tensors():
        dtype = DTYPES[kind]
        length = dtype.nbytes(math.prod(dims))
        found[name] = WeightSource(dtype, dims, FILE, at, length)
        at += -(-length // 32) * 32
    return found, at


def _module(shape: Shape, weights: dict[str, WeightSource], kv: str) -> Module:
    config = llama.Config(
        llama.VARIANTS["llama"],
        shape.layers,
        shape.hidden,
        shape.heads,
        shape.kv_heads,
        shape.head,
        shape.vocab,
        shape.context,
        1e-5,
        500_000.0,
        shape.head,
        1.0,
    )
    options = llama.Options(shape.context, shape.chunk, STEPS, kv=DTYPES[kv])
    return llama.build(config, weights, {}, options)


def _variant(name: str) -> tuple[frozenset[str], str]:
    return VARIANTS.get(name, next(iter(VARIANTS.values())))


def _plan(shape: Shape, weights: dict[str, WeightSource], variant: str) -> plans.Plan:
    features, kv = _variant(variant)
    with _tiled(variant):
        return compile_module(_module(shape, weights, kv), CompileOptions("webgpu", features))


def _counts(shape: Shape, variant: str, plan: plans.Plan) -> dict[str, Any]:
    """Dispatches of a decode step, and of each layer: what a second layer adds to the first."""
    few = [replace(shape, layers=n) for n in (1, 2)]
    one, two = (_dispatches(_plan(s, _sources(s)[0], variant), "step") for s in few)
    return {
        "dispatches_per_token": _dispatches(plan, "step") + _dispatches(plan, "sample"),
        "dispatches_per_layer": two - one,
        "kernels": len(plan.kernels),
    }


def _dispatches(plan: plans.Plan, program: str) -> int:
    return sum(isinstance(step, plans.Dispatch) for step in plan.programs[program])


def _check(target: Path, variants: list[str]) -> dict[str, Any]:
    """Plans, weights and expected logits of the small model, teacher-forced one by one."""
    weights, size = _sources(CHECK)
    rng = np.random.default_rng(11)
    data = bytearray(size)
    values: dict[str, NDArray[Any]] = {}
    for name, source in weights.items():
        raw = _random(rng, source)
        data[source.offset : source.offset + source.length] = raw
        values[name] = dequantise(raw, source.dtype, source.shape).astype("f8")
    (target / "check.weights").write_bytes(data)
    row: dict[str, Any] = {"weights": "check.weights", "bytes": size, "variants": {}}
    tokens = rng.integers(0, CHECK.vocab, CHECK_POSITIONS).tolist()
    row |= {"tokens": tokens, "vocab": CHECK.vocab}
    logits = _expected(_module(CHECK, weights, "f32"), values, tokens)
    (target / "check.logits").write_bytes(logits.astype("<f4").tobytes())
    row["logits"] = "check.logits"
    for variant in variants:
        file = f"check-{variant}.plan".replace(" ", "-").replace(",", "")
        (target / file).write_bytes(plans.encode(_plan(CHECK, weights, variant)))
        bound = 1e-9 if _variant(variant)[1] == "f32" else 1e-5
        row["variants"][variant] = {"plan": file, "bound": bound}
    return row


def _random(rng: np.random.Generator, source: WeightSource) -> bytes:
    """Random blocks; activations stay near 1."""
    if source.dtype.name == "f32":
        return rng.uniform(0.5, 1.5, source.length // 4).astype("<f4").tobytes()
    blocks = rng.integers(0, 256, (source.length // source.dtype.bytes, source.dtype.bytes))
    raw = blocks.astype(np.uint8)
    scale = {"q4_0": 0.2, "q8_0": 0.013}[source.dtype.name] / math.sqrt(source.shape[-1])
    spread = rng.uniform(0.5, 1.5, len(raw)) * scale
    raw[:, :2] = spread.astype("<f2").view(np.uint8).reshape(-1, 2)
    return raw.tobytes()


def _expected(module: Module, values: dict[str, NDArray[Any]], tokens: list[int]) -> NDArray[Any]:
    """Logits [positions, vocab] of decode steps over ``tokens``."""
    tables = {
        name: np.frombuffer(w.data, "<f4").reshape(w.shape).astype("f8")
        for name, w in module.weights.items()
        if w.data is not None
    }
    states: dict[str, NDArray[Any]] = {
        name: np.zeros([int(str(s)) for s in spec.shape], "i4" if "i" in str(spec.dtype) else "f8")
        for name, spec in module.states.items()
    }
    interpreter = Interpreter({**values, **tables}, states, precise=True)
    interpreter.run(module.graphs["tables"], {}, {})
    found = []
    for position, token in enumerate(tokens):
        control = np.zeros(llama.CONTROL, "i4")
        control[llama.POSITION], control[llama.TOKEN] = position, token
        interpreter.states["control"] = control
        interpreter.run(module.graphs["step"], {}, {"pos": position})
        found.append(interpreter.states["logits"][0])
    return np.stack(found)

"""Small models compiled for each kind of device, against the interpreter in f64.

Bounds on the logits' NMSE: 1e-9 with f32 caches, 1e-5 with f16. What CPUs that play GPUs run is
held here beside what real GPUs run, with and without subgroup operations.
"""

from __future__ import annotations

import asyncio
import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.dtypes import DTYPES, DType
from fanlight.hub.files import LocalFile
from fanlight.ir.graph import WeightSource
from fanlight.plan import Dispatch, Plan
from fanlight.runtime import gpu
from tests import gguf_files, modules
from tests.modules import Array, Interpreted, build

_WIDE = gguf_files.Model(hidden=256, heads=4, ffn=512)
MODELS = {
    "llama q4_0": replace(_WIDE, types={"*": "q4_0"}, tied=False),
    "llama q4_k": replace(_WIDE, types={"*": "q4_k", "*attn_v*": "q6_k"}),
    "qwen3 q8_0": gguf_files.Model(arch="qwen3", head_size=32, eps=1e-6),
}
VARIANTS = [frozenset[str](), frozenset({"subgroups"}), frozenset({"cpu"})]
TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 320, 90)]
CHUNK = 80  # then one by one, over more positions than a split has


@pytest.fixture(scope="module", params=MODELS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "model.gguf"
    gguf_files.write(file, MODELS[request.param])
    return file


def options(kv: DType) -> llama.Options:
    return llama.Options(context=192, chunk=CHUNK, max_steps=4, kv=kv)


@pytest.fixture(scope="module")
def wanted(path: Path) -> tuple[Array, list[int]]:
    """Logits of the steps after the first chunk, and a continuation."""
    module = build(path, options(dtypes.f32))
    reference = Interpreted(path, module, precise=True)
    found = []
    reference.states["control"] = modules.control(0)
    reference.run("prefill", {"tokens": np.array(TOKENS[:CHUNK], "i4")}, {"T": CHUNK})
    for position in range(CHUNK, len(TOKENS)):
        reference.states["control"] = modules.control(position, TOKENS[position])
        reference.run("step", {}, {})
        found.append(reference.states["logits"][0])
    return np.stack(found), reference.decode(TOKENS[-1], len(TOKENS) - 1, 8)


async def _run(plan: Plan, path: Path) -> tuple[Array, list[int]]:
    session = await gpu.load(plan, {modules.FILE: LocalFile(path)})
    try:
        feeds = {
            "tokens": np.array(TOKENS[:CHUNK], "<i4").tobytes(),
            "control": modules.control(0).tobytes(),
        }
        await session.run("prefill", feeds, {"T": CHUNK})
        found = []
        for position in range(CHUNK, len(TOKENS)):
            feeds = {"control": modules.control(position, TOKENS[position]).tobytes()}
            await session.run("step", feeds)
            found.append(np.frombuffer(await session.read("logits"), "<f4"))
        start = modules.control(len(TOKENS) - 1, TOKENS[-1]).tobytes()
        await session.run("begin", {"control": start, "stops": modules.no_stops().tobytes()})
        chosen: list[int] = []
        async for data in session.repeat("decode", 2, "chosen", {"steps": 4}):
            chosen += struct.unpack("<4i", data)
        return np.stack(found), chosen
    finally:
        await session.dispose()


@pytest.mark.parametrize("kv", [dtypes.f32, dtypes.f16], ids=str)
@pytest.mark.parametrize("features", VARIANTS, ids=lambda f: "".join(f) or "plain")
def test_small_models_on_every_kind_of_device(
    features: frozenset[str], kv: DType, path: Path, wanted: tuple[Array, list[int]]
) -> None:
    plan = compile_module(build(path, options(kv)), CompileOptions("webgpu", features))
    logits, chosen = asyncio.run(_run(plan, path))
    error = modules.nmse(logits, wanted[0])
    print(f"NMSE {error:.1e}")
    assert error <= (1e-9 if kv is dtypes.f32 else 1e-5)
    assert kv is dtypes.f16 or chosen == wanted[1]


def test_a_layer_takes_few_dispatches(tmp_path: Path) -> None:
    """Five for a Llama, one more where heads have norms, on GPUs."""
    for name, most in (("llama q4_0", 5), ("qwen3 q8_0", 6)):
        counts = []
        for layers in (1, 2):
            file = tmp_path / f"{name}{layers}.gguf"
            gguf_files.write(file, replace(MODELS[name], layers=layers))
            plan = compile_module(
                build(file, options(dtypes.f16)), CompileOptions("webgpu", VARIANTS[1])
            )
            counts.append(sum(isinstance(s, Dispatch) for s in plan.programs["step"]))
        assert counts[1] - counts[0] == most, name


_BYTES = {"f32": 4, "u32": 4, "vec2<f32>": 8, "vec3<f32>": 16, "vec4<f32>": 16, "vec2<u32>": 8}


@pytest.mark.parametrize("features", VARIANTS[:2], ids=lambda f: "".join(f) or "plain")
@pytest.mark.parametrize("sizes", [(2048, 32, 8, 8192), (576, 9, 3, 1536), (3072, 24, 8, 8192)])
def test_kernels_of_real_sizes_keep_to_the_limits(
    sizes: tuple[int, int, int, int], features: frozenset[str]
) -> None:
    """Workgroup memory, threads and bindings that any WebGPU device has."""
    hidden, heads, groups, ffn = sizes
    head = 64 if hidden != 3072 else 128
    shapes = {
        "token_embd": (128_256, hidden),
        "output_norm": (hidden,),
        **{f"blk.0.{name}_norm": (hidden,) for name in ("attn", "ffn")},
        **{f"blk.0.attn_{n}": (groups * head, hidden) for n in "kv"},
        "blk.0.attn_q": (heads * head, hidden),
        "blk.0.attn_output": (hidden, heads * head),
        **{f"blk.0.ffn_{n}": (ffn, hidden) for n in ("gate", "up")},
        "blk.0.ffn_down": (hidden, ffn),
    }
    weights = {
        f"{name}.weight": WeightSource(
            DTYPES["q4_0" if len(shape) == 2 else "f32"],
            shape,
            "model",
            0,
            DTYPES["q4_0" if len(shape) == 2 else "f32"].nbytes(math.prod(shape)),
        )
        for name, shape in shapes.items()
    }
    variant = llama.VARIANTS["llama"]
    config = llama.Config(
        variant, 1, hidden, heads, groups, head, 128_256, 4096, 1e-5, 5e5, head, 1.0
    )
    module = llama.build(config, weights, {}, llama.Options(context=4096, kv=dtypes.f16))
    for kernel in compile_module(module, CompileOptions("webgpu", features)).kernels:
        found = re.findall(r"var<workgroup> \w+: array<(.+), (\d+)>;", kernel.code)
        assert len(found) == kernel.code.count("var<workgroup>"), kernel.name
        assert sum(_BYTES[kind] * int(n) for kind, n in found) <= 16 << 10, kernel.name
        threads = re.search(r"@workgroup_size\((\d+)\)", kernel.code)
        assert threads is not None
        assert int(threads[1]) <= 256, kernel.name
        assert len(kernel.access) <= 8, kernel.name

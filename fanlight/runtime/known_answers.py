"""The known-answer test of a GPU: before it is trusted, a small model must say there what it says
on the CPU.

The model has random weights and a layer of each family of formats; a prefill and single steps take
it through the kernels that language models use: products, gather, norms, rope, caches, attention.
In: two backends. Out: how far the first is from the second.
"""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

from fanlight.archs import llama
from fanlight.compiler import CompileOptions, compile_module
from fanlight.dtypes import DTYPES
from fanlight.errors import DeviceError, PlanError
from fanlight.ir.graph import Module, WeightSource

if TYPE_CHECKING:
    from fanlight.runtime.backend import Backend

#: NMSE of logits: f32 on both sides, int16 activations on WebAssembly
BOUND = 1e-5
_HIDDEN, _HEADS, _KV_HEADS, _FFN, _VOCAB, _CONTEXT = 256, 4, 2, 512, 512, 320
#: dtypes of a layer's matrices
_LAYERS = ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "f16")
_CHUNK, _PREFILL, _STEPS = 96, 270, 3  # positions: more than one split of the past


async def error_of(gpu: Backend, cpu: Backend) -> float:
    """NMSE of ``gpu``'s logits against ``cpu``'s; infinite where it can't run the model or gives no
    number. Raises what goes wrong on ``cpu``."""
    wanted = [x async for x in _logits(cpu)]
    try:
        got = [x async for x in _logits(gpu)]
    except (DeviceError, PlanError):
        return math.inf
    pairs = list(zip(chain.from_iterable(got), chain.from_iterable(wanted), strict=True))
    error = sum((a - b) ** 2 for a, b in pairs) / sum(b**2 for _, b in pairs)
    return error if math.isfinite(error) else math.inf


async def _logits(backend: Backend) -> AsyncIterator[tuple[float, ...]]:
    """Those of a few steps behind a prefill."""
    info = backend.info
    plan = compile_module(_model(), CompileOptions(info.target, info.features, info.max_binding))
    session = await backend.load(plan, {})
    try:
        tokens = [(7 * i * i + 3) % _VOCAB for i in range(_PREFILL + _STEPS)]
        for at in range(0, _PREFILL, _CHUNK):
            part = tokens[at : min(at + _CHUNK, _PREFILL)]
            feeds = {"tokens": _i32(*part), "control": _control(at, 0)}
            await session.run("prefill", feeds, {"T": len(part)})
        for at in range(_PREFILL, _PREFILL + _STEPS):
            stops = _i32(*[-1] * llama.MAX_STOPS)
            await session.run("begin", {"control": _control(at, tokens[at]), "stops": stops})
            await session.run("decode", {}, {"steps": 1})
            yield struct.unpack(f"<{_VOCAB}f", await session.read("logits"))
    finally:
        await session.dispose()


def _i32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def _control(position: int, token: int) -> bytes:
    control = [0] * llama.CONTROL
    control[llama.POSITION], control[llama.TOKEN] = position, token
    return _i32(*control)


def _model() -> Module:
    head = _HIDDEN // _HEADS
    config = llama.Config(
        variant=llama.VARIANTS["llama"],
        layers=len(_LAYERS),
        hidden=_HIDDEN,
        heads=_HEADS,
        kv_heads=_KV_HEADS,
        head_size=head,
        vocab=_VOCAB,
        context=_CONTEXT,
        eps=1e-5,
        rope_base=10_000.0,
        rope_size=head,
        rope_scale=1.0,
    )
    rng = Random(11)
    weights = {name: _random(rng, dtype, shape) for name, dtype, shape in _tensors(head)}
    return llama.build(config, weights, {}, llama.Options(context=_CONTEXT, chunk=_CHUNK))


def _tensors(head: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    h, kv, f = _HIDDEN, _KV_HEADS * head, _FFN
    yield "token_embd.weight", "q8_0", (_VOCAB, h)
    for i, dtype in enumerate(_LAYERS):
        yield f"blk.{i}.attn_norm.weight", "f32", (h,)
        yield f"blk.{i}.attn_q.weight", dtype, (h, h)
        yield f"blk.{i}.attn_k.weight", dtype, (kv, h)
        yield f"blk.{i}.attn_v.weight", dtype, (kv, h)
        yield f"blk.{i}.attn_output.weight", dtype, (h, h)
        yield f"blk.{i}.ffn_norm.weight", "f32", (h,)
        yield f"blk.{i}.ffn_gate.weight", dtype, (f, h)
        yield f"blk.{i}.ffn_up.weight", dtype, (f, h)
        yield f"blk.{i}.ffn_down.weight", dtype, (h, f)
    yield "output_norm.weight", "f32", (h,)


#: f16 fields of a block: (offset, factor); values are then some 1 / sqrt(K)
_SCALES = {
    "q4_0": ((0, 0.2),),
    "q4_1": ((0, 0.2), (2, -1.5)),
    "q8_0": ((0, 0.013),),
    "q4_k": ((0, 0.006), (2, 0.045)),
    "q6_k": ((208, 0.0007),),
}


def _random(rng: Random, dtype: str, shape: tuple[int, ...]) -> WeightSource:
    """Random blocks, whose scales keep activations near 1."""
    kind = DTYPES[dtype]
    size = kind.nbytes(math.prod(shape))
    if dtype == "f32":
        data = struct.pack(f"<{size // 4}f", *(rng.uniform(0.5, 1.5) for _ in range(size // 4)))
    elif dtype == "f16":
        width = 1.7 / math.sqrt(shape[-1])
        data = struct.pack(
            f"<{size // 2}e", *(rng.uniform(-width, width) for _ in range(size // 2))
        )
    else:
        blocks = bytearray(rng.randbytes(size))
        for at in range(0, size, kind.bytes):
            spread = rng.uniform(0.5, 1.5) / math.sqrt(shape[-1])
            for offset, factor in _SCALES[dtype]:
                struct.pack_into("<e", blocks, at + offset, factor * spread)
        data = bytes(blocks)
    return WeightSource(kind, shape, length=size, data=data)

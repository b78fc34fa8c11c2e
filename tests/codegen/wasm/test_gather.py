"""Rows of stored tables: the ``gguf`` package's dequantisation, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight.codegen.wasm import blocks
from fanlight.dtypes import DTYPES
from fanlight.plan import DimSpec
from fanlight.shapes import Dim
from tests.codegen.wasm.harness import SCALES, Array, Bench, f32, stored, values_of

COUNT = Dim("count", "host", 64)
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, 65504.0, -65504.0, 6e-8, -6e-8, 6.1e-5, 0.1, np.inf, np.nan], "f2"
)


def gathered(dtype: str, raw: Array, ids: list[int], n: int, k: int, threads: int = 0) -> Array:
    """The rows ``ids`` of a table [n, k]; by the executor, or by ``threads`` in turn."""
    bench = Bench(dims=(DimSpec(COUNT),))
    inputs = [
        bench.value("table", raw, dtype, (n, k)),
        bench.value("ids", np.array(ids, "<i4"), "i32", (COUNT,)),
    ]
    launches = bench.op("gather", inputs, bench.empty("out", "f32", (COUNT, k)))
    dims = {"count": len(ids)}
    if threads:
        data = bench.share(launches, "out", threads, dims)
    else:
        (data,) = bench.run(launches, ["out"], dims)
    return f32(data, (len(ids), k))


def same(got: Array, wanted: Array) -> None:
    """Equal, zeros' signs too; any NaN is one."""
    np.testing.assert_array_equal(got, wanted)
    assert (np.signbit(got) == np.signbit(wanted))[~np.isnan(wanted)].all()


@pytest.mark.parametrize("fill", ["random", "zeros", "ones", "edges"])
@pytest.mark.parametrize("dtype", sorted(blocks.ROWS))
def test_every_dtype(dtype: str, fill: str) -> None:
    kind, n = DTYPES[dtype], 48
    k = max(kind.block, 256)
    raw, wanted = stored(dtype, n, k, np.random.default_rng(7))
    if fill != "random" and kind.kind == "block":
        raw = raw.reshape(-1, kind.bytes).copy()
        if fill != "edges":
            raw[:] = 0 if fill == "zeros" else 255
        for offset in SCALES[dtype] if fill == "edges" else ():
            raw[:, offset : offset + 2] = np.resize(EDGES, len(raw)).reshape(-1, 1).view("u1")
        wanted = values_of(dtype, raw).reshape(n, k)
    elif fill != "random":
        numbers = {"zeros": [0.0, -0.0], "ones": [1.0], "edges": EDGES}[fill]
        wanted = np.resize(np.asarray(numbers, "f2"), (n, k)).astype("f4")
        if dtype == "bf16":
            wanted = (wanted.view("u4") & 0xFFFF0000).view("f4")
            raw = (wanted.view("u4") >> 16).astype("u2")
        else:
            raw = wanted.astype("f2" if dtype == "f16" else "f4")
    same(gathered(dtype, raw, list(range(n)), n, k), wanted)


def test_every_f16_and_bf16() -> None:
    """Subnormals, infinities and NaN among them."""
    bits = np.arange(1 << 16, dtype="u2")
    for dtype, wanted in (
        ("f16", bits.view("f2").astype("f4")),
        ("bf16", (bits.astype("u4") << 16).view("f4")),
    ):
        same(gathered(dtype, bits, [0], 1, 1 << 16), wanted.reshape(1, -1))


def test_ids_outside_take_the_nearest_row() -> None:
    raw, values = stored("q8_0", 5, 32, np.random.default_rng(1))
    ids = [-1, 0, 4, 5, 2**31 - 1, -(2**31), 3]
    wanted = values[[0, 0, 4, 4, 4, 0, 3]]
    same(gathered("q8_0", raw, ids, 5, 32), wanted)


def test_the_models_embedding() -> None:
    raw, values = stored("q8_0", 49152, 576, np.random.default_rng(2))
    ids = [0, 1, 49151, 198, 30000, 198]
    same(gathered("q8_0", raw, ids, 49152, 576), values[ids])


@pytest.mark.parametrize("dtype", ["q4_1", "q6_k", "f16"])
def test_same_bits_on_all_threads(dtype: str) -> None:
    raw, values = stored(dtype, 9, 512, np.random.default_rng(3))
    for threads in (1, 2, 3, 16):
        same(gathered(dtype, raw, [4, 8, 0], 9, 512, threads), values[[4, 8, 0]])


def test_a_higher_rank() -> None:
    table = np.arange(48, dtype="f4").reshape(3, 4, 4)
    bench = Bench()
    ids = bench.value("ids", np.array([[2, 0], [1, 1]], "<i4"), "i32")
    out = bench.empty("out", "f32", (2, 2, 4, 4))
    launches = bench.op("gather", [bench.value("table", table, "f32"), ids], out)
    same(f32(bench.run(launches, ["out"])[0], (2, 2, 4, 4)), table[[[2, 0], [1, 1]]])


def test_a_wrong_nibble_is_seen() -> None:
    raw, values = stored("q4_0", 4, 64, np.random.default_rng(4))
    raw = raw.copy()
    raw[2, 5] ^= 0x10
    got = gathered("q4_0", raw, [0, 1, 2, 3], 4, 64)
    assert np.argwhere(got != values).tolist() == [[2, 19]]

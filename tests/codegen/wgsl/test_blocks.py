"""Stored weights against the gguf package's dequantisation: repacking, gather, matrix products.

Tolerance of products: NMSE 1e-12 (f32 sums, another order). Of gathered rows: 2e-7 relative.
"""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest

from fanlight.codegen.wgsl import blocks, pieces
from fanlight.dtypes import DTYPES
from fanlight.plan import DimSpec
from fanlight.shapes import Dim
from tests.codegen.wgsl.harness import Array, Bench, f32, nmse

STORED = list(blocks.ROWS)
TOLERANCE = 1e-12


def stored(dtype: str, rows: int, width: int, seed: int) -> tuple[bytes, Array]:
    """Random bytes of a file that are a valid tensor; its values as f32 by the gguf package."""
    rng = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    values = rng.standard_normal((rows, width), dtype=np.float32)
    if dtype in ("q4_k", "q6_k"):  # the package only reads these
        unit = DTYPES[dtype].bytes
        raw = rng.integers(0, 256, (rows * width // 256, unit), dtype=np.uint8)
        at = {"q4_k": 0, "q6_k": 208}[dtype]
        for column in range(at, at + (4 if dtype == "q4_k" else 2), 2):
            scale = rng.uniform(0.001, 0.02, len(raw)).astype("<f2")
            raw[:, column : column + 2] = scale.view(np.uint8).reshape(-1, 2)
        raw = raw.reshape(rows, -1)
    else:
        raw = np.ascontiguousarray(gguf.quantize(values, kind)).view(np.uint8).reshape(rows, -1)
    return raw.tobytes(), np.asarray(gguf.dequantize(raw, kind), "f4").reshape(rows, width)


def test_storage_is_total_over_dtypes() -> None:
    assert set(blocks.STORAGE) == set(DTYPES)
    plain = {name for name, kind in DTYPES.items() if kind.kind != "block"}
    assert all(blocks.STORAGE[name].direct for name in plain)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(
    ("staging", "piece", "hint"), [(1 << 20, 1 << 20, ""), (4096, 1000, ""), (4096, 1000, "cpu")]
)
def test_gather_gives_the_dequantised_rows(dtype: str, staging: int, piece: int, hint: str) -> None:
    """Chunks of odd unit counts (1,000 bytes hold 55 blocks of 18) write shared words right."""
    raw, values = stored(dtype, 37, 768, seed=1)
    ids = np.array([0, 36, 5, 17, 17, 99, -3], "<i4")
    bench = Bench(staging=staging, piece=piece, features=frozenset({hint}))
    table = bench.weight("w", raw, dtype, (37, 768), cuts=(0, 11, 36))
    out = bench.empty("y", "f32", (7, 768))
    (data,) = bench.run(bench.op("gather", [table, bench.value("ids", ids, "i32")], out), ["y"])
    np.testing.assert_allclose(f32(data, (7, 768)), values[ids.clip(0, 36)], rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(
    ("rows", "hint"), [(1, ""), (1, "subgroups"), (1, "cpu"), (2, ""), (37, ""), (37, "cpu")]
)
def test_matmul_of_every_dtype(dtype: str, rows: int, hint: str) -> None:
    error, _ = product_error(dtype, rows, 197, 768, seed=rows, hint=hint)
    assert error < TOLERANCE


SHAPES = [(192, 576), (576, 576), (1536, 576), (576, 1536)]


@pytest.mark.parametrize(
    ("n", "k", "rows"),
    [*((n, k, rows) for n, k in SHAPES for rows in (1, 7, 128)), (49152, 576, 1), (49152, 576, 7)],
)
@pytest.mark.parametrize("dtype", ["q4_1", "q8_0"])
def test_matmul_at_the_shapes_of_smollm2(dtype: str, n: int, k: int, rows: int) -> None:
    error, _ = product_error(dtype, rows, n, k, seed=n)
    assert error < TOLERANCE


@pytest.mark.parametrize("rows", [1, 2])
def test_matmul_reads_a_weight_in_parts(rows: int) -> None:
    error, _ = product_error("q4_0", rows, 300, 512, seed=5, cuts=(0, 65, 230))
    assert error < TOLERANCE


@pytest.mark.parametrize(("n", "k"), [(1, 4), (3, 36), (65, 100), (130, 2048)])
@pytest.mark.parametrize("rows", [1, 33])
def test_matmul_of_activations_of_odd_sizes(rows: int, n: int, k: int) -> None:
    error, _ = product_error("f32", rows, n, k, seed=k)
    assert error < TOLERANCE


def test_matmul_over_host_dims() -> None:
    """Rows beyond T keep what they held."""
    raw, values = stored("q8_0", 96, 64, seed=3)
    rows = Dim("T", "host", 40)
    x = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
    bench = Bench(dims=(DimSpec(rows),))
    w = bench.weight("w", raw, "q8_0", (96, 64))
    out = bench.value("y", np.full((40, 96), 7, "<f4"), "f32", (rows, 96))
    launches = bench.op("matmul", [bench.value("x", x, "f32", (rows, 64)), w], out)
    for t in (1, 33, 40):
        (data,) = bench.run(launches, ["y"], {"T": t})
        got = f32(data, (40, 96))
        assert nmse(got[:t], x[:t].astype("f8") @ values.T) < TOLERANCE
        assert (got[t:] == 7).all()


@pytest.mark.parametrize("rows", [1, 5])
def test_swapped_nibbles_fail(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance tells a wrong kernel from a right one."""
    row = blocks.ROWS["q4_1"]
    wrong = replace(
        row,
        quad=row.quad.replace("select(low4(w), high4(w)", "select(high4(w), low4(w)"),
        span=row.span.replace("low4", "TEMP").replace("high4", "low4").replace("TEMP", "high4"),
    )
    monkeypatch.setitem(blocks.ROWS, "q4_1", wrong)
    piece = pieces.PIECES["q4_1"]
    crossed = piece.body.replace("x[0])", "TEMP").replace("x[1])", "x[0])").replace("TEMP", "x[1])")
    assert crossed != piece.body
    monkeypatch.setitem(pieces.PIECES, "q4_1", replace(piece, body=crossed))
    error, _ = product_error("q4_1", rows, 64, 256, seed=2)
    assert error > 1e-2


def product_error(
    dtype: str,
    rows: int,
    n: int,
    k: int,
    seed: int,
    cuts: tuple[int, ...] = (0,),
    hint: str = "",
) -> tuple[float, int]:
    """NMSE of x @ w.T, and the number of kernels."""
    raw, values = stored(dtype, n, k, seed)
    x = np.random.default_rng(seed + 1).standard_normal((rows, k), dtype=np.float32)
    bench = Bench(features=frozenset({hint}))
    w = bench.weight("w", raw, dtype, (n, k), cuts)
    out = bench.empty("y", "f32", (rows, n))
    launches = bench.op("matmul", [bench.value("x", x, "f32"), w], out)
    (data,) = bench.run(launches, ["y"])
    wanted = x.astype("f8") @ values.astype("f8").T
    return nmse(f32(data, (rows, n)), wanted), len(bench.kernels)

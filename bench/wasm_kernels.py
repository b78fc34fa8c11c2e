"""How fast the WebAssembly target's products and attention are in V8 (node), on one thread.

    scripts/bench wasm_kernels [--only TEXT] [--seconds 0.4] [--plain]

Each row is one launch at a shape of SmolLM2-135M, linked into a module of its own. GB/s: bytes of
stored weights (of the cache, for attention) in 1e9 a second; GFLOP/s: 2 for each multiply-add. Both
from the best run; ``spread`` is median over best. The last line is JSON.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fanlight import shapes
from fanlight.dtypes import DTYPES
from fanlight.plan import THREADS, DimSpec
from fanlight.shapes import Dim
from tests.codegen.wasm.harness import RELAXED, Bench

SCRIPT = Path(__file__).with_suffix(".mjs")
ROWS = Dim("rows", "host", 1 << 20)
HEADS, GROUPS, DEPTH, CONTEXT = 9, 3, 64, 2048
#: (N, K) of SmolLM2-135M's weights: k and v, q and output, gate and up, down, vocabulary
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576))


@dataclass(frozen=True, slots=True)
class Case:
    """``bytes`` are read from memory at least, ``flops`` done."""

    name: str
    bench: Bench
    launches: list[Any]
    bytes: int
    flops: int


def cases(features: frozenset[str]) -> Iterator[Case]:
    """All rows, in the order of the table."""
    for dtype in ("q4_1", "q4_0", "q8_0", "q4_k", "q6_k", "f32", "f16", "bf16"):
        for n, k in SHAPES if dtype == "q4_1" else ((1536, 1536),):
            yield product(dtype, 1, n, k, features)
    yield product("q8_0", 1, 49152, 576, features)
    for dtype, rows in (
        *(("q4_1", rows) for rows in (2, 7, 37, 128)),
        *((dtype, 128) for dtype in ("q4_0", "q8_0", "f32", "f16")),
    ):
        yield product(dtype, rows, 1536, 576, features)
    yield product("q4_1", 128, 576, 1536, features)
    for m, k, n in ((128, 384, 384), (128, 1536, 384), (128, 384, 1536), (1, 384, 1536)):
        yield dot((m, k), (k, n), features)
    for m in (1, 16, 128):
        yield dot((m, 384), (384, 1536), features, "i8")
    yield dot((12, 128, 32), (12, 128, 32), features, turned=True)
    yield dot((12, 128, 32), (12, 32, 128), features)
    yield dot((12, 128, 128), (12, 128, 32), features)
    for cache in ("f32", "f16"):
        for rows, start in ((1, 255), (1, 2000), (128, 0), (128, 896)):
            yield attention(cache, rows, start, features)


def product(dtype: str, rows: int, n: int, k: int, features: frozenset[str]) -> Case:
    """x [rows, k] @ w [n, k].T"""
    if k % DTYPES[dtype].block:
        k = -(-k // 256) * 256
    bench = Bench(dims=(DimSpec(ROWS),), features=features)
    x = bench.empty("x", "f32", (rows, k))
    w = bench.empty("w", dtype, (n, k))
    launches = bench.op("matmul", [x, w], bench.empty("y", "f32", (rows, n)))
    size = DTYPES[dtype].nbytes(n * k)
    return Case(f"matmul {dtype} {rows}x{k}x{n}", bench, launches, size, 2 * rows * n * k)


def dot(
    a: tuple[int, ...],
    b: tuple[int, ...],
    features: frozenset[str],
    dtype: str = "f32",
    turned: bool = False,
) -> Case:
    """a [..., M, K] @ b [..., K, N], or [..., N, K]; bytes: of b"""
    bench = Bench(features=features)
    shape = (*a[:-1], b[-2] if turned else b[-1])
    inputs = [bench.empty("a", "f32", a), bench.empty("b", dtype, b)]
    out = bench.empty("c", "f32", shape)
    launches = bench.op("dot_stored", inputs, out, turned=turned, zero=0)
    name = f"dot {'x'.join(map(str, a))} {'x'.join(map(str, b))} {dtype}{' turned' * turned}"
    size = DTYPES[dtype].bytes * math.prod(b)
    return Case(name, bench, launches, size, 2 * math.prod(shape) * a[-1])


def attention(cache: str, rows: int, start: int, features: frozenset[str]) -> Case:
    """Rows ``start`` … ``start + rows - 1`` over the cache."""
    bench = Bench(features=features)
    q = bench.empty("q", "f32", (rows, HEADS, DEPTH))
    k, v = (bench.empty(name, cache, (CONTEXT, GROUPS, DEPTH)) for name in "kv")
    out = bench.empty("out", "f32", (rows, HEADS * DEPTH))
    launches = bench.op("attention", [q, k, v], out, start=start, scale=DEPTH**-0.5)
    seen = rows * start + rows * (rows + 1) // 2
    size = 2 * (start + rows) * GROUPS * DEPTH * DTYPES[cache].bytes
    name = f"attention {cache} {rows} at {start}"
    return Case(name, bench, launches, size, 4 * seen * HEADS * DEPTH)


def job(case: Case, seconds: float) -> dict[str, Any]:
    """What ``wasm_kernels.mjs`` takes: the module and where its buffers lie."""
    plan = case.bench.plan(case.launches)
    assert plan.wasm is not None
    end, table = plan.wasm.reserved, []
    for buffer in plan.buffers:
        size = shapes.evaluate(buffer.bytes, {THREADS: 1})
        table.append((end, size, buffer.dtype))
        end += -(-size // 64) * 64
    return {
        "name": case.name,
        "module": base64.b64encode(plan.segments[plan.wasm.segment]).decode(),
        "pages": -(-end // 65536),
        "buffersAt": plan.wasm.buffers_at,
        "buffers": table,
        "seconds": seconds,
    }


def node_command() -> list[str]:
    """node, with the option that versions before 21 want for relaxed SIMD."""
    node = shutil.which("node")
    if node is None:
        sys.exit("node is missing")
    option = "--experimental-wasm-relaxed-simd"
    known = subprocess.run([node, option, "-e", "0"], capture_output=True, check=False)
    return [node, str(SCRIPT)] if known.returncode else [node, option, str(SCRIPT)]


def measure(chosen: list[Case], seconds: float) -> list[dict[str, Any]]:
    """The table's rows; prints them as they come."""
    command, rows = node_command(), []
    print(f"{'':34}{'GB/s':>8}{'GFLOP/s':>9}{'best µs':>10}{'spread':>8}")
    for case in chosen:
        given = json.dumps(job(case, seconds)).encode()
        done = subprocess.run(command, input=given, capture_output=True, check=False)
        if done.returncode:
            sys.exit(done.stderr.decode())
        found = json.loads(done.stdout)
        best, median = found["best"], found["median"]  # seconds
        row = {
            "name": case.name,
            "gb_s": round(case.bytes / best / 1e9, 2),
            "gflop_s": round(case.flops / best / 1e9, 2),
            "best_us": round(best * 1e6, 1),
            "spread": round(median / best, 2),
        }
        rows.append(row)
        print(
            f"{case.name:34}{row['gb_s']:8.2f}{row['gflop_s']:9.2f}"
            f"{row['best_us']:10.1f}{row['spread']:8.2f}",
            flush=True,
        )
    return rows


def main() -> int:
    """The command line above; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each row")
    parser.add_argument("--plain", action="store_true", help="without relaxed SIMD")
    given = parser.parse_args()
    features = frozenset() if given.plain else RELAXED
    chosen = [case for case in cases(features) if given.only in case.name]
    rows = measure(chosen, given.seconds)
    git = ["git", "-C", str(SCRIPT.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "commit": commit,
        "features": sorted(features),
        "rows": rows,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The index of the largest value of each row: f32 [..., N] → i32 [...]; the lowest of equals.

Long rows take two stages: 64 workgroups find the best of their slice, one finds the best of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import text
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import CPU, Context, Operand
from fanlight.shapes import Size, binary, maximum, product

THREADS = 256
SLICES = 64
_LONG = 16_384
_LONG_ON_CPU = 65_536  # a second kernel costs more than it saves; but lavapipe ends loops there

# a pair is (bits of the value, index + 1), index + 1 = 0 where there is none
_BETTER = """fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  if (b.y == 0u) { return a; }
  if (a.y == 0u) { return b; }
  let x = bitcast<f32>(a.x);
  let y = bitcast<f32>(b.x);
  return select(a, b, y > x || (y == x && b.y < a.y));
}
"""
_PAIRS = "array<vec2<u32>>"


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    x = inputs[0]
    threads = 1 if CPU in context.features else THREADS  # barriers are dear there
    rows, n = product(x.shape[:-1]), x.shape[-1]
    value = "vec2<u32>(bitcast<u32>(b0[row * SIZE + i]), i + 1u)"
    result = "b1[row] = i32(max(best.y, 1u)) - 1;"
    if maximum(n) < (_LONG if threads > 1 else _LONG_ON_CPU):
        return [
            _stage(
                "argmax",
                (x.buffer, output.buffer),
                ("array<f32>", "array<i32>"),
                rows,
                n,
                1,
                value,
                result,
                threads,
            )
        ]
    scratch = context.scratch(binary("*", rows, SLICES * 8))
    pairs = "b0[row * SIZE + i]"
    return [
        _stage(
            "argmax_slice",
            (x.buffer, scratch),
            ("array<f32>", _PAIRS),
            rows,
            n,
            SLICES,
            value,
            "b1[group_at] = best;",
            threads,
        ),
        _stage(
            "argmax_merge",
            (scratch, output.buffer),
            (_PAIRS, "array<i32>"),
            rows,
            SLICES,
            1,
            pairs,
            result,
            threads,
        ),
    ]


def _stage(
    label: str,
    buffers: tuple[str, str],
    types: tuple[str, str],
    rows: Size,
    n: Size,
    slices: int,
    value: str,
    result: str,
    threads: int,
) -> WgslLaunch:
    """Each workgroup: the best of one of ``slices`` slices of a row of ``n``."""
    several = threads > 1
    body = f"""  let group_at = {text.GROUP};
  let row = group_at / {slices}u;
  if (row >= {text.size_u32(rows)}) {{ return; }}
  let size = {text.size_u32(n)};
  let slice = (size + {slices - 1}u) / {slices}u;
  let first = (group_at % {slices}u) * slice;
  var best = vec2<u32>(0u);
  for (var i = first + lane; i < min(first + slice, size); i += {threads}u) {{
    best = better(best, {value.replace("SIZE", "size")});
  }}
  {"best = best_of(best, lane);" if several else ""}
  if (lane == 0u) {{ {result} }}"""
    combine = text.reduction("best_of", "vec2<u32>", threads, "better({a}, {b})")
    code = _BETTER + (combine if several else "") + text.entry(threads, body)
    bindings = (Binding(types[0], "read"), Binding(types[1], "read_write"))
    kernel = text.kernel(label, code, bindings, (rows, n))
    return WgslLaunch(kernel, buffers, text.fold_grid(binary("*", rows, slices)))

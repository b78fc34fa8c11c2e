"""The load kernel: raw block bytes in the staging buffer → the planes of ``blocks.ROWS``.

Neighbouring invocations write neighbouring words, which both GPUs and CPUs that play one do at
once. A word of a plane of 2 bytes a unit is a pair of units, aligned to the whole weight (units 2p
and 2p + 1), so no two invocations write one word. Where a chunk holds half of a pair, the other
half of the shared word is kept: the neighbour chunk, in an earlier or a later dispatch, writes
that.
"""

from __future__ import annotations

from fanlight.codegen.wgsl import text
from fanlight.codegen.wgsl.blocks import Copied, row_of
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.shapes import Size, binary, ceildiv

THREADS = 64
_EACH = 16  # words of the widest plane for each invocation


def launch(
    dtype: DType, staging: str, target: tuple[str, ...], first: Size, count: Size, base: int
) -> WgslLaunch:
    """Writes units ``[first, first + count)`` from the start of ``staging`` into ``target``, where
    ``base`` units of other weights come before them."""
    planes = row_of(dtype, "repack").planes
    copies = "".join(_copy(i + 1, plane, dtype.bytes) for i, plane in enumerate(planes))
    body = f"""  let first = {text.size_u32(first)} + b{len(planes) + 1}[0];
  let count = {text.size_u32(count)};
  let id = {text.GROUP} * {THREADS}u + lane;
  let ids = groups.x * groups.y * {THREADS}u;
{copies}"""
    kernel = text.kernel(
        f"repack_{dtype}",
        text.entry(THREADS, body),
        (
            Binding("array<u32>", "read"),
            *(Binding("array<u32>", "read_write") for _ in planes),
            Binding("array<u32>", "read"),
        ),
        (first, count),
    )
    words = binary("*", count, max(plane.bytes for plane in planes) // 4)
    grid = text.fold_grid(ceildiv(words, THREADS * _EACH))
    return WgslLaunch(kernel, (staging, *target), grid, (base,))


def _copy(out: int, plane: Copied, unit: int) -> str:
    """``unit``: bytes of a source unit."""
    if plane.bytes == 2:
        return f"""  for (var pair = first / 2u + id; pair * 2u < first + count; pair += ids) {{
    var word = b{out}[pair];
    for (var half = 0u; half < 2u; half++) {{
      let at = pair * 2u + half - first; // wraps before the first
      if (at < count) {{
        let byte = at * {unit}u + {plane.offset}u;
        let bits = (b0[byte >> 2u] >> ((byte & 2u) * 8u)) & 0xffffu;
        word = (word & (0xffff0000u >> (half * 16u))) | (bits << (half * 16u));
      }}
    }}
    b{out}[pair] = word;
  }}
"""
    words = plane.bytes // 4
    assert plane.bytes % 4 == 0, plane
    if unit % 4 == plane.offset % 4 == 0:
        value = f"b0[(at / {words}u) * {unit // 4}u + at % {words}u + {plane.offset // 4}u]"
        return f"""  for (var at = id; at < count * {words}u; at += ids) {{
    b{out}[first * {words}u + at] = {value};
  }}
"""
    return f"""  for (var at = id; at < count * {words}u; at += ids) {{
    let byte = (at / {words}u) * {unit}u + (at % {words}u) * 4u + {plane.offset}u;
    let shift = (byte & 3u) * 8u;
    let next = (b0[(byte >> 2u) + 1u] << 1u) << (31u - shift); // no bits of it if shift is 0
    b{out}[first * {words}u + at] = (b0[byte >> 2u] >> shift) | next;
  }}
"""

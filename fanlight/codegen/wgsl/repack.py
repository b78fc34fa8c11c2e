"""The load kernel: raw block bytes in the staging buffer → the planes of ``blocks.ROWS``.

An invocation writes whole units, plane by plane. A plane of 2 bytes a unit goes by pairs, aligned
to the whole weight (units 2p and 2p + 1), so no two invocations write one word. Where a chunk holds
half of a pair, the other half of the shared word is kept: the neighbour chunk, in an earlier or a
later dispatch, writes that.
"""

from __future__ import annotations

from fanlight.codegen.wgsl import text
from fanlight.codegen.wgsl.blocks import Copied, row_of
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.shapes import Size, ceildiv

THREADS = 64
_EACH = 4  # units of an invocation
_UNROLLED = 8  # words: more are copied by fours, which keeps the text short


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
    grid = text.fold_grid(ceildiv(count, THREADS * _EACH))
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
    assert plane.bytes % 4 == 0, plane
    words = plane.bytes // 4
    step = words if words <= _UNROLLED else 4
    lines = [f"    let byte = at * {unit}u + {plane.offset}u;"]
    if unit % 4 == plane.offset % 4 == 0:
        copies = [f"b{out}[to + {i}u] = b0[source + {i}u];" for i in range(step)]
    else:
        lines += ["    let shift = (byte & 3u) * 8u;"]
        copies = ["let w0 = b0[source];"]
        for i in range(step):
            value = f"(w{i} >> shift) | ((w{i + 1} << 1u) << (31u - shift))"
            copies += [f"let w{i + 1} = b0[source + {i + 1}u];", f"b{out}[to + {i}u] = {value};"]
    lines += [f"    for (var i = 0u; i < {words}u; i += {step}u) {{"] if step < words else []
    more = " + i" if step < words else ""
    lines += [
        f"    let source = (byte >> 2u){more};",
        f"    let to = (first + at) * {words}u{more};",
    ]
    lines += [f"    {copy}" for copy in copies] + (["    }"] if step < words else [])
    return "\n".join(["  for (var at = id; at < count; at += ids) {", *lines, "  }\n"])

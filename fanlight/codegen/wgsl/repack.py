"""The load kernel: raw block bytes in the staging buffer → the planes of ``blocks.ROWS``.

One invocation writes a pair of units, aligned to the whole weight (units 2p and 2p + 1), so no two
write one word. Where a chunk holds half of a pair, the other half of the shared word is kept: the
neighbour chunk, in an earlier or a later dispatch, writes that.
"""

from __future__ import annotations

from fanlight.codegen.wgsl import text
from fanlight.codegen.wgsl.blocks import Copied, row_of
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.shapes import Size, binary, ceildiv

THREADS = 64

_READ = """fn raw(at: u32) -> u32 { // four bytes at any byte of the staging buffer
  let shift = (at & 3u) * 8u;
  let word = b0[at >> 2u];
  if (shift == 0u) { return word; }
  return (word >> shift) | (b0[(at >> 2u) + 1u] << (32u - shift));
}
"""


def launch(
    dtype: DType, staging: str, target: tuple[str, ...], first: Size, count: Size
) -> WgslLaunch:
    """Writes units ``[first, first + count)`` from the start of ``staging`` into ``target``."""
    row = row_of(dtype, "repack")
    copies = "".join(_copy(i, plane) for i, plane in enumerate(row.planes))
    body = f"""  let first = {text.size_u32(first)};
  let end = first + {text.size_u32(count)};
  let pair = first / 2u + {text.GROUP} * {THREADS}u + lane;
  for (var unit = pair * 2u; unit < pair * 2u + 2u; unit++) {{
    if (unit < first || unit >= end) {{ continue; }}
    let source = (unit - first) * {dtype.bytes}u;
{copies}  }}"""
    kernel = text.kernel(
        f"repack_{dtype}",
        _READ + text.entry(THREADS, body),
        (
            Binding("array<u32>", "read"),
            *(Binding("array<u32>", "read_write") for _ in row.planes),
        ),
        (first, count),
    )
    pairs = binary("+", ceildiv(count, 2), 1)
    return WgslLaunch(kernel, (staging, *target), text.fold_grid(ceildiv(pairs, THREADS)))


def _copy(index: int, plane: Copied) -> str:
    out, words = f"b{index + 1}", plane.bytes // 4
    if plane.bytes == 2:
        return f"""    let half{index} = (unit & 1u) * 16u;
    let bits{index} = (raw(source + {plane.offset}u) & 0xffffu) << half{index};
    {out}[unit / 2u] = ({out}[unit / 2u] & ~(0xffffu << half{index})) | bits{index};
"""
    assert plane.bytes % 4 == 0, plane
    return f"""    for (var i = 0u; i < {words}u; i++) {{
      {out}[unit * {words}u + i] = raw(source + {plane.offset}u + i * 4u);
    }}
"""

"""Pieces of WGSL text: literals, sizes, the entry point, reductions over a workgroup. Knows no ML.

Kernels see ``group`` (workgroup), ``groups`` (their number) and ``lane`` (invocation inside the
workgroup). A grid above 65,535 in x is folded to (x, y); ``GROUP`` is the linear workgroup again,
and a kernel checks it against its own bound, since folding rounds up.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable

from fanlight.kernels.launch import Binding, WgslKernel
from fanlight.shapes import Dim, Operation, Size, binary, ceildiv, dims_of, maximum

MAX_GROUPS = 65_535
MAX_MEMORY = 16 << 10  # bytes of a workgroup
GROUP = "(group.y * groups.x + group.x)"
_INFINITY = "var<private> infinity_bits: u32 = 0x7f800000u;\n"


def kernel(
    label: str,
    text: str,
    bindings: tuple[Binding, ...],
    sizes: Iterable[Size] = (),
    features: tuple[str, ...] = (),
) -> WgslKernel:
    """A kernel whose name holds a digest of all it depends on. ``sizes``: what the text reads."""
    dims = tuple(dict.fromkeys(d for s in sizes for d in dims_of(s)))
    if "infinity_bits" in text:
        text = _INFINITY + text
    key = repr((text, bindings, [d.name for d in dims], features)).encode()
    name = f"{label}_{hashlib.blake2s(key, digest_size=6).hexdigest()}"
    return WgslKernel(name, text, bindings, dims, features)


def entry(threads: int, body: str, subgroups: bool = False) -> str:
    """The entry point around ``body``; with ``subgroups`` it knows ``sub_lane`` and ``sub_size``
    (of its subgroup) as well."""
    more = (
        """  @builtin(subgroup_invocation_id) sub_lane: u32,
  @builtin(subgroup_size) sub_size: u32,
"""
        if subgroups
        else ""
    )
    return f"""@compute @workgroup_size({threads})
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
{more}) {{
{body.strip(chr(10))}
}}
"""


def fold_grid(workgroups: Size) -> tuple[Size, Size, Size]:
    """A grid of at least ``workgroups``, and few more, with x and y at most 65,535: ``GROUP``."""
    if maximum(workgroups) <= MAX_GROUPS:
        return (workgroups, 1, 1)
    rows = binary("max", ceildiv(workgroups, MAX_GROUPS), 1)
    return (ceildiv(workgroups, rows), rows, 1)


def rowwise(rows: Size, across: int, threads: int) -> tuple[str, tuple[Size, Size, Size]]:
    """For adapters that are CPUs: statements that give ``row``, ``place`` (of ``across`` items in
    a row) and ``at`` (of those of all rows), and their grid. A row has workgroups of its own, so
    that one kernel serves any number of rows, which is at most 65,535."""
    assert maximum(rows) <= MAX_GROUPS, rows
    code = f"""  let row = group.y;
  let place = group.x * {threads}u + lane;
  if (place >= {across}u) {{ return; }}
  let at = row * {across}u + place;"""
    return code, (ceildiv(across, threads), rows, 1)


def accessor(dim: Dim) -> str:
    """The name of the function that reads ``dim``; letters that WGSL lacks are spelt out."""
    spelt = "".join(
        c if (c.isascii() and c.isalnum()) or c == "_" else f"_{ord(c):x}_" for c in dim.name
    )
    return f"dim_{spelt}"


def size_i32(size: Size) -> str:
    """``size`` as an i32 expression. Divisions are of values that aren't negative."""
    if isinstance(size, int):
        return literal(size, "i32")
    if isinstance(size, Dim):
        return f"i32({accessor(size)}())"
    assert isinstance(size, Operation)
    a, b = size_i32(size.a), size_i32(size.b)
    if size.op in ("max", "min"):
        return f"{size.op}({a}, {b})"
    if size.op == "ceil/":
        return f"(({a} + {b} - 1) / {b})"
    return f"({a} {'/' if size.op == '//' else size.op} {b})"


def size_u32(size: Size) -> str:
    """``size`` as a u32 expression."""
    return f"{size}u" if isinstance(size, int) else f"u32({size_i32(size)})"


def literal(value: float | bool, scalar: str) -> str:
    """``value`` as a WGSL expression of type ``scalar``, floats rounded to f32 first and 64-bit
    integers as pairs of words."""
    if scalar == "bool":
        return "true" if value else "false"
    if scalar == "u32":
        return f"{int(value)}u"
    if scalar == "i32":
        return "i32(-2147483648)" if value == -(1 << 31) else f"{int(value)}i"
    if scalar in ("i64", "u64"):
        return f"vec2<u32>({int(value) & 0xFFFFFFFF}u, {int(value) >> 32 & 0xFFFFFFFF}u)"
    if math.isnan(value):
        return "bitcast<f32>(infinity_bits | 1u)"
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        rounded = math.copysign(math.inf, value)
    if math.isinf(rounded):  # a constant expression may not be infinite
        return f"{'-' if rounded < 0 else ''}bitcast<f32>(infinity_bits)"
    return f"{rounded!r}f"


def sums(count: int, threads: int, subgroups: bool) -> tuple[str, str, str]:
    """Sums of ``sum0``, ``sum1`` … over a workgroup. Returns workgroup memory with the function
    ``total(i: u32, parts: u32) -> f32``; the statements that lead to it, from uniform control flow;
    and the expression to pass as ``parts``.

    With ``subgroups`` right for any size of them that divides the workgroup or is larger.
    """
    if subgroups:
        stride, parts = max(1, threads // 4), f"(({threads - 1}u + sub_size) / sub_size)"
        adds = "\n".join(f"  let all{i} = subgroupAdd(sum{i});" for i in range(count))
        stores = " ".join(
            f"partial[{i * stride}u + lane / sub_size] = all{i};" for i in range(count)
        )
        memory = f"var<workgroup> partial: array<f32, {count * stride}>;\n"
        code = f"{adds}\n  if (sub_lane == 0u) {{ {stores} }}\n  workgroupBarrier();"
    else:
        stride, parts = 8, "8u"
        stores = "\n".join(f"  scattered[{i * threads}u + lane] = sum{i};" for i in range(count))
        memory = f"""var<workgroup> scattered: array<f32, {count * threads}>;
var<workgroup> partial: array<f32, {count * stride}>;
"""
        code = f"""{stores}
  workgroupBarrier();
  for (var i = lane; i < {count * stride}u; i += {threads}u) {{
    let at = (i / {stride}u) * {threads}u + i % {stride}u;
    var some = 0.0;
    for (var j = 0u; j < {threads // stride}u; j++) {{ some += scattered[at + j * {stride}u]; }}
    partial[i] = some;
  }}
  workgroupBarrier();"""
    function = f"""fn total(i: u32, parts: u32) -> f32 {{
  var all = 0.0;
  for (var j = 0u; j < parts; j++) {{ all += partial[i * {stride}u + j]; }}
  return all;
}}
"""
    return memory + function, code, parts


def reduction(name: str, scalar: str, threads: int, combine: str) -> str:
    """Workgroup memory and ``fn NAME(value, lane) -> SCALAR``: ``combine(a, b)`` over all threads.

    ``combine`` is a format with ``{a}`` and ``{b}``. Two short passes cost fewer barriers than a
    tree, which matters where the GPU is a CPU. Call from uniform control flow; ``threads`` is 4 to
    256, a power of two.
    """
    wide = 1 << ((threads.bit_length() - 1) // 2)  # threads that make the first pass
    deep = threads // wide
    assert wide * deep == threads, threads
    step = combine.format(a="total", b="NAME_memory[i]").replace("NAME", name)
    return f"""var<workgroup> {name}_memory: array<{scalar}, {threads}>;
fn {name}(value: {scalar}, lane: u32) -> {scalar} {{
  workgroupBarrier();
  {name}_memory[lane] = value;
  workgroupBarrier();
  var total: {scalar};
  if (lane < {wide}u) {{
    total = {name}_memory[lane];
    for (var i = lane + {wide}u; i < {threads}u; i += {wide}u) {{ total = {step}; }}
  }}
  workgroupBarrier();
  if (lane < {wide}u) {{ {name}_memory[lane] = total; }}
  workgroupBarrier();
  total = {name}_memory[0];
  for (var i = 1u; i < {wide}u; i++) {{ total = {step}; }}
  return total;
}}
"""

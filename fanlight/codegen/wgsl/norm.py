"""x / sqrt(mean(x²) + eps) * weight over the last axis: f32 [..., K], weight f32 [K].

RMSNorm (Zhang and Sennrich, arXiv 1910.07467). One workgroup for each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight.codegen.wgsl import on_cpu, text
from fanlight.kernels.launch import Binding, Launch, WgslLaunch
from fanlight.kernels.target import CPU, Context, Operand
from fanlight.shapes import binary, maximum, product


def rule(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    x, weight = inputs
    rows, k = product(x.shape[:-1]), x.shape[-1]
    if CPU in context.features and isinstance(k, int) and maximum(rows) <= text.MAX_GROUPS:
        return [on_cpu.rms_norm(x, weight, output, attrs["eps"])]
    wide = isinstance(k, int) and k % 4 == 0
    kind, square = ("vec4<f32>", "dot(v, v)") if wide else ("f32", "v * v")
    items = binary("//", k, 4) if wide else k
    threads = 256 if maximum(items) >= 256 else 64
    body = f"""  let row = {text.GROUP};
  if (row >= {text.size_u32(rows)}) {{ return; }}
  let items = {text.size_u32(items)};
  var sum = 0.0;
  for (var i = lane; i < items; i += {threads}u) {{
    let v = b0[row * items + i];
    sum += {square};
  }}
  let mean = add_up(sum, lane) / f32({text.size_u32(k)});
  let scale = 1.0 / sqrt(mean + {text.literal(attrs["eps"], "f32")});
  for (var i = lane; i < items; i += {threads}u) {{
    b2[row * items + i] = b0[row * items + i] * scale * b1[i];
  }}"""
    code = text.reduction("add_up", "f32", threads, "{a} + {b}") + text.entry(threads, body)
    read = Binding(f"array<{kind}>", "read")
    bindings = (read, read, Binding(f"array<{kind}>", "read_write"))
    kernel = text.kernel("rms_norm", code, bindings, (rows, k))
    buffers = (x.buffer, weight.buffer, output.buffer)
    return [WgslLaunch(kernel, buffers, text.fold_grid(rows))]

"""Fused products (``ir/composite.py``): norm → products, gate and up, product + residual.

One row of x on a GPU: one dispatch each (``matvec.py``). Otherwise the norm, the products and the
gating are dispatches of their own; the residual is added by the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanlight import dtypes
from fanlight.codegen.wgsl import loops as wgsl_loops
from fanlight.codegen.wgsl import matmul, matvec, norm, on_cpu, text
from fanlight.kernels import loops
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import apply, extent
from fanlight.kernels.target import CPU, SUBGROUPS, Context, Operand, Part
from fanlight.shapes import Size, maximum, product


def project(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """See ``ir/composite.py``."""
    x, gain, *weights = inputs
    if _one_row(x, context):
        around = matvec.Surroundings(gain.buffer, attrs["eps"])
        return [*matvec.launches(x.buffer, weights, output.buffer, around, _subgroups(context))]
    normed = _scratch(x.shape, context)
    return [
        *norm.rule([x, gain], normed, attrs, context),
        *matmul.products(normed, weights, output, context),
    ]


def swiglu(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """See ``ir/composite.py``."""
    x, gain, gate, up = inputs
    alike = gate.dtype is up.dtype and len(gate.parts) == len(up.parts)
    if _one_row(x, context) and alike:
        around = matvec.Surroundings(gain.buffer, attrs["eps"], gated=True)
        launches = matvec.launches(x.buffer, [gate, up], output.buffer, around, _subgroups(context))
        return [*launches]
    rows, width = product(x.shape[:-1]), gate.shape[0]
    assert isinstance(width, int)
    both = _scratch((*x.shape[:-1], 2 * width), context)
    cpu = CPU in context.features and maximum(rows) <= text.MAX_GROUPS
    gating = on_cpu.gating if cpu else _gating
    return [
        *project([x, gain, gate, up], both, attrs, context),
        gating(both, output, rows, width),
    ]


def matmul_add(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    """See ``ir/composite.py``."""
    x, w, residual = inputs
    return matmul.products(x, [w], output, context, residual.buffer)


def _one_row(x: Operand, context: Context) -> bool:
    return product(x.shape[:-1]) == 1 and CPU not in context.features


def _subgroups(context: Context) -> bool:
    return SUBGROUPS in context.features


def _scratch(shape: tuple[Size, ...], context: Context) -> Operand:
    buffer = context.scratch(product(shape) * 4)
    return Operand(dtypes.f32, shape, (Part(0, shape[0], (buffer,)),))


def _gating(both: Operand, output: Operand, rows: Size, width: int) -> Launch:
    """silu of the first half of each row times the second."""
    first = apply("mul", loops.Axis(0), extent(2 * width))
    gate, up = (
        loops.Load(0, apply("add", apply("add", first, extent(at)), loops.Axis(1)), "f32")
        for at in (0, width)
    )
    value = apply("mul", apply("silu", gate), up)
    kernel = loops.LoopKernel("gating", (rows, width), (dtypes.f32,), dtypes.f32, value)
    return wgsl_loops.launch(kernel, (both.buffer, output.buffer))

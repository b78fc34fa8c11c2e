"""``bitcast``: the elements' bytes as they are, moved as integers of their width."""

from __future__ import annotations

from collections.abc import Callable

from fanlight import dtypes
from fanlight.dtypes import DTYPES, DType
from fanlight.kernels import loops
from fanlight.kernels.launch import Launch
from fanlight.kernels.target import Context, Operand, Rule
from fanlight.shapes import product

_SAME: dict[int, DType] = {1: dtypes.u8, 2: DTYPES["u16"], 4: dtypes.u32, 8: dtypes.u64}


def rule(launch: Callable[[loops.LoopKernel, tuple[str, ...]], Launch]) -> Rule:
    """The rule of a target that launches loops so."""

    def copy(
        inputs: list[Operand], output: Operand, attrs: object, context: Context
    ) -> list[Launch]:
        kind, count = inputs[0].dtype, product(output.shape)
        raw = kind if kind.block > 1 else _SAME[kind.bytes]
        value = loops.Load(0, loops.Axis(0), loops.SCALAR[raw.name])
        kernel = loops.LoopKernel(f"bits_{raw}", (count,), (raw,), raw, value)
        return [launch(kernel, (inputs[0].buffer, output.buffer))]

    return copy

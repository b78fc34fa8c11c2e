"""The WebAssembly target: its rules, total over the op list, and how it keeps weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fanlight.codegen.wasm import argmax, attention, dot, dot_integer, gather, loops, matmul, norm
from fanlight.codegen.wasm.blocks import STORAGE
from fanlight.dtypes import DType
from fanlight.ir import composite
from fanlight.kernels import bits
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import LoopKernel
from fanlight.kernels.target import Context, Entry, NotYet, Operand, Storage, Where, complete
from fanlight.shapes import Size


def _dot_shifted(
    inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
) -> list[Launch]:
    rule = dot.rule_shifted if output.dtype.name == "f32" else dot_integer.rule_shifted
    return rule(inputs, output, attrs, context)


#: ops with templates of their own; every other op is elementwise, movement or reduction
TEMPLATES: dict[str, Entry] = {
    "matmul": matmul.rule,
    "bitcast": bits.rule(loops.launch),
    "gather": gather.rule,
    "rms_norm": norm.rule,
    "attention": attention.rule,
    "argmax": argmax.rule,
    # few barriers, and small steps on every thread, give what fused kernels would (order.py)
    **dict.fromkeys(composite.DEFINITIONS, NotYet("no fused kernel")),
    "dot": Where(dot.fits, dot.rule),
    "dot_stored": Where(dot.fits, dot.rule),
    "dot_integer": Where(dot_integer.fits, dot_integer.rule),
    "dot_shifted": _dot_shifted,
}


@dataclass(frozen=True, slots=True)
class Wasm:
    """See ``kernels/target.py``."""

    name: str = "wasm"
    rules: Mapping[str, Entry] = field(default_factory=lambda: complete(TEMPLATES))
    short_reduction: int = 0

    def storage(self, features: frozenset[str]) -> Mapping[str, Storage | NotYet]:
        return STORAGE

    def loop(
        self, kernel: LoopKernel, buffers: tuple[str, ...], features: frozenset[str] = frozenset()
    ) -> Launch:
        return loops.launch(kernel, buffers)

    def repack(
        self,
        dtype: DType,
        staging: str,
        target: tuple[str, ...],
        first: Size,
        count: Size,
        base: int = 0,
    ) -> list[Launch]:
        raise AssertionError("all weights keep their files' bytes")


TARGET = Wasm()

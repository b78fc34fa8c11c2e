"""The WebGPU target: its rules, total over the op list, and how it keeps weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fanlight.codegen.wgsl import (
    argmax,
    attend,
    attention,
    dot,
    dot_integer,
    fused,
    gather,
    loops,
    matmul,
    norm,
    repack,
)
from fanlight.codegen.wgsl.blocks import STORAGE, STORAGE_ON_CPU
from fanlight.dtypes import DType
from fanlight.kernels import bits
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import LoopKernel
from fanlight.kernels.target import (
    CPU,
    Context,
    Entry,
    NotYet,
    Operand,
    Storage,
    Where,
    complete,
)
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
    "project": fused.project,
    "swiglu": fused.swiglu,
    "matmul_add": fused.matmul_add,
    "attend": attend.rule,
    "attend_add": attend.rule_add,
    "dot": Where(dot.fits, dot.rule),
    "dot_stored": NotYet("products read f32, row by row"),
    "dot_integer": Where(dot_integer.fits, dot_integer.rule),
    "dot_shifted": _dot_shifted,
}


@dataclass(frozen=True, slots=True)
class WebGpu:
    """See ``kernels/target.py``."""

    name: str = "webgpu"
    rules: Mapping[str, Entry] = field(default_factory=lambda: complete(TEMPLATES))
    short_reduction: int = 16

    def storage(self, features: frozenset[str]) -> Mapping[str, Storage | NotYet]:
        return STORAGE_ON_CPU if CPU in features else STORAGE

    def loop(
        self, kernel: LoopKernel, buffers: tuple[str, ...], features: frozenset[str] = frozenset()
    ) -> Launch:
        return loops.launch(kernel, buffers, cpu=CPU in features)

    def repack(
        self,
        dtype: DType,
        staging: str,
        target: tuple[str, ...],
        first: Size,
        count: Size,
        base: int = 0,
    ) -> list[Launch]:
        return [repack.launch(dtype, staging, target, first, count, base)]


TARGET = WebGpu()

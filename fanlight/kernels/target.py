"""What the compiler asks of a target: storage of weights, and code for each op.

A target is one ``Target`` value (``codegen/wgsl/table.py``, ``codegen/wasm/table.py``). Its
``rules`` are a total table over the op list: a ``Rule``, ``LOOP`` (the generic loop form serves),
``Where`` (a rule for some nodes), or ``NotYet`` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, Union

from fanlight.dtypes import DType
from fanlight.ir.graph import Node
from fanlight.ir.ops import OPS
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import LoopKernel
from fanlight.shapes import Size

SUBGROUPS = "subgroups"
CPU = "cpu"  #: among a device's features, though WebGPU knows none such: the adapter is a CPU


@dataclass(frozen=True, slots=True)
class Plane:
    """One buffer of a stored tensor: ``bytes`` in all, ``unit_bytes`` for each source unit
    (block)."""

    suffix: str
    unit_bytes: int


@dataclass(frozen=True, slots=True)
class Storage:
    """How a target keeps a weight of one dtype.

    ``direct``: the file's bytes as they are, in one plane. Otherwise ``Target.repack`` writes the
    planes.
    """

    planes: tuple[Plane, ...]
    direct: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``[first, first + rows)`` of axis 0, in one buffer for each plane, where they follow
    ``base`` rows of other weights. Plain values have one part and no base."""

    first: int
    rows: Size
    buffers: tuple[str, ...]
    base: int = 0


@dataclass(frozen=True, slots=True)
class Operand:
    """A value in memory, row-major. Weights may have several planes, and several parts when one
    would be larger than a binding may be."""

    dtype: DType
    shape: tuple[Size, ...]
    parts: tuple[Part, ...]

    @property
    def buffer(self) -> str:
        """The only buffer of a plain value."""
        assert len(self.parts) == 1 and len(self.parts[0].buffers) == 1, self
        return self.parts[0].buffers[0]


@dataclass(slots=True)
class Context:
    """What a rule may look at: features of the device, limits, and a way to get scratch memory.

    ``features`` for webgpu: ``subgroups``, ``shader-f16``; for wasm: ``relaxed-simd``, ``threads``.
    ``scratch(bytes)`` returns the name of an arena buffer, valid during the launches of this node.
    """

    features: frozenset[str]
    scratch: Callable[[Size], str]
    max_threads: int = 16
    limits: Mapping[str, int] = field(default_factory=dict)
    loops: dict[str, Launch] = field(default_factory=dict)  # launches of loop kernels, by name


Rule: TypeAlias = Callable[[list[Operand], Operand, Mapping[str, Any], Context], list[Launch]]


@dataclass(frozen=True, slots=True)
class Where:
    """A rule for those nodes of a composite op that ``fits``; its definition serves for others."""

    fits: Callable[[Node], bool]
    rule: Rule

    def __call__(
        self, inputs: list[Operand], output: Operand, attrs: Mapping[str, Any], context: Context
    ) -> list[Launch]:
        return self.rule(inputs, output, attrs, context)


@dataclass(frozen=True, slots=True)
class NotYet:
    """An op or a dtype that the target can't run yet, and why."""

    reason: str


class _Loop:
    """Marks ops that the loop IR expresses."""

    def __repr__(self) -> str:
        return "LOOP"


LOOP = _Loop()
Entry: TypeAlias = Union[Rule, _Loop, NotYet]


def runs(rules: Mapping[str, Entry], node: Node) -> bool:
    """Whether a target with these ``rules`` has code for ``node``."""
    entry = rules[node.op]
    return entry.fits(node) if isinstance(entry, Where) else not isinstance(entry, NotYet)


def complete(templates: Mapping[str, Entry]) -> dict[str, Entry]:
    """A total table: ``templates``, and ``LOOP`` for every other op that the loop IR expresses."""
    rules = dict(templates)
    for op in OPS.values():
        if op.family in ("elementwise", "movement", "reduction"):
            rules.setdefault(op.name, LOOP)
    return rules


class Target(Protocol):
    """See the module's text."""

    @property
    def name(self) -> str: ...

    @property
    def rules(self) -> Mapping[str, Entry]: ...

    @property
    def short_reduction(self) -> int:
        """Elements up to which a reduction may be part of the kernel that uses it."""
        ...

    def storage(self, features: frozenset[str]) -> Mapping[str, Storage | NotYet]:
        """dtype name → how weights of it are kept; total over ``DTYPES``."""
        ...

    def loop(
        self, kernel: LoopKernel, buffers: tuple[str, ...], features: frozenset[str] = frozenset()
    ) -> Launch:
        """The launch of a loop kernel; ``buffers`` are its inputs, then its output."""
        ...

    def repack(
        self,
        dtype: DType,
        staging: str,
        target: tuple[str, ...],
        first: Size,
        count: Size,
        base: int = 0,
    ) -> list[Launch]:
        """Launches that write units ``[first, first + count)`` (sizes over the dims ``unit_first``
        and ``unit_count``) of a weight from the bytes at the start of ``staging`` into its planes,
        where it follows ``base`` units of other weights."""
        ...

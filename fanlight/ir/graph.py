"""Graphs: nodes in SSA form over symbolic shapes, and modules, the compiler's unit.

In: built by ``archs`` and ``importers`` through ``Node.make``-style calls (``ops.apply``). Out:
read by passes, the interpreter and ``kernels/lower.py``. A graph has no control flow: a module's
``programs`` (plan steps that call graphs by name) have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fanlight.dtypes import DType
from fanlight.shapes import Dim, Size, dims_of

Shape: TypeAlias = tuple[Size, ...]
LEAVES = ("input", "weight", "state", "constant")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value. ``attrs`` are those that the op's row in ``ops.OPS`` names; leaves have
    ``name``."""

    op: str
    inputs: tuple[Node, ...]
    attrs: Mapping[str, Any]
    dtype: DType
    shape: Shape

    @property
    def name(self) -> str:
        """The name of an input, a weight or a state."""
        return str(self.attrs["name"])

    def __repr__(self) -> str:
        return f"<{self.op} {type_text(self.dtype, self.shape)}>"


@dataclass(slots=True)
class Graph:
    """``updates``: state name → its value after the run. States are read as they were before it,
    but through the ``update`` op's result where that is used."""

    name: str
    outputs: dict[str, Node] = field(default_factory=dict)
    updates: dict[str, Node] = field(default_factory=dict)

    def roots(self) -> list[Node]:
        return [*self.updates.values(), *self.outputs.values()]

    def nodes(self) -> list[Node]:
        """Every node that an output or an update needs, inputs before users."""
        return topological(self.roots())


def topological(roots: Iterable[Node]) -> list[Node]:
    """``roots`` and all that they need, inputs before users, in a stable order."""
    order: list[Node] = []
    seen: set[Node] = set()
    for root in roots:
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, child = stack.pop()
            if child == 0:
                if node in seen:
                    continue
                seen.add(node)
            if child < len(node.inputs):
                stack.append((node, child + 1))
                if node.inputs[child] not in seen:
                    stack.append((node.inputs[child], 0))
            else:
                order.append(node)
    return order


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where a weight's bytes are: a span of a file, or ``data``."""

    dtype: DType
    shape: tuple[int, ...]
    file: str = ""
    offset: int = 0
    length: int = 0
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A buffer that lives between runs, zero at load."""

    dtype: DType
    shape: Shape


@dataclass(frozen=True, slots=True)
class DeviceDim:
    """A device dim is element ``index`` of an i32 state."""

    dim: Dim
    state: str
    index: int


@dataclass(slots=True)
class Module:
    """Graphs that share weights and states, and the programs made of them.

    ``programs``: name → plan steps over graph names (``plan.Call``, ``Loop``, ``Branch``,
    ``Read``). A graph that no program calls is a program of its own name. ``dims``: every host dim.
    ``free``: those that no memory is laid out for before a run, each with its bound: a size that it
    can't exceed, where a program reads it back, or None where the caller gives it (``plan``).
    """

    graphs: dict[str, Graph] = field(default_factory=dict)
    weights: dict[str, WeightSource] = field(default_factory=dict)
    states: dict[str, StateSpec] = field(default_factory=dict)
    dims: list[Dim] = field(default_factory=list)
    free: dict[str, Size | None] = field(default_factory=dict)
    device_dims: list[DeviceDim] = field(default_factory=list)
    programs: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def type_text(dtype: DType, shape: Shape) -> str:
    """E.g. ``f32[T, 576]``."""
    return f"{dtype}[{', '.join(str(s) for s in shape)}]"


def dims_in(nodes: Iterable[Node]) -> dict[str, Dim]:
    """Every dim that shapes and size attributes of ``nodes`` mention, by name."""
    found: dict[str, Dim] = {}
    for node in nodes:
        for value in (*node.shape, *node.attrs.values()):
            for size in value if isinstance(value, tuple) else (value,):
                if not isinstance(size, (str, float, bytes, bool, DType)):
                    for dim in dims_of(size):
                        found[dim.name] = dim
    return found

"""Products read their right side as it is stored: narrow, turned, before its scale.

    dot(a, mul(cast(q), s))       →   mul(dot_stored(a, q), s)      s: one number, or one a column
    dot(a, cast(sub(cast(q), z))) →   dot_stored(a, q) with the zero point z, a known number
    dot(a, permute(b))            →   dot_stored(a, b), turned      the last two axes change places

and any of these one in the other. So weights of 8 or 16 bits are never made f32 in memory. Left
alone: scales and zero points along K, whose product must be taken first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fanlight import dtypes
from fanlight.ir.fold import constant_values
from fanlight.ir.graph import Graph, Node, Shape
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, rewrite
from fanlight.shapes import product

_NARROW = ("f16", "bf16", "i8", "u8")


def run(graph: Graph) -> Graph:
    builds: dict[Node, Build] = {}
    for node in graph.nodes():
        if node.op == "dot" and node.dtype is dtypes.f32:
            right = _Right(node.inputs[1])
            right.look()
            if right.node is not node.inputs[1]:
                builds[node] = _build(node, right)
    return rewrite(graph, builds) if builds else graph


@dataclass(slots=True)
class _Right:
    """b is made of ``node`` (under ``shape``, where that isn't None), whose last two axes change
    places where ``turned``, less ``zero``, times ``scales``: each one number, or one a column."""

    node: Node
    shape: Shape | None = None
    turned: bool = False
    zero: int = 0
    scales: list[Node] = field(default_factory=list)

    def look(self) -> None:
        """Takes off all that the product can do itself."""
        while self.shape is None:
            node = self.node
            if _swaps(node):
                self.node, self.turned = node.inputs[0], not self.turned
            elif node.op == "reshape" and _swaps(node.inputs[0]) and _same_matrices(node):
                self.node, self.turned = node.inputs[0].inputs[0], not self.turned
                self.shape = (*node.shape[:-2], node.shape[-1], node.shape[-2])
            elif node.op == "mul" and (scale := self._scale(node)):
                self.node = next(x for x in node.inputs if x is not scale)
                self.scales.append(scale)
            elif node.op == "cast" and node.dtype is dtypes.f32 and self._widened(node.inputs[0]):
                return
            else:
                return

    def _scale(self, node: Node) -> Node | None:
        """The factor that is one number, or one for each column of b."""
        columns = len(node.shape) - (2 if self.turned else 1)
        for scale, other in (node.inputs, node.inputs[::-1]):
            if other.shape != node.shape:
                continue
            ahead = len(node.shape) - len(scale.shape)
            if all(size == 1 or i + ahead == columns for i, size in enumerate(scale.shape)):
                return scale
        return None

    def _widened(self, node: Node) -> bool:
        """Whether the product can widen what of ``node`` is made."""
        zero = 0
        if node.op == "sub" and node.dtype is dtypes.i32 and node.inputs[0].shape == node.shape:
            known = _number(node.inputs[1])
            if known is None:
                return False
            zero, node = known, node.inputs[0]
        if node.op == "cast" and node.dtype is dtypes.i32:
            node = node.inputs[0]
        if node.dtype.name not in _NARROW or (zero and node.dtype.kind == "float"):
            return False
        self.node, self.zero = node, zero
        return True


def _number(node: Node) -> int | None:
    """The one integer of a constant or of what is made of one by reshapes and casts."""
    while node.op in ("reshape", "cast"):
        node = node.inputs[0]
    known = constant_values(node) if node.op == "constant" and product(node.shape) == 1 else None
    return None if known is None else int(known[0])


def _swaps(node: Node) -> bool:
    """Whether the node only makes the last two axes change places."""
    rank = len(node.shape)
    return node.op == "permute" and node.attrs["axes"] == (*range(rank - 2), rank - 1, rank - 2)


def _same_matrices(node: Node) -> bool:
    before = node.inputs[0].shape
    return len(node.shape) >= 2 and before[-2:] == node.shape[-2:]


def _build(node: Node, right: _Right) -> Build:
    def build(new: New) -> Node:
        b = new(right.node)
        if right.shape is not None:
            b = apply("reshape", b, shape=right.shape)
        made = apply("dot_stored", new(node.inputs[0]), b, turned=right.turned, zero=right.zero)
        for scale in right.scales:
            size = product(scale.shape)
            made = apply("mul", made, apply("reshape", new(scale), shape=(size,)))
        return made

    return build

"""Loop expressions as a graph, equal ones once, and what is known of their indices.

In: an expression of the loop IR. Out: nodes, with the axes that each depends on, and how an index
moves from one of four lanes to the next. Emits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fanlight.kernels import loops
from fanlight.kernels.loops import Expr


@dataclass(slots=True)
class Node:
    """``axes``: those that the value depends on. ``natural``: an integer that is never negative."""

    number: int
    expr: Expr
    children: tuple[Node, ...]
    axes: frozenset[int]
    natural: bool


class Nodes:
    """Gives equal expressions one node."""

    def __init__(self) -> None:
        self.by_id: dict[int, Node] = {}
        self.by_key: dict[tuple[object, ...], Node] = {}

    def add(self, expr: Expr) -> Node:
        """The node of ``expr``. The caller keeps ``expr`` alive."""
        if id(expr) not in self.by_id:
            self.by_id[id(expr)] = self._add(expr)
        return self.by_id[id(expr)]

    def _add(self, expr: Expr) -> Node:
        children = tuple(self.add(c) for c in loops.children(expr))
        key = (type(expr), expr.type, *_own(expr), *(c.number for c in children))
        if key not in self.by_key:
            axes = frozenset[int]().union(*(c.axes for c in children))
            if isinstance(expr, loops.Axis):
                axes |= {expr.number}
            elif isinstance(expr, loops.Reduce):
                axes -= {expr.axis}
            number = len(self.by_key)
            self.by_key[key] = Node(number, expr, children, axes, _natural(expr, children))
        return self.by_key[key]


def _own(expr: Expr) -> tuple[object, ...]:
    """What tells ``expr`` from others with the same children."""
    match expr:
        case loops.Const():
            return (repr(expr.value),)
        case loops.Axis():
            return (expr.number,)
        case loops.Extent():
            return (expr.size,)
        case loops.Load():
            return (expr.param,)
        case loops.Apply():
            return (expr.function,)
        case loops.Reduce():
            return (expr.kind, expr.axis, expr.extent)
    return ()


def _natural(expr: Expr, children: tuple[Node, ...]) -> bool:
    match expr:
        case loops.Const():
            return expr.type == "i32" and expr.value >= 0
        case loops.Axis() | loops.Extent():
            return expr.type == "i32"
        case loops.Apply() if expr.type == "i32":
            if expr.function == "max":
                return any(c.natural for c in children)
            if expr.function in ("add", "mul", "div", "mod", "min"):
                return all(c.natural for c in children)
    return False


def stride(node: Node, axis: int, aligned: bool) -> int | None:
    """By how much the value grows from one of four lanes along ``axis`` to the next; None: not
    known. ``aligned``: the first lane's index is a multiple of 4."""
    if axis not in node.axes:
        return 0
    if isinstance(node.expr, loops.Axis):
        return 1 if node.expr.type == "i32" else None
    if not isinstance(node.expr, loops.Apply) or len(node.children) != 2:
        return None
    a, b = node.children
    first, second = stride(a, axis, aligned), stride(b, axis, aligned)
    if first is None or second is None:
        return None
    match node.expr.function:
        case "add":
            return first + second
        case "sub":
            return first - second
        case "mul" if isinstance(b.expr, loops.Const):
            return first * int(b.expr.value)
        case "mul" if isinstance(a.expr, loops.Const):
            return second * int(a.expr.value)
        case "div" | "mod" if (
            aligned
            and first == 1
            and node.natural
            and _fours(a, axis)
            and isinstance(b.expr, loops.Const)
            and _fours(b, axis)
        ):
            # Four neighbours from a multiple of 4 lie between two multiples of the divisor.
            return 0 if node.expr.function == "div" else 1
    return None


def _fours(node: Node, axis: int) -> bool:
    """Whether the value is a multiple of 4 wherever the index along ``axis`` is one."""
    if isinstance(node.expr, loops.Const):
        return int(node.expr.value) % 4 == 0
    if isinstance(node.expr, loops.Axis):
        return node.expr.number == axis
    if isinstance(node.expr, loops.Apply) and node.expr.function in ("add", "sub"):
        return all(_fours(c, axis) for c in node.children)
    if isinstance(node.expr, loops.Apply) and node.expr.function == "mul":
        return any(_fours(c, axis) for c in node.children)
    return False


def below(node: Node) -> list[Node]:
    """``node`` and all below it, each once, those above first."""
    found: dict[int, Node] = {}

    def visit(at: Node) -> None:
        if at.number not in found:
            found[at.number] = at
            for child in at.children:
                visit(child)

    visit(node)
    return list(found.values())


def along(node: Node, axis: int, aligned: bool) -> bool:
    """Whether all loads below move by one element or none along ``axis``."""
    loads = (n for n in below(node) if isinstance(n.expr, loops.Load))
    return all(stride(n.children[0], axis, aligned) in (0, 1) for n in loads)


def power_of_two(node: Node) -> int | None:
    """The power of two by which ``node`` divides a number that is not negative."""
    expr = node.expr
    assert isinstance(expr, loops.Apply)
    if expr.function not in ("div", "mod") or not node.natural:
        return None
    by = node.children[1].expr
    if not isinstance(by, loops.Const) or int(by.value) & (int(by.value) - 1) or by.value == 0:
        return None
    return int(by.value).bit_length() - 1

"""What is known of values while compiling: small integer tensors, such as shapes are made of.

In: nodes. Out: their elements, row-major, as Python numbers or sizes; None where an element depends
on the run. Exporters write shapes as chains of ops; folded, they vanish.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from fanlight.dtypes import DType
from fanlight.ir.build import CODES
from fanlight.ir.graph import Node
from fanlight.shapes import Dim, Expr, Operation, Size, binary

Value: TypeAlias = Any  # int, float, bool or Expr
Values: TypeAlias = tuple[Value, ...]
MAX_ELEMENTS = 1024


class _UnknownError(Exception):
    """An element depends on the run."""


class Folder:
    """Remembers what it has found out; nodes must be asked for in an order near to that in which
    they are made."""

    def __init__(self) -> None:
        self.found: dict[Node, Values | None] = {}

    def values(self, node: Node) -> Values | None:
        """The elements of ``node``, at most ``MAX_ELEMENTS``."""
        if node not in self.found:
            self.found[node] = self._values(node)
        return self.found[node]

    def _values(self, node: Node) -> Values | None:
        shape = [s for s in node.shape if isinstance(s, int)]
        if len(shape) != len(node.shape) or math.prod(shape) > MAX_ELEMENTS:
            return None
        if node.op in ("input", "weight", "state"):
            return None
        if node.op == "constant":
            return constant_values(node)
        rule = _RULES.get(node.op) or (_elementwise if node.op in _SCALAR else None)
        if rule is None:
            return None
        if node.op in ("take", "slice", "reshape") and math.prod(shape) == 0:
            return ()
        inputs = []
        for x in node.inputs:
            values = self.values(x)
            if values is None:
                return None
            inputs.append(values)
        try:
            return tuple(_rounded(v, node.dtype) for v in rule(node, inputs))
        except (_UnknownError, ArithmeticError, ValueError):
            return None


def constant_values(node: Node) -> Values | None:
    code = CODES.get(node.dtype.name)
    if code is None:
        return None
    data: bytes = node.attrs["data"]
    return struct.unpack(f"<{len(data) // node.dtype.bytes}{code}", data)


def _rounded(value: Value, dtype: DType) -> Value:
    """As ``dtype`` holds it."""
    if isinstance(value, Expr):
        return value
    if dtype.kind == "bool":
        return bool(value)
    if dtype.kind in ("int", "uint"):
        if isinstance(value, float) and not math.isfinite(value):
            raise _UnknownError
        bits = 8 * dtype.bytes // dtype.block
        wrapped = int(value) & ((1 << bits) - 1)
        return wrapped - (1 << bits) if dtype.kind == "int" and wrapped >> bits - 1 else wrapped
    if dtype.name == "f64":
        return float(value)
    if dtype.name not in ("f32", "f16"):
        raise _UnknownError
    code = CODES[dtype.name]
    (rounded,) = struct.unpack(code, struct.pack(code, float(value)))
    return float(rounded)


# --- one element


def _compare(a: Value, b: Value) -> int:
    """-1, 0 or 1; sizes are taken to be at least 1."""
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        return int(a > b) - int(a < b)
    if isinstance(a, float) or isinstance(b, float):
        raise _UnknownError
    rest = binary("-", a, b)
    low, high = bounds(rest)
    if low == high == 0:
        return 0
    if low > 0:
        return 1
    if high < 0:
        return -1
    raise _UnknownError


def bounds(size: Size) -> tuple[float, float]:
    """Between which a size lies, every dim being at least its ``least``."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Dim):
        return size.least, size.max
    assert isinstance(size, Operation)
    (a, b), (c, d) = bounds(size.a), bounds(size.b)
    match size.op:
        case "+":
            return a + c, b + d
        case "-":
            return a - d, b - c
        case "*":
            corners = [x * y for x in (a, b) for y in (c, d)]
            return min(corners), max(corners)
        case "//" if a >= 0 and c > 0:
            return a // d, b // c
        case "ceil/" if a >= 0 and c > 0:
            return -(-a // d), -(-b // c)
        case "%" if a >= 0 and c > 0:
            return 0, min(b, d - 1)
        case "max":
            return max(a, c), max(b, d)
        case "min":
            return min(a, c), min(b, d)
    return -math.inf, math.inf


def _order(test: Callable[[int], bool]) -> Callable[..., Value]:
    return lambda a, b: test(_compare(a, b))


def _arithmetic(name: str, plain: Callable[[Any, Any], Any]) -> Callable[..., Value]:
    def apply(a: Value, b: Value) -> Value:
        if isinstance(a, Expr) or isinstance(b, Expr):
            a, b = _whole(a), _whole(b)
            if name == "/" and (b == 0 or binary("%", a, b) != 0 or isinstance(a, float)):
                raise _UnknownError
            return binary("//" if name == "/" else name, a, b)
        return plain(a, b)

    return apply


def _whole(value: Value) -> Size:
    """A size as an operand beside a size."""
    if isinstance(value, float):
        if value != int(value):
            raise _UnknownError
        return int(value)
    whole: Size = int(value) if isinstance(value, bool) else value
    return whole


def _truncated(a: Value, b: Value) -> Value:
    if b == 0:
        raise _UnknownError
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _int_div(a: Value, b: Value) -> Value:
    if isinstance(a, Expr) or isinstance(b, Expr):
        if isinstance(b, int) and b <= 0:
            raise _UnknownError
        return binary("//", a, b)
    return _truncated(a, b)


def _mod(a: Value, b: Value) -> Value:
    if isinstance(a, Expr) or isinstance(b, Expr):
        if b == 0:
            raise _UnknownError
        return binary("%", a, b)
    return math.fmod(a, b) if isinstance(a, float) else a - b * _truncated(a, b)


def _real(function: Callable[[Any], Any]) -> Callable[..., Value]:
    def apply(a: Value) -> Value:
        if isinstance(a, Expr):
            raise _UnknownError
        return function(a)

    return apply


def _keep(function: Callable[[Any], Any]) -> Callable[..., Value]:
    """Of functions that leave sizes as they are."""
    return lambda a: a if isinstance(a, Expr) else function(a)


_SCALAR: dict[str, Callable[..., Value]] = {
    "add": _arithmetic("+", lambda a, b: a + b),
    "sub": _arithmetic("-", lambda a, b: a - b),
    "mul": _arithmetic("*", lambda a, b: a * b),
    "mod": _mod,
    "max": _arithmetic("max", max),
    "min": _arithmetic("min", min),
    "eq": _order(lambda c: c == 0),
    "ne": _order(lambda c: c != 0),
    "lt": _order(lambda c: c < 0),
    "le": _order(lambda c: c <= 0),
    "gt": _order(lambda c: c > 0),
    "ge": _order(lambda c: c >= 0),
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "neg": lambda a: binary("-", 0, a) if isinstance(a, Expr) else -a,
    "abs": _keep(abs),
    "sign": _real(lambda a: (a > 0) - (a < 0)),
    "floor": _keep(math.floor),
    "ceil": _keep(math.ceil),
    "round": _keep(round),
    "sqrt": _real(math.sqrt),
    "exp": _real(math.exp),
    "log": _real(math.log),
    "where": lambda test, a, b: a if test else b,
    "div": _int_div,
    "pow": lambda a, b: math.pow(_real(float)(a), _real(float)(b)),
}


def _elementwise(node: Node, inputs: list[Values]) -> list[Value]:
    function = _SCALAR[node.op]
    if node.op == "div" and node.dtype.kind == "float":
        function = _arithmetic("/", _truncated)
    places = [_broadcast(x.shape, node.shape) for x in node.inputs]
    count = math.prod(map(int, map(str, node.shape)))
    return [
        function(*(x[at[i]] for x, at in zip(inputs, places, strict=True))) for i in range(count)
    ]


def _strides(shape: tuple[Any, ...]) -> list[int]:
    out = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        out[axis] = out[axis + 1] * int(shape[axis + 1])
    return out


def _places(shape: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """All indices of ``shape``, row-major."""
    found: list[tuple[int, ...]] = [()]
    for size in shape:
        found = [(*at, i) for at in found for i in range(int(size))]
    return found


def _broadcast(source: tuple[Any, ...], target: tuple[Any, ...]) -> list[int]:
    """For each element of ``target`` its place in ``source``."""
    if source == target:
        return list(range(math.prod(target)))
    strides = [0 if s == 1 else n for s, n in zip(source, _strides(source), strict=True)]
    skip = len(target) - len(source)
    return [sum(i * n for i, n in zip(at[skip:], strides, strict=True)) for at in _places(target)]


def _permute(node: Node, inputs: list[Values]) -> list[Value]:
    strides = _strides(node.inputs[0].shape)
    moved = [strides[a] for a in node.attrs["axes"]]
    return [
        inputs[0][sum(i * n for i, n in zip(at, moved, strict=True))] for at in _places(node.shape)
    ]


def _slice(node: Node, inputs: list[Values]) -> list[Value]:
    starts, strides = node.attrs["starts"], _strides(node.inputs[0].shape)
    if not all(isinstance(s, int) for s in starts):
        raise _UnknownError
    first = sum(s * n for s, n in zip(starts, strides, strict=True))
    return [
        inputs[0][first + sum(i * n for i, n in zip(at, strides, strict=True))]
        for at in _places(node.shape)
    ]


def _concat(node: Node, inputs: list[Values]) -> list[Value]:
    axis = node.attrs["axis"]
    outer = math.prod(map(int, map(str, node.shape[:axis])))
    out: list[Value] = []
    for row in range(outer):
        for values in inputs:
            width = len(values) // outer
            out += values[row * width : (row + 1) * width]
    return out


def _take(node: Node, inputs: list[Values]) -> list[Value]:
    x, *indices = inputs
    places = [_broadcast(i.shape, node.shape) for i in node.inputs[1:]]
    strides, out = _strides(node.inputs[0].shape), []
    for number in range(math.prod(map(int, map(str, node.shape)))):
        at = 0
        for index, place, stride in zip(indices, places, strides, strict=True):
            value = index[place[number]]
            if isinstance(value, Expr):
                raise _UnknownError
            at += value * stride
        out.append(x[at])
    return out


def _reduce(function: str, start: Value) -> Callable[[Node, list[Values]], list[Value]]:
    def rule(node: Node, inputs: list[Values]) -> list[Value]:
        x, axes = node.inputs[0], node.attrs["axes"]
        kept = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
        strides = [0 if i in axes else n for i, n in enumerate(_strides(kept))]
        out: list[Value] = [start] * math.prod(map(int, map(str, kept)))
        for value, at in zip(inputs[0], _places(x.shape), strict=True):
            place = sum(i * n for i, n in zip(at, strides, strict=True))
            held = out[place]
            out[place] = value if held is None else _SCALAR[function](held, value)
        if any(v is None for v in out):
            raise _UnknownError
        return out

    return rule


_RULES: dict[str, Callable[[Node, list[Any]], list[Value]]] = {
    "size": lambda node, inputs: [node.attrs["size"]],
    "iota": lambda node, inputs: list(range(node.attrs["size"])),
    "cast": lambda node, inputs: list(inputs[0]),
    "reshape": lambda node, inputs: list(inputs[0]),
    "expand": lambda node, inputs: [
        inputs[0][i] for i in _broadcast(node.inputs[0].shape, node.shape)
    ],
    "permute": _permute,
    "slice": _slice,
    "concat": _concat,
    "take": _take,
    "reduce_sum": _reduce("add", 0),
    "reduce_prod": _reduce("mul", 1),
    "reduce_max": _reduce("max", None),
    "reduce_min": _reduce("min", None),
}

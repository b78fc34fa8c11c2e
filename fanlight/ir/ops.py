"""The op list: one row an op, with its attributes, shape rule and dtype rule.

The meaning of each op is in ``interpreter.py``, keyed by the same names; each target's table is
total over this list (tests hold both). Elementwise ops broadcast as numpy does. Matrix products
take the second operand transposed, ``[N, K]``, as checkpoints store it. ``take`` is x at computed
places: inputs x and an i32 index for each of its axes, within it; the indices broadcast to the
result's shape. With ``iota`` it stands for all movement that has no op of its own (strides, flips,
padding, gathers, windows). Composite ops are defined by plain
ones, in ``composite.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fanlight import dtypes
from fanlight.dtypes import DTYPES, DType
from fanlight.errors import GraphError
from fanlight.ir.graph import Node, Shape, type_text
from fanlight.shapes import Expr, Size, dims_of, maximum, product

AttrKind = Literal["int", "float", "bool", "str", "size", "sizes", "ints", "dtype", "bytes"]
Family = Literal["leaf", "elementwise", "movement", "reduction", "block", "composite"]
Result = tuple[DType, Shape]
RuleFunction = Callable[[tuple[Node, ...], dict[str, Any]], Result]


@dataclass(frozen=True, slots=True)
class Op:
    """``arity`` is -1 for one or more inputs. ``rule`` raises GraphError or gives dtype and
    shape. ``changes``: numbers of inputs, states, that it changes in place; ``after`` is one of
    them afterwards."""

    name: str
    family: Family
    arity: int
    rule: RuleFunction
    attrs: dict[str, AttrKind] = field(default_factory=dict)
    changes: tuple[int, ...] = ()


def apply(op: str, *inputs: Node, **attrs: Any) -> Node:
    """A node of ``op``; raises GraphError naming the op and the rule that is broken."""
    spec = OPS.get(op)
    if spec is None:
        raise GraphError("unknown op", got=op)
    if spec.arity != len(inputs) and not (spec.arity == -1 and inputs):
        raise GraphError("wrong number of inputs", where=op, got=len(inputs), wanted=spec.arity)
    if set(attrs) != set(spec.attrs):
        raise GraphError("wrong attributes", where=op, got=sorted(attrs), wanted=sorted(spec.attrs))
    for name, kind in spec.attrs.items():
        if not _ATTR_CHECKS[kind](attrs[name]):
            raise GraphError(
                f"attribute {name} is not of kind {kind}", where=op, got=repr(attrs[name])
            )
    dtype, shape = spec.rule(inputs, attrs)
    return Node(op, inputs, attrs, dtype, shape)


def _is_size(value: object) -> bool:
    return isinstance(value, Expr) or (isinstance(value, int) and not isinstance(value, bool))


_ATTR_CHECKS: dict[AttrKind, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, float),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "size": _is_size,
    "sizes": lambda v: isinstance(v, tuple) and all(_is_size(s) for s in v),
    "ints": lambda v: isinstance(v, tuple) and all(isinstance(s, int) for s in v),
    "dtype": lambda v: isinstance(v, DType),
    "bytes": lambda v: isinstance(v, bytes),
}


# --- leaves


def _leaf(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    return attrs["dtype"], attrs["shape"]


def _constant(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    dtype, shape, data = attrs["dtype"], attrs["shape"], attrs["data"]
    count = maximum(product(shape))
    wanted = (
        -(-count // dtype.block) * dtype.bytes if dtype.kind != "block" else dtype.nbytes(count)
    )
    if len(data) != wanted:
        raise GraphError("wrong number of bytes", where="constant", got=len(data), wanted=wanted)
    return dtype, shape


# --- elementwise

FLOAT_ONLY = frozenset(
    "exp log sqrt rsqrt recip tanh sigmoid silu erf sin cos atan floor ceil round pow".split()
    + "isnan isinf".split()
)
INTEGER_ONLY = frozenset("bitand bitor bitxor bitnot shl shr".split())
COMPARISONS = frozenset("eq ne lt le gt ge".split())
LOGICAL = frozenset("and or not".split())
BOOLEAN = COMPARISONS | LOGICAL | {"isnan", "isinf"}

#: name → number of inputs, of every elementwise op. ``div`` and ``mod`` of integers truncate,
#: their sums, products and ``neg`` wrap around, as does ``shl``; ``shr`` keeps the sign of signed
#: ones; a shift by as many bits as there are, or more, gives 0 (``shr`` of a negative one -1).
#: ``round`` is to even; ``sign`` of NaN is NaN.
ELEMENTWISE: dict[str, int] = {
    **dict.fromkeys("add sub mul div mod max min pow".split(), 2),
    **dict.fromkeys("eq ne lt le gt ge and or".split(), 2),
    **dict.fromkeys("bitand bitor bitxor shl shr".split(), 2),
    **dict.fromkeys("not neg abs exp log sqrt rsqrt recip tanh sigmoid silu erf".split(), 1),
    **dict.fromkeys("sin cos atan floor ceil round sign isnan isinf bitnot".split(), 1),
    "where": 3,
}


def broadcast(op: str, shapes: list[Shape]) -> Shape:
    """The common shape, as numpy broadcasts; sizes are equal when their expressions are."""
    rank = max(len(s) for s in shapes)
    out: list[Size] = []
    for axis in range(rank):
        size: Size = 1
        for shape in shapes:
            at = axis - rank + len(shape)
            here = shape[at] if at >= 0 else 1
            if here == 1 or here == size:
                continue
            if size != 1:
                text = " and ".join(str(list(s)) for s in shapes)
                raise GraphError("shapes don't broadcast", where=op, got=text)
            size = here
        out.append(size)
    return tuple(out)


def _elementwise(op: str) -> RuleFunction:
    def rule(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
        values = inputs[1:] if op == "where" else inputs
        kinds = {v.dtype for v in values}
        if len(kinds) != 1 or (op == "where" and inputs[0].dtype is not dtypes.boolean):
            got = ", ".join(str(v.dtype) for v in inputs)
            raise GraphError("inputs of different dtypes", where=op, got=got)
        dtype = values[0].dtype
        if dtype.kind == "block":
            raise GraphError("a block-quantised value is no operand here", where=op, got=dtype)
        if op in FLOAT_ONLY and dtype.kind != "float":
            raise GraphError("floats only", where=op, got=dtype)
        if op in INTEGER_ONLY and dtype.kind not in ("int", "uint"):
            raise GraphError("integers only", where=op, got=dtype)
        if op in LOGICAL and dtype.kind != "bool":
            raise GraphError("bool only", where=op, got=dtype)
        out = dtypes.boolean if op in BOOLEAN else dtype
        return out, broadcast(op, [v.shape for v in inputs])

    return rule


def _cast(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    if inputs[0].dtype.kind == "block" or attrs["to"].kind == "block":
        raise GraphError("block-quantised values are not cast", where="cast")
    return attrs["to"], inputs[0].shape


def _bitcast(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, to = inputs[0], attrs["to"]
    if x.dtype is not attrs["of"] or (x.dtype.bytes, x.dtype.block) != (to.bytes, to.block):
        raise GraphError("another number of bits", where="bitcast", got=to, wanted=x.dtype)
    return to, x.shape


# --- movement


def _reshape(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, shape = inputs[0], attrs["shape"]
    computed = any(dim.least == 0 for size in shape for dim in dims_of(size))  # known to the run
    if product(_sorted(x.shape)) != product(_sorted(shape)) and not computed:
        raise GraphError(
            "different number of elements", where="reshape", got=list(shape), wanted=list(x.shape)
        )
    return x.dtype, shape


def _sorted(shape: Shape) -> list[Size]:
    """Symbolic factors first, in one order, so that equal products compare equal."""
    symbolic = sorted((s for s in shape if not isinstance(s, int)), key=str)
    return [*symbolic, product([s for s in shape if isinstance(s, int)])]


def _permute(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, axes = inputs[0], attrs["axes"]
    if sorted(axes) != list(range(len(x.shape))):
        raise GraphError("axes are no permutation", where="permute", got=axes)
    return x.dtype, tuple(x.shape[a] for a in axes)


def _expand(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, shape = inputs[0], attrs["shape"]
    if broadcast("expand", [x.shape, shape]) != shape:
        raise GraphError("shape doesn't expand to it", where="expand", got=list(x.shape))
    return x.dtype, shape


def _slice(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, starts, sizes = inputs[0], attrs["starts"], attrs["sizes"]
    if not len(starts) == len(sizes) == len(x.shape):
        raise GraphError("one start and size for each axis", where="slice")
    for start, size, extent in zip(starts, sizes, x.shape, strict=True):
        if all(isinstance(v, int) for v in (start, size, extent)) and start + size > extent:
            raise GraphError("slice outside the value", where="slice", got=(start, size, extent))
    return x.dtype, sizes


def _concat(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    axis, first = attrs["axis"], inputs[0]
    if not 0 <= axis < len(first.shape):
        raise GraphError("no such axis", where="concat", got=axis)
    total: Size = 0
    for x in inputs:
        same = [s for i, s in enumerate(x.shape) if i != axis]
        if x.dtype is not first.dtype or same != [
            s for i, s in enumerate(first.shape) if i != axis
        ]:
            raise GraphError("inputs differ", where="concat", got=type_text(x.dtype, x.shape))
        total = total + x.shape[axis]
    return first.dtype, tuple(total if i == axis else s for i, s in enumerate(first.shape))


def _iota(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    return dtypes.i32, (attrs["size"],)


def _take(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, *indices = inputs
    if not indices or len(indices) != len(x.shape) or x.dtype.kind == "block":
        raise GraphError("wants an index for each axis", where="take", got=len(indices))
    for index in indices:
        if index.dtype is not dtypes.i32:
            raise GraphError("wants i32 indices", where="take", got=index.dtype)
    return x.dtype, broadcast("take", [i.shape for i in indices])


def _size(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    return dtypes.i32, ()


def _gather(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    table, ids = inputs
    if ids.dtype is not dtypes.i32 or not table.shape:
        raise GraphError("i32 ids into a table", where="gather", got=ids.dtype)
    dtype = dtypes.f32 if table.dtype.kind in ("block", "float") else table.dtype
    return dtype, (*ids.shape, *table.shape[1:])


def _update(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    cache, rows = inputs
    fits = rows.dtype is dtypes.f32 or (rows.dtype is cache.dtype and rows.dtype.bytes >= 4)
    if cache.shape[1:] != rows.shape[1:] or not fits:
        got = type_text(rows.dtype, rows.shape)
        raise GraphError("rows don't fit the cache", where="update", got=got)
    return cache.dtype, cache.shape


# --- reductions


def _reduce(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, axes = inputs[0], attrs["axes"]
    if not axes or len(set(axes)) != len(axes) or not all(0 <= a < len(x.shape) for a in axes):
        raise GraphError("bad axes", where="reduce", got=axes)
    keep = attrs["keep"]
    return x.dtype, tuple(
        1 if i in axes else s for i, s in enumerate(x.shape) if keep or i not in axes
    )


def _argmax(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    if not inputs[0].shape:
        raise GraphError("needs an axis", where="argmax")
    return dtypes.i32, inputs[0].shape[:-1]


# --- blocks: what targets have templates for


def _matmul(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, w = inputs
    if x.dtype is not dtypes.f32 or len(w.shape) != 2 or not x.shape or x.shape[-1] != w.shape[1]:
        got = f"{type_text(x.dtype, x.shape)} and {type_text(w.dtype, w.shape)}"
        raise GraphError("wants f32[…, K] and [N, K]", where="matmul", got=got)
    return dtypes.f32, (*x.shape[:-1], w.shape[0])


def _rms_norm(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, w = inputs
    if w.shape != x.shape[-1:] or x.dtype is not dtypes.f32 or w.dtype is not dtypes.f32:
        raise GraphError("wants f32[…, K] and f32[K]", where="rms_norm", got=list(w.shape))
    return x.dtype, x.shape


def _rope(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    x, cos, sin = inputs
    if len(x.shape) != 3 or cos.shape != sin.shape or len(cos.shape) != 2:
        raise GraphError("wants x [T, H, D], cos and sin [P, R / 2]", where="rope")
    depth, half = x.shape[2], cos.shape[1]
    if not isinstance(depth, int) or not isinstance(half, int) or 2 * half > depth:
        raise GraphError("rotates more than there is", where="rope", got=half, wanted=depth)
    return x.dtype, x.shape


def _attention(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    q, k, v = inputs
    if len(q.shape) != 3 or len(k.shape) != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise GraphError("wants q [T, H, D], k and v [C, Hk, D]", where="attention")
    heads, groups, depth = q.shape[1], k.shape[1], q.shape[2]
    assert isinstance(heads, int) and isinstance(groups, int)
    if heads % groups:
        raise GraphError("heads are no multiple of kv heads", where="attention", got=heads)
    return dtypes.f32, (q.shape[0], heads * depth)


# --- composite: defined by plain ops


def _composite(op: str) -> RuleFunction:
    def rule(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
        from fanlight.ir.composite import define

        value = define(op, inputs, attrs).value
        return value.dtype, value.shape

    return rule


def _after(inputs: tuple[Node, ...], attrs: dict[str, Any]) -> Result:
    node, number = inputs[0], attrs["input"]
    if number not in OPS[node.op].changes:
        raise GraphError("an input that the op doesn't change", where="after", got=number)
    return node.inputs[number].dtype, node.inputs[number].shape


_SHIFTS: dict[str, AttrKind] = {
    "taps": "int",
    "across": "int",
    "down": "size",
    "right": "size",
    "count": "size",
}
_REDUCE: dict[str, AttrKind] = {"axes": "ints", "keep": "bool"}
_ATTENTION: dict[str, AttrKind] = {"start": "size", "scale": "float"}
_ATTEND: dict[str, AttrKind] = {**_ATTENTION, "interleaved": "bool", "eps": "float"}
_NAMED: dict[str, AttrKind] = {"name": "str", "dtype": "dtype", "shape": "sizes"}

_ROWS = (
    Op("input", "leaf", 0, _leaf, _NAMED),
    Op("weight", "leaf", 0, _leaf, _NAMED),
    Op("state", "leaf", 0, _leaf, _NAMED),
    Op("constant", "leaf", 0, _constant, {"dtype": "dtype", "shape": "sizes", "data": "bytes"}),
    *(Op(name, "elementwise", n, _elementwise(name)) for name, n in ELEMENTWISE.items()),
    Op("cast", "elementwise", 1, _cast, {"to": "dtype"}),
    Op("bitcast", "block", 1, _bitcast, {"of": "dtype", "to": "dtype"}),
    Op("reshape", "movement", 1, _reshape, {"shape": "sizes"}),
    Op("permute", "movement", 1, _permute, {"axes": "ints"}),
    Op("expand", "movement", 1, _expand, {"shape": "sizes"}),
    Op("slice", "movement", 1, _slice, {"starts": "sizes", "sizes": "sizes"}),
    Op("concat", "movement", -1, _concat, {"axis": "int"}),
    Op("iota", "movement", 0, _iota, {"size": "size"}),
    Op("size", "movement", 0, _size, {"size": "size"}),
    Op("take", "movement", -1, _take),
    Op("gather", "block", 2, _gather),
    Op("update", "movement", 2, _update, {"start": "size"}),
    Op("reduce_sum", "reduction", 1, _reduce, _REDUCE),
    Op("reduce_prod", "reduction", 1, _reduce, _REDUCE),
    Op("reduce_max", "reduction", 1, _reduce, _REDUCE),
    Op("reduce_min", "reduction", 1, _reduce, _REDUCE),
    Op("argmax", "block", 1, _argmax),
    Op("matmul", "block", 2, _matmul),
    Op("rms_norm", "block", 2, _rms_norm, {"eps": "float"}),
    Op("rope", "movement", 3, _rope, {"start": "size", "interleaved": "bool"}),
    Op("attention", "block", 3, _attention, _ATTENTION),
    Op("project", "composite", -1, _composite("project"), {"eps": "float"}),
    Op("swiglu", "composite", 4, _composite("swiglu"), {"eps": "float"}),
    Op("matmul_add", "composite", 3, _composite("matmul_add")),
    Op("attend", "composite", -1, _composite("attend"), _ATTEND, changes=(1, 2)),
    Op("attend_add", "composite", -1, _composite("attend_add"), _ATTEND, changes=(1, 2)),
    Op("dot", "composite", 2, _composite("dot")),
    Op("dot_stored", "composite", 2, _composite("dot_stored"), {"turned": "bool", "zero": "int"}),
    Op("dot_integer", "composite", 4, _composite("dot_integer")),
    Op("dot_shifted", "composite", -1, _composite("dot_shifted"), _SHIFTS),
    Op("after", "movement", 1, _after, {"input": "int"}),
)

OPS: dict[str, Op] = {row.name: row for row in _ROWS}


# --- shorthands for those who build graphs


def input_(name: str, dtype: DType, shape: Shape) -> Node:
    return apply("input", name=name, dtype=dtype, shape=shape)


def weight(name: str, dtype: DType, shape: Shape) -> Node:
    return apply("weight", name=name, dtype=dtype, shape=shape)


def state(name: str, dtype: DType, shape: Shape) -> Node:
    return apply("state", name=name, dtype=dtype, shape=shape)


def integers(values: list[int]) -> Node:
    """An i32 constant, rank 1."""
    data = b"".join(v.to_bytes(4, "little", signed=True) for v in values)
    return apply("constant", dtype=dtypes.i32, shape=(len(values),), data=data)


def dtype_named(name: str) -> DType:
    """The dtype of that name; GraphError otherwise."""
    if name not in DTYPES:
        raise GraphError("unknown dtype", got=name)
    return DTYPES[name]

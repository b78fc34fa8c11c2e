"""The meaning of every op, in numpy: slow, obvious, the definition that targets are held against.

Floats are computed in ``f64`` on request (``precise=True``) to serve as a reference beyond f32.
numpy and ml_dtypes are imported when called; this room is not part of the browser bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fanlight.dtypes import DType
from fanlight.errors import GraphError
from fanlight.ir.composite import define
from fanlight.ir.graph import Graph, Node, topological
from fanlight.ir.ops import OPS
from fanlight.shapes import evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_NUMPY = {
    "f32": "f4",
    "f16": "f2",
    "f64": "f8",
    "i64": "i8",
    "i32": "i4",
    "i16": "i2",
    "i8": "i1",
} | {
    "u64": "u8",
    "u32": "u4",
    "u16": "u2",
    "u8": "u1",
    "bool": "?",
    "i4": "i1",
    "u4": "u1",
    "i2": "i1",
    "u2": "u1",
}
_BITS = {"i4": 4, "u4": 4, "i2": 2, "u2": 2}
_SMALL_FLOATS = {  # → names in ml_dtypes
    "f8e4m3fn": "float8_e4m3fn",
    "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2": "float8_e5m2",
    "f8e5m2fnuz": "float8_e5m2fnuz",
    "f8e8m0": "float8_e8m0fnu",
    "f4e2m1": "float4_e2m1fn",
}


class Interpreter:
    """Runs graphs over numpy arrays. ``weights`` hold plain arrays, dequantised; ``states`` are
    changed."""

    def __init__(
        self, weights: Mapping[str, Array], states: dict[str, Array], precise: bool = False
    ) -> None:
        import numpy as np

        self.np, self.precise = np, precise
        self.weights, self.states = weights, states

    def run(
        self, graph: Graph, feeds: Mapping[str, Array], dims: Mapping[str, int]
    ) -> dict[str, Array]:
        """The outputs by name; applies the updates afterwards."""
        values: dict[Node, Array] = {}
        for node in graph.nodes():
            self._into(values, node, feeds, dims)
        self.states |= {name: values[node] for name, node in graph.updates.items()}
        return {name: values[node] for name, node in graph.outputs.items()}

    def _into(
        self,
        values: dict[Node, Array],
        node: Node,
        feeds: Mapping[str, Array],
        dims: Mapping[str, int],
    ) -> None:
        """Adds the value of ``node``; a composite op's is that of its definition, where it has no
        meaning of its own."""
        whole = node.inputs[0] if node.op == "after" else node
        if OPS[whole.op].family != "composite" or node.op in MEANINGS:
            values[node] = self._node(node, [values[x] for x in node.inputs], feeds, dims)
            return
        meant = define(whole.op, whole.inputs, whole.attrs)
        root = meant.changed[node.attrs["input"]] if node is not whole else meant.value
        for inner in topological([root]):
            if inner not in values:
                self._into(values, inner, feeds, dims)
        values[node] = values[root]

    def _node(
        self, node: Node, args: list[Array], feeds: Mapping[str, Array], dims: Mapping[str, int]
    ) -> Array:
        np = self.np
        if node.op in ("input", "weight", "state"):
            table = {"input": feeds, "weight": self.weights, "state": self.states}[node.op]
            if node.name not in table:
                raise GraphError(f"no value for {node.op}", got=node.name)
            value = np.asarray(table[node.name])
        elif node.op == "constant":
            shape = [evaluate(s, dims) for s in node.shape]
            value = array_of(node.attrs["data"], node.dtype, shape)
        else:
            attrs = {k: _attr(v, dims) for k, v in node.attrs.items()}
            value = MEANINGS[node.op](np, args, attrs)
        if node.dtype.kind == "float" or node.dtype.kind == "block":
            value = _rounded(np, np.asarray(value), node.dtype.name)
            kind = "f8" if self.precise or node.dtype.name == "f64" else "f4"
        else:
            kind = _NUMPY[node.dtype.name]
        if node.dtype.name in _BITS:
            value = _wrapped(np, np.asarray(value), node.dtype)
        out: Array = np.asarray(value).astype(kind, copy=False)
        return out


def array_of(data: bytes, dtype: DType, shape: Sequence[int]) -> Array:
    """The values of little-endian ``data``: floats of less than 32 bits as f4, integers of less
    than 8 bits as 8-bit ones. No block types."""
    import numpy as np

    raw: Array
    count = math.prod(shape)
    if dtype.block > 1:
        bits = 8 // dtype.block
        raw = np.frombuffer(data, "u1")[:, None] >> np.arange(0, 8, bits, dtype="u1")
        raw = (raw.reshape(-1)[:count] & ((1 << bits) - 1)).astype("u1")
        if dtype.kind != "float":
            raw = _wrapped(np, raw, dtype).astype(_NUMPY[dtype.name])
        else:
            raw = raw.view(_small(dtype.name)).astype("f4")
        return raw.reshape(shape)
    if dtype.name == "bf16":
        raw = (np.frombuffer(data, "<u2", count).astype("u4") << 16).view("f4")
    elif dtype.name in _SMALL_FLOATS:
        raw = np.frombuffer(data, _small(dtype.name), count).astype("f4")
    else:
        raw = np.frombuffer(data, "<" + _NUMPY[dtype.name], count)
    return raw.reshape(shape)


def _small(name: str) -> Any:
    """The numpy type of a float8 or float4."""
    import ml_dtypes

    return getattr(ml_dtypes, _SMALL_FLOATS[name])


def _rounded(np: Any, value: Any, name: str) -> Any:
    """The nearest values of a narrower float."""
    if name == "f16":
        return value.astype("f2")
    if name == "bf16":
        return _bf16(np, value)
    return value.astype("f4").astype(_small(name)) if name in _SMALL_FLOATS else value


def _wrapped(np: Any, value: Any, dtype: DType) -> Any:
    """Integers modulo 2 to the number of bits of a packed type."""
    bits = _BITS[dtype.name]
    low = value.astype("i8") & ((1 << bits) - 1)
    return np.where(low >= 1 << bits - 1, low - (1 << bits), low) if dtype.kind == "int" else low


def _raw(np: Any, x: Any, dtype: DType) -> bytes:
    """Little-endian elements, two or four of packed types to a byte."""
    if dtype.name == "bf16":
        return bytes((_bf16(np, x).astype("f4").view("u4") >> 16).astype("u2").tobytes())
    kind = _small(dtype.name) if dtype.name in _SMALL_FLOATS else _NUMPY[dtype.name]
    whole = x.astype(kind)
    if dtype.block == 1:
        return bytes(whole.tobytes())
    bits = 8 // dtype.block
    codes = whole.view("u1").reshape(-1) & ((1 << bits) - 1)
    codes = np.concatenate([codes, np.zeros(-len(codes) % dtype.block, "u1")])
    shifts = np.arange(0, 8, bits, dtype="u1")
    return bytes((codes.reshape(-1, dtype.block) << shifts).sum(1).astype("u1").tobytes())


def _bf16(np: Any, x: Any) -> Any:
    """The nearest bf16 values, ties to even; NaN stays NaN."""
    bits = x.astype("f4").view("u4")
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, rounded.astype("u4").view("f4"))


def _attr(value: Any, dims: Mapping[str, int]) -> Any:
    from fanlight.shapes import Expr

    if isinstance(value, Expr):
        return evaluate(value, dims)
    if isinstance(value, tuple):
        return tuple(_attr(v, dims) for v in value)
    return value


Meaning = Callable[[Any, list[Any], dict[str, Any]], Any]


def _erf(np: Any, x: Any) -> Any:
    import math

    return np.vectorize(math.erf, otypes=["f8"])(x)


def _truncated(np: Any, a: Any, b: Any) -> Any:
    if a.dtype.kind == "f":
        return a / b
    return (a - np.fmod(a, b)) // b  # by 0: 0


def _shift(np: Any, x: Any, by: Any, way: str) -> Any:
    bits = 8 * x.dtype.itemsize
    some = np.minimum(by, bits - 1).astype(x.dtype)
    shifted = x << some if way == "left" else x >> some
    rest = np.where(x < 0, -1, 0).astype(x.dtype) if way == "right" else np.zeros_like(x)
    return np.where(by >= bits, rest, shifted)


def _slice(np: Any, args: list[Any], attrs: dict[str, Any]) -> Any:
    spans = zip(attrs["starts"], attrs["sizes"], strict=True)
    return args[0][tuple(slice(start, start + size) for start, size in spans)]


def _update(np: Any, args: list[Any], attrs: dict[str, Any]) -> Any:
    cache, rows = args[0].copy(), args[1]
    cache[attrs["start"] : attrs["start"] + len(rows)] = rows
    return cache


def _reduce(function: str) -> Meaning:
    return lambda np, a, t: getattr(np, function)(a[0], axis=t["axes"], keepdims=t["keep"])


def _extreme(low: bool) -> Meaning:
    """Of no elements: what every element would replace."""

    def meaning(np: Any, args: list[Any], attrs: dict[str, Any]) -> Any:
        x = args[0]
        if x.dtype.kind == "f":
            start = -np.inf if low else np.inf
        elif x.dtype.kind == "b":
            start = not low
        else:
            start = np.iinfo(x.dtype).min if low else np.iinfo(x.dtype).max
        function = np.max if low else np.min
        return function(x, axis=attrs["axes"], keepdims=attrs["keep"], initial=start)

    return meaning


def _rms_norm(np: Any, args: list[Any], attrs: dict[str, Any]) -> Any:
    x, w = args
    mean = (x.astype("f8") ** 2).mean(-1, keepdims=True)
    return x / np.sqrt(mean + attrs["eps"]) * w


def _rope(np: Any, args: list[Any], attrs: dict[str, Any]) -> Any:
    """Su et al., RoFormer (arXiv 2104.09864); pairs (2i, 2i+1) or, not interleaved, (i, i +
    R/2)."""
    x, cos, sin = args
    half, start = cos.shape[1], attrs["start"]
    c, s = (t[start : start + len(x), None, :] for t in (cos, sin))
    out = x.copy()
    if attrs["interleaved"]:
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = a * c - b * s, a * s + b * c
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
        out[..., :half], out[..., half : 2 * half] = a * c - b * s, a * s + b * c
    return out


def _attention(np: Any, args: list[Any], attrs: dict[str, Any]) -> Any:
    """Causal, grouped-query: row t sees positions 0 … start + t."""
    q, k, v = (a.astype("f8") for a in args)
    rows, heads, depth = q.shape
    group = heads // k.shape[1]
    out = np.zeros_like(q)
    for t in range(rows):
        length = attrs["start"] + t + 1
        for h in range(heads):
            scores = k[:length, h // group] @ q[t, h] * attrs["scale"]
            p = np.exp(scores - scores.max())
            out[t, h] = p @ v[:length, h // group] / p.sum()
    return out.reshape(rows, heads * depth)


MEANINGS: dict[str, Meaning] = {
    "add": lambda np, a, t: a[0] + a[1],
    "sub": lambda np, a, t: a[0] - a[1],
    "mul": lambda np, a, t: a[0] * a[1],
    "div": lambda np, a, t: _truncated(np, a[0], a[1]),
    "mod": lambda np, a, t: np.fmod(a[0], a[1]),
    "max": lambda np, a, t: np.maximum(a[0], a[1]),
    "min": lambda np, a, t: np.minimum(a[0], a[1]),
    "pow": lambda np, a, t: a[0] ** a[1],
    "eq": lambda np, a, t: a[0] == a[1],
    "ne": lambda np, a, t: a[0] != a[1],
    "lt": lambda np, a, t: a[0] < a[1],
    "le": lambda np, a, t: a[0] <= a[1],
    "gt": lambda np, a, t: a[0] > a[1],
    "ge": lambda np, a, t: a[0] >= a[1],
    "and": lambda np, a, t: a[0] & a[1],
    "or": lambda np, a, t: a[0] | a[1],
    "not": lambda np, a, t: ~a[0],
    "neg": lambda np, a, t: -a[0],
    "abs": lambda np, a, t: np.abs(a[0]),
    "exp": lambda np, a, t: np.exp(a[0]),
    "log": lambda np, a, t: np.log(a[0]),
    "sqrt": lambda np, a, t: np.sqrt(a[0]),
    "rsqrt": lambda np, a, t: 1 / np.sqrt(a[0]),
    "recip": lambda np, a, t: 1 / a[0],
    "tanh": lambda np, a, t: np.tanh(a[0]),
    "sigmoid": lambda np, a, t: 1 / (1 + np.exp(-a[0].astype("f8"))),
    "silu": lambda np, a, t: a[0] / (1 + np.exp(-a[0].astype("f8"))),
    "erf": lambda np, a, t: _erf(np, a[0]),
    "sin": lambda np, a, t: np.sin(a[0]),
    "cos": lambda np, a, t: np.cos(a[0]),
    "floor": lambda np, a, t: np.floor(a[0]),
    "ceil": lambda np, a, t: np.ceil(a[0]),
    "round": lambda np, a, t: np.round(a[0]),
    "atan": lambda np, a, t: np.arctan(a[0]),
    "sign": lambda np, a, t: np.sign(a[0]),
    "isnan": lambda np, a, t: np.isnan(a[0]),
    "isinf": lambda np, a, t: np.isinf(a[0]),
    "bitand": lambda np, a, t: a[0] & a[1],
    "bitor": lambda np, a, t: a[0] | a[1],
    "bitxor": lambda np, a, t: a[0] ^ a[1],
    "bitnot": lambda np, a, t: ~a[0],
    "shl": lambda np, a, t: _shift(np, a[0], a[1], "left"),
    "shr": lambda np, a, t: _shift(np, a[0], a[1], "right"),
    "where": lambda np, a, t: np.where(a[0], a[1], a[2]),
    "cast": lambda np, a, t: np.trunc(a[0]) if t["to"].kind in ("int", "uint") else a[0],
    "reshape": lambda np, a, t: a[0].reshape(t["shape"]),
    "permute": lambda np, a, t: a[0].transpose(t["axes"]),
    "expand": lambda np, a, t: np.broadcast_to(a[0], t["shape"]),
    "slice": _slice,
    "concat": lambda np, a, t: np.concatenate(a, axis=t["axis"]),
    "size": lambda np, a, t: np.asarray(t["size"]),
    "iota": lambda np, a, t: np.arange(t["size"]),
    "take": lambda np, a, t: a[0][tuple(a[1:])],
    "bitcast": lambda np, a, t: array_of(_raw(np, a[0], t["of"]), t["to"], a[0].shape),
    "gather": lambda np, a, t: a[0][a[1]],
    "update": _update,
    "reduce_sum": _reduce("sum"),
    "reduce_prod": _reduce("prod"),
    "reduce_max": _extreme(low=True),
    "reduce_min": _extreme(low=False),
    "argmax": lambda np, a, t: np.argmax(a[0], axis=-1),
    "matmul": lambda np, a, t: a[0] @ a[1].T,
    "dot": lambda np, a, t: np.matmul(a[0], a[1]),
    "rms_norm": _rms_norm,
    "rope": _rope,
    "attention": _attention,
}

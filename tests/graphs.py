"""Random graphs, for properties of the IR and of lowering: the same seed gives the same graph.

Floats that feed a discontinuous op (rounding, comparisons, argmax, casts) are *exact*: small
multiples of 1/4, combined by exact ops only, so that the order of a sum can't change what follows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.dtypes import DTYPES, DType
from fanlight.errors import GraphError
from fanlight.ir import ops
from fanlight.ir.graph import LEAVES, Graph, Node, Shape
from fanlight.ir.ops import apply
from fanlight.shapes import Dim, Size, dims_of, evaluate, product

Array = NDArray[Any]
T = Dim("T", "host", 6)
POS = Dim("pos", "device", 5)
CACHE = POS.max + T.max
_SMOOTH = ("tanh", "sigmoid", "silu", "neg", "abs", "sin", "cos", "erf", "atan")
_NUMPY = {"f32": "f4", "f16": "f2", "i32": "i4", "u32": "u4", "i8": "i1", "u8": "u1", "bool": "?"}
_NUMPY |= {"f64": "f8", "i64": "i8", "i16": "i2", "u64": "u8", "u16": "u2"}
ALL = tuple(DTYPES[name] for name in _NUMPY)
_DTYPES = ALL[:7]


@dataclass(slots=True)
class RandomGraph:
    """``graph`` and what it reads: name → (dtype, shape) of inputs, weights and states."""

    graph: Graph
    inputs: dict[str, tuple[DType, Shape]] = field(default_factory=dict)
    weights: dict[str, tuple[DType, Shape]] = field(default_factory=dict)
    states: dict[str, tuple[DType, Shape]] = field(default_factory=dict)


def random_graph(
    seed: int, size: int = 24, lanes: int = 1, kinds: tuple[DType, ...] = _DTYPES
) -> RandomGraph:
    """A graph of about ``size`` ops with outputs, updates of both kinds and symbolic sizes.

    ``lanes``: what the rows of products, norms and gathers are a multiple of; targets may want 4.
    ``kinds``: the dtypes that it may have.
    """
    return _Maker(random.Random(seed), size, lanes, kinds).make()


def random_values(
    table: Mapping[str, tuple[DType, Shape]], seed: int, dims: Mapping[str, int]
) -> dict[str, Array]:
    """Exact values for all of ``table``."""
    generator = np.random.default_rng(seed)
    return {
        name: random_array(generator, dtype, [evaluate(s, dims) for s in shape])
        for name, (dtype, shape) in table.items()
    }


def random_array(generator: np.random.Generator, dtype: DType, shape: list[int]) -> Array:
    """Multiples of 1/4 in [-2, 2], integers in [-9, 9] or [0, 9], or bools."""
    if dtype.kind == "float":
        return (generator.integers(-8, 9, shape) / 4).astype(_NUMPY[dtype.name])
    low, high = (0, 2) if dtype.kind == "bool" else (0, 10) if dtype.kind == "uint" else (-9, 10)
    return generator.integers(low, high, shape).astype(_NUMPY[dtype.name])


class _Maker:
    def __init__(self, rng: random.Random, size: int, lanes: int, kinds: tuple[DType, ...]) -> None:
        self.rng, self.size, self.lanes, self.kinds = rng, size, lanes, kinds
        self.made = RandomGraph(Graph(f"random{size}"))
        self.pool: list[Node] = []
        self.exact: dict[Node, int] = {}  # node → how many multiplications deep

    def make(self) -> RandomGraph:
        for _ in range(4):
            self._leaf()
        recipes = [self._unary, self._binary, self._binary, self._where, self._cast, self._movement]
        recipes += [self._movement, self._movement, self._reduction, self._block, self._new_leaf]
        while len(self.pool) < self.size:
            self.rng.choice(recipes)()
        self._cache()
        graph = self.made.graph
        self._plain_updates()
        used = {x for node in self.pool for x in node.inputs} | set(graph.updates.values())
        sinks = [n for n in self.pool if n not in used and n.op not in LEAVES]
        for number, node in enumerate([*sinks, self.rng.choice(self.pool)]):
            graph.outputs[f"out{number}"] = node
        return self.made

    # --- leaves

    def _leaf(self, dtype: DType | None = None, shape: Shape | None = None) -> Node:
        rng, made = self.rng, self.made
        dtype = dtype or rng.choice((dtypes.f32, dtypes.f32, dtypes.f32, *self.kinds))
        shape = self._shape() if shape is None else shape
        kind = rng.choice(("input", "weight", "state", "constant"))
        if any(not isinstance(s, int) for s in shape):
            kind = "input"
        if kind == "constant":
            values = random_array(
                np.random.default_rng(rng.randrange(1 << 30)), dtype, [*map(int, map(str, shape))]
            )
            node = apply("constant", dtype=dtype, shape=shape, data=values.tobytes())
        else:
            table = {"input": made.inputs, "weight": made.weights, "state": made.states}[kind]
            name = f"{kind}{len(table)}"
            table[name] = (dtype, shape)
            node = apply(kind, name=name, dtype=dtype, shape=shape)
        return self._add(node, 0)

    def _new_leaf(self) -> None:
        self._leaf()

    def _shape(self) -> Shape:
        rank = self.rng.choice((0, 1, 1, 2, 2, 2, 3, 3))
        return tuple(self.rng.choice((1, 2, 3, 4, T)) for _ in range(rank))

    def _add(self, node: Node, depth: int | None) -> Node:
        """``depth`` None: not exact."""
        self.pool.append(node)
        if depth is not None:
            self.exact[node] = depth
        return node

    def _pick(self, dtype: DType | None = None, exact: bool = False) -> Node:
        found = [
            n
            for n in self.pool
            if (dtype is None or n.dtype is dtype) and (not exact or n in self.exact)
        ]
        return self.rng.choice(found) if found else self._leaf(dtype)

    def _depth(self, *nodes: Node) -> int | None:
        if all(n in self.exact for n in nodes):
            return max((self.exact[n] for n in nodes), default=0)
        return None

    # --- elementwise

    def _unary(self) -> None:
        x = self._pick()
        if x.dtype.kind == "bool":
            self._add(apply("not", x), 0)
        elif x.dtype.kind != "float":
            choice = ("abs", "sign") if x.dtype.kind == "uint" else ("neg", "abs", "sign", "bitnot")
            self._add(apply(self.rng.choice(choice), x), self._depth(x))
        elif x in self.exact and self.rng.random() < 0.3:
            self._add(apply(self.rng.choice(("floor", "ceil", "round", "sign")), x), self._depth(x))
        elif self.rng.random() < 0.2:
            self._add(apply(self.rng.choice(("isnan", "isinf")), x), 0)
        else:
            op = self.rng.choice(_SMOOTH)
            self._add(apply(op, x), self._depth(x) if op in ("neg", "abs") else None)

    def _partner(self, x: Node, exact: bool = False) -> Node:
        """A value that broadcasts with ``x``, of its dtype."""
        found = []
        for y in self.pool:
            if y.dtype is x.dtype and (not exact or y in self.exact):
                try:
                    ops.broadcast("", [x.shape, y.shape])
                    found.append(y)
                except GraphError:
                    continue
        if found and self.rng.random() < 0.7:
            return self.rng.choice(found)
        keep = self.rng.randint(0, len(x.shape))
        shape = tuple(s if self.rng.random() < 0.7 else 1 for s in x.shape[keep:])
        return self._leaf(x.dtype, shape)

    def _binary(self) -> None:
        x = self._pick()
        compare = self.rng.random() < 0.2 and x in self.exact
        y = self._partner(x, compare)
        if self.rng.random() < 0.5:
            x, y = y, x
        if compare:
            choice = sorted(ops.COMPARISONS) if x.dtype.kind != "bool" else ["eq", "ne"]
            self._add(apply(self.rng.choice(choice), x, y), 0)
        elif x.dtype.kind == "bool":
            self._add(apply(self.rng.choice(("and", "or")), x, y), 0)
        else:
            choice = (
                ["add", "sub", "max", "min"] if x.dtype.kind != "uint" else ["add", "max", "min"]
            )
            depth = self._depth(x, y)
            if (depth or 0) < 2:
                choice.append("mul")
            if x.dtype.kind == "int" and x.dtype.bytes >= 4:
                y = apply("max", apply("abs", y), self._constant(y.dtype, 1))
                choice += ["div", "mod"]
            if x.dtype.kind in ("int", "uint"):
                choice += ["bitand", "bitor", "bitxor"]
            op = self.rng.choice(choice)
            deeper = depth + (op == "mul") if depth is not None else None
            self._add(apply(op, x, y), deeper)

    def _constant(self, dtype: DType, value: float) -> Node:
        data = np.asarray(value, _NUMPY[dtype.name]).tobytes()
        return apply("constant", dtype=dtype, shape=(), data=data)

    def _where(self) -> None:
        x = self._pick()
        y = self._partner(x)
        test = self._pick(dtypes.boolean)
        try:
            node = apply("where", test, x, y)
        except GraphError:
            test = self._leaf(dtypes.boolean, ops.broadcast("", [x.shape, y.shape]))
            node = apply("where", test, x, y)
        self._add(node, self._depth(x, y))

    def _cast(self) -> None:
        x = self._pick(exact=True)
        to = self.rng.choice(self.kinds)
        if to.kind == "uint" and x.dtype.kind not in ("uint", "bool"):
            x = apply("abs", x)
        if to.kind != "float" and to.bytes < 4:
            bound = 50.0 if x.dtype.kind == "float" else 50
            if x.dtype.kind != "bool" and x.dtype.bytes > 1:
                x = apply("min", x, self._constant(x.dtype, bound))
                if x.dtype.kind != "uint" and to.kind != "uint":
                    x = apply("max", x, self._constant(x.dtype, -bound))
        self._add(apply("cast", x, to=to), 0)

    # --- movement

    def _movement(self) -> None:
        x = self._pick()
        rank, rng, depth = len(x.shape), self.rng, self._depth(x)
        kind = rng.choice(
            ("reshape", "reshape", "permute", "expand", "slice", "concat", "iota", "rope", "take")
        )
        if kind == "reshape":
            shape = self._reshaped(x.shape)
            try:
                self._add(apply("reshape", x, shape=shape), depth)
            except GraphError:  # equal products of symbols that the rule can't see
                return
        elif kind == "permute" and rank:
            self._add(apply("permute", x, axes=tuple(rng.sample(range(rank), rank))), depth)
        elif kind == "expand":
            ahead = tuple(rng.choice((2, T)) for _ in range(rng.randint(0, max(0, 3 - rank))))
            inner = tuple(rng.choice((1, 3, T)) if s == 1 else s for s in x.shape)
            self._add(apply("expand", x, shape=(*ahead, *inner)), depth)
        elif kind == "slice" and rank:
            starts, sizes = zip(*(self._span(s) for s in x.shape), strict=False)
            self._add(apply("slice", x, starts=starts, sizes=sizes), depth)
        elif kind == "concat" and rank:
            self._concat(x)
        elif kind == "iota":
            op = rng.choice(("iota", "iota", "size"))
            self._add(apply(op, size=rng.choice((3, T, T + 2))), 0)
        elif kind == "take" and rank:
            self._take(x, depth)
        elif kind == "rope":
            self._rope()

    def _take(self, x: Node, depth: int | None) -> None:
        """Some rows backwards, from known sizes; what has symbols stays as it is."""
        indices = []
        for axis, size in enumerate(x.shape):
            index = apply("iota", size=size)
            if isinstance(size, int):
                index = apply("sub", self._constant(dtypes.i32, size - 1), index)
            indices.append(apply("reshape", index, shape=(size, *(1,) * (len(x.shape) - axis - 1))))
        self._add(apply("take", x, *indices), depth)

    def _reshaped(self, shape: Shape) -> Shape:
        out: list[Size] = []
        for s in shape:
            if isinstance(s, int) and s == 4 and self.rng.random() < 0.5:
                out += [2, 2]
            elif out and self.rng.random() < 0.4:
                out[-1] = out[-1] * s
            else:
                out.append(s)
        if self.rng.random() < 0.3:
            out.insert(self.rng.randint(0, len(out)), 1)
        return tuple(out)

    def _span(self, size: Size) -> tuple[Size, Size]:
        if isinstance(size, int):
            start = self.rng.randrange(size)
            return start, self.rng.randint(1, size - start)
        return self.rng.choice(((0, size), (size - 1, 1), (0, 1)))

    def _concat(self, x: Node) -> None:
        axis = self.rng.randrange(len(x.shape))
        parts = [x]
        for _ in range(self.rng.randint(1, 2)):
            same = [y for y in self.pool if y.dtype is x.dtype and _fits(y.shape, x.shape, axis)]
            other = self.rng.choice((1, 2, T))
            shape = tuple(other if i == axis else s for i, s in enumerate(x.shape))
            parts.append(
                self.rng.choice(same) if self.rng.random() < 0.6 else self._leaf(x.dtype, shape)
            )
        self.rng.shuffle(parts)
        if sum(len(list(dims_of(p.shape[axis]))) for p in parts) < 4:
            self._add(apply("concat", *parts, axis=axis), self._depth(*parts))

    def _rope(self) -> None:
        depth, heads = self.rng.choice((4, 6)), self.rng.choice((1, 2))
        x = self._leaf(dtypes.f32, (T, heads, depth))
        if self.rng.random() < 0.5:
            x = apply("tanh", x)
        half = self.rng.choice((1, depth // 2))
        cos, sin = (self._leaf(dtypes.f32, (CACHE, half)) for _ in range(2))
        start = self.rng.choice((0, POS))
        node = apply("rope", x, cos, sin, start=start, interleaved=self.rng.random() < 0.5)
        self._add(node, None)

    # --- reductions and blocks

    def _reduction(self) -> None:
        x = self._pick()
        rank = len(x.shape)
        if not rank or x.dtype.kind == "bool" or x.dtype.bytes < 4:
            return
        axes = tuple(sorted(self.rng.sample(range(rank), self.rng.randint(1, rank))))
        kind = self.rng.choice(("reduce_sum", "reduce_max", "reduce_min"))
        depth = self._depth(x)
        if kind == "reduce_sum" and depth is not None:
            depth += 1
        if (depth or 0) > 3:
            return
        self._add(apply(kind, x, axes=axes, keep=self.rng.random() < 0.5), depth)

    def _block(self) -> None:
        kind = self.rng.choice(("matmul", "gather", "argmax", "rms_norm"))
        x = self._pick(dtypes.f32, exact=kind == "argmax")
        if not x.shape:
            return
        last = x.shape[-1]
        row = product(x.shape[1:]) if kind == "gather" else last
        if (
            kind != "argmax"
            and self.lanes > 1
            and not (isinstance(row, int) and row % self.lanes == 0)
        ):
            return
        if kind == "matmul" and isinstance(last, int):
            self._add(apply("matmul", x, self._leaf(dtypes.f32, (3, last))), None)
        elif kind == "rms_norm" and isinstance(last, int):
            self._add(apply("rms_norm", x, self._leaf(dtypes.f32, (last,)), eps=1e-3), None)
        elif kind == "argmax":
            self._add(apply("argmax", x), 0)
        elif kind == "gather" and isinstance(x.shape[0], int):
            ids = apply("abs", self._pick(dtypes.i32))
            ids = apply("mod", ids, self._constant(dtypes.i32, x.shape[0]))
            if len(ids.shape) + len(x.shape) <= 4:
                self._add(apply("gather", x, ids), self._depth(x))

    # --- states

    def _cache(self) -> None:
        """Keys and values in place, and attention over them."""
        if self.rng.random() < 0.5:
            return
        rows = apply("tanh", self._leaf(dtypes.f32, (T, 2, 4)))
        caches = []
        dtype = self.rng.choice((dtypes.f32, dtypes.f16))
        for name in ("k", "v"):
            self.made.states[name] = (dtype, (CACHE, 2, 4))
            cache = ops.state(name, dtype, (CACHE, 2, 4))
            value = rows if name == "k" else self._leaf(dtypes.f32, (T, 2, 4))
            caches.append(apply("update", cache, value, start=POS))
            self.made.graph.updates[name] = caches[-1]
        q = self._leaf(dtypes.f32, (T, 4, 4))
        self._add(apply("attention", q, *caches, start=POS, scale=0.5), None)

    def _plain_updates(self) -> None:
        """States that become other values, even one another's old ones."""
        graph, made = self.made.graph, self.made
        for number in range(self.rng.randint(0, 3)):
            node = self.rng.choice(self.pool)
            fitting = [
                name
                for name, spec in made.states.items()
                if spec == (node.dtype, node.shape) and name not in graph.updates
            ]
            if fitting and self.rng.random() < 0.8:
                graph.updates[self.rng.choice(fitting)] = node
            elif all(isinstance(s, int) for s in node.shape):
                made.states[f"new{number}"] = (node.dtype, node.shape)
                graph.updates[f"new{number}"] = node


def _fits(a: Shape, b: Shape, axis: int) -> bool:
    return len(a) == len(b) and all(
        x == y for i, (x, y) in enumerate(zip(a, b, strict=False)) if i != axis
    )

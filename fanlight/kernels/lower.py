"""A graph → launches over named buffers.

Loop-expressible nodes (elementwise, movement, rope, update, reductions) are fused into their one
user by inlining their element expression; every other node's value is *stored* in a buffer. In: a
graph, a target, and where weights and states live. Out: launches in order, with temporaries named
``%n``, which ``memory.py`` then puts into arena slots.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fanlight.dtypes import DType
from fanlight.errors import GraphError, UnsupportedError
from fanlight.ir.graph import LEAVES, Graph, Node
from fanlight.ir.ops import ELEMENTWISE, OPS
from fanlight.ir.verify import changed
from fanlight.kernels import loops
from fanlight.kernels.indexing import Index, Reshaping, linear
from fanlight.kernels.launch import Launch
from fanlight.kernels.loops import Expr, apply, extent, integer
from fanlight.kernels.target import LOOP, Context, NotYet, Operand, Part, Target
from fanlight.shapes import Size, ceildiv, maximum, product

MAX_LOADS = 6  # of 8 storage buffers per stage, one is the output and one a device dim's state
_IN_PLACE = ("update", "after")  # their value is a state's buffer
_FUSIBLE = (
    "f32",
    "f64",
    "i32",
    "i64",
    "u32",
    "u64",
    "bool",
)  # narrower values are stored, so that they are rounded


@dataclass(slots=True)
class Lowered:
    """``launches`` in their order; ``temporaries``: name → bytes."""

    launches: list[Launch] = field(default_factory=list)
    temporaries: dict[str, Size] = field(default_factory=dict)


def buffer_bytes(dtype: DType, shape: tuple[Size, ...]) -> Size:
    """Bytes of a plain value, rounded up to whole 32-bit words by callers that need it."""
    count = product(shape)
    return (ceildiv(count, dtype.block) if dtype.block > 1 else count) * dtype.bytes


def lower(
    graph: Graph,
    target: Target,
    weights: Mapping[str, Operand],
    constant: Callable[[Node], str],
    context: Context,
    prefix: str,
) -> Lowered:
    """The launches of ``graph``. ``constant(node)`` gives the buffer of a constant; states and
    inputs have buffers of their own names, outputs theirs. Raises UnsupportedError listing all ops
    and dtypes that ``target`` can't run."""
    return _Lowering(graph, target, weights, constant, context, prefix).run()


class _Lowering:
    def __init__(
        self,
        graph: Graph,
        target: Target,
        weights: Mapping[str, Operand],
        constant: Callable[[Node], str],
        context: Context,
        prefix: str,
    ) -> None:
        self.graph, self.target, self.weights = graph, target, weights
        self.constant, self.prefix = constant, prefix
        self.nodes = graph.nodes()
        self.out = Lowered()
        self.place: dict[Node, Operand] = {}
        self.copied: set[str] = set()  # outputs that hold their values already
        self.context = replace(context, scratch=self._scratch)
        self.users = Counter(x for node in self.nodes for x in node.inputs)
        self.users.update(graph.roots())
        self.stored = self._choose_stored()

    def run(self) -> Lowered:
        self._check_support()
        late = self._old_values()
        names = {n: s for s, n in self.graph.outputs.items()}
        states = {n: s for s, n in self.graph.updates.items()}
        last_read = self._last_reads()
        for number, node in enumerate(self.nodes):
            if node.op in LEAVES:
                continue
            if node not in self.stored:
                continue
            name = names.get(node)
            if node in states:
                name = states[node]
                if node.op not in _IN_PLACE and last_read.get(name, -1) >= number:
                    late.append((self._temporary(node), name, node))
                    name = late[-1][0]
            if node.op == "reshape" and name is None and self._operand_of_view(node):
                continue
            if name is None:
                name = self._temporary(node)
            elif node.op not in _IN_PLACE:
                self.place[node] = _plain(node, name)
            if node.op != "after":  # the node that it follows has stored it
                self._store(node, name)
        for temporary, name, node in late:
            self._copy(node, temporary, name)
        done = {name for _, name, _ in late} | self.copied
        for name, node in (*self.graph.outputs.items(), *self.graph.updates.items()):
            held = self.operand(node).buffer
            if held != name and name not in done:
                self._copy(node, held, name)
        return self.out

    def _old_values(self) -> list[tuple[str, str, Node]]:
        """Saves the states that outputs or other states become, where they change themselves.
        Returns the copies to make at the end: from, to, node."""
        late: list[tuple[str, str, Node]] = []
        for name, node in (*self.graph.outputs.items(), *self.graph.updates.items()):
            if node.op != "state" or node.name == name or node.name not in self.graph.updates:
                continue
            if name in self.graph.outputs:
                self._copy(node, node.name, name)
                self.copied.add(name)
            else:
                late.append((self._scratch(buffer_bytes(node.dtype, node.shape)), name, node))
                self._copy(node, node.name, late[-1][0])
        return late

    # --- what is stored, what is inlined

    def _choose_stored(self) -> set[Node]:
        stored: set[Node] = set(self.graph.roots())
        for node in self.nodes:
            loop = self.target.rules.get(node.op) is LOOP
            if node.op in LEAVES:
                stored.add(node)
                continue
            once = self.users[node] <= 1 or node.op in ("iota", "size") or _is_view_of_leaf(node)
            once = once or _is_number_of_leaves(node) or _is_index(node)
            if not loop or not once or node.dtype.name not in _FUSIBLE:
                stored.add(node)
            if node.op.startswith("reduce_") and product(node.shape) != 1:
                extent = product([node.inputs[0].shape[a] for a in node.attrs["axes"]])
                if maximum(extent) > self.target.short_reduction:
                    stored.add(node)
            if not loop or node.op.startswith("reduce_"):
                short = node.inputs if not loop else [x for x in node.inputs if _reduces(x)]
                stored.update(short)
            if node.op == "take" and not _of_weights(node.inputs[0]):  # may read an element often
                stored.add(node.inputs[0])
            if node.op == "rope":  # reads each element of x twice
                stored.update(x for x in node.inputs if not _cheap(x))
            if node.op == "expand" or node.op in ELEMENTWISE:
                for x in node.inputs:  # broadcasting an expensive value would compute it again
                    if product(x.shape) != product(node.shape) and not _again(x):
                        stored.add(x)
        # too many buffers for one kernel: store the widest input; users first, so that its own
        # kernel is looked at as well
        for node in reversed(self.nodes):
            while node in stored and self.target.rules.get(node.op) is LOOP:
                if len(self._loads(node, stored)) <= MAX_LOADS:
                    break
                inner = self._inlined(node, stored)
                if not inner:
                    raise UnsupportedError("a kernel needs too many buffers", where=node.op)
                stored.add(max(inner, key=lambda n: len(self._loads(n, stored))))
        return stored

    def _inlined(self, node: Node, stored: set[Node]) -> list[Node]:
        """Nodes that are computed inside ``node``'s kernel."""
        found, stack = [], list(self._kernel_inputs(node))
        while stack:
            x = stack.pop()
            if x not in stored:
                found.append(x)
                stack.extend(x.inputs)
        return found

    def _loads(self, node: Node, stored: set[Node]) -> set[Node]:
        found: set[Node] = set()
        stack = list(self._kernel_inputs(node))
        while stack:
            x = stack.pop()
            if x in stored:
                if not _literal(x):
                    found.add(x)
            else:
                stack.extend(x.inputs)
        return found

    @staticmethod
    def _kernel_inputs(node: Node) -> tuple[Node, ...]:
        """But for what ``node`` changes in place."""
        changes = (0,) if node.op == "update" else OPS[node.op].changes
        return tuple(x for i, x in enumerate(node.inputs) if i not in changes)

    def _last_reads(self) -> dict[str, int]:
        """State name → number of the last stored node whose kernel reads the state's old value."""
        last: dict[str, int] = {}
        roots = set(self.graph.roots())
        for number, node in enumerate(self.nodes):
            if node not in self.stored or node.op in LEAVES:
                continue
            if node.op == "after":
                continue
            inputs = self._kernel_inputs(node)
            for x in (*self._loads(node, self.stored), *inputs):
                while x.op == "reshape" and x not in roots:  # a view of the state's own buffer
                    x = x.inputs[0]
                if x.op == "state":
                    last[x.name] = number
        for name, node in self.graph.updates.items():
            if node.op in _IN_PLACE and name in last:
                raise GraphError(
                    "a state is read beside its update op", where=f"{self.graph.name}, {name}"
                )
        return last

    def _check_support(self) -> None:
        missing: dict[str, str] = {}
        for node in self.nodes:
            if node.op in LEAVES:
                continue
            entry = self.target.rules[node.op]
            if isinstance(entry, NotYet):
                missing[node.op] = entry.reason
            if entry is LOOP and node.dtype.name not in loops.SCALAR:
                missing[f"{node.op} of {node.dtype}"] = "no loop form for this dtype"
            for x in node.inputs if entry is LOOP else ():
                if x.dtype.name not in loops.SCALAR:
                    missing[f"{node.op} of {x.dtype}"] = "no loop form for this dtype"
            if node.op == "update" and node.dtype.bytes < 4 and not _whole_words(node):
                missing[f"update of {node.dtype}"] = "its rows are no multiples of 4 elements"
        if missing:
            text = "; ".join(f"{op}: {why}" for op, why in sorted(missing.items()))
            raise UnsupportedError(
                f"the target {self.target.name} can't run {text}", where=f"graph {self.graph.name}"
            )

    # --- buffers

    def _temporary(self, node: Node) -> str:
        name = f"%{self.prefix}{len(self.out.temporaries)}"
        self.out.temporaries[name] = buffer_bytes(node.dtype, node.shape)
        self.place[node] = _plain(node, name)
        return name

    def _scratch(self, size: Size) -> str:
        name = f"%{self.prefix}{len(self.out.temporaries)}"
        self.out.temporaries[name] = size
        return name

    def operand(self, node: Node) -> Operand:
        """Where a stored node's value is."""
        if node in self.place:
            return self.place[node]
        if node.op == "weight":
            return self.weights[node.name]
        if node.op == "constant":
            self.place[node] = _plain(node, self.constant(node))
        elif node.op in ("input", "state"):
            self.place[node] = _plain(node, node.name)
        elif node.op in _IN_PLACE:
            self.place[node] = _plain(node, changed(node).name)
        elif not self._operand_of_view(node):
            raise AssertionError(f"{node} is not stored")
        return self.place[node]

    def _operand_of_view(self, node: Node) -> bool:
        """A reshape of a stored value is that value's buffer under another shape."""
        x = node
        while x.op == "reshape":
            x = x.inputs[0]
        if node.op != "reshape" or x not in self.stored:
            return False
        held = self.operand(x)
        if x.op == "weight" and (x.dtype.block > 1 or not _whole(held)):
            return False
        self.place[node] = _plain(node, held.buffer)
        return True

    # --- code

    def _store(self, node: Node, name: str) -> None:
        entry = self.target.rules[node.op]
        if callable(entry) and not isinstance(entry, NotYet):
            operands = [self.operand(x) for x in node.inputs]
            out = self.place.get(node) or _plain(node, name)
            self.out.launches += entry(operands, out, node.attrs, self.context)
            return
        offset: Expr = integer(0)
        node = self._seen_through(node)
        shape = node.inputs[1].shape if node.op == "update" else node.shape
        kernel = _Element(self, shape)
        if node.op == "update":
            rows = node.inputs[1]
            value = kernel.element(rows, _axes(shape))
            offset = apply("mul", extent(node.attrs["start"]), extent(product(shape[1:])))
            name = self.operand(node).buffer
        else:
            value = kernel.element(node, _axes(shape), root=True)
        self._emit(node.op, kernel, shape, node.dtype, value, offset, name)

    def _seen_through(self, node: Node) -> Node:
        """What a kernel computes for ``node``: of a reshape its input, whose elements are the same
        ones in the same order, with simpler indices."""
        while node.op == "reshape" and node.inputs[0] not in self.stored:
            node = node.inputs[0]
        return node

    def _copy(self, node: Node, source: str, target: str) -> None:
        shape = (product(node.shape),)
        kernel = _Element(self, shape)
        value = kernel.load_buffer(source, node.dtype, loops.Axis(0))
        self._emit("copy", kernel, shape, node.dtype, value, integer(0), target)

    def _emit(
        self,
        label: str,
        kernel: _Element,
        shape: tuple[Size, ...],
        dtype: DType,
        value: Expr,
        offset: Expr,
        name: str,
    ) -> None:
        if product(shape) == 0:
            return  # nothing to write; and text that divides by such a size is invalid WGSL
        inputs = tuple(kernel.dtypes)
        key = repr((shape, inputs, dtype.name, value, offset)).encode()
        digest = hashlib.blake2s(key, digest_size=6).hexdigest()
        loop = loops.LoopKernel(f"{label}_{digest}", shape, inputs, dtype, value, offset)
        buffers = (*kernel.buffers, name)
        known = self.context.loops.get(loop.name)
        launch = (
            replace(known, buffers=buffers)
            if known
            else self.target.loop(loop, buffers, self.context.features)
        )
        self.context.loops[loop.name] = launch
        self.out.launches.append(launch)


class _Element:
    """Builds one kernel's element expression and collects the buffers that it reads."""

    def __init__(self, lowering: _Lowering, shape: tuple[Size, ...]) -> None:
        self.lowering = lowering
        self.buffers: list[str] = []
        self.dtypes: list[DType] = []
        self.axes = 16  # reduction axes are numbered from here
        self.sizes = dict(enumerate(shape))

    def load_buffer(self, buffer: str, dtype: DType, index: Expr) -> Expr:
        if buffer not in self.buffers:
            self.buffers.append(buffer)
            self.dtypes.append(dtype)
        return loops.Load(self.buffers.index(buffer), index, loops.SCALAR[dtype.name])

    def element(self, node: Node, at: Index, root: bool = False) -> Expr:
        """The value of ``node`` at ``at``: a load where it is stored, else its op's expression."""
        if node in self.lowering.stored and not root:
            if _literal(node):
                return _scalar(node)
            operand = self.lowering.operand(node)
            if node.dtype.name not in loops.SCALAR:
                raise UnsupportedError("no loop form for this dtype", got=node.dtype)
            return self.load_buffer(operand.buffer, node.dtype, linear(at, node.shape))
        if node.op in ELEMENTWISE:
            return apply(node.op, *(self.element(x, _broadcast(x, at)) for x in node.inputs))
        return getattr(self, f"_{node.op}")(node, at)  # type: ignore[no-any-return]

    def _cast(self, node: Node, at: Index) -> Expr:
        value = self.element(node.inputs[0], at)
        kind = loops.SCALAR[node.dtype.name]
        return value if value.type == kind else loops.Cast(value, kind)

    def _reshape(self, node: Node, at: Index) -> Expr:
        x = node.inputs[0]
        while x.op == "reshape" and x not in self.lowering.stored:
            x = x.inputs[0]
        return self.element(x, Reshaping(self.sizes).index(at, node.shape, x.shape))

    def _permute(self, node: Node, at: Index) -> Expr:
        inner: list[Expr] = [integer(0)] * len(at)
        for position, axis in enumerate(node.attrs["axes"]):
            inner[axis] = at[position]
        return self.element(node.inputs[0], tuple(inner))

    def _expand(self, node: Node, at: Index) -> Expr:
        return self.element(node.inputs[0], _broadcast(node.inputs[0], at))

    def _slice(self, node: Node, at: Index) -> Expr:
        starts = node.attrs["starts"]
        return self.element(
            node.inputs[0],
            tuple(apply("add", a, extent(s)) for a, s in zip(at, starts, strict=True)),
        )

    def _concat(self, node: Node, at: Index) -> Expr:
        axis = node.attrs["axis"]
        start: Size = 0
        result: Expr | None = None
        for x in node.inputs:
            here = apply("sub", at[axis], extent(start))
            last = apply("sub", extent(x.shape[axis]), integer(1))
            # clamped: all branches are computed, and none may read outside its buffer
            inside = apply("max", apply("min", here, last), integer(0))
            if x.shape[axis] == 1:
                inside = integer(0)
            value = self.element(x, (*at[:axis], inside, *at[axis + 1 :]))
            if result is None:
                result = value
            else:
                result = apply("where", apply("ge", at[axis], extent(start)), value, result)
            start = start + x.shape[axis]
        assert result is not None
        return result

    def _take(self, node: Node, at: Index) -> Expr:
        x, *indices = node.inputs
        return self.element(x, tuple(self.element(i, _broadcast(i, at)) for i in indices))

    def _size(self, node: Node, at: Index) -> Expr:
        return extent(node.attrs["size"])

    def _iota(self, node: Node, at: Index) -> Expr:
        return at[0]

    def _rope(self, node: Node, at: Index) -> Expr:
        x, cos, sin = node.inputs
        row, head, d = at
        depth, half = x.shape[2], cos.shape[1]
        assert isinstance(depth, int) and isinstance(half, int)
        if node.attrs["interleaved"]:
            pair = apply("div", d, integer(2))
            second = apply("eq", apply("mod", d, integer(2)), integer(1))
        else:
            pair = apply("mod", d, integer(half))
            second = apply("ge", d, integer(half))
        if 2 * half < depth:
            pair = apply("min", pair, integer(half - 1))
        first_at = apply("mul", pair, integer(2)) if node.attrs["interleaved"] else pair
        second_at = apply("add", first_at, integer(1 if node.attrs["interleaved"] else half))
        a = self.element(x, (row, head, first_at))
        b = self.element(x, (row, head, second_at))
        position = apply("add", row, extent(node.attrs["start"]))
        c, s = self.element(cos, (position, pair)), self.element(sin, (position, pair))
        even = apply("sub", apply("mul", a, c), apply("mul", b, s))
        odd = apply("add", apply("mul", a, s), apply("mul", b, c))
        value = apply("where", second, odd, even)
        if 2 * half < depth:
            inside = apply("lt", d, integer(2 * half))
            value = apply("where", inside, value, self.element(x, at))
        return value

    def _reduce(self, node: Node, at: Index, kind: loops.ReduceKind) -> Expr:
        x, axes = node.inputs[0], node.attrs["axes"]
        outer = iter(at)
        inner: list[Expr] = []
        loop: list[tuple[int, Size]] = []
        for axis, size in enumerate(x.shape):
            if axis in axes:
                inner.append(loops.Axis(self.axes))
                self.sizes[self.axes] = size
                loop.append((self.axes, size))
                self.axes += 1
                if node.attrs["keep"]:
                    next(outer)
            else:
                inner.append(next(outer))
        value = self.element(x, tuple(inner))
        for number, size in reversed(loop):
            value = loops.Reduce(kind, number, size, value, value.type)
        return value

    def _reduce_sum(self, node: Node, at: Index) -> Expr:
        return self._reduce(node, at, "sum")

    def _reduce_prod(self, node: Node, at: Index) -> Expr:
        return self._reduce(node, at, "prod")

    def _reduce_max(self, node: Node, at: Index) -> Expr:
        return self._reduce(node, at, "max")

    def _reduce_min(self, node: Node, at: Index) -> Expr:
        return self._reduce(node, at, "min")


def _axes(shape: tuple[Size, ...]) -> Index:
    return tuple(
        integer(0) if size == 1 else loops.Axis(number) for number, size in enumerate(shape)
    )


def _broadcast(x: Node, at: Index) -> Index:
    trimmed = at[len(at) - len(x.shape) :]
    return tuple(integer(0) if s == 1 else a for a, s in zip(trimmed, x.shape, strict=True))


def _whole(operand: Operand) -> bool:
    """Whether the value lies in one buffer, and nothing else there."""
    return len(operand.parts) == 1 and len(operand.parts[0].buffers) == 1


def _plain(node: Node, buffer: str) -> Operand:
    rows = node.shape[0] if node.shape else 1
    return Operand(node.dtype, node.shape, (Part(0, rows, (buffer,)),))


def _cheap(node: Node) -> bool:
    """Costs no more to compute again than to load."""
    if node.op in ("input", "weight", "state", "constant", "iota", "size"):
        return True
    return node.op in ("reshape", "slice", "permute", "expand") and all(map(_cheap, node.inputs))


def _of_weights(node: Node, left: int = 4) -> bool:
    """Made of leaves by a few cheap steps, as dequantised tables are: elements that are taken cost
    less than all of it would."""
    if _cheap(node):
        return True
    if left == 0 or node.op not in ("cast", "add", "sub", "mul", "reshape"):
        return False
    return all(_of_weights(x, left - 1) for x in node.inputs)


def _is_view_of_leaf(node: Node) -> bool:
    return node.op in ("slice", "expand", "permute") and _cheap(node)


def _is_number_of_leaves(node: Node) -> bool:
    """One number that one operation makes of leaves: costs less again than a kernel of its own."""
    return product(node.shape) == 1 and node.op in ELEMENTWISE and all(map(_cheap, node.inputs))


_INDEX_OPS = 64  # of arithmetic that costs less than a load


def _is_index(node: Node) -> bool:
    """Arithmetic on indices and single numbers: i32 or bool, made of ``iota`` and constants."""
    left, stack = _INDEX_OPS, [node]
    while stack:
        x = stack.pop()
        left -= 1
        if left < 0 or x.dtype.name not in ("i32", "bool"):
            return False
        if x.op in ("iota", "size") or (x.op == "constant" and product(x.shape) == 1):
            continue
        if x.op not in ELEMENTWISE and x.op not in ("reshape", "permute", "expand"):
            return False
        stack.extend(x.inputs)
    return True


def _reduces(node: Node) -> bool:
    while node.op == "reshape":
        node = node.inputs[0]
    return node.op.startswith("reduce_")


def _again(node: Node) -> bool:
    """Costs little more to compute again, where it is broadcast, than to load: leaves, indices, and
    windows, which are one load at a computed place, or a number outside."""
    if _cheap(node) or _is_index(node):
        return True
    if node.op == "where" and _is_index(node.inputs[0]) and product(node.inputs[2].shape) == 1:
        node = node.inputs[1]
    return node.op == "take" and all(_is_index(i) for i in node.inputs[1:])


def _whole_words(update: Node) -> bool:
    """Whether rows of a narrow state start at words, as ``LoopKernel.offset`` wants."""
    row = product(update.shape[1:])
    return isinstance(row, int) and row % 4 == 0


_NAMES = "f64 f32 f16 i64 i32 i16 i8 u64 u32 u16 u8 bool".split()
_FORMATS = dict(zip(_NAMES, "dfeqihbQIHB?", strict=True))


def _literal(node: Node) -> bool:
    """A one-element constant that kernels have in their text."""
    return node.op == "constant" and product(node.shape) == 1 and node.dtype.name in _FORMATS


def _scalar(node: Node) -> loops.Const:
    """A one-element constant as a literal."""
    (value,) = struct.unpack("<" + _FORMATS[node.dtype.name], node.attrs["data"])
    return loops.Const(value, loops.SCALAR[node.dtype.name])

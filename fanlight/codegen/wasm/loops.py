"""LoopKernel → WasmLaunch: a function that computes one thread's share of the elements.

The index space is walked row by row along its innermost axis, four elements at a time; the rest of
a row goes one by one. What doesn't depend on that axis is computed once a row, or once. A load
whose index moves by one from element to element is one vector load, one that doesn't move a
broadcast, any other four loads. A reduction within the lanes runs in order; one that no lane axis
touches is itself spread over four lanes, then summed as (0 + 1) + (2 + 3). Either way its order is
fixed when the code is made: the bits don't depend on the number of threads. Lanes hold 32 bits:
where a number of 64 changes from element to element, or the output is packed, they go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fanlight.codegen.wasm import access, lanes, scalars
from fanlight.codegen.wasm.access import ACCESS
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.nodes import Node, Nodes, along, below, power_of_two, stride
from fanlight.codegen.wasm.values import Local, Value, Writer, i32, i32x4, op, select
from fanlight.kernels import loops
from fanlight.kernels.launch import WasmKernel, WasmLaunch
from fanlight.kernels.loops import LoopKernel
from fanlight.shapes import Size, product

_GRANULE = 16  # elements that one thread writes together: whole cache lines of 32-bit numbers
_WIDE = ("f64", "i64", "u64")


def launch(kernel: LoopKernel, buffers: tuple[str, ...]) -> WasmLaunch:
    """The launch of ``kernel``; ``buffers`` are its inputs, then its output."""
    sizes = loops.sizes(kernel)

    def emit(function: Function) -> None:
        _Emitter(kernel, function).write()

    nodes = Nodes()
    reduces = any(isinstance(n.expr, loops.Reduce) for n in below(nodes.add(kernel.value)))

    def elements(args: Sequence[Size]) -> Size | None:
        return None if reduces else product(kernel.shape)

    inputs = len(kernel.inputs)
    made = WasmKernel(kernel.name, inputs + 1, len(sizes), emit, (inputs,), elements=elements)
    return WasmLaunch(made, buffers, sizes)


@dataclass(slots=True)
class _Row:
    """The place within a row."""

    i: Local
    stop: Local
    out: Local  # address of element 0 of the row; its number, of packed ones
    last: Local  # whether this thread ends with the row


class _Emitter:
    def __init__(self, kernel: LoopKernel, function: Function) -> None:
        self.kernel, self.w = kernel, Writer(function)
        buffers = len(kernel.inputs) + 1
        self.buffers = self.w.params[:buffers]
        self.byte = self.w.local("i32")  # of a packed output
        self.sizes = dict(zip(loops.sizes(kernel), self.w.params[buffers:-2], strict=True))
        nodes = Nodes()
        self.value, self.offset = nodes.add(kernel.value), nodes.add(kernel.offset)
        self.dtype = kernel.output.name
        inner = [n for n, size in enumerate(kernel.shape) if size != 1]
        self.inner = inner[-1] if inner else 0
        self.axis: int | None = self.inner  # that the lanes lie along; None: one at a time
        self.at: dict[int, Value] = {n: i32(0) for n in range(len(kernel.shape))}
        self.scopes: list[dict[tuple[int, int | None], Value]] = [{}]
        reduces = [n for n in below(self.value) if isinstance(n.expr, loops.Reduce)]
        extent = kernel.shape[self.inner] if inner else 1
        fours = isinstance(extent, int) and extent % 4 == 0
        if not all(along(n, self.inner, fours) for n in reduces if self.inner in n.axes):
            self.axis = None  # better lanes along the reduction
        long = [n for n in below(self.value) if n.expr.type in _WIDE]
        self.long_axes = frozenset[int]().union(*(n.axes for n in long))  # no lanes along these
        packed = ACCESS[self.dtype].packed
        if self.inner in self.long_axes or self.value.expr.type in _WIDE or packed:
            self.axis = None
        self.wide = _wide(reduces, self.axis, self.long_axes)
        # Axes whose lanes begin at multiples of 4.
        self.aligned = {n.expr.axis for n in reduces if isinstance(n.expr, loops.Reduce)}
        self.aligned |= {self.inner} if fours else set()
        if packed or not reduces:
            self.granule = _GRANULE << 2 * packed
        else:
            self.granule = 1 if self.axis is None and kernel.output.bytes >= 4 else 4

    def write(self) -> None:
        """The whole body: this thread's share of the elements, row by row."""
        w, n = self.w, self.extent(self.kernel.shape[self.inner]) if self.kernel.shape else i32(1)
        flat, end = self._share()
        w.return_if(op("i32.ge_s", flat, end))
        n = w.let(n)
        offset = w.let(self.number(self.offset))
        for node in below(self.value):
            if not node.axes and not isinstance(node.expr, loops.Const):
                self.hoist(node, -1, False)
        row = w.let(op("i32.div_u", flat, n))
        i = w.let(op("i32.rem_u", flat, n))
        with w.while_(flat < end):
            stop = w.let(i + (end - flat))
            w.set(stop, select(stop < n, stop, n))
            first = offset + flat - i
            if not ACCESS[self.dtype].packed:
                first = self.buffers[-1] + (first << ACCESS[self.dtype].shift)
            out = w.let(first)
            w.set(flat, flat + (stop - i))
            place = _Row(i, stop, out, w.let(op("i32.ge_s", flat, end)))
            self.scopes.append({})
            self._outer_axes(row)
            self._row(place)
            self.scopes.pop()
            w.set(row, row + 1)
            w.set(i, 0)

    def _share(self) -> tuple[Local, Local]:
        """The flat indices at which this thread begins and ends."""
        w, (tid, threads) = self.w, self.w.params[-2:]
        total: Value = i32(1)
        for size in self.kernel.shape:
            total = self.extent(size) if total.code == i32(1).code else total * self.extent(size)
        total = w.let(total)
        unit = w.let(threads * self.granule)
        chunk = w.let(op("i32.div_u", total + (unit - 1), unit) * self.granule)
        begin = w.let(tid * chunk)
        end = w.let(begin + chunk)
        w.set(end, select(end < total, end, total))
        return begin, end

    def _outer_axes(self, row: Local) -> None:
        """The indices of the axes before the innermost, where the value needs them."""
        w, rest = self.w, row
        used = [n for n in range(self.inner) if n in self.value.axes]
        for number in reversed(range(self.inner)):
            if not used or number < used[0]:
                break
            size = self.kernel.shape[number]
            first = all(s == 1 for s in self.kernel.shape[:number])
            if number in used:
                self.at[number] = rest if first else w.let(op("i32.rem_u", rest, self.extent(size)))
            if number > used[0]:
                rest = w.let(op("i32.div_u", rest, self.extent(size)))

    def _row(self, row: _Row) -> None:
        w = self.w
        self.at[self.inner] = row.i
        self.hoist(self.value, self.inner, self.axis is not None)
        if ACCESS[self.dtype].packed:
            self._packed_row(row)
            return
        address = row.out + (row.i << ACCESS[self.dtype].shift)
        if self.axis is not None:
            last = w.let(row.stop - 3)
            with self._loop(row.i, last, 4):
                value = self.vector(self.value)
                access.store_row(w, self.dtype, address, value)
        with self._loop(row.i, row.stop, 1):
            access.store(w, self.dtype, address, self.number(self.value))

    def _packed_row(self, row: _Row) -> None:
        """Elements gather in ``self.byte``, which is stored when it is full or the last."""
        w, how = self.w, ACCESS[self.dtype]
        full = (1 << how.packed) - 1
        with self._loop(row.i, row.stop, 1):
            bits = access.encoded(w, self.dtype, self.number(self.value))
            at = w.let(row.out + row.i)
            place = w.let(at & full)
            before = select(place, self.byte, 0)
            here = (bits & ((1 << how.bits) - 1)) << (place * how.bits)
            w.set(self.byte, before | here)
            ends = op("i32.eq", row.i + 1, row.stop) & row.last
            with w.if_(op("i32.eq", place, full) | ends):
                address = self.buffers[-1] + op("i32.shr_u", at, how.packed)
                w.do(how.store, address, self.byte)

    def _loop(self, i: Local, end: Local | int, step: int) -> _Scope:
        return _Scope(self, i, end, step)

    # --- values

    def extent(self, size: Size) -> Value:
        return i32(size) if isinstance(size, int) else self.sizes[size]

    def hoist(self, node: Node, axis: int, vector: bool) -> None:
        """Computes now all below ``node`` that doesn't depend on ``axis``."""
        if isinstance(node.expr, loops.Const):
            return
        if axis not in node.axes:
            self.number(node)
            if vector and node.expr.type not in _WIDE:
                self.vector(node)
            return
        if isinstance(node.expr, loops.Reduce):
            return  # its body is seen from within only
        inner = vector
        if isinstance(node.expr, loops.Load) and self.axis is not None:
            inner = vector and self._step(node) not in (0, 1)
        for child in node.children:
            self.hoist(child, axis, inner)

    def number(self, node: Node) -> Value:
        """One value, at the current place of all axes."""
        return self._kept(node, None)

    def vector(self, node: Node) -> Value:
        """Four values along the lane axis."""
        return self._kept(node, self.axis)

    def _kept(self, node: Node, axis: int | None) -> Value:
        if isinstance(node.expr, loops.Const):
            return scalars.constant(node.expr) if axis is None else lanes.constants(node.expr)
        key = (node.number, axis)
        for scope in self.scopes:
            if key in scope:
                return scope[key]
        value = self._number(node) if axis is None else self._vector(node, axis)
        # What is one local already needs no second one.
        self.scopes[-1][key] = found = value if isinstance(value, Local) else self.w.let(value)
        return found

    def _number(self, node: Node) -> Value:
        match node.expr:
            case loops.Axis(number, kind):
                return scalars.cast(self.at[number], "i32", kind)
            case loops.Extent(size, kind):
                return scalars.cast(self.extent(size), "i32", kind)
            case loops.Load(param):
                index = self.number(node.children[0])
                return access.load(self.w, self._dtype(param), self.buffers[param], index)
            case loops.Cast(value, kind):
                return scalars.cast(self.number(node.children[0]), value.type, kind)
            case loops.Apply(name, args):
                bits = power_of_two(node)
                if bits is not None:
                    return scalars.shift(name, self.number(node.children[0]), bits)
                numbers = [self.number(c) for c in node.children]
                return scalars.function(self.w, name, numbers, args[-1].type)
            case loops.Reduce():
                return self._reduce(node, node.expr, node.number in self.wide)
        raise AssertionError(node.expr)

    def _vector(self, node: Node, axis: int) -> Value:
        if axis not in node.axes:
            return lanes.splat(self.number(node), node.expr.type)
        match node.expr:
            case loops.Axis(number, kind):
                steps = op("i32x4.add", op("i32x4.splat", self.at[number]), i32x4(0, 1, 2, 3))
                return lanes.casts(steps, "i32", kind)
            case loops.Load(param):
                return self._load_lanes(node, param, axis)
            case loops.Cast(value, kind):
                return lanes.casts(self.vector(node.children[0]), value.type, kind)
            case loops.Apply(name, args):
                bits = power_of_two(node)
                if bits is not None:
                    return lanes.shifts(name, self.vector(node.children[0]), bits)
                vectors = [self.vector(c) for c in node.children]
                if name in ("min", "max") and args[-1].type == "f32":
                    plain = _plain_number(args)
                    if plain is not None:  # f32x4.max takes eight instructions, for NaN's sake
                        return op(f"f32x4.p{name}", vectors[1 - plain], vectors[plain])
                return lanes.functions(self.w, name, vectors, args[-1].type)
            case loops.Reduce():
                return self._reduce_in_lanes(node, node.expr)
        raise AssertionError(node.expr)

    def _dtype(self, param: int) -> str:
        return self.kernel.inputs[param].name

    def _step(self, load: Node) -> int | None:
        """How the index of ``load`` moves from lane to lane."""
        assert self.axis is not None
        return stride(load.children[0], self.axis, self.axis in self.aligned)

    def _load_lanes(self, node: Node, param: int, axis: int) -> Value:
        w, dtype = self.w, self._dtype(param)
        if self._step(node) == 1 and not ACCESS[dtype].packed:
            index = self.number(node.children[0])
            shift = ACCESS[dtype].shift
            address = self.buffers[param] + (index << shift if shift else index)
            return access.load_row(w, dtype, address)
        index = self.vector(node.children[0])
        found = [op("i32x4.extract_lane", index, lane=n) for n in range(4)]
        return access.load_each(w, dtype, self.buffers[param], found)

    # --- reductions

    def _reduce(self, node: Node, expr: loops.Reduce, wide: bool) -> Value:
        """One value. ``wide``: four indices of the reduction at a time, then those left over."""
        w, body, kind = self.w, node.children[0], expr.type
        combine = scalars.combine(expr.kind)
        total = w.let(scalars.constant(scalars.neutral(expr.kind, kind)))
        i, end = w.local("i32"), w.let(self.extent(expr.extent))
        outer, before = self.axis, self.at.get(expr.axis)
        self.at[expr.axis] = i
        self.axis = expr.axis if wide else None
        self.scopes.append({})
        self.hoist(body, expr.axis, wide)
        w.set(i, 0)
        if wide:
            start = lanes.constants(scalars.neutral(expr.kind, kind))
            sums = w.let(start)
            extreme = expr.kind in ("max", "min") and kind == "f32"
            unordered = w.let(start) if extreme else None
            with self._loop(i, w.let(end - 3), 4):
                vector = self.vector(body)
                if unordered is None:
                    w.set(sums, lanes.functions(w, combine, [sums, vector], kind))
                else:  # f32x4.max takes eight instructions in a row, for the sake of NaN
                    kept = w.let(vector)
                    w.set(sums, op(f"f32x4.p{expr.kind}", sums, kept))
                    w.set(unordered, op("v128.bitselect", kept, unordered, _is_nan(kept)))
            if unordered is not None:
                w.set(sums, op("v128.bitselect", unordered, sums, _is_nan(unordered)))
            four = [lanes.lane(sums, kind, n) for n in range(4)]
            pairs = [
                w.let(scalars.function(w, combine, [w.let(a), w.let(b)], kind))
                for a, b in (four[:2], four[2:])
            ]
            w.set(total, scalars.function(w, combine, list(pairs), kind))
        with self._loop(i, end, 1):
            w.set(total, scalars.function(w, combine, [total, self.number(body)], kind))
        self.scopes.pop()
        self.axis = outer
        self._restore(expr.axis, before)
        return total

    def _reduce_in_lanes(self, node: Node, expr: loops.Reduce) -> Value:
        """Four values, each in order."""
        w, body, kind = self.w, node.children[0], expr.type
        total = w.let(lanes.constants(scalars.neutral(expr.kind, kind)))
        i, end = w.local("i32"), w.let(self.extent(expr.extent))
        before = self.at.get(expr.axis)
        self.at[expr.axis] = i
        self.scopes.append({})
        self.hoist(body, expr.axis, True)
        w.set(i, 0)
        with self._loop(i, end, 1):
            vectors = [total, self.vector(body)]
            w.set(total, lanes.functions(w, scalars.combine(expr.kind), vectors, kind))
        self.scopes.pop()
        self._restore(expr.axis, before)
        return total

    def _restore(self, axis: int, value: Value | None) -> None:
        if value is None:
            del self.at[axis]
        else:
            self.at[axis] = value


class _Scope:
    """``while i < end: …; i += step``; what is computed inside is forgotten afterwards."""

    def __init__(self, emitter: _Emitter, i: Local, end: Local | int, step: int) -> None:
        self.emitter, self.i, self.step = emitter, i, step
        self.turn = emitter.w.while_(i < end)

    def __enter__(self) -> None:
        self.turn.__enter__()
        self.emitter.scopes.append({})

    def __exit__(self, *error: object) -> None:
        self.emitter.scopes.pop()
        self.emitter.w.set(self.i, self.i + self.step)
        self.turn.__exit__(None, None, None)


def _plain_number(args: tuple[loops.Expr, ...]) -> int | None:
    """Which argument is a constant, and not NaN: pmin and pmax keep a NaN of the other one if that
    comes first."""
    for place, arg in enumerate(args):
        if isinstance(arg, loops.Const) and arg.value == arg.value:
            return place
    return None


def _is_nan(vector: Local) -> Value:
    return op("f32x4.ne", vector, vector)


def _wide(reduces: list[Node], axis: int | None, long_axes: frozenset[int]) -> frozenset[int]:
    """The reductions that are spread over lanes: the innermost ones that no lane axis touches,
    along which no number has 64 bits."""
    taken: set[int] = set() if axis is None else {axis}
    found: set[int] = set()
    for node in reversed(reduces):
        reduce = node.expr
        assert isinstance(reduce, loops.Reduce)
        short = reduce.axis not in long_axes and reduce.type not in _WIDE
        inside = found.intersection(n.number for n in below(node))
        if short and not inside and not node.axes & taken:
            found.add(node.number)
            taken.add(reduce.axis)
    return frozenset(found)

"""The torture plan's kernels for WebAssembly; ``tests/torture.py`` says what each does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fanlight.codegen.wasm import link
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Local, Value, Writer, op, select
from fanlight.kernels.launch import WasmKernel
from fanlight.plan import Dispatch, Kernel, Plan
from fanlight.shapes import Dim, Size

N, SEEN = Dim("n", "host", 10), Dim("seen", "host", 1000)
FIRST, UNITS = Dim("unit_first", "host", 1 << 20), Dim("unit_count", "host", 1 << 20)
AT = Dim("at", "device", 8)


def _each(w: Writer, count: Value, body: Callable[[Local], None]) -> None:
    """This thread's share of 0 to ``count - 1``: every ``threads``-th."""
    tid, threads = w.params[-2:]
    i = w.let(tid)
    with w.while_(i < count):
        body(i)
        w.set(i, i + threads)


def _unpack(function: Function) -> None:
    w = Writer(function)
    staging, table, first, count = w.params[:4]

    def unit(i: Local) -> None:
        word = op("i32.load", staging + i * 6, offset=2, align=2)
        w.do("i32.store", table + ((first + i) << 2), word)

    _each(w, count, unit)


def _scale(function: Function) -> None:
    w = Writer(function)
    constant, scaled, count = w.params[:3]
    _each(
        w,
        count,
        lambda i: w.do("i32.store", scaled + (i << 2), op("i32.load", constant + (i << 2)) * 3),
    )


def _add(function: Function) -> None:
    w = Writer(function)
    x, scaled, table, y, n = w.params[:5]

    def element(i: Local) -> None:
        at = w.let(i << 2)
        total = op("i32.load", x + at) + op("i32.load", scaled + at) + op("i32.load", table + at)
        w.do("i32.store", y + at, total)

    _each(w, n, element)


def _record(function: Function) -> None:
    w = Writer(function)
    log, at, tid = w.params[:3]
    place = w.let(log + (at << 2))
    with w.if_(op("i32.eqz", tid)):
        w.do("i32.store", place, op("i32.load", place) * 3 + at + 1)


def _advance(function: Function) -> None:
    w = Writer(function)
    control, tid = w.params[:2]
    with w.if_(op("i32.eqz", tid)):
        w.do("i32.store", control, (op("i32.load", control, offset=4) + 1) & 7, offset=4)
        w.do("i32.store", control, op("i32.load", control, offset=8) + 1, offset=8)


def _pack(function: Function) -> None:
    """A thread writes whole words' bytes."""
    w = Writer(function)
    x, out, n, seen = w.params[:4]

    def word(number: Local) -> None:
        first = w.let(number << 2)
        rest = w.let(first + 4)
        with w.for_range(first, w.let(select(rest < n, rest, n))) as i:
            w.do("i32.store8", out + i, op("i32.load", x + (i << 2)) * seen + i)

    _each(w, w.let((n + 3) >> 2), word)


#: name → (buffers, args, code); the args follow from the name alone
_KERNELS: dict[str, tuple[int, tuple[Size, ...], Callable[[Function], None]]] = {
    "unpack": (2, (FIRST, UNITS), _unpack),
    "scale": (2, (16,), _scale),
    "add": (4, (N,), _add),
    "record": (1, (AT,), _record),
    "advance": (1, (), _advance),
    "pack": (2, (N, SEEN), _pack),
}
KERNELS = [WasmKernel(name, n, len(args), emit) for name, (n, args, emit) in _KERNELS.items()]


class Wasm:
    """See ``torture.Builder``; for one thread."""

    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(Kernel(name) for name in _KERNELS)

    def dispatch(self, name: str, buffers: tuple[str, ...], items: Size) -> Dispatch:
        return Dispatch(list(_KERNELS).index(name), buffers, args=_KERNELS[name][1])

    def finish(self, plan: Plan) -> Plan:
        return link.link(plan, KERNELS, frozenset())


def with_threads(plan: Plan) -> Plan:
    """A finished plan, linked again for threads."""
    assert plan.wasm is not None
    bare = replace(plan, segments=plan.segments[: plan.wasm.segment], wasm=None)
    return link.link(bare, KERNELS, frozenset({"threads"}))


BUILDER = Wasm()

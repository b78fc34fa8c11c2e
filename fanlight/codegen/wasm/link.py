"""Kernels and a plan's programs → the plan's WebAssembly module.

One function for each kernel, one for each program: it walks the program's steps on every thread,
with barriers where ``order.py`` wants them. JavaScript enters once per program
(``plan.WasmModule`` says how).
Below ``reserved`` the module keeps, at fixed addresses, the threads' words, the host dims and the
buffers' addresses.

Threads wait in two places, both by spinning for a while, then sleeping: at the barrier between
steps (a count and a generation) and between programs (the ``go`` word).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fanlight import plan as plans
from fanlight.codegen.wasm.encoder import Function, MemoryImport, Module, ValueType
from fanlight.codegen.wasm.order import Access, Pending, access_of
from fanlight.codegen.wasm.waiting import add, notify, wait_until_changed
from fanlight.errors import PlanError
from fanlight.kernels.launch import WasmKernel
from fanlight.plan import Branch, Call, Copy, Dispatch, Loop, Plan, Read, Step, WasmModule
from fanlight.shapes import Dim, Operation, Size, dims_of

_COUNT, _GENERATION, _GO, _PROGRAM, _THREADS = 0, 64, 128, 192, 196  # and waiting.SLEEPERS
_DIMS_AT = 512
COPY = -1  # instead of a kernel's number, in ``env.mark``
_MAX_PAGES = 65536
_PAGE = 65536
_COMPARE = {"==": "eq", "!=": "ne", "<": "lt_s", "<=": "le_s", ">": "gt_s", ">=": "ge_s"}
_ARITHMETIC = {"+": "i32.add", "-": "i32.sub", "*": "i32.mul", "//": "i32.div_s", "%": "i32.rem_s"}


def link(
    plan: Plan, kernels: Sequence[WasmKernel], features: frozenset[str], profile: bool = False
) -> Plan:
    """``plan`` with its module as one more segment. ``kernels`` in the order of ``plan.kernels``;
    with ``threads`` in ``features`` the memory is shared. ``profile``: no two steps overlap, and
    thread 0 calls ``env.mark`` behind each, with the number of its kernel or, of a copy, -1."""
    return _Linker(plan, kernels, "threads" in features, profile).run()


class _Linker:
    def __init__(
        self, plan: Plan, kernels: Sequence[WasmKernel], threads: bool, profile: bool
    ) -> None:
        self.plan, self.kernels, self.threads = plan, kernels, threads
        self.host = {
            d.dim.name: i for i, d in enumerate(d for d in plan.dims if d.dim.kind == "host")
        }
        self.device = {d.dim.name: d for d in plan.dims if d.dim.kind == "device"}
        self.buffers = {b.name: i for i, b in enumerate(plan.buffers)}
        self.buffers_at = -(-(_DIMS_AT + 4 * len(self.host)) // 64) * 64
        end = self.buffers_at + 4 * len(self.buffers)
        self.reserved = -(-end // _PAGE) * _PAGE
        memory = MemoryImport(self.reserved // _PAGE, _MAX_PAGES, threads)
        self.module = Module(memory)
        self.mark = self.module.imported("mark", ("i32",)) if profile else None

    def run(self) -> Plan:
        barrier = self._barrier()
        functions = [self._kernel(k) for k in self.kernels]
        programs: dict[str, Function] = {}
        for name in _callees_first(self.plan.programs):
            walker = _Walker(self, functions, programs, barrier)
            programs[name] = walker.program(self.plan.programs[name])
        names = [*self.plan.programs]
        entries = [programs[n] for n in names]
        for number, weight in enumerate(self.plan.weights):
            if weight.steps:
                names.append(f"load/{number}")
                walker = _Walker(self, functions, programs, barrier)
                entries.append(walker.program(weight.steps))
        run = self._run(entries)
        if self.threads:
            self._start(run, barrier)
            self._worker(run, barrier)
            self._quit()
        wasm = WasmModule(
            len(self.plan.segments),
            self.threads,
            self.reserved,
            _DIMS_AT,
            self.buffers_at,
            tuple(names),
            self.mark is not None,
        )
        return replace(self.plan, segments=(*self.plan.segments, self.module.encode()), wasm=wasm)

    def _kernel(self, kernel: WasmKernel) -> Function:
        params: list[ValueType] = ["i32"] * (kernel.buffers + kernel.args + 2)
        function = self.module.function(params)
        kernel.emit(function)
        return function

    # --- entries

    def _run(self, entries: Sequence[Function]) -> Function:
        """run(program, tid, threads)"""
        kind = self.module.type_index(("i32", "i32"))
        for entry in entries:
            self.module.table_slot(entry)
        f = self.module.function(("i32", "i32", "i32"), export="run")
        if entries:
            f.get(1)
            f.get(2)
            f.get(0)
            f.call_indirect(kind)
        return f

    def _start(self, run: Function, barrier: Function) -> None:
        """start(program, threads): wakes the workers, runs thread 0's share, returns when all are
        done."""
        f = self.module.function(("i32", "i32"), export="start")
        for at, value in ((_PROGRAM, 0), (_THREADS, 1)):
            f.i32(0)
            f.get(value)
            f.mem("i32.store", at)
        add(f, _GO, 1)
        f.op("drop")
        notify(f, _GO)
        f.get(0)
        f.i32(0)
        f.get(1)
        f.call(run)
        f.get(1)
        f.call(barrier)

    def _worker(self, run: Function, barrier: Function) -> None:
        """worker(tid, threads): waits for ``go`` to move, runs, meets the others; returns after
        quit()."""
        f = self.module.function(("i32", "i32"), export="worker")
        seen = f.local("i32")
        with f.block() as out, f.loop() as again:
            wait_until_changed(f, _GO, seen)
            f.i32(0)
            f.mem("i32.atomic.load", _GO)
            f.set(seen)
            f.i32(0)
            f.mem("i32.load", _PROGRAM)
            f.i32(-1)
            f.op("i32.eq")
            f.br_if(out)
            f.i32(0)
            f.mem("i32.load", _PROGRAM)
            f.get(0)
            f.get(1)
            f.call(run)
            f.get(1)
            f.call(barrier)
            f.br(again)

    def _quit(self) -> None:
        """quit(): ends the workers."""
        f = self.module.function(export="quit")
        f.i32(0)
        f.i32(-1)
        f.mem("i32.store", _PROGRAM)
        add(f, _GO, 1)
        f.op("drop")
        notify(f, _GO)

    def _barrier(self) -> Function:
        """barrier(threads): returns when all have called it."""
        f = self.module.function(("i32",))
        if not self.threads:
            return f
        seen = f.local("i32")
        with f.block() as out:
            f.get(0)
            f.i32(1)
            f.op("i32.le_s")
            f.br_if(out)
            f.i32(0)
            f.mem("i32.atomic.load", _GENERATION)
            f.set(seen)
            add(f, _COUNT, 1)
            f.i32(1)
            f.op("i32.add")
            f.get(0)
            f.op("i32.eq")
            with f.if_():  # the last one opens the gate
                f.i32(0)
                f.i32(0)
                f.mem("i32.atomic.store", _COUNT)
                add(f, _GENERATION, 1)
                f.op("drop")
                notify(f, _GENERATION)
                f.br(out)
            wait_until_changed(f, _GENERATION, seen)
        return f


class _Walker:
    """Writes one program's function: (tid, threads)."""

    def __init__(
        self,
        linker: _Linker,
        kernels: Sequence[Function],
        programs: Mapping[str, Function],
        barrier: Function,
    ) -> None:
        self.l, self.kernels, self.programs, self.barrier = linker, kernels, programs, barrier
        self.f = linker.module.function(("i32", "i32"))
        self.pending = Pending()

    def program(self, steps: Sequence[Step]) -> Function:
        """Nothing is pending at the ends of programs, loops' bodies and branches; at their starts
        nothing but looks at a condition."""
        self.steps(steps)
        self.settle()
        return self.f

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Dispatch():
                    self.dispatch(step)
                case Copy():
                    self.copy(step)
                case Read():
                    self.read(step)
                case Branch():
                    self.settle()
                    self.branch(step)
                case Loop():
                    self.settle()
                    self.loop(step)
                case Call():
                    self.settle()
                    self.f.get(0)
                    self.f.get(1)
                    self.f.call(self.programs[step.program])

    def dispatch(self, step: Dispatch) -> None:
        kernel = self.l.kernels[step.kernel]
        if (len(step.buffers), len(step.args)) != (kernel.buffers, kernel.args):
            got = f"{len(step.buffers)} buffers, {len(step.args)} args"
            wanted = f"{kernel.buffers} and {kernel.args}"
            raise PlanError("dispatch doesn't fit", where=kernel.name, got=got, wanted=wanted)
        moved = self.device_buffers(step.args)
        access = access_of(step, kernel, frozenset(moved))
        if self.pending.conflicts(access):
            self.meet()
        self.pending.add(access)
        for buffer in step.buffers:
            self.address(buffer)
        for arg in step.args:
            self.size(arg)
        if moved & access.writes:
            self.wait()  # the kernel may move the dim: all threads have read it now
        if access.repeated:
            self.f.i32(0)
            self.f.i32(1)
        else:
            self.f.get(0)
            self.f.get(1)
        self.f.call(self.kernels[step.kernel])
        self.mark(step.kernel)

    def mark(self, kernel: int) -> None:
        """Behind a step: all threads have ended it when thread 0 tells."""
        if self.l.mark is None:
            return
        self.meet()
        self.f.get(0)
        self.f.op("i32.eqz")
        with self.f.if_():
            self.f.i32(kernel)
            self.f.call(self.l.mark)

    def device_buffers(self, sizes: Sequence[Size]) -> set[str]:
        """The buffers that hold the device dims in ``sizes``."""
        dims = [d for size in sizes for d in dims_of(size)]
        return {self.l.device[d.name].buffer for d in dims if d.kind == "device"}

    def copy(self, step: Copy) -> None:
        """By thread 0 alone."""
        dims = self.device_buffers((step.bytes, step.source_offset, step.target_offset))
        access = Access(frozenset({step.source} | dims), frozenset({step.target}))
        if self.pending.conflicts(access):
            self.meet()
        self.pending.add(access)
        f = self.f
        f.get(0)
        f.op("i32.eqz")
        with f.if_():
            for buffer, offset in (
                (step.target, step.target_offset),
                (step.source, step.source_offset),
            ):
                self.address(buffer)
                self.size(offset)
                f.op("i32.add")
            self.size(step.bytes)
            f.memory_copy()
        self.mark(COPY)

    def read(self, step: Read) -> None:
        """By thread 0 alone, when no thread is still looking at the dim's last value."""
        self.meet()
        f = self.f
        f.get(0)
        f.op("i32.eqz")
        with f.if_():
            f.i32(0)
            self.address(step.buffer)
            f.mem("i32.load", step.offset)
            f.mem("i32.store", _DIMS_AT + 4 * self.l.host[step.dim])
        self.meet()

    def branch(self, step: Branch) -> None:
        looked_at = self.device_buffers((step.a, step.b))
        self.size(step.a)
        self.size(step.b)
        self.f.op("i32." + _COMPARE[step.compare])
        with self.f.if_():
            self.pending.reads |= looked_at
            self.steps(step.then)
            self.settle()
            if step.otherwise:
                self.f.else_()
                self.pending.reads |= looked_at
                self.steps(step.otherwise)
                self.settle()
        self.pending.reads |= looked_at

    def loop(self, step: Loop) -> None:
        f = self.f
        left = f.local("i32")
        self.size(step.count)
        f.set(left)
        self.pending.reads |= self.device_buffers((step.count,))
        with f.block() as done, f.loop() as again:
            f.get(left)
            f.i32(0)
            f.op("i32.le_s")
            f.br_if(done)
            self.steps(step.body)
            self.settle()
            f.get(left)
            f.i32(1)
            f.op("i32.sub")
            f.set(left)
            f.br(again)

    def settle(self) -> None:
        """A barrier where anything is pending."""
        if self.pending:
            self.meet()

    def meet(self) -> None:
        """A barrier; nothing is pending any more."""
        self.wait()
        self.pending.clear()

    def wait(self) -> None:
        """A barrier between a step's arguments and its kernel."""
        if self.l.threads:
            self.f.get(1)
            self.f.call(self.barrier)

    def address(self, buffer: str) -> None:
        """Pushes the buffer's address."""
        self.f.i32(0)
        self.f.mem("i32.load", self.l.buffers_at + 4 * self.l.buffers[buffer])

    def size(self, size: Size) -> None:
        """Pushes the size's value."""
        f = self.f
        if isinstance(size, int):
            f.i32(size)
        elif isinstance(size, Dim):
            if size.kind == "device":
                spec = self.l.device[size.name]
                self.address(spec.buffer)
                f.mem("i32.load", spec.offset)
            else:
                f.i32(0)
                f.mem("i32.load", _DIMS_AT + 4 * self.l.host[size.name])
        else:
            assert isinstance(size, Operation)
            self.operation(size)

    def operation(self, size: Operation) -> None:
        f = self.f
        self.size(size.a)
        if size.op in _ARITHMETIC:
            self.size(size.b)
            f.op(_ARITHMETIC[size.op])
        elif size.op == "ceil/":
            self.size(size.b)
            f.i32(1)
            f.op("i32.sub")
            f.op("i32.add")
            self.size(size.b)
            f.op("i32.div_s")
        else:
            self.size(size.b)
            self.size(size.a)
            self.size(size.b)
            f.op("i32.gt_s" if size.op == "max" else "i32.lt_s")
            f.op("select")


def _callees_first(programs: Mapping[str, tuple[Step, ...]]) -> list[str]:
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for step in plans.steps_of(programs[name]):
            if isinstance(step, Call):
                visit(step.program)
        order.append(name)

    for name in programs:
        visit(name)
    return order

"""The rules that a plan must keep, checked by the compiler and by every reader."""

from __future__ import annotations

from collections.abc import Mapping

from fanlight import shapes
from fanlight.errors import PlanError
from fanlight.plan.types import (
    LOAD_DIMS,
    THREADS,
    Branch,
    Call,
    Copy,
    DimSpec,
    Dispatch,
    InlineSource,
    Loop,
    Plan,
    Read,
    Step,
    steps_of,
)
from fanlight.shapes import Size


def verify(plan: Plan) -> None:
    """Raises PlanError, naming the place, where the plan breaks a rule."""
    if plan.target not in ("webgpu", "wasm"):
        raise PlanError("unknown target", got=plan.target, wanted="webgpu or wasm")
    names = [b.name for b in plan.buffers]
    if len(set(names)) != len(names):
        raise PlanError("two buffers of one name", where="buffers")
    buffers, dims = set(names), {d.dim.name: d for d in plan.dims}
    for spec in plan.dims:
        if spec.dim.max < 0 or spec.dim.kind not in ("host", "device"):
            raise PlanError("bad dim", where=f"dim {spec.dim.name}")
        if spec.dim.kind == "device" and spec.buffer not in buffers:
            raise PlanError(
                "device dim without its buffer", where=f"dim {spec.dim.name}", got=spec.buffer
            )
    _verify_free(plan)
    for weight in plan.weights:
        where = f"weight {weight.name}"
        s = weight.source
        if weight.unit <= 0 or s.length < 0 or s.offset < 0 or s.length % weight.unit:
            raise PlanError("length is not a multiple of the unit", where=where, got=s.length)
        if isinstance(s, InlineSource):
            if s.segment >= len(plan.segments):
                raise PlanError("no such segment", where=where, got=s.segment)
            if s.offset + s.length > len(plan.segments[s.segment]):
                raise PlanError("source outside its segment", where=where)
        if not weight.steps and weight.buffer not in buffers:
            raise PlanError("neither steps nor a buffer", where=where, got=weight.buffer)
        if not weight.steps and plan.target == "webgpu" and weight.unit % 4:
            raise PlanError("unit of a direct write must be a multiple of 4", where=where)
        _verify_steps(plan, weight.steps, buffers, dims, where)
    module = plan.wasm
    if plan.target == "wasm" and (module is None or module.segment >= len(plan.segments)):
        raise PlanError("a wasm plan needs its module", where="wasm")
    for name, steps in plan.programs.items():
        _verify_steps(plan, steps, buffers, dims, f"program {name}")
    _verify_calls(plan)


def _verify_free(plan: Plan) -> None:
    """Of free dims, their bounds, and the buffers whose sizes mention them."""
    before: set[str] = set()
    for spec in plan.dims:
        where = f"dim {spec.dim.name}"
        if spec.free and (spec.dim.kind != "host" or spec.dim.name in (*LOAD_DIMS, THREADS)):
            raise PlanError("only a run's host dim can be free", where=where)
        if spec.bound is not None:
            if not spec.free:
                raise PlanError("a bound is a free dim's", where=where)
            if any(d.name not in before for d in shapes.dims_of(spec.bound)):
                raise PlanError("a bound is over host dims declared before", where=where)
        if spec.dim.kind == "host":
            before.add(spec.dim.name)
    buffers = {b.name: b for b in plan.free_buffers()}
    for buffer in buffers.values():
        if buffer.kind in ("weight", "staging"):
            raise PlanError("a weight's size is not free", where=f"buffer {buffer.name}")
    for spec in plan.dims:
        if spec.buffer in buffers:
            raise PlanError("a device dim in a buffer of free size", where=f"dim {spec.dim.name}")
    for weight in plan.weights:
        for step in steps_of(weight.steps):
            used = step.buffers if isinstance(step, Dispatch) else ()
            if isinstance(step, Copy):
                used = (step.source, step.target)
            if any(name in buffers for name in used):
                where = f"weight {weight.name}"
                raise PlanError("a weight's steps use a buffer of free size", where=where)


def _verify_steps(
    plan: Plan,
    steps: tuple[Step, ...],
    buffers: set[str],
    dims: Mapping[str, DimSpec],
    where: str,
) -> None:
    for number, step in enumerate(steps_of(steps)):
        at = f"{where}, step {number}"
        used: tuple[str, ...] = ()
        host: tuple[Size, ...] = ()
        match step:
            case Dispatch():
                if not 0 <= step.kernel < len(plan.kernels):
                    raise PlanError("no such kernel", where=at, got=step.kernel)
                kernel, used = plan.kernels[step.kernel], step.buffers
                if plan.target == "webgpu":
                    if len(used) != len(kernel.access):
                        raise PlanError("wrong number of buffers", where=at, got=len(used))
                    written = [
                        b for b, a in zip(used, kernel.access, strict=True) if a == "read_write"
                    ]
                    if any(used.count(b) > 1 for b in written):
                        raise PlanError("a written buffer is bound twice", where=at, got=written)
            case Copy():
                used = (step.source, step.target)
                if step.source == step.target and plan.target == "webgpu":
                    raise PlanError("copy inside one buffer", where=at, got=step.source)
            case Read():
                used = (step.buffer,)
                if step.dim not in dims or dims[step.dim].dim.kind != "host":
                    raise PlanError("read into something not a host dim", where=at, got=step.dim)
                if dims[step.dim].free and dims[step.dim].bound is None:
                    raise PlanError("a free dim that is read has a bound", where=at, got=step.dim)
            case Branch():
                if step.compare not in ("==", "!=", "<", "<=", ">", ">="):
                    raise PlanError("unknown comparison", where=at, got=step.compare)
                host = (step.a, step.b)
            case Loop():
                host = (step.count,)
            case Call():
                if step.program not in plan.programs:
                    raise PlanError("no such program", where=at, got=step.program)
        for name in used:
            if name not in buffers:
                raise PlanError("no such buffer", where=at, got=name)
        for size in host:
            if any(d.kind == "device" for d in shapes.dims_of(size)):
                raise PlanError(
                    "control flow on a device dim", where=at, hint="Read it back first."
                )


def _verify_calls(plan: Plan) -> None:
    """No program may call itself, not even through others."""
    calls = {
        name: [s.program for s in steps_of(steps) if isinstance(s, Call)]
        for name, steps in plan.programs.items()
    }
    state: dict[str, int] = {}

    def visit(name: str) -> None:
        if state.get(name) == 1:
            raise PlanError("a program calls itself", where=f"program {name}")
        if name not in state:
            state[name] = 1
            for target in calls[name]:
                visit(target)
            state[name] = 2

    for name in calls:
        visit(name)

"""Gives a kernel its bindings: ``WgslKernel`` and the plan's dims → ``plan.Kernel``.

Storage bindings ``b0, b1, …`` as the kernel lists them, then one read-only binding for each state
buffer that holds a device dim of the kernel, then the uniform of all host dims where it reads one.
"""

from __future__ import annotations

from collections.abc import Sequence

from fanlight import plan
from fanlight.codegen.wgsl.text import accessor
from fanlight.errors import PlanError
from fanlight.kernels.launch import WgslLaunch
from fanlight.plan import DimSpec

MAX_STORAGE = 8


def link(launch: WgslLaunch, dims: Sequence[DimSpec]) -> tuple[plan.Kernel, tuple[str, ...]]:
    """The plan's kernel, and the state buffers of device dims: they follow ``launch.buffers``.

    Raises PlanError for a dim that the plan lacks, or more than 8 storage buffers.
    """
    kernel = launch.kernel
    where = f"kernel {kernel.name}"
    specs = {spec.dim.name: spec for spec in dims}
    host = [spec.dim.name for spec in dims if spec.dim.kind == "host"]
    missing = [d.name for d in kernel.dims if d.name not in specs]
    if missing:
        raise PlanError("a dim is not in the plan", where=where, got=missing, wanted=sorted(specs))
    used = [specs[d.name] for d in kernel.dims]
    extra = tuple(dict.fromkeys(s.buffer for s in used if s.dim.kind == "device"))
    lines = [
        f"@group(0) @binding({i}) var<storage, {b.access}> b{i}: {b.type};"
        for i, b in enumerate(kernel.bindings)
    ]
    first = len(kernel.bindings)
    lines += [
        f"@group(0) @binding({i}) var<storage, read> b{i}: array<i32>;"
        for i in range(first, first + len(extra))
    ]
    count = first + len(extra)
    if count > MAX_STORAGE:
        raise PlanError("too many storage buffers", where=where, got=count, wanted=MAX_STORAGE)
    has_host = any(s.dim.kind == "host" for s in used)
    if has_host:
        vectors = -(-len(host) // 4)
        lines.append(f"@group(0) @binding({count}) var<uniform> dims: array<vec4<u32>, {vectors}>;")
    for spec in used:
        if spec.dim.kind == "host":
            at = host.index(spec.dim.name)
            value = f"dims[{at // 4}][{at % 4}]"
        else:
            value = f"u32(b{first + extra.index(spec.buffer)}[{spec.offset // 4}])"
        lines.append(f"fn {accessor(spec.dim)}() -> u32 {{ return {value}; }}")
    code = "\n".join(lines) + "\n" + kernel.text
    access: list[plan.Access] = [b.access for b in kernel.bindings]
    access += ["read" for _ in extra]
    return plan.Kernel(kernel.name, code, tuple(access), has_host, kernel.features), extra

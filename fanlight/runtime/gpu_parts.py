"""What a wgpu session makes of a plan: buffers, pipelines, bind groups; and how buffers grow.

Knows nothing of runs: ``gpu.py`` replays the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fanlight.errors import PlanError
from fanlight.plan import Dispatch, Kernel, Plan, steps_of
from fanlight.runtime.gpu_device import device_errors, import_wgpu
from fanlight.runtime.sizes import BufferSizes, grown

_ENABLES = {"shader-f16": "enable f16;\n"}  # naga rejects ``enable subgroups;``


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a dispatch needs: the number of its pipeline, and its bindings."""

    pipeline: int
    group: Any


class GpuParts:
    """``buffers`` by name, ``uniform`` of the host dims, ``pipelines`` by kernel, ``prepared`` by
    the id of a dispatch."""

    def __init__(self, plan: Plan, device: Any, sizes: BufferSizes) -> None:
        self.plan, self._device, self._sizes = plan, device, sizes
        self.buffers: dict[str, Any] = {}
        self.uniform: Any = None
        self.pipelines: list[Any] = []
        self.prepared: dict[int, Prepared] = {}
        self._layouts: list[Any] = []  # of the kernels' bindings
        self._groups: dict[tuple[int, tuple[str, ...]], Any] = {}  # by kernel and buffers

    def allocate(self) -> None:
        """The buffers and the uniform of all host dims. Raises PlanError, wgpu's errors."""
        u = import_wgpu().BufferUsage
        for name, size in self._sizes.bytes.items():
            self._check_size(name, size, "Compile for this device.")
            self.buffers[name] = self.make_buffer(name, size)
        host = sum(spec.dim.kind == "host" for spec in self.plan.dims)
        size = max(16, -(-host // 4) * 16)
        self.uniform = self._device.create_buffer(
            label="dims", size=size, usage=u.UNIFORM | u.COPY_DST | u.COPY_SRC
        )

    def _check_size(self, name: str, size: int, hint: str) -> None:
        most = self._device.limits["max-storage-buffer-binding-size"]
        if size > most:
            raise PlanError(
                "a buffer is larger than this device binds",
                where=f"buffer {name}",
                got=size,
                wanted=f"at most {most}",
                hint=hint,
            )

    def make_buffer(self, name: str, size: int) -> Any:
        """A buffer of at least ``size`` bytes."""
        u = import_wgpu().BufferUsage
        usage = u.STORAGE | u.COPY_SRC | u.COPY_DST
        whole = max(16, -(-size // 4) * 4)
        return self._device.create_buffer(label=name, size=whole, usage=usage)

    def grow(self) -> bool:
        """More memory for the buffers of free size that need it now; their bytes are lost. What
        fails leaves them without memory, and the session as usable as before. Returns whether there
        is more now. Raises PlanError, DeviceError."""
        bytes_of, most = self._sizes.bytes, self._device.limits["max-storage-buffer-binding-size"]
        small = [b.name for b in self._sizes.free if bytes_of[b.name] > self.buffers[b.name].size]
        for name in small:
            self._check_size(name, bytes_of[name], "Run with smaller inputs.")
        if not small:
            return False
        old = {name: self.buffers.pop(name) for name in small}
        for buffer in old.values():
            buffer.destroy()
        try:
            with device_errors("the GPU could not hold the buffers of these inputs"):
                for name in small:
                    have = 0 if old[name].size == 16 else old[name].size
                    self.buffers[name] = self.make_buffer(
                        name, grown(have, bytes_of[name], most - most % 4)
                    )
        finally:
            for name in small:
                if name not in self.buffers:
                    self.buffers[name] = self.make_buffer(name, 0)
            self.prepare(frozenset(small))
        return True

    def resident_bytes(self) -> int:
        """Bytes of all buffers now."""
        return sum(buffer.size for buffer in self.buffers.values())

    def make_pipeline(self, kernel: Kernel) -> None:
        """The pipeline of the plan's next kernel. Raises PlanError where it doesn't compile."""
        code = "".join(_ENABLES.get(f, "") for f in kernel.features) + kernel.code
        types = ["read-only-storage" if a == "read" else "storage" for a in kernel.access]
        types += ["uniform"] if kernel.dims else []
        wgpu = import_wgpu()
        try:
            layout = self._device.create_bind_group_layout(
                entries=[
                    {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": t}}
                    for i, t in enumerate(types)
                ]
            )
            module = self._device.create_shader_module(label=kernel.name, code=code)
            pipeline = self._device.create_compute_pipeline(
                label=kernel.name,
                layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": module, "entry_point": "main"},
            )
        except (wgpu.GPUError, RuntimeError) as error:
            raise PlanError(
                "the kernel does not compile",
                where=f"kernel {kernel.name}",
                got=str(error).strip(),
            ) from error
        self.pipelines.append(pipeline)
        self._layouts.append(layout)

    def prepare(self, changed: frozenset[str] = frozenset()) -> None:
        """Bind groups of all dispatches, equal ones once: those that are not there yet or have a
        buffer among ``changed``."""
        if changed:
            kept = {key: g for key, g in self._groups.items() if changed.isdisjoint(key[1])}
            self._groups = kept
        groups = self._groups
        lists = [*self.plan.programs.values(), *(w.steps for w in self.plan.weights)]
        for step in (s for steps in lists for s in steps_of(steps)):
            if not isinstance(step, Dispatch):
                continue
            kernel = self.plan.kernels[step.kernel]
            key = (step.kernel, step.buffers)
            if key not in groups:
                resources = [self.buffers[name] for name in step.buffers]
                resources += [self.uniform] if kernel.dims else []
                groups[key] = self._device.create_bind_group(
                    layout=self._layouts[step.kernel],
                    entries=[
                        {"binding": i, "resource": {"buffer": b, "offset": 0, "size": b.size}}
                        for i, b in enumerate(resources)
                    ],
                )
            self.prepared[id(step)] = Prepared(step.kernel, groups[key])

    def destroy(self) -> None:
        """Gives all memory back."""
        for buffer in (*self.buffers.values(), self.uniform):
            if buffer is not None:
                buffer.destroy()
        self.buffers.clear()
        self.pipelines.clear()
        self.prepared.clear()
        self._groups.clear()

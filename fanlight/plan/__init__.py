"""The plan, version 1: the only contract between the compiler and the executors.

File layout: ``FANPLAN1`` (8 bytes), header length (u32, little endian), 4 zero bytes, the header
(JSON, UTF-8, padded with spaces to a multiple of 8), then the segments, each at a multiple of 8.
``fanlight/web/plan.js`` is the JavaScript reader of the same form; ``rules.py`` and that reader
hold the schema.

Meaning
-------
*dims*       ``host`` dims are given per run (missing ones keep their last value, at first their
             max); ``device`` dims are read from ``buffer`` at ``offset`` (one i32) while the
             program runs. The dims ``unit_first`` and ``unit_count`` are set by the loader alone,
             ``threads`` at load. A ``free`` host dim is 0 at first, its maximum may be huge, and no
             memory comes from it. One with a ``bound``, a size over host dims declared before, is
             set by a ``read`` alone.
*buffers*    ``bytes`` is a size; memory comes from the maxima. ``state`` is zeroed at load and kept
             between runs; ``arena`` buffers are valid inside one run only. A buffer whose size
             mentions a free dim gets memory when a run first needs it, from that run's dims
             (bounds stand for dims with one). Whatever its kind, it keeps its content until a run
             changes a free dim that its size mentions, or one declared before the last of these.
             Memory that has grown is kept for later runs; weights have no free sizes.
*weights*    bytes ``[offset, offset + length)`` of a file or of a segment, in chunks cut at
             ``unit``. Without steps a chunk goes straight to ``buffer`` at ``unit_first * unit``;
             with steps it goes to the ``staging`` buffer (padded to 4 bytes) and the steps run with
             ``unit_first`` (index of the chunk's first unit) and ``unit_count`` (units in it).
*kernels*    webgpu: WGSL text without ``enable`` lines; entry point ``main``; storage bindings
             0..n-1 of group 0 as ``access`` says, then, if ``dims`` is true, binding n: the uniform
             of all host dims (one u32 each, in the plan's order, padded to 16 bytes).
             wasm: the code is in the module; the entry serves names in profiles.
*programs*   steps, in order. ``load`` (may be empty) runs once after all weights are resident.
             dispatch  webgpu: ``grid`` workgroups (host dims by value, device dims by maximum).
                       wasm: ``args`` are i32 arguments after the buffers' addresses.
             copy      bytes from buffer to buffer, offsets and sizes multiples of 4.
             read      an i32 of a buffer becomes the value of a host dim, for the steps that
                       follow.
             branch    on a comparison of two sizes over host dims.
             loop      ``count`` times (a size over host dims).
             call      another program.
"""

from fanlight.plan.file import decode, encode
from fanlight.plan.rules import verify
from fanlight.plan.types import (
    LOAD_DIMS,
    MAGIC,
    STAGING,
    THREADS,
    TIMESTAMPS,
    VERSION,
    Access,
    Branch,
    Buffer,
    BufferKind,
    Call,
    Comparison,
    Copy,
    DimSpec,
    Dispatch,
    FileSource,
    InlineSource,
    Kernel,
    Loop,
    Plan,
    Read,
    Step,
    Target,
    WasmModule,
    Weight,
    steps_of,
)

__all__ = [
    "LOAD_DIMS",
    "MAGIC",
    "STAGING",
    "THREADS",
    "TIMESTAMPS",
    "VERSION",
    "Access",
    "Branch",
    "Buffer",
    "BufferKind",
    "Call",
    "Comparison",
    "Copy",
    "DimSpec",
    "Dispatch",
    "FileSource",
    "InlineSource",
    "Kernel",
    "Loop",
    "Plan",
    "Read",
    "Step",
    "Target",
    "WasmModule",
    "Weight",
    "decode",
    "encode",
    "steps_of",
    "verify",
]

"""Linked modules in node, on threads: the torture plan, steps that race, start and quit."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fanlight import shapes
from fanlight.codegen.wasm import link
from fanlight.codegen.wasm.encoder import Function
from fanlight.codegen.wasm.values import Writer, op
from fanlight.errors import PlanError
from fanlight.kernels.launch import WasmKernel
from fanlight.plan import (
    Branch,
    Buffer,
    Copy,
    DimSpec,
    Dispatch,
    InlineSource,
    Kernel,
    Loop,
    Plan,
    Read,
)
from fanlight.shapes import Dim
from tests import torture, torture_wasm

SCRIPT = Path(__file__).with_name("threads.mjs")
THREADS = (1, 2, 3, 4)


class Node:
    """Collects what to do with ``plan``, then does it in one node process."""

    def __init__(self, plan: Plan, threads: int) -> None:
        assert plan.wasm is not None and plan.wasm.threads
        self.plan, self.module, self.threads = plan, plan.wasm, threads
        self.actions: list[tuple[Any, ...]] = []
        self.at: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        end = self.module.reserved
        for buffer in plan.buffers:
            self.at[buffer.name] = end
            self.bytes[buffer.name] = size = shapes.evaluate(buffer.bytes, {"threads": threads})
            end += -(-size // 64) * 64
        self.pages = -(-end // 65536)
        table = struct.pack(f"<{len(self.at)}I", *self.at.values())
        self.write(self.module.buffers_at, table)
        host = [d.dim for d in plan.dims if d.dim.kind == "host"]
        self.dims = {d.name: self.module.dims_at + 4 * i for i, d in enumerate(host)}
        self.set({d.name: threads if d.name == "threads" else d.max for d in host})

    def write(self, address: int, data: bytes) -> None:
        self.actions.append(("write", address, base64.b64encode(data).decode()))

    def set(self, dims: Mapping[str, int]) -> None:
        for name, value in dims.items():
            self.write(self.dims[name], struct.pack("<I", value))

    def run(self, entry: str) -> None:
        self.actions.append(("run", self.module.entries.index(entry)))

    def read(self, buffer: str) -> None:
        self.actions.append(("read", self.at[buffer], self.bytes[buffer]))

    def results(self) -> list[bytes]:
        node = shutil.which("node")
        assert node is not None
        job = {
            "module": base64.b64encode(self.plan.segments[self.module.segment]).decode(),
            "threads": self.threads,
            "pages": self.pages,
            "actions": self.actions,
        }
        done = subprocess.run(
            [node, str(SCRIPT)], input=json.dumps(job).encode(), capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return [base64.b64decode(x) for x in json.loads(done.stdout)]


@pytest.mark.parametrize("threads", THREADS)
def test_torture_on_threads(threads: int) -> None:
    made = torture.build("wasm")
    node = Node(torture_wasm.with_threads(made.plan), threads)
    for number, weight in enumerate(made.plan.weights):
        source = weight.source
        if isinstance(source, InlineSource):
            data = made.plan.segments[source.segment]
        else:
            data = made.files[source.file]
        data = data[source.offset : source.offset + source.length]
        if not weight.steps:
            node.write(node.at[weight.buffer], data)
            continue
        units = torture.STAGING_BYTES // weight.unit
        for first in range(0, len(data) // weight.unit, units):
            chunk = data[first * weight.unit : (first + units) * weight.unit]
            node.write(node.at["staging"], chunk)
            node.set({"unit_first": first, "unit_count": len(chunk) // weight.unit})
            node.run(f"load/{number}")
    node.run("load")
    for run in made.runs:
        node.set(run.dims)
        for name, fed in run.feeds.items():
            node.write(node.at[name], fed)
        node.run(run.program)
        for name in torture.READS:
            node.read(name)
    results = iter(node.results())
    for number, expected in enumerate(made.expected):
        for name in torture.READS:
            assert next(results) == expected[name], f"run {number}, {name}"


def _bump(function: Function) -> None:
    """Adds 1 to each of 64 words, thread by thread."""
    w = Writer(function)
    words, tid, threads = w.params
    i = w.let(tid)
    with w.while_(i < 64):
        at = w.let(words + (i << 2))
        w.do("i32.store", at, op("i32.load", at) + 1)
        w.set(i, i + threads)


SEEN, TIMES = Dim("seen", "host", 10), Dim("times", "host", 100_000)
BUMP = (WasmKernel("bump", 1, 0, _bump),)


def small_plan(steps: Sequence[Any]) -> Plan:
    plan = Plan(
        "wasm",
        (DimSpec(SEEN), DimSpec(TIMES)),
        (Buffer("a", "state", 256), Buffer("b", "state", 256), Buffer("flags", "state", 8)),
        (),
        (Kernel("bump"),),
        {"main": tuple(steps)},
    )
    return link.link(plan, BUMP, frozenset({"threads"}))


@pytest.mark.parametrize("threads", [2, 4])
def test_a_read_waits_until_all_have_branched_on_the_value_before(threads: int) -> None:
    a, b = (Branch(SEEN, "==", 1, (Dispatch(0, (name,)),)) for name in ("a", "b"))
    body = (Read("seen", "flags", 0), a, Read("seen", "flags", 4), b)
    node = Node(small_plan([Loop(TIMES, body)]), threads)
    node.write(node.at["flags"], struct.pack("<2i", 1, 0))
    node.set({"times": 2_000})
    node.run("main")
    node.read("a")
    node.read("b")
    assert node.results() == [struct.pack("<i", 2_000) * 64, bytes(256)]


def _move(function: Function) -> None:
    """flags[0] += 1 by thread 0, words[tid] += at by all."""
    w = Writer(function)
    flags, words, at, tid, _ = w.params
    with w.if_(op("i32.eqz", tid)):
        w.do("i32.store", flags, op("i32.load", flags) + 1)
    place = w.let(words + (tid << 2))
    w.do("i32.store", place, op("i32.load", place) + at)


@pytest.mark.parametrize("threads", [2, 3])
def test_all_threads_see_one_device_dim_though_the_kernel_moves_it(threads: int) -> None:
    at = Dim("at", "device", 10_000)
    plan = Plan(
        "wasm",
        (DimSpec(TIMES), DimSpec(at, "flags", 0)),
        (Buffer("flags", "state", 4), Buffer("words", "state", 16)),
        (),
        (Kernel("move"),),
        {"main": (Loop(TIMES, (Dispatch(0, ("flags", "words"), args=(at,)),)),)},
    )
    kernels = [WasmKernel("move", 2, 1, _move)]
    node = Node(link.link(plan, kernels, frozenset({"threads"})), threads)
    node.set({"times": 2_000})
    node.run("main")
    node.read("words")
    wanted = [sum(range(2_000))] * threads + [0] * (4 - threads)
    assert node.results() == [struct.pack("<4i", *wanted)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_step_sees_the_one_before(threads: int) -> None:
    """Thousands of barriers; a copy between dispatches; many starts."""
    body = (Dispatch(0, ("a",)), Copy("a", "b", 256), Dispatch(0, ("b",)), Copy("b", "a", 256))
    node = Node(small_plan([Loop(TIMES, body)]), threads)
    for _ in range(50):
        node.set({"times": 40})
        node.run("main")
    node.read("a")
    assert node.results() == [struct.pack("<i", 4000) * 64]


def test_a_dispatch_that_does_not_fit_its_kernel() -> None:
    with pytest.raises(PlanError, match="bump"):
        small_plan([Dispatch(0, ("a", "b"))])

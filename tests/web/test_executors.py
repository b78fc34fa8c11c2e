"""Small plans of our own on gpu.js and wasm.js: steps, weights, abort, and what fails."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from typing import Any

import pytest
import wasmtime
from playwright.sync_api import Page

from fanlight.plan import (
    Access,
    Branch,
    Buffer,
    Call,
    Copy,
    DimSpec,
    Dispatch,
    FileSource,
    InlineSource,
    Kernel,
    Loop,
    Plan,
    Read,
    WasmModule,
    Weight,
    encode,
)
from fanlight.shapes import Dim, ceildiv
from tests.web.origin import Origin, Served

pytestmark = pytest.mark.browser
N, COUNT, FIRST, UNITS = (
    Dim("n", "host", 64),
    Dim("count", "host", 100),
    Dim("unit_first", "host", 1 << 20),
    Dim("unit_count", "host", 1 << 20),
)
DIMS = tuple(DimSpec(d) for d in (N, COUNT, FIRST, UNITS))

ADD = """
@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<uniform> dims: vec4<u32>;
@compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < dims.x) { out[id.x] += a[id.x]; }
}"""
# Units of 6 bytes: two bytes are dropped, four are kept.
REPACK = """
@group(0) @binding(0) var<storage, read> staging: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<uniform> dims: vec4<u32>;
fn half_word(i: u32) -> u32 { return (staging[i / 2u] >> (16u * (i % 2u))) & 0xffffu; }
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x * 3u;
  if (id.x >= dims.w) { return; }
  out[dims.z + id.x] = half_word(at + 1u) | (half_word(at + 2u) << 16u);
}"""
COUNTER = """
@group(0) @binding(0) var<storage, read_write> counter: array<u32>;
@compute @workgroup_size(1) fn main() { counter[0] += 1u; }"""

RW: Access = "read_write"
UNIT_COUNT = 100_000
ADD_STEP = Dispatch(0, ("constant", "sum"), (ceildiv(N, 8), 1, 1))


def weights_file() -> tuple[bytes, list[int]]:
    """8 bytes of something else, then units of 6 bytes; and the values that the units hold."""
    values = [(i * 2654435761) % 2**32 for i in range(UNIT_COUNT)]
    units = b"".join(struct.pack("<HI", 7, v) for v in values)
    return b"somethin" + units, values


def gpu_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "target": "webgpu",
        "dims": DIMS,
        "buffers": (
            Buffer("staging", "staging", 60_000),
            Buffer("constant", "weight", 256),
            Buffer("repacked", "weight", 4 * UNIT_COUNT),
            Buffer("sum", "state", N * 4, "u32", (N,)),
            Buffer("other", "output", 256),
            Buffer("counter", "state", 4),
        ),
        "weights": (
            Weight("constant", InlineSource(0, 0, 256), 4, "constant"),
            Weight(
                "units",
                FileSource("model", 8, 6 * UNIT_COUNT),
                6,
                "",
                (Dispatch(1, ("staging", "repacked"), (ceildiv(UNITS, 64), 1, 1)),),
            ),
        ),
        "kernels": (
            Kernel("add", ADD, ("read", RW), dims=True),
            Kernel("repack", REPACK, ("read", RW), dims=True),
            Kernel("count", COUNTER, (RW,)),
        ),
        "programs": {
            "load": (),
            "add": (ADD_STEP,),
            "tick": (Dispatch(2, ("counter",)),),
            "all": (
                Call("tick"),
                Loop(3, (Call("tick"), ADD_STEP)),
                Read("count", "counter"),
                Branch(COUNT, ">=", 4, (Copy("sum", "other", N * 4),), (Copy("sum", "other", 0),)),
                Loop(COUNT, (Call("tick"),)),
            ),
        },
        "segments": (struct.pack("<64I", *range(64)),),
    }
    return Plan(**(fields | changes))


# The same programs; `all` walks its steps by hand.
MODULE = """(module
  (import "env" "memory" (memory 1 65536 %(shared)s))
  (func $x4 (param i32) (result i32) (i32.shl (local.get 0) (i32.const 2)))
  (func $dim (param i32) (result i32) (i32.load offset=64 (call $x4 (local.get 0))))
  (func $at (param i32) (result i32) (i32.load offset=128 (call $x4 (local.get 0))))
  (func $add (local $i i32) (local $p i32)
    (loop $next (if (i32.lt_u (local.get $i) (call $dim (i32.const 0))) (then
      (local.set $p (i32.add (call $at (i32.const 3)) (i32.shl (local.get $i) (i32.const 2))))
      (i32.store (local.get $p) (i32.add (i32.load (local.get $p))
        (i32.load (i32.add (call $at (i32.const 1)) (i32.shl (local.get $i) (i32.const 2))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1))) (br $next)))))
  (func $tick (local $p i32) (local.set $p (call $at (i32.const 5)))
    (i32.store (local.get $p) (i32.add (i32.const 1) (i32.load (local.get $p)))))
  (func $repack (local $i i32) (local $to i32) (local $from i32)
    (loop $next (if (i32.lt_u (local.get $i) (call $dim (i32.const 3))) (then
      (local.set $to (call $x4 (i32.add (call $dim (i32.const 2)) (local.get $i))))
      (local.set $from (i32.mul (local.get $i) (i32.const 6)))
      (i32.store (i32.add (call $at (i32.const 2)) (local.get $to))
        (i32.load offset=2 align=1 (i32.add (call $at (i32.const 0)) (local.get $from))))
      (local.set $i (i32.add (local.get $i) (i32.const 1))) (br $next)))))
  (func $share (param $tid i32)
    (i32.store (i32.add (call $at (i32.const 4)) (i32.shl (local.get $tid) (i32.const 2)))
      (i32.add (local.get $tid) (i32.const 100))))
  (func $run (export "run") (param $program i32) (param $tid i32) (param $threads i32)
    (if (i32.eq (local.get $program) (i32.const 4)) (then (call $share (local.get $tid)) (return)))
    (if (local.get $tid) (then (return)))
    (if (i32.eq (local.get $program) (i32.const 1)) (then (call $add)))
    (if (i32.eq (local.get $program) (i32.const 2)) (then (call $tick)))
    (if (i32.eq (local.get $program) (i32.const 3)) (then (call $repack)))
    (if (i32.eq (local.get $program) (i32.const 5)) (then unreachable)))
  %(threads)s)"""
THREADS = """
  (func (export "start") (param $program i32) (param $threads i32)
    (i32.store (i32.const 4) (local.get $program))
    (i32.atomic.store (i32.const 8) (i32.sub (local.get $threads) (i32.const 1)))
    (drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))
    (drop (memory.atomic.notify (i32.const 0) (i32.const -1)))
    (call $run (local.get $program) (i32.const 0) (local.get $threads))
    (loop $wait (br_if $wait (i32.atomic.load (i32.const 8)))))
  (func (export "worker") (param $tid i32) (param $threads i32) (local $seen i32)
    (loop $again
      (drop (memory.atomic.wait32 (i32.const 0) (local.get $seen) (i64.const -1)))
      (if (i32.eq (i32.atomic.load (i32.const 0)) (local.get $seen)) (then (br $again)))
      (if (i32.atomic.load (i32.const 12)) (then (return)))
      (local.set $seen (i32.atomic.load (i32.const 0)))
      (call $run (i32.load (i32.const 4)) (local.get $tid) (local.get $threads))
      (drop (i32.atomic.rmw.sub (i32.const 8) (i32.const 1)))
      (br $again)))
  (func (export "quit") (i32.atomic.store (i32.const 12) (i32.const 1))
    (drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))
    (drop (memory.atomic.notify (i32.const 0) (i32.const -1))))"""


def wasm_plan(threads: bool) -> Plan:
    text = MODULE % {
        "shared": "shared" if threads else "",
        "threads": THREADS if threads else "",
    }
    gpu = gpu_plan()
    module = WasmModule(
        1, threads, 256, 64, 128, ("load", "add", "tick", "load/1", "share", "trap")
    )
    return gpu_plan(
        target="wasm",
        kernels=tuple(Kernel(k.name) for k in gpu.kernels),
        segments=(*gpu.segments, bytes(wasmtime.wat2wasm(text))),
        programs={**gpu.programs, "share": (), "trap": ()},
        wasm=module,
    )


LOAD = """async ({plan, url, threads}) => {
  window.file = await executor.request('open', { source: url });
  const { buffer } = bytes(plan);
  const fields = { plan: buffer, files: { model: file.file }, options: { threads } };
  window.session = await executor.request('load', fields, { transfer: [buffer] });
  window.run = (program, feeds, dims) =>
    executor.request('run', { session: session.session, program, feeds, dims });
  window.readBuffer = async (buffer, offset, length) =>
    hex(await executor.request('readBuffer', { session: session.session, buffer, offset, length }));
  return session.info;
}"""
REPEAT = """async ({program, times, read, stop}) => {
  const seen = [];
  const control = new AbortController();
  const fields = { session: session.session, program, times, read };
  for await (const chunk of executor.stream('repeat', fields)) {
    seen.push(new Uint32Array(chunk.buffer)[0]);
    if (seen.length === stop) break;
  }
  return seen;
}"""


def load(page: Page, origin: Origin, plan: Plan, threads: int | None = None) -> Any:
    data, _ = weights_file()
    origin.files["units"] = Served(data)
    fields = {
        "plan": base64.b64encode(encode(plan)).decode(),
        "url": f"{origin.base}/files/units",
        "threads": threads,
    }
    return page.evaluate(LOAD, fields)


def words(page: Page, buffer: str, *span: int) -> list[int]:
    data = bytes.fromhex(page.evaluate("([b, o, l]) => readBuffer(b, o, l)", [buffer, *span]))
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def run(page: Page, program: str, dims: dict[str, int] | None = None) -> Any:
    return page.evaluate("([p, d]) => outcome(run(p, undefined, d))", [program, dims or {}])


def check_weights_add_and_feeds(page: Page) -> None:
    assert words(page, "repacked") == weights_file()[1]
    assert run(page, "add", {"n": 3}) == {"value": None}
    assert run(page, "add") == {"value": None}  # n keeps its value
    assert words(page, "sum", 0, 20) == [0, 2, 4, 0, 0]
    page.evaluate("() => run('add', { sum: new Uint8Array([9, 0, 0, 0, 1]) }, { n: 5 })")
    assert words(page, "sum", 0, 20) == [9, 2, 6, 3, 4]


def check_wrong_arguments(page: Page) -> None:
    for program, dims, name in [
        ("no", {}, "no"),
        ("add", {"n": 65}, "n"),
        ("add", {"m": 1}, "m"),
        ("add", {"unit_first": 1}, "unit_first"),
    ]:
        error = run(page, program, dims)
        assert error["code"] == "PlanError" and name in error["message"]
    for feeds in [
        "{ constant: new Uint8Array(4) }",
        "{ sum: new Uint8Array(257) }",
        "{ no: new Uint8Array(1) }",
    ]:
        error = page.evaluate(f"() => outcome(run('add', {feeds}, {{}}))")
        assert error["code"] == "PlanError"
    error = page.evaluate("() => outcome(readBuffer('sum', 2, 4))")
    assert error["code"] == "PlanError"
    assert run(page, "add") == {"value": None}


def check_repeat(page: Page) -> None:
    fields = {"program": "tick", "times": 6, "read": "counter", "stop": 0}
    first = words(page, "counter")[0]
    assert page.evaluate(REPEAT, fields) == list(range(first + 1, first + 7))
    stopped = page.evaluate(REPEAT, fields | {"times": 10**6, "stop": 3})
    assert stopped == [first + 7, first + 8, first + 9]
    ran = words(page, "counter")[0]
    assert first + 9 <= ran < first + 1000  # it ended, after what was in flight
    error = page.evaluate(
        """async () => {
          const control = new AbortController();
          const fields = { session: session.session, program: 'tick', times: 1e9, read: 'counter' };
          setTimeout(() => control.abort(), 100);
          return outcome(executor.request('repeat', fields, { signal: control.signal }));
        }"""
    )
    assert error["code"] == "AbortedError"
    assert run(page, "tick") == {"value": None}


def test_webgpu(page: Page, origin: Origin) -> None:
    info = load(page, origin, gpu_plan())
    assert info["backend"] == "webgpu" and info["adapter"]
    check_weights_add_and_feeds(page)
    check_wrong_arguments(page)
    check_repeat(page)


def test_webgpu_every_step(page: Page, origin: Origin) -> None:
    load(page, origin, gpu_plan())
    assert run(page, "all", {"n": 4}) == {"value": None}
    assert words(page, "other", 0, 20) == [0, 3, 6, 9, 0]
    assert words(page, "counter") == [8]  # 4 ticks, read back, and as many again


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_wasm(page: Page, origin: Origin, threads: int) -> None:
    """``threads`` 0: a module without them."""
    info = load(page, origin, wasm_plan(threads > 0), threads or None)
    assert info["threads"] == max(threads, 1)
    check_weights_add_and_feeds(page)
    check_wrong_arguments(page)
    check_repeat(page)
    assert run(page, "share") == {"value": None}
    assert words(page, "other", 0, 8) == ([100, 101] if threads == 2 else [100, 0])
    error = run(page, "trap")
    assert error["code"] == "DeviceError" and "trap" in error["message"]
    assert page.evaluate("() => executor.request('dispose', { session: session.session })") is None
    assert page.evaluate("() => outcome(run('add'))")["code"] == "AbortedError"


def test_threads_need_isolation(plain_page: Page, origin: Origin) -> None:
    error = plain_page.evaluate(
        f"async (fields) => outcome(({LOAD})(fields))",
        {
            "plan": base64.b64encode(encode(wasm_plan(True))).decode(),
            "url": f"{origin.base}/files/units",
            "threads": 2,
        },
    )
    assert error["code"] == "PlanError" and "isolation" in error["message"]
    assert load(plain_page, origin, wasm_plan(False))["threads"] == 1


@pytest.mark.parametrize(
    ("changes", "code", "words_in_it"),
    [
        (
            {"kernels": (Kernel("add", "fn main( {", ("read", RW), True),)},
            "PlanError",
            "kernel add",
        ),
        ({"features": ("no-such-feature",)}, "PlanError", "no-such-feature"),
        ({"buffers": (Buffer("b", "state", 1 << 40),)}, "PlanError", "buffer b"),
        ({"weights": (Weight("w", FileSource("other", 0, 4), 4, "sum"),)}, "PlanError", "other"),
        ({"weights": (Weight("w", FileSource("model", 0, 1 << 30), 4, "sum"),)}, "PlanError", "w"),
        ({"weights": (Weight("w", FileSource("model", 0, 400), 4, "sum"),)}, "PlanError", "w"),
    ],
)
def test_webgpu_refuses(
    page: Page, origin: Origin, changes: dict[str, Any], code: str, words_in_it: str
) -> None:
    defaults: dict[str, Any] = {"weights": (), "programs": {}}
    if "kernels" in changes:
        changes = changes | {"buffers": gpu_plan().buffers}
    with pytest.raises(Exception, match=words_in_it) as error:
        load(page, origin, gpu_plan(**(defaults | changes)))
    assert code in str(error.value)
    assert page.evaluate("() => executor.request('stats')")["sessions"] == {}


def test_lost_device(page: Page, origin: Origin) -> None:
    """A session whose device is taken away says so on every call."""
    load(page, origin, gpu_plan())
    error = page.evaluate(
        """async () => {
          const { GpuDevice } = await import('/fanlight/web/gpu_device.js');
          const device = await GpuDevice.request(new Set());
          device.device.destroy();
          await device.device.lost;
          return outcome(Promise.resolve().then(() => device.check()));
        }"""
    )
    assert error["code"] == "DeviceError" and "reload" in error["message"]


def test_too_much_memory_for_wasm(page: Page, origin: Origin) -> None:
    plan = wasm_plan(False)
    huge = replace(plan, buffers=(*plan.buffers, Buffer("huge", "state", 5 << 30)))
    with pytest.raises(Exception, match=r"4 GB.*536\d+"):
        load(page, origin, huge)


def test_abort_of_a_load(page: Page, origin: Origin) -> None:
    data, _ = weights_file()
    origin.files["slow"] = Served(data)
    error = page.evaluate(
        """async ({plan, url}) => {
          const { file } = await executor.request('open', { source: url });
          const control = new AbortController();
          const fields = { plan: bytes(plan).buffer, files: { model: file } };
          const onProgress = ({ stage }) => { if (stage === 'load') control.abort(); };
          return outcome(executor.request('load', fields, { signal: control.signal, onProgress }));
        }""",
        {
            "plan": base64.b64encode(encode(gpu_plan())).decode(),
            "url": f"{origin.base}/files/slow",
        },
    )
    assert error["code"] == "AbortedError"
    assert page.evaluate("() => executor.request('stats')")["sessions"] == {}


def test_probe(page: Page, plain_page: Page) -> None:
    seen = page.evaluate("() => executor.request('probe')")
    assert seen["isolated"] and seen["threads"] and seen["relaxed_simd"]
    assert "swiftshader" in seen["webgpu"]["name"] and seen["webgpu"]["fallback"]
    assert seen["webgpu"]["limits"]["maxStorageBuffersPerShaderStage"] >= 8
    plain = plain_page.evaluate("() => executor.request('probe')")
    assert not plain["isolated"] and not plain["threads"]


def test_a_connected_port_may_ask_too(page: Page) -> None:
    seen = page.evaluate(
        """async () => {
          const { Channel } = await import('/fanlight/web/protocol.js');
          const { port1, port2 } = new MessageChannel();
          await executor.request('connect', { port: port2 }, { transfer: [port2] });
          const other = new Channel(port1);
          const unknown = await outcome(other.request('fly'));
          return [await other.request('stats'), unknown.code];
        }"""
    )
    assert seen == [{"files": {}, "sessions": {}}, "UnsupportedError"]

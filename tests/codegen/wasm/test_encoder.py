"""The encoder and the expressions over it, by running them; every opcode in two engines."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import wasmtime

from fanlight.codegen.wasm.encoder import Function, MemoryImport, Module, ValueType, sleb
from fanlight.codegen.wasm.opcodes import OPCODES, leb
from fanlight.codegen.wasm.values import (
    Local,
    Value,
    Writer,
    f32,
    f32x4,
    i32,
    i32x4,
    op,
    select,
    shuffle,
)

SHARED = "memory.atomic.wait"  # traps on a memory that is not shared


def call(
    write: Callable[[Function], None],
    params: Sequence[ValueType] = (),
    results: Sequence[ValueType] = ("i32",),
    *args: Any,
) -> Any:
    """The result of the function that ``write`` fills, called with ``args``."""
    module = Module(MemoryImport(1, 1, False))
    write(module.function(params, results, export="f"))
    return instance(module)(*args)


def instance(module: Module) -> Callable[..., Any]:
    """The module's export ``f``, over a memory of one page."""
    store = wasmtime.Store()
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(1, 1)))
    made = wasmtime.Instance(store, wasmtime.Module(store.engine, module.encode()), [memory])
    f = made.exports(store)["f"]
    assert isinstance(f, wasmtime.Func)
    return lambda *args: f(store, *args)


def pushed(value: Callable[[Writer], Value], kind: ValueType = "i32") -> Any:
    """What ``value`` pushes."""

    def write(function: Function) -> None:
        w = Writer(function)
        w.push(value(w))

    return call(write, (), (kind,))


def every_opcode(shared: bool) -> bytes:
    """One function for each instruction, exported by its name; zeros are the operands."""
    module = Module(MemoryImport(1, 2, shared))
    for name, spec in OPCODES.items():
        if not shared and name.startswith(SHARED):
            continue
        f = module.function(export=name)
        operands = [Local(kind, f.local(kind)) for kind in spec.operands]
        w = Writer(f)
        if spec.result is None:
            w.do(name, *operands, lane=0 if spec.lane else None)
        else:
            w.push(op(name, *operands, lane=0 if spec.lane else None))
            f.op("drop")
    return module.encode()


def test_every_opcode_runs_in_wasmtime() -> None:
    config = wasmtime.Config()
    config.wasm_relaxed_simd = True
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(1, 2)))
    made = wasmtime.Instance(store, wasmtime.Module(engine, every_opcode(False)), [memory])
    for name, f in made.exports(store).items():
        assert isinstance(f, wasmtime.Func)
        traps = name == "unreachable" or "div_" in name or "rem_" in name
        if traps:
            with pytest.raises(wasmtime.Trap):
                f(store)
        else:
            f(store)


def test_every_opcode_runs_in_node() -> None:
    node = shutil.which("node")
    assert node is not None
    # Node 20 has relaxed SIMD behind a flag.
    script = """
require('v8').setFlagsFromString('--experimental-wasm-relaxed-simd');
const code = require('fs').readFileSync(0);
const memory = new WebAssembly.Memory({ initial: 1, maximum: 2, shared: true });
const { exports } = new WebAssembly.Instance(new WebAssembly.Module(code), { env: { memory } });
const trapped = [];
for (const [name, f] of Object.entries(exports)) {
  if (name.startsWith('memory.atomic.wait')) continue; // would wait
  try { f(); } catch (error) { trapped.push(name); }
}
console.log(JSON.stringify(trapped));"""
    done = subprocess.run(
        [node, "-e", script], input=every_opcode(True), capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    wanted = {n for n in OPCODES if n == "unreachable" or "div_" in n or "rem_" in n}
    assert set(json.loads(done.stdout)) == wanted


def test_the_table_covers_the_families() -> None:
    """All 236 SIMD and 20 relaxed instructions, less const and shuffle, which have own emitters."""
    simd = [s for s in OPCODES.values() if s.code[0] == 0xFD]
    assert len(simd) == 236 + 20 - 2
    assert len({s.code for s in OPCODES.values()}) == len(OPCODES)


@pytest.mark.parametrize("value", [0, 1, 63, 64, 127, 128, 300, 65535, (1 << 32) - 1])
def test_leb(value: int) -> None:
    def read(data: bytes) -> int:
        return sum((b & 0x7F) << 7 * i for i, b in enumerate(data))

    assert read(leb(value)) == value and leb(value)[-1] < 128
    for signed in (value, -value):
        data = sleb(signed)
        size = 7 * len(data)
        assert (read(data) - signed) % (1 << size) == 0
        assert -(1 << size - 1) <= signed < 1 << size - 1


@pytest.mark.parametrize("value", [0, 63, 64, -64, -65, 1 << 20, -(1 << 31), (1 << 31) - 1])
def test_constants(value: int) -> None:
    assert pushed(lambda w: i32(value)) == value
    assert call(lambda f: f.i64(value << 20), (), ("i64",)) == value << 20
    assert pushed(lambda w: i32((1 << 32) - 1)) == -1
    assert pushed(lambda w: f32(1e300), "f32") == float("inf")


def test_operators() -> None:
    def both(a: int, b: int) -> Any:
        x, y = i32(a), i32(b)
        parts = [x + y, x - y, x * y, x & y, x | y, x << 3, x >> 1, x < y]
        return [pushed(lambda w, p=p: p) for p in parts]  # type: ignore[misc]

    for a, b in ((7, 3), (-7, 3), (100, -5)):
        assert both(a, b) == [a + b, a - b, a * b, a & b, a | b, a << 3, a >> 1, int(a < b)]
    assert pushed(lambda w: select(i32(0), i32(4), 5)) == 5


def test_lanes() -> None:
    x = i32x4(10, 20, 30, 40)
    for n in range(4):
        assert pushed(lambda w, n=n: op("i32x4.extract_lane", x, lane=n)) == 10 * n + 10  # type: ignore[misc]
    turned = shuffle(x, i32x4(7), *range(12, 16), *range(16, 28))
    assert pushed(lambda w: op("i32x4.extract_lane", turned, lane=0)) == 40
    assert pushed(lambda w: op("i32x4.extract_lane", turned, lane=3)) == 7
    three = op("f32x4.add", f32x4(1), op("f32x4.splat", f32(2)))
    assert pushed(lambda w: op("f32x4.extract_lane", three, lane=2), "f32") == 3


def test_memory() -> None:
    def write(f: Function) -> None:
        w = Writer(f)
        w.do("i64.store", 8, 0x0102030405060708, offset=8)
        w.do("memory.copy", 100, 16, 8)
        w.do("memory.fill", 104, 0x55, 2)
        lanes = op("v128.load8x8_u", i32(100))
        w.do("i32.store16", 200, op("i16x8.extract_lane_u", lanes, lane=0))
        w.push(op("i64.load", i32(36), offset=64) + op("i64.load16_u", i32(200)))

    assert call(write, (), ("i64",)) == 0x0102555505060708 + 8


def test_bad_expressions_are_refused() -> None:
    bad: list[Callable[[], Value]] = [
        lambda: op("i32.add", i32(1), f32(2)),
        lambda: op("i32.add", i32(1)),
        lambda: op("i32x4.extract_lane", i32x4(1)),
        lambda: op("i32.store", i32(1), i32(2)),
    ]
    for make in bad:
        with pytest.raises(AssertionError):
            make()
    with pytest.raises(KeyError):
        op("i32.plus", i32(1), i32(1))


# --- control


def test_loops_and_branches() -> None:
    """The sum of the numbers below n that 3 does not divide; it stops at 20."""

    def write(f: Function) -> None:
        w = Writer(f)
        total = w.local("i32")
        with f.block() as out, w.for_range(0, w.params[0]) as i:
            w.br_if(out, op("i32.eq", i, 20))
            with w.if_(op("i32.rem_u", i, 3)):
                w.set(total, total + i)
        w.push(total)

    for n in (-1, 0, 1, 10, 50):
        assert call(write, ("i32",), ("i32",), n) == sum(i for i in range(min(n, 20)) if i % 3)


def test_the_encoders_own_range() -> None:
    def write(f: Function) -> None:
        i, total = f.local("i32"), f.local("i32")
        with f.for_range(i, 0, 2) as done:
            f.get(i)
            f.i32(12)
            f.op("i32.eq")
            f.br_if(done)
            f.get(total)
            f.get(i)
            f.op("i32.add")
            f.set(total)
        f.get(total)

    for n in (0, 1, 9, 40):
        assert call(write, ("i32",), ("i32",), n) == sum(range(0, min(n, 12), 2))


def test_if_else_and_tables() -> None:
    def write(f: Function) -> None:
        out = f.local("i32")
        with f.block() as default:
            with f.block() as second:
                with f.block() as first:
                    f.get(0)
                    f.br_table([first, second], default)
                f.i32(10)
                f.op("return")
            f.i32(20)
            f.op("return")
        f.get(0)
        f.i32(5)
        f.op("i32.gt_s")
        with f.if_():
            f.i32(30)
            f.set(out)
            f.else_()
            f.i32(40)
            f.set(out)
        f.get(out)

    assert [call(write, ("i32",), ("i32",), n) for n in (0, 1, 2, 9)] == [10, 20, 40, 30]


def test_calls_tables_and_globals() -> None:
    module = Module(MemoryImport(1, 1, False))
    counter = module.global_i32(40)
    functions = []
    for step in (1, 100):
        f = module.function(("i32",))
        f.global_get(counter)
        f.get(0)
        f.op("i32.add")
        f.i32(step)
        f.op("i32.add")
        f.global_set(counter)
        functions.append(f)
    slots = [module.table_slot(f) for f in functions]
    main = module.function((), ("i32",), export="f")
    main.i32(1)
    main.call(functions[0])
    main.i32(2)
    main.i32(slots[1])
    main.call_indirect(module.type_index(("i32",)))
    main.global_get(counter)
    assert instance(module)() == 40 + 1 + 1 + 2 + 100


def test_many_locals_of_all_kinds() -> None:
    def write(f: Function) -> None:
        kinds: list[ValueType] = ["i32", "i32", "f32", "v128", "i64", "f64", "i32"]
        numbers = [f.local(kind) for kind in kinds * 40]
        for n, (number, kind) in enumerate(zip(numbers, kinds * 40, strict=True)):
            if kind == "i32":
                f.i32(n)
                f.tee(number)
                f.op("drop")
        f.get(numbers[-1])

    assert call(write) == 279


def test_vector_constants_keep_their_bytes() -> None:
    data = struct.pack("<4f", 1.5, -2, 0, 3)
    value = Value("v128", b"\xfd\x0c" + data)
    assert pushed(lambda w: op("f32x4.extract_lane", value, lane=1), "f32") == -2

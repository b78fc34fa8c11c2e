"""The lowest layer of WebAssembly: modules and functions → bytes. Knows no ML.

The format: https://webassembly.github.io/spec/core/binary. ``OPCODES`` is the one list of instructions. A function
is written as stack code:

    module = Module(memory=MemoryImport(1, 65536, shared=False))
    f = module.function(params=("i32", "i32"), results=("i32",), export="add")
    f.get(0)
    f.get(1)
    f.op("i32.add")
    data = module.encode()

Blocks are context managers whose label can be branched to: ``with f.loop() as again: …; f.br_if(again)``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

ValueType = Literal["i32", "i64", "f32", "f64", "v128"]
_TYPES: dict[str, int] = {"i32": 0x7F, "i64": 0x7E, "f32": 0x7D, "f64": 0x7C, "v128": 0x7B}
_VOID = 0x40


def _row(first: int, names: str, prefix: int | None = None) -> dict[str, bytes]:
    """Names of consecutive opcodes from ``first``; ``-`` skips one."""
    out = {}
    for number, name in enumerate(names.split(), first):
        if name != "-":
            out[name] = bytes([number]) if prefix is None else bytes([prefix]) + leb(number)
    return out


def leb(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        if not value:
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        if (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40):
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


#: instruction → opcode bytes; immediates follow.
OPCODES: dict[str, bytes] = {
    **_row(0x00, "unreachable nop"),
    **_row(0x0F, "return"),
    **_row(0x1A, "drop select"),
    **_row(0x28, "i32.load i64.load f32.load f64.load i32.load8_s i32.load8_u i32.load16_s i32.load16_u"),
    **_row(0x30, "i64.load8_s i64.load8_u i64.load16_s i64.load16_u i64.load32_s i64.load32_u"),
    **_row(0x36, "i32.store i64.store f32.store f64.store i32.store8 i32.store16"),
    **_row(0x3C, "i64.store8 i64.store16 i64.store32"),
    **_row(0x45, "i32.eqz i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u i32.ge_s i32.ge_u"),
    **_row(0x50, "i64.eqz i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u i64.le_s i64.le_u i64.ge_s i64.ge_u"),
    **_row(0x5B, "f32.eq f32.ne f32.lt f32.gt f32.le f32.ge f64.eq f64.ne f64.lt f64.gt f64.le f64.ge"),
    **_row(0x67, "i32.clz i32.ctz i32.popcnt i32.add i32.sub i32.mul i32.div_s i32.div_u i32.rem_s i32.rem_u"),
    **_row(0x71, "i32.and i32.or i32.xor i32.shl i32.shr_s i32.shr_u i32.rotl i32.rotr"),
    **_row(0x79, "i64.clz i64.ctz i64.popcnt i64.add i64.sub i64.mul i64.div_s i64.div_u i64.rem_s i64.rem_u"),
    **_row(0x83, "i64.and i64.or i64.xor i64.shl i64.shr_s i64.shr_u i64.rotl i64.rotr"),
    **_row(0x8B, "f32.abs f32.neg f32.ceil f32.floor f32.trunc f32.nearest f32.sqrt"),
    **_row(0x92, "f32.add f32.sub f32.mul f32.div f32.min f32.max f32.copysign"),
    **_row(0x99, "f64.abs f64.neg f64.ceil f64.floor f64.trunc f64.nearest f64.sqrt"),
    **_row(0xA0, "f64.add f64.sub f64.mul f64.div f64.min f64.max f64.copysign"),
    **_row(0xA7, "i32.wrap_i64 i32.trunc_f32_s i32.trunc_f32_u i32.trunc_f64_s i32.trunc_f64_u"),
    **_row(0xAC, "i64.extend_i32_s i64.extend_i32_u i64.trunc_f32_s i64.trunc_f32_u"),
    **_row(0xB2, "f32.convert_i32_s f32.convert_i32_u f32.convert_i64_s f32.convert_i64_u f32.demote_f64"),
    **_row(0xB7, "f64.convert_i32_s f64.convert_i32_u f64.convert_i64_s f64.convert_i64_u f64.promote_f32"),
    **_row(0xBC, "i32.reinterpret_f32 i64.reinterpret_f64 f32.reinterpret_i32 f64.reinterpret_i64"),
    **_row(0xC0, "i32.extend8_s i32.extend16_s"),
    **_row(0, "i32.trunc_sat_f32_s i32.trunc_sat_f32_u i32.trunc_sat_f64_s i32.trunc_sat_f64_u", 0xFC),
    # SIMD
    **_row(0, "v128.load v128.load8x8_s v128.load8x8_u v128.load16x4_s v128.load16x4_u v128.load32x2_s", 0xFD),
    **_row(6, "v128.load32x2_u v128.load8_splat v128.load16_splat v128.load32_splat v128.load64_splat", 0xFD),
    **_row(11, "v128.store v128.const i8x16.shuffle i8x16.swizzle i8x16.splat i16x8.splat i32x4.splat", 0xFD),
    **_row(18, "i64x2.splat f32x4.splat f64x2.splat i8x16.extract_lane_s i8x16.extract_lane_u", 0xFD),
    **_row(23, "i8x16.replace_lane i16x8.extract_lane_s i16x8.extract_lane_u i16x8.replace_lane", 0xFD),
    **_row(27, "i32x4.extract_lane i32x4.replace_lane i64x2.extract_lane i64x2.replace_lane", 0xFD),
    **_row(31, "f32x4.extract_lane f32x4.replace_lane f64x2.extract_lane f64x2.replace_lane", 0xFD),
    **_row(35, "i8x16.eq i8x16.ne i8x16.lt_s i8x16.lt_u i8x16.gt_s i8x16.gt_u i8x16.le_s i8x16.le_u", 0xFD),
    **_row(43, "i8x16.ge_s i8x16.ge_u i16x8.eq i16x8.ne i16x8.lt_s i16x8.lt_u i16x8.gt_s i16x8.gt_u", 0xFD),
    **_row(51, "i16x8.le_s i16x8.le_u i16x8.ge_s i16x8.ge_u i32x4.eq i32x4.ne i32x4.lt_s i32x4.lt_u", 0xFD),
    **_row(59, "i32x4.gt_s i32x4.gt_u i32x4.le_s i32x4.le_u i32x4.ge_s i32x4.ge_u f32x4.eq f32x4.ne", 0xFD),
    **_row(67, "f32x4.lt f32x4.gt f32x4.le f32x4.ge", 0xFD),
    **_row(77, "v128.not v128.and v128.andnot v128.or v128.xor v128.bitselect v128.any_true", 0xFD),
    **_row(84, "v128.load8_lane v128.load16_lane v128.load32_lane v128.load64_lane v128.store8_lane", 0xFD),
    **_row(89, "v128.store16_lane v128.store32_lane v128.store64_lane v128.load32_zero v128.load64_zero", 0xFD),
    **_row(96, "i8x16.abs i8x16.neg i8x16.popcnt i8x16.all_true i8x16.bitmask i8x16.narrow_i16x8_s", 0xFD),
    **_row(102, "i8x16.narrow_i16x8_u f32x4.ceil f32x4.floor f32x4.trunc f32x4.nearest i8x16.shl i8x16.shr_s", 0xFD),
    **_row(109, "i8x16.shr_u i8x16.add i8x16.add_sat_s i8x16.add_sat_u i8x16.sub", 0xFD),
    **_row(118, "i8x16.min_s i8x16.min_u i8x16.max_s i8x16.max_u - i8x16.avgr_u", 0xFD),
    **_row(124, "i16x8.extadd_pairwise_i8x16_s i16x8.extadd_pairwise_i8x16_u", 0xFD),
    **_row(126, "i32x4.extadd_pairwise_i16x8_s i32x4.extadd_pairwise_i16x8_u i16x8.abs i16x8.neg", 0xFD),
    **_row(130, "i16x8.q15mulr_sat_s i16x8.all_true i16x8.bitmask i16x8.narrow_i32x4_s i16x8.narrow_i32x4_u", 0xFD),
    **_row(135, "i16x8.extend_low_i8x16_s i16x8.extend_high_i8x16_s i16x8.extend_low_i8x16_u", 0xFD),
    **_row(138, "i16x8.extend_high_i8x16_u i16x8.shl i16x8.shr_s i16x8.shr_u i16x8.add", 0xFD),
    **_row(145, "i16x8.sub - - - i16x8.mul i16x8.min_s i16x8.min_u i16x8.max_s i16x8.max_u", 0xFD),
    **_row(156, "i16x8.extmul_low_i8x16_s i16x8.extmul_high_i8x16_s i16x8.extmul_low_i8x16_u", 0xFD),
    **_row(159, "i16x8.extmul_high_i8x16_u i32x4.abs i32x4.neg - i32x4.all_true i32x4.bitmask", 0xFD),
    **_row(167, "i32x4.extend_low_i16x8_s i32x4.extend_high_i16x8_s i32x4.extend_low_i16x8_u", 0xFD),
    **_row(170, "i32x4.extend_high_i16x8_u i32x4.shl i32x4.shr_s i32x4.shr_u i32x4.add", 0xFD),
    **_row(177, "i32x4.sub - - - i32x4.mul i32x4.min_s i32x4.min_u i32x4.max_s i32x4.max_u i32x4.dot_i16x8_s", 0xFD),
    **_row(188, "i32x4.extmul_low_i16x8_s i32x4.extmul_high_i16x8_s i32x4.extmul_low_i16x8_u", 0xFD),
    **_row(191, "i32x4.extmul_high_i16x8_u", 0xFD),
    **_row(206, "i64x2.add", 0xFD),
    **_row(209, "i64x2.sub", 0xFD),
    **_row(224, "f32x4.abs f32x4.neg - f32x4.sqrt f32x4.add f32x4.sub f32x4.mul f32x4.div f32x4.min f32x4.max", 0xFD),
    **_row(234, "f32x4.pmin f32x4.pmax", 0xFD),
    **_row(248, "i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u f32x4.convert_i32x4_s f32x4.convert_i32x4_u", 0xFD),
    # relaxed SIMD
    **_row(0x100, "i8x16.relaxed_swizzle", 0xFD),
    **_row(0x105, "f32x4.relaxed_madd f32x4.relaxed_nmadd", 0xFD),
    **_row(0x10B, "i32x4.relaxed_laneselect - f32x4.relaxed_min f32x4.relaxed_max", 0xFD),
    **_row(0x112, "i16x8.relaxed_dot_i8x16_i7x16_s i32x4.relaxed_dot_i8x16_i7x16_add_s", 0xFD),
    # threads
    **_row(0x00, "memory.atomic.notify memory.atomic.wait32", 0xFE),
    **_row(0x10, "i32.atomic.load", 0xFE),
    **_row(0x17, "i32.atomic.store", 0xFE),
    **_row(0x1E, "i32.atomic.rmw.add", 0xFE),
    **_row(0x25, "i32.atomic.rmw.sub", 0xFE),
    **_row(0x41, "i32.atomic.rmw.xchg", 0xFE),
    **_row(0x48, "i32.atomic.rmw.cmpxchg", 0xFE),
}

_WIDTH = {"8": 0, "16": 1, "32": 2, "64": 3, "v128": 4, "i32": 2, "i64": 3, "f32": 2, "f64": 3}


def natural_align(name: str) -> int:
    """log2 of the bytes that a memory instruction touches."""
    kind, _, rest = name.partition(".")
    if "atomic" in name:
        return 2
    if "x8_" in rest or "x4_" in rest or "x2_" in rest:
        return 3
    digits = "".join(c for c in rest if c.isdigit())
    return _WIDTH[digits] if digits else _WIDTH[kind]


_ALIGN = {n: natural_align(n) for n in OPCODES if any(w in n for w in (".load", ".store", "atomic"))}


@dataclass(frozen=True, slots=True)
class MemoryImport:
    """``env.memory``; sizes in pages of 64 KiB."""

    minimum: int
    maximum: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Label:
    """A block to branch to: out of a block or if, back to the start of a loop."""

    depth: int


class Function:
    """A function in the making. Locals are numbered from the parameters on."""

    def __init__(self, index: int, params: Sequence[ValueType], results: Sequence[ValueType]) -> None:
        self.index, self.params, self.results = index, tuple(params), tuple(results)
        self.code = bytearray()
        self._locals: list[ValueType] = []
        self._depth = 0

    def local(self, kind: ValueType) -> int:
        """A new local's number; it is zero at first."""
        self._locals.append(kind)
        return len(self.params) + len(self._locals) - 1

    # --- instructions

    def op(self, name: str) -> None:
        """An instruction without immediates."""
        self.code += OPCODES[name]

    def get(self, local: int) -> None:
        self.code += b"\x20" + leb(local)

    def set(self, local: int) -> None:
        self.code += b"\x21" + leb(local)

    def tee(self, local: int) -> None:
        self.code += b"\x22" + leb(local)

    def global_get(self, number: int) -> None:
        self.code += b"\x23" + leb(number)

    def global_set(self, number: int) -> None:
        self.code += b"\x24" + leb(number)

    def i32(self, value: int) -> None:
        """A constant; unsigned values up to 2^32 - 1 are taken as their bits."""
        self.code += b"\x41" + sleb(value - (1 << 32) if value >= 1 << 31 else value)

    def i64(self, value: int) -> None:
        self.code += b"\x42" + sleb(value)

    def f32(self, value: float) -> None:
        self.code += b"\x43" + struct.pack("<f", value)

    def f64(self, value: float) -> None:
        self.code += b"\x44" + struct.pack("<d", value)

    def v128(self, data: bytes) -> None:
        """A constant of 16 bytes."""
        assert len(data) == 16
        self.code += OPCODES["v128.const"] + data

    def f32x4(self, value: float) -> None:
        """A constant in all four lanes."""
        self.v128(struct.pack("<f", value) * 4)

    def i32x4(self, value: int) -> None:
        """A constant in all four lanes."""
        self.v128((value & 0xFFFFFFFF).to_bytes(4, "little") * 4)

    def mem(self, name: str, offset: int = 0, align: int | None = None, lane: int | None = None) -> None:
        """A load, store or atomic; ``align`` is log2 of the bytes, natural by default (0 for v128)."""
        natural = _ALIGN[name]
        at = (0 if name.startswith("v128") else natural) if align is None else align
        self.code += OPCODES[name] + leb(at) + leb(offset)
        if lane is not None:
            self.code.append(lane)

    def lane(self, name: str, lane: int) -> None:
        """``extract_lane`` and ``replace_lane``."""
        self.code += OPCODES[name]
        self.code.append(lane)

    def shuffle(self, lanes: Sequence[int]) -> None:
        """Bytes of the two operands: 0-15 of the first, 16-31 of the second."""
        assert len(lanes) == 16
        self.code += OPCODES["i8x16.shuffle"] + bytes(lanes)

    def memory_copy(self) -> None:
        """(target, source, bytes)"""
        self.code += b"\xfc\x0a\x00\x00"

    def memory_fill(self) -> None:
        """(target, byte, bytes)"""
        self.code += b"\xfc\x0b\x00"

    def fence(self) -> None:
        self.code += b"\xfe\x03\x00"

    def call(self, function: Function) -> None:
        self.code += b"\x10" + leb(function.index)

    def call_indirect(self, type_index: int) -> None:
        """Through table 0."""
        self.code += b"\x11" + leb(type_index) + b"\x00"

    # --- control

    def br(self, label: Label) -> None:
        self.code += b"\x0c" + leb(self._depth - label.depth)

    def br_if(self, label: Label) -> None:
        self.code += b"\x0d" + leb(self._depth - label.depth)

    def br_table(self, labels: Sequence[Label], default: Label) -> None:
        self.code += b"\x0e" + leb(len(labels))
        for label in (*labels, default):
            self.code += leb(self._depth - label.depth)

    @contextmanager
    def block(self, result: ValueType | None = None) -> Iterator[Label]:
        yield from self._structured(0x02, result)

    @contextmanager
    def loop(self, result: ValueType | None = None) -> Iterator[Label]:
        yield from self._structured(0x03, result)

    @contextmanager
    def if_(self, result: ValueType | None = None) -> Iterator[Label]:
        yield from self._structured(0x04, result)

    def else_(self) -> None:
        self.code.append(0x05)

    def _structured(self, opcode: int, result: ValueType | None) -> Iterator[Label]:
        self.code += bytes([opcode, _TYPES[result] if result else _VOID])
        self._depth += 1
        yield Label(self._depth)
        self._depth -= 1
        self.code.append(0x0B)

    @contextmanager
    def for_range(self, counter: int, end: int, step: int = 1) -> Iterator[Label]:
        """``while counter < end`` (locals, signed): the body, then ``counter += step``. The label leaves the loop.
        The caller sets ``counter`` first."""
        with self.block() as done:
            with self.loop() as again:
                self.get(counter)
                self.get(end)
                self.op("i32.ge_s")
                self.br_if(done)
                yield done
                self.get(counter)
                self.i32(step)
                self.op("i32.add")
                self.set(counter)
                self.br(again)

    def body(self) -> bytes:
        """Locals, code, end; with its length in front."""
        groups: list[tuple[int, str]] = []
        for kind in self._locals:
            if groups and groups[-1][1] == kind:
                groups[-1] = (groups[-1][0] + 1, kind)
            else:
                groups.append((1, kind))
        head = leb(len(groups)) + b"".join(leb(n) + bytes([_TYPES[k]]) for n, k in groups)
        data = head + bytes(self.code) + b"\x0b"
        return leb(len(data)) + data


class Module:
    """A module with one imported memory, functions, i32 globals and at most one table."""

    def __init__(self, memory: MemoryImport | None = None) -> None:
        self.memory = memory
        self.functions: list[Function] = []
        self._types: dict[tuple[tuple[ValueType, ...], tuple[ValueType, ...]], int] = {}
        self._exports: list[tuple[str, Function]] = []
        self._globals: list[int] = []
        self._elements: list[Function] = []

    def type_index(self, params: Sequence[ValueType], results: Sequence[ValueType] = ()) -> int:
        return self._types.setdefault((tuple(params), tuple(results)), len(self._types))

    def function(
        self,
        params: Sequence[ValueType] = (),
        results: Sequence[ValueType] = (),
        export: str | None = None,
    ) -> Function:
        function = Function(len(self.functions), params, results)
        self.type_index(params, results)
        self.functions.append(function)
        if export is not None:
            self._exports.append((export, function))
        return function

    def global_i32(self, value: int = 0) -> int:
        """A mutable global's number."""
        self._globals.append(value)
        return len(self._globals) - 1

    def table_slot(self, function: Function) -> int:
        """The number of ``function`` in table 0."""
        self._elements.append(function)
        return len(self._elements) - 1

    def encode(self) -> bytes:
        """The module's bytes."""
        types = [_function_type(*key) for key in self._types]
        kinds = [leb(self._types[(f.params, f.results)]) for f in self.functions]
        out = b"\0asm\x01\0\0\0" + _section(1, types)
        if self.memory is not None:
            m = self.memory
            limits = bytes([3 if m.shared else 1]) + leb(m.minimum) + leb(m.maximum)
            out += _section(2, [_name("env") + _name("memory") + b"\x02" + limits])
        out += _section(3, kinds)
        if self._elements:
            count = leb(len(self._elements))
            out += _section(4, [b"\x70\x01" + count + count])
        if self._globals:
            out += _section(6, [b"\x7f\x01\x41" + sleb(v) + b"\x0b" for v in self._globals])
        out += _section(7, [_name(n) + b"\x00" + leb(f.index) for n, f in self._exports])
        if self._elements:
            indices = b"".join(leb(f.index) for f in self._elements)
            out += _section(9, [b"\x00\x41\x00\x0b" + leb(len(self._elements)) + indices])
        return out + _section(10, [f.body() for f in self.functions])


def _function_type(params: Sequence[ValueType], results: Sequence[ValueType]) -> bytes:
    def types(kinds: Sequence[ValueType]) -> bytes:
        return leb(len(kinds)) + bytes(_TYPES[k] for k in kinds)

    return b"\x60" + types(params) + types(results)


def _name(text: str) -> bytes:
    data = text.encode()
    return leb(len(data)) + data


def _section(number: int, items: Sequence[bytes]) -> bytes:
    if not items:
        return b""
    data = leb(len(items)) + b"".join(items)
    return bytes([number]) + leb(len(data)) + data

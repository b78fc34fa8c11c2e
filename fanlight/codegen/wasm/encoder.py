"""The lowest layer of WebAssembly: modules and functions → bytes. Knows no ML.

The format: https://webassembly.github.io/spec/core/binary. ``opcodes.py`` is the one list of
instructions. A function is written as stack code, or as expressions (``values.py``):

    module = Module(memory=MemoryImport(1, 65536, shared=False))
    f = module.function(params=("i32", "i32"), results=("i32",), export="add")
    f.get(0)
    f.get(1)
    f.op("i32.add")
    data = module.encode()

Blocks are context managers whose label can be branched to: ``with f.loop() as again: …;
f.br_if(again)``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fanlight.codegen.wasm.opcodes import OPCODES, TYPE_CODES, Type, leb

ValueType = Type
_VOID = 0x40


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


#: instruction → opcode bytes; immediates follow. The list itself is in ``opcodes.py``.
_CODES: dict[str, bytes] = {
    **{name: spec.code for name, spec in OPCODES.items()},
    "return": b"\x0f",
    "drop": b"\x1a",
    "select": b"\x1b",
}


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

    def __init__(
        self, index: int, params: Sequence[ValueType], results: Sequence[ValueType]
    ) -> None:
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
        self.code += _CODES[name]

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

    def v128(self, data: bytes) -> None:
        """A constant of 16 bytes."""
        assert len(data) == 16
        self.code += b"\xfd\x0c" + data

    def mem(
        self, name: str, offset: int = 0, align: int | None = None, lane: int | None = None
    ) -> None:
        """A load, store or atomic; ``align`` is log2 of the bytes, natural by default (0 for
        v128)."""
        natural = OPCODES[name].align
        assert natural >= 0, f"{name} touches no memory"
        at = (0 if name.startswith("v128") else natural) if align is None else align
        self.code += _CODES[name] + leb(at) + leb(offset)
        if lane is not None:
            self.code.append(lane)

    def lane(self, name: str, lane: int) -> None:
        """``extract_lane`` and ``replace_lane``."""
        self.code += _CODES[name]
        self.code.append(lane)

    def memory_copy(self) -> None:
        """(target, source, bytes)"""
        self.code += b"\xfc\x0a\x00\x00"

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
        self.code += bytes([opcode, TYPE_CODES[result] if result else _VOID])
        self._depth += 1
        yield Label(self._depth)
        self._depth -= 1
        self.code.append(0x0B)

    @contextmanager
    def for_range(self, counter: int, end: int, step: int = 1) -> Iterator[Label]:
        """``while counter < end`` (locals, signed): the body, then ``counter += step``. The label
        leaves the loop. The caller sets ``counter`` first."""
        with self.block() as done, self.loop() as again:
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
        groups: list[tuple[int, ValueType]] = []
        for kind in self._locals:
            if groups and groups[-1][1] == kind:
                groups[-1] = (groups[-1][0] + 1, kind)
            else:
                groups.append((1, kind))
        head = leb(len(groups)) + b"".join(leb(n) + bytes([TYPE_CODES[k]]) for n, k in groups)
        data = head + bytes(self.code) + b"\x0b"
        return leb(len(data)) + data


class Module:
    """A module with one imported memory, imported functions, functions, i32 globals and at most one
    table."""

    def __init__(self, memory: MemoryImport | None = None) -> None:
        self.memory = memory
        self.functions: list[Function] = []
        self._imported: list[str] = []
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

    def imported(self, name: str, params: Sequence[ValueType] = ()) -> Function:
        """``env.NAME``, to be called only. All of them come before the first function."""
        assert len(self.functions) == len(self._imported)
        self._imported.append(name)
        return self.function(params)

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
        outside = len(self._imported)
        env = _name("env")
        imports = [
            env + _name(n) + b"\x00" + kind for n, kind in zip(self._imported, kinds, strict=False)
        ]
        out = b"\0asm\x01\0\0\0" + _section(1, types)
        if self.memory is not None:
            m = self.memory
            limits = bytes([3 if m.shared else 1]) + leb(m.minimum) + leb(m.maximum)
            imports.append(env + _name("memory") + b"\x02" + limits)
        out += _section(2, imports)
        out += _section(3, kinds[outside:])
        if self._elements:
            count = leb(len(self._elements))
            out += _section(4, [b"\x70\x01" + count + count])
        if self._globals:
            out += _section(6, [b"\x7f\x01\x41" + sleb(v) + b"\x0b" for v in self._globals])
        out += _section(7, [_name(n) + b"\x00" + leb(f.index) for n, f in self._exports])
        if self._elements:
            indices = b"".join(leb(f.index) for f in self._elements)
            out += _section(9, [b"\x00\x41\x00\x0b" + leb(len(self._elements)) + indices])
        return out + _section(10, [f.body() for f in self.functions[outside:]])


def _function_type(params: Sequence[ValueType], results: Sequence[ValueType]) -> bytes:
    def types(kinds: Sequence[ValueType]) -> bytes:
        return leb(len(kinds)) + bytes(TYPE_CODES[k] for k in kinds)

    return b"\x60" + types(params) + types(results)


def _name(text: str) -> bytes:
    data = text.encode()
    return leb(len(data)) + data


def _section(number: int, items: Sequence[bytes]) -> bytes:
    if not items:
        return b""
    data = leb(len(items)) + b"".join(items)
    return bytes([number]) + leb(len(data)) + data

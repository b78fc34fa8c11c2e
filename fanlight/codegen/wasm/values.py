"""WebAssembly code as expressions, over the encoder's stack code. Knows no ML.

A ``Value`` is code that pushes one number; nothing happens until a statement uses it, and it runs
each time it is used (``w.let`` keeps its result). Plain numbers stand for constants. y += a * x:

    w = Writer(function)                         # of parameters x, y (i32), a (f32), n (i32)
    x, y, a, n = w.params
    a4 = w.let(op("f32x4.splat", a))
    with w.for_range(0, n, 4) as i:              # while i < n, signed
        product = op("f32x4.mul", a4, op("v128.load", x + (i << 2)))
        at = w.let(y + (i << 2))
        w.do("v128.store", at, op("f32x4.add", op("v128.load", at), product))

Instructions have the specification's names; operands are checked against ``opcodes.py``.
``align`` is in bytes and a hint only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias, Union

from fanlight.codegen.wasm.encoder import Function, Label, sleb
from fanlight.codegen.wasm.opcodes import OPCODES, Type, leb


class Value:
    """Code that pushes one number of ``kind``. Operators are those of its kind (no v128); signed
    ``>>``, ``<``."""

    __slots__ = ("code", "kind")

    def __init__(self, kind: Type, code: bytes) -> None:
        self.kind, self.code = kind, code

    def __add__(self, other: Operand) -> Value:
        return op(f"{self.kind}.add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return op(f"{self.kind}.sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return op(f"{self.kind}.mul", self, other)

    def __and__(self, other: Operand) -> Value:
        return op(f"{self.kind}.and", self, other)

    def __or__(self, other: Operand) -> Value:
        return op(f"{self.kind}.or", self, other)

    def __lshift__(self, other: Operand) -> Value:
        return op(f"{self.kind}.shl", self, other)

    def __rshift__(self, other: Operand) -> Value:
        return op(f"{self.kind}.shr_s", self, other)

    def __lt__(self, other: Operand) -> Value:
        return op(f"{self.kind}.lt_s" if self.kind[0] == "i" else f"{self.kind}.lt", self, other)


class Local(Value):
    """A parameter or variable; as a value, its content."""

    __slots__ = ("index",)

    def __init__(self, kind: Type, index: int) -> None:
        super().__init__(kind, b"\x20" + leb(index))
        self.index = index


Operand: TypeAlias = Union[Value, int, float]


def i32(value: int) -> Value:
    """A constant from -2**31 to 2**32 - 1."""
    assert -(1 << 31) <= value < 1 << 32, value
    return Value("i32", b"\x41" + sleb(value - (1 << 32) if value >= 1 << 31 else value))


def i64(value: int) -> Value:
    """A constant from -2**63 to 2**64 - 1."""
    assert -(1 << 63) <= value < 1 << 64, value
    return Value("i64", b"\x42" + sleb(value - (1 << 64) if value >= 1 << 63 else value))


def f64(value: float) -> Value:
    return Value("f64", b"\x44" + struct.pack("<d", value))


def f32(value: float) -> Value:
    return Value("f32", b"\x43" + _f32_bytes(value))


def f32x4(value: float) -> Value:
    """A constant in all lanes."""
    return Value("v128", b"\xfd\x0c" + _f32_bytes(value) * 4)


def i32x4(*lanes: int) -> Value:
    """A constant; one number stands for all lanes."""
    data = b"".join((x & 0xFFFFFFFF).to_bytes(4, "little") for x in lanes)
    return Value("v128", b"\xfd\x0c" + (data * 4 if len(lanes) == 1 else data))


def _f32_bytes(value: float) -> bytes:
    """The nearest f32; infinity where there is none."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _constant(value: float, kind: Type) -> bytes:
    match kind:
        case "i32":
            return i32(int(value)).code
        case "i64":
            return i64(int(value)).code
        case "f32":
            return f32(value).code
        case "f64":
            return f64(value).code
    raise AssertionError("a number is no v128")


def code_of(operand: Operand, kind: Type) -> bytes:
    """Code that pushes ``operand`` as ``kind``."""
    if isinstance(operand, Value):
        assert operand.kind == kind, f"{operand.kind} where {kind} is wanted"
        return operand.code
    return _constant(operand, kind)


def _instruction(
    name: str, operands: tuple[Operand, ...], offset: int, align: int | None, lane: int | None
) -> tuple[bytes, Type | None]:
    spec = OPCODES[name]
    assert len(operands) == len(spec.operands), f"{name} takes {spec.operands}"
    assert spec.lane == (lane is not None), f"{name}: lane"
    code = b""
    for operand, kind in zip(operands, spec.operands, strict=True):
        code += code_of(operand, kind)
    code += spec.code
    if spec.align >= 0:
        hint = spec.align if align is None else min(spec.align, align.bit_length() - 1)
        code += bytes((hint,)) + leb(offset)
    if lane is not None:
        code += bytes((lane,))
    return code, spec.result


def op(
    name: str,
    *operands: Operand,
    offset: int = 0,
    align: int | None = None,
    lane: int | None = None,
) -> Value:
    """The result of instruction ``name``; ``offset`` and ``align`` (bytes) are for loads."""
    code, result = _instruction(name, operands, offset, align, lane)
    assert result is not None, f"{name} has no result"
    return Value(result, code)


def shuffle(a: Value, b: Value, *lanes: int) -> Value:
    """``i8x16.shuffle``: 16 numbers of bytes, those of ``b`` from 16."""
    assert len(lanes) == 16
    return Value("v128", code_of(a, "v128") + code_of(b, "v128") + b"\xfd\x0d" + bytes(lanes))


def select(condition: Value, a: Value, b: Operand) -> Value:
    """``a`` where the i32 ``condition`` is not 0; both are computed. No v128."""
    assert a.kind != "v128"
    code = a.code + code_of(b, a.kind) + code_of(condition, "i32")
    return Value(a.kind, code + b"\x1b")


class Writer:
    """Statements of ``function``."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.params = tuple(Local(k, i) for i, k in enumerate(function.params))

    def local(self, kind: Type) -> Local:
        """A new variable; zero at the function's start."""
        return Local(kind, self.function.local(kind))

    def let(self, value: Value) -> Local:
        """A new variable with the value of now."""
        local = self.local(value.kind)
        self.set(local, value)
        return local

    def set(self, local: Local, value: Operand) -> None:
        self.function.code += code_of(value, local.kind) + b"\x21" + leb(local.index)

    def do(
        self,
        name: str,
        *operands: Operand,
        offset: int = 0,
        align: int | None = None,
        lane: int | None = None,
    ) -> None:
        """An instruction without a result: stores."""
        code, result = _instruction(name, operands, offset, align, lane)
        assert result is None, f"{name} has a result"
        self.function.code += code

    def push(self, value: Value) -> None:
        """Leaves it on the stack: the function's result, last of all."""
        self.function.code += value.code

    def return_if(self, condition: Value) -> None:
        self.function.code += code_of(condition, "i32")
        with self.function.if_():
            self.function.op("return")

    def br_if(self, label: Label, condition: Value) -> None:
        self.function.code += code_of(condition, "i32")
        self.function.br_if(label)

    @contextmanager
    def if_(self, condition: Value) -> Iterator[None]:
        self.function.code += code_of(condition, "i32")
        with self.function.if_():
            yield

    @contextmanager
    def while_(self, condition: Value) -> Iterator[None]:
        """The condition runs before each turn."""
        with self.if_(condition), self.function.loop() as again:
            yield
            self.br_if(again, condition)

    @contextmanager
    def for_range(
        self, start: Operand, end: Operand, step: int = 1, local: Local | None = None
    ) -> Iterator[Local]:
        """While ``local`` (a new i32) is below ``end``, signed. ``end`` is computed once; a local
        must not change. Afterwards the local is ``end`` or the first value above it."""
        i = local or self.local("i32")
        self.set(i, start)
        limit = self.let(end) if isinstance(end, Value) and not isinstance(end, Local) else end
        with self.while_(i < limit):
            yield i
            self.set(i, i + step)

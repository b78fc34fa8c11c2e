"""The loop IR's functions, casts, loads and stores: of one number, and of four in a v128.

Numbers are f32 or i32 (u32 and bool too; true is 1), lanes f32x4 or i32x4 (true is all ones). Both
forms give the same bits. Nothing here knows loops or axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fanlight.codegen.wasm import math
from fanlight.codegen.wasm.opcodes import Type
from fanlight.codegen.wasm.values import (
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
from fanlight.kernels.loops import Const, Scalar

STACK: dict[Scalar, Type] = {"f32": "f32", "i32": "i32", "u32": "i32", "bool": "i32"}
_F32 = {n: n for n in "add sub mul div max min abs neg sqrt floor ceil eq ne lt le gt ge".split()}
_F32["round"] = "nearest"
_INTEGER = {n: n for n in "add sub mul div eq ne lt le gt ge".split()}
_INTEGER["mod"] = "rem"
_SIGNED = frozenset("lt le gt ge max min".split())
_LANES = frozenset("add sub mul neg abs max min eq ne lt le gt ge".split())
_BITS = {"and": "and", "or": "or", "max": "or", "min": "and", "ne": "xor"}
_BITS |= {"add": "or", "mul": "and"}  # as in numpy


def constant(expr: Const) -> Value:
    return f32(float(expr.value)) if expr.type == "f32" else i32(int(expr.value))


def constants(expr: Const) -> Value:
    if expr.type == "f32":
        return f32x4(float(expr.value))
    return i32x4(-int(expr.value) if expr.type == "bool" else int(expr.value))


def splat(value: Value, kind: Scalar) -> Value:
    """A number in all lanes."""
    if kind == "f32":
        return op("f32x4.splat", value)
    return op("i32x4.splat", op("i32.sub", 0, value) if kind == "bool" else value)


def lane(value: Value, kind: Scalar, number: int) -> Value:
    """One of the lanes."""
    if kind == "f32":
        return op("f32x4.extract_lane", value, lane=number)
    found = op("i32x4.extract_lane", value, lane=number)
    return op("i32.and", found, 1) if kind == "bool" else found


# --- functions


def function(w: Writer, name: str, args: list[Value], kind: Scalar) -> Value:
    """``name`` of numbers; ``kind`` is the last argument's."""
    if name == "where":
        return select(args[0], args[1], args[2])
    if kind == "bool":
        return _bool(name, args)
    if kind == "f32":
        return _float(w, name, args)
    if name == "neg":
        return op("i32.sub", 0, args[0])
    if name == "abs":
        x = args[0]
        return x if kind == "u32" else select(op("i32.lt_s", x, 0), op("i32.sub", 0, x), x)
    sign = "_s" if kind == "i32" else "_u"
    a, b = args
    if name in ("max", "min"):
        return select(op(f"i32.{'gt' if name == 'max' else 'lt'}{sign}", a, b), a, b)
    if name in ("div", "mod"):
        return _divide(name, a, b, sign)
    instruction = _INTEGER[name]
    return op(f"i32.{instruction}{sign if instruction in _SIGNED else ''}", a, b)


def _divide(name: str, a: Value, b: Value, sign: str) -> Value:
    """Of what would trap: x / 0 is x, x % 0 is 0, x / -1 is -x."""
    if b.code[:1] == b"\x41" and b.code not in (b"\x41\x00", b"\x41\x7f"):  # a constant
        return op(f"i32.{_INTEGER[name]}{sign}", a, b)
    divisor = select(b, b, 1)
    if name == "mod" or sign == "_u":
        return op(f"i32.{_INTEGER[name]}{sign}", a, divisor)
    minus = op("i32.eq", b, -1)
    quotient = op("i32.div_s", a, select(minus, i32(1), divisor))
    return select(minus, op("i32.sub", 0, a), quotient)


def _bool(name: str, args: list[Value]) -> Value:
    if name == "not":
        return op("i32.eqz", args[0])
    if name in _BITS:
        return op(f"i32.{_BITS[name]}", *args)
    return op(f"i32.{_INTEGER[name]}{'_u' if name in _SIGNED else ''}", *args)


def _float(w: Writer, name: str, args: list[Value]) -> Value:
    if name in _F32:
        return op(f"f32.{_F32[name]}", *args)
    if name == "recip":
        return op("f32.div", 1.0, args[0])
    if name == "rsqrt":
        return op("f32.div", 1.0, op("f32.sqrt", args[0]))
    lanes = functions(w, name, [op("f32x4.splat", a) for a in args], "f32")
    return op("f32x4.extract_lane", lanes, lane=0)


def functions(w: Writer, name: str, args: list[Value], kind: Scalar) -> Value:
    """``name`` of lanes."""
    if name == "where":
        return op("v128.bitselect", args[1], args[2], args[0])
    if kind == "bool":
        return _bools(name, args)
    if kind == "f32":
        return _floats(w, name, args)
    if name in _LANES:
        if name == "abs" and kind == "u32":
            return args[0]
        sign = ("_s" if kind == "i32" else "_u") if name in _SIGNED else ""
        return op(f"i32x4.{name}{sign}", *args)
    kept = [w.let(a) for a in args]
    parts = [function(w, name, [w.let(lane(a, kind, n)) for a in kept], kind) for n in range(4)]
    return joined(parts)


def _bools(name: str, args: list[Value]) -> Value:
    if name == "not":
        return op("v128.not", args[0])
    if name in _BITS:
        return op(f"v128.{_BITS[name]}", *args)
    if name == "eq":
        return op("i32x4.eq", *args)
    # As -1 is true, the order is the other way round.
    turned = {"lt": "gt_s", "le": "ge_s", "gt": "lt_s", "ge": "le_s"}[name]
    return op(f"i32x4.{turned}", *args)


def _floats(w: Writer, name: str, args: list[Value]) -> Value:
    if name in _F32:
        return op(f"f32x4.{_F32[name]}", *args)
    if name == "recip":
        return op("f32x4.div", f32x4(1.0), args[0])
    if name == "rsqrt":
        return op("f32x4.div", f32x4(1.0), op("f32x4.sqrt", args[0]))
    if name in math.UNARY:
        return math.UNARY[name](w, args[0])
    return math.BINARY[name](w, args[0], args[1])


def shift(name: str, value: Value, bits: int) -> Value:
    """``div`` or ``mod`` of numbers that are not negative by 2 ** ``bits``."""
    return op("i32.shr_u", value, bits) if name == "div" else value & ((1 << bits) - 1)


def shifts(name: str, value: Value, bits: int) -> Value:
    """``shift`` of lanes."""
    if name == "div":
        return op("i32x4.shr_u", value, bits)
    return op("v128.and", value, i32x4((1 << bits) - 1))


def joined(parts: list[Value]) -> Value:
    """Four i32 as lanes."""
    out = op("i32x4.splat", parts[0])
    for number, part in enumerate(parts[1:], 1):
        out = op("i32x4.replace_lane", out, part, lane=number)
    return out


# --- casts


def cast(value: Value, source: Scalar, target: Scalar) -> Value:
    if source == target or {source, target} == {"i32", "u32"}:
        return value
    if target == "bool":
        return op("f32.ne", value, 0.0) if source == "f32" else op("i32.ne", value, 0)
    if target == "f32":
        return op(f"f32.convert_i32_{'u' if source == 'u32' else 's'}", value)
    if source == "f32":
        return op(f"i32.trunc_sat_f32_{'u' if target == 'u32' else 's'}", value)
    return value  # bool is 0 or 1


def casts(value: Value, source: Scalar, target: Scalar) -> Value:
    if source == target or {source, target} == {"i32", "u32"}:
        return value
    if target == "bool":
        if source == "f32":
            return op("f32x4.ne", value, f32x4(0.0))
        return op("i32x4.ne", value, i32x4(0))
    if source == "bool":
        return op("v128.and", value, f32x4(1.0) if target == "f32" else i32x4(1))
    if target == "f32":
        return op(f"f32x4.convert_i32x4_{'u' if source == 'u32' else 's'}", value)
    return op(f"i32x4.trunc_sat_f32x4_{'u' if target == 'u32' else 's'}", value)


# --- memory


@dataclass(frozen=True, slots=True)
class Access:
    """How elements of one dtype lie in memory. ``decode`` and ``encode``: bits ↔ values."""

    shift: int  # log2 of the bytes
    load: str
    store: str
    decode: Callable[[Writer, Value], Value]
    encode: Callable[[Writer, Value], Value]


def _as_is(w: Writer, value: Value) -> Value:
    return value


def _not_zero(w: Writer, value: Value) -> Value:
    return op("i32x4.ne", value, i32x4(0))


def _one(w: Writer, value: Value) -> Value:
    return op("v128.and", value, i32x4(1))


#: dtype → its access; the dtypes of ``kernels.loops.SCALAR``
ACCESS: dict[str, Access] = {
    "f32": Access(2, "f32.load", "f32.store", _as_is, _as_is),
    "i32": Access(2, "i32.load", "i32.store", _as_is, _as_is),
    "u32": Access(2, "i32.load", "i32.store", _as_is, _as_is),
    "f16": Access(1, "i32.load16_u", "i32.store16", math.from_f16, math.to_f16),
    "bf16": Access(1, "i32.load16_u", "i32.store16", math.from_bf16, math.to_bf16),
    "i8": Access(0, "i32.load8_s", "i32.store8", _as_is, _as_is),
    "u8": Access(0, "i32.load8_u", "i32.store8", _as_is, _as_is),
    "bool": Access(0, "i32.load8_u", "i32.store8", _not_zero, _one),
}


def load(w: Writer, dtype: str, address: Value) -> Value:
    """One element."""
    bits = op(ACCESS[dtype].load, address)
    if dtype == "bool":
        return op("i32.ne", bits, 0)
    if dtype in ("f16", "bf16"):
        lanes = ACCESS[dtype].decode(w, op("i32x4.splat", bits))
        return op("f32x4.extract_lane", lanes, lane=0)
    return bits


def load_row(w: Writer, dtype: str, address: Value) -> Value:
    """Four neighbours."""
    access = ACCESS[dtype]
    if access.shift == 2:
        return op("v128.load", address, align=4)
    if access.shift == 1:
        return access.decode(w, op("v128.load16x4_u", address, align=2))
    sign = "s" if dtype == "i8" else "u"
    words = op(f"i16x8.extend_low_i8x16_{sign}", op("v128.load32_zero", address, align=1))
    return access.decode(w, op(f"i32x4.extend_low_i16x8_{sign}", words))


def load_each(w: Writer, dtype: str, addresses: list[Value]) -> Value:
    """Four elements from anywhere."""
    access = ACCESS[dtype]
    if access.shift == 2:
        out = op("v128.load32_zero", addresses[0])
        for number, address in enumerate(addresses[1:], 1):
            kept = w.let(out)
            out = op("v128.load32_lane", address, kept, lane=number)
        return out
    return access.decode(w, joined([op(access.load, a) for a in addresses]))


def store(w: Writer, dtype: str, address: Value, value: Value) -> None:
    """One element."""
    if dtype in ("f16", "bf16"):
        lanes = ACCESS[dtype].encode(w, op("f32x4.splat", value))
        value = op("i32x4.extract_lane", lanes, lane=0)
    w.do(ACCESS[dtype].store, address, value)


def store_row(w: Writer, dtype: str, address: Value, value: Value) -> None:
    """Four neighbours."""
    access = ACCESS[dtype]
    if access.shift == 2:
        w.do("v128.store", address, value, align=4)
        return
    bits = w.let(access.encode(w, value))
    if access.shift == 1:
        packed = shuffle(bits, bits, 0, 1, 4, 5, 8, 9, 12, 13, *range(8))
        w.do("v128.store64_lane", address, packed, align=2, lane=0)
    else:
        packed = shuffle(bits, bits, 0, 4, 8, 12, *range(12))
        w.do("v128.store32_lane", address, packed, align=1, lane=0)


# --- reductions


def combine(kind: str) -> str:
    """The function that a reduction of ``kind`` repeats."""
    return "add" if kind == "sum" else kind


def neutral(kind: str, scalar: Scalar) -> Const:
    """What a reduction starts from."""
    if kind == "sum":
        return Const(0, scalar)
    low = kind == "max"
    if scalar == "f32":
        return Const(float("-inf") if low else float("inf"), "f32")
    limits = {"i32": (-(1 << 31), (1 << 31) - 1), "u32": (0, (1 << 32) - 1), "bool": (0, 1)}
    return Const(limits[scalar][0 if low else 1], scalar)

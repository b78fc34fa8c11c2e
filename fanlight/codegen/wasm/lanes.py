"""The loop IR's functions, casts and constants of four 32-bit numbers in a v128.

Lanes are f32x4 or i32x4 (u32 and bool too; true is all ones). The bits are those of
``scalars.py``. Nothing here knows loops or axes.
"""

from __future__ import annotations

from fanlight.codegen.wasm import math
from fanlight.codegen.wasm.scalars import BITS, FLOAT, SIGNED, function
from fanlight.codegen.wasm.values import Value, Writer, f32x4, i32x4, op
from fanlight.kernels.loops import Const, Scalar

_WHOLE = {"bitand": "and", "bitor": "or", "bitxor": "xor"}
_LANES = frozenset("add sub mul neg abs max min eq ne lt le gt ge".split())


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
        sign = ("_s" if kind == "i32" else "_u") if name in SIGNED else ""
        return op(f"i32x4.{name}{sign}", *args)
    if name in _WHOLE:
        return op(f"v128.{_WHOLE[name]}", *args)
    if name == "bitnot":
        return op("v128.not", args[0])
    if name == "sign":
        if kind == "u32":
            return op("v128.and", op("i32x4.ne", args[0], i32x4(0)), i32x4(1))
        x, zero = args[0], i32x4(0)
        return op("i32x4.sub", op("i32x4.lt_s", x, zero), op("i32x4.gt_s", x, zero))
    if name in ("shl", "shr"):
        bits = _known(args[1])
        if bits is not None and 0 <= bits < 32:
            sign = "" if name == "shl" else "_s" if kind == "i32" else "_u"
            return op(f"i32x4.{name}{sign}", args[0], bits)
    kept = [w.let(a) for a in args]
    parts = [function(w, name, [w.let(lane(a, kind, n)) for a in kept], kind) for n in range(4)]
    return joined(parts)


def _bools(name: str, args: list[Value]) -> Value:
    if name == "not":
        return op("v128.not", args[0])
    if name in BITS:
        return op(f"v128.{BITS[name]}", *args)
    if name == "eq":
        return op("i32x4.eq", *args)
    # As -1 is true, the order is the other way round.
    turned = {"lt": "gt_s", "le": "ge_s", "gt": "lt_s", "ge": "le_s"}[name]
    return op(f"i32x4.{turned}", *args)


def _floats(w: Writer, name: str, args: list[Value]) -> Value:
    if name in FLOAT:
        return op(f"f32x4.{FLOAT[name]}", *args)
    if name == "recip":
        return op("f32x4.div", f32x4(1.0), args[0])
    if name == "rsqrt":
        return op("f32x4.div", f32x4(1.0), op("f32x4.sqrt", args[0]))
    x = args[0]
    if name == "isnan":
        return op("f32x4.ne", x, x)
    if name == "isinf":
        return op("f32x4.eq", op("f32x4.abs", x), f32x4(float("inf")))
    if name == "sign":
        one, zero = f32x4(1.0), f32x4(0.0)
        above = op("v128.and", op("f32x4.gt", x, zero), one)
        below = op("v128.and", op("f32x4.lt", x, zero), one)
        return math.pick(op("f32x4.eq", x, x), op("f32x4.sub", above, below), x)
    if name in math.UNARY:
        return math.UNARY[name](w, args[0])
    return math.BINARY[name](w, args[0], args[1])


def _known(value: Value) -> int | None:
    """The number that is in all lanes of a constant; None of all else."""
    code, prefix = value.code, b"\xfd\x0c"
    if len(code) == 18 and code[:2] == prefix and code[2:] == code[2:6] * 4:
        return int.from_bytes(code[2:6], "little", signed=True)
    return None


def shifts(name: str, value: Value, bits: int) -> Value:
    """``scalars.shift`` of lanes."""
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

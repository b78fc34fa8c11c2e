"""The loop IR's functions, casts and constants of one number, of every scalar type.

Numbers are f32, f64, i32 (u32 and bool too; true is 1) and i64 (u64 too). Nothing traps: integers
divided by 0 give 0, conversions from floats saturate. ``lanes.py`` has four 32-bit numbers at a
time, with the same bits.
"""

from __future__ import annotations

from fanlight.codegen.wasm import math, math64
from fanlight.codegen.wasm.opcodes import Type
from fanlight.codegen.wasm.values import Value, Writer, f32, f64, i32, i64, op, select
from fanlight.kernels.loops import Const, Scalar

STACK: dict[Scalar, Type] = {
    "f32": "f32",
    "f64": "f64",
    "i32": "i32",
    "u32": "i32",
    "i64": "i64",
    "u64": "i64",
    "bool": "i32",
}
FLOAT = {n: n for n in "add sub mul div max min abs neg sqrt floor ceil eq ne lt le gt ge".split()}
FLOAT["round"] = "nearest"
INTEGER = {n: n for n in "add sub mul div eq ne lt le gt ge".split()}
INTEGER |= {"mod": "rem", "bitand": "and", "bitor": "or", "bitxor": "xor"}
SIGNED = frozenset("lt le gt ge max min".split())
BITS = {"and": "and", "or": "or", "max": "or", "min": "and", "ne": "xor"}
BITS |= {"add": "or", "mul": "and"}  # as in numpy


def constant(expr: Const) -> Value:
    match STACK[expr.type]:
        case "f32":
            return f32(float(expr.value))
        case "f64":
            return f64(float(expr.value))
        case "i64":
            return i64(int(expr.value))
    return i32(int(expr.value))


# --- functions


def function(w: Writer, name: str, args: list[Value], kind: Scalar) -> Value:
    """``name`` of numbers; ``kind`` is the last argument's."""
    if name == "where":
        return select(args[0], args[1], args[2])
    if kind == "bool":
        return _bool(name, args)
    if kind in ("f32", "f64"):
        return _float(w, name, args)
    if len(args) == 1:
        return _of_one(name, args[0], kind)
    a, b = args
    p, sign = STACK[kind], "_s" if kind in ("i32", "i64") else "_u"
    if name in ("max", "min"):
        return select(op(f"{p}.{'gt' if name == 'max' else 'lt'}{sign}", a, b), a, b)
    if name in ("div", "mod"):
        return _divide(p, name, a, b, sign)
    if name in ("shl", "shr"):
        return _shifted(p, name, a, b, sign)
    instruction = INTEGER[name]
    return op(f"{p}.{instruction}{sign if instruction in SIGNED else ''}", a, b)


def _of_one(name: str, x: Value, kind: Scalar) -> Value:
    """Functions of one integer."""
    p, unsigned = STACK[kind], kind in ("u32", "u64")
    if name == "neg":
        return op(f"{p}.sub", 0, x)
    if name == "bitnot":
        return op(f"{p}.xor", x, -1)
    if name == "abs":
        return x if unsigned else select(op(f"{p}.lt_s", x, 0), op(f"{p}.sub", 0, x), x)
    assert name == "sign", name
    if unsigned:
        return cast(op(f"{p}.ne", x, 0), "bool", kind)
    whole = op("i32.sub", op(f"{p}.gt_s", x, 0), op(f"{p}.lt_s", x, 0))
    return cast(whole, "i32", kind)


def known(value: Value) -> int | None:
    """The number that a constant integer is; None of all else."""
    code = value.code
    if code[0] not in (0x41, 0x42) or code[-1] & 0x80 or not all(c & 0x80 for c in code[1:-1]):
        return None
    number = sum((c & 0x7F) << 7 * i for i, c in enumerate(code[1:]))
    return number - (1 << 7 * (len(code) - 1)) if code[-1] & 0x40 else number


def _divide(p: Type, name: str, a: Value, b: Value, sign: str) -> Value:
    """Of what would trap: x / 0 and x % 0 are 0, x / -1 is -x."""
    instruction = f"{p}.{INTEGER[name]}{sign}"
    if known(b) not in (None, 0, -1):
        return op(instruction, a, b)
    some = op(f"{p}.ne", b, 0)
    divisor = select(some, b, 1)
    if name == "mod":
        return op(instruction, a, divisor)
    if sign == "_u":
        return select(some, op(instruction, a, divisor), 0)
    minus = op(f"{p}.eq", b, -1)
    one = i32(1) if p == "i32" else i64(1)
    quotient = select(some, op(instruction, a, select(minus, one, divisor)), 0)
    return select(minus, op(f"{p}.sub", 0, a), quotient)


def _shifted(p: Type, name: str, x: Value, by: Value, sign: str) -> Value:
    """By as many bits as there are, or more: 0; -1 of negative numbers to the right."""
    last = 31 if p == "i32" else 63
    inside = op(f"{p}.le_u", by, last)
    if name == "shr" and sign == "_s":
        return op(f"{p}.shr_s", x, select(inside, by, last))
    return select(inside, op(f"{p}.shl" if name == "shl" else f"{p}.shr_u", x, by), 0)


def _bool(name: str, args: list[Value]) -> Value:
    if name == "not":
        return op("i32.eqz", args[0])
    if name in BITS:
        return op(f"i32.{BITS[name]}", *args)
    return op(f"i32.{INTEGER[name]}{'_u' if name in SIGNED else ''}", *args)


def _float(w: Writer, name: str, args: list[Value]) -> Value:
    x, p = args[0], args[0].kind
    if name in FLOAT:
        return op(f"{p}.{FLOAT[name]}", *args)
    match name:
        case "recip":
            return op(f"{p}.div", 1.0, x)
        case "rsqrt":
            return op(f"{p}.div", 1.0, op(f"{p}.sqrt", x))
        case "isnan":
            return op(f"{p}.ne", x, x)
        case "isinf":
            return op(f"{p}.eq", op(f"{p}.abs", x), float("inf"))
        case "sign":
            whole = op("i32.sub", op(f"{p}.gt", x, 0.0), op(f"{p}.lt", x, 0.0))
            return select(op(f"{p}.eq", x, x), op(f"{p}.convert_i32_s", whole), x)
    if p == "f64":
        unary, binary = math64.UNARY, math64.BINARY
    else:
        unary, binary = math.UNARY, math.BINARY
        args = [op("f32x4.splat", a) for a in args]
    found = unary[name](w, args[0]) if name in unary else binary[name](w, *args)
    return found if p == "f64" else op("f32x4.extract_lane", found, lane=0)


def shift(name: str, value: Value, bits: int) -> Value:
    """``div`` or ``mod`` of i32 that are not negative by 2 ** ``bits``."""
    return op("i32.shr_u", value, bits) if name == "div" else value & ((1 << bits) - 1)


# --- casts


def cast(value: Value, source: Scalar, target: Scalar) -> Value:
    """To bool: not zero. Floats to integers: toward zero, at most the largest, of NaN 0."""
    p, q = STACK[source], STACK[target]
    if source == target:
        return value
    if target == "bool":
        return op(f"{p}.ne", value, 0)
    if p == q:
        return value
    sign = "_s" if source in ("i32", "i64") else "_u"
    if q in ("f32", "f64"):
        if p in ("f32", "f64"):
            return op("f32.demote_f64" if q == "f32" else "f64.promote_f32", value)
        return op(f"{q}.convert_{p}{sign}", value)
    if p in ("f32", "f64"):
        return op(f"{q}.trunc_sat_{p}{'_u' if target in ('u32', 'u64') else '_s'}", value)
    return op("i32.wrap_i64", value) if q == "i32" else op(f"i64.extend_i32{sign}", value)


# --- reductions


def combine(kind: str) -> str:
    """The function that a reduction of ``kind`` repeats."""
    return {"sum": "add", "prod": "mul"}.get(kind, kind)


_LIMITS: dict[Scalar, tuple[float, float]] = {
    "f32": (float("-inf"), float("inf")),
    "f64": (float("-inf"), float("inf")),
    "i32": (-(1 << 31), (1 << 31) - 1),
    "u32": (0, (1 << 32) - 1),
    "i64": (-(1 << 63), (1 << 63) - 1),
    "u64": (0, (1 << 64) - 1),
    "bool": (0, 1),
}


def neutral(kind: str, scalar: Scalar) -> Const:
    """What a reduction starts from, and gives of nothing."""
    if kind in ("sum", "prod"):
        return Const(0 if kind == "sum" else 1, scalar)
    return Const(_LIMITS[scalar][0 if kind == "max" else 1], scalar)

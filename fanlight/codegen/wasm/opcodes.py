"""WebAssembly's instructions with operands on the stack: one table, keyed by the specification.

From the core specification 3.0 (numeric, memory, SIMD, relaxed SIMD) and the threads proposal.
Control flow, locals, globals, calls and constants have immediates of their own: ``encoder.py``
emits them.

A line of the text: the first code (hexadecimal, or decimal after ``simd``/``bulk``/``atomic``),
the signature, and the names that take consecutive codes from there. In a signature ``i I f F v``
are i32, i64, f32, f64 and v128; operands stand before the colon, the result after it. Memory
instructions have ``@``; each name is followed by ``:`` and the log2 of its natural alignment.
``#`` marks a lane index among the immediates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Type = Literal["i32", "i64", "f32", "f64", "v128"]

TYPES: dict[str, Type] = {"i": "i32", "I": "i64", "f": "f32", "F": "f64", "v": "v128"}
TYPE_CODES: dict[Type, int] = {"i32": 0x7F, "i64": 0x7E, "f32": 0x7D, "f64": 0x7C, "v128": 0x7B}

_TEXT = """
28 i:i@ i32.load:2
29 i:I@ i64.load:3
2a i:f@ f32.load:2
2b i:F@ f64.load:3
2c i:i@ i32.load8_s:0 i32.load8_u:0 i32.load16_s:1 i32.load16_u:1
30 i:I@ i64.load8_s:0 i64.load8_u:0 i64.load16_s:1 i64.load16_u:1 i64.load32_s:2 i64.load32_u:2
36 ii:@ i32.store:2
37 iI:@ i64.store:3
38 if:@ f32.store:2
39 iF:@ f64.store:3
3a ii:@ i32.store8:0 i32.store16:1
3c iI:@ i64.store8:0 i64.store16:1 i64.store32:2
45 i:i i32.eqz
46 ii:i i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u i32.ge_s i32.ge_u
50 I:i i64.eqz
51 II:i i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u i64.le_s i64.le_u i64.ge_s i64.ge_u
5b ff:i f32.eq f32.ne f32.lt f32.gt f32.le f32.ge
61 FF:i f64.eq f64.ne f64.lt f64.gt f64.le f64.ge
67 i:i i32.clz i32.ctz i32.popcnt
6a ii:i i32.add i32.sub i32.mul i32.div_s i32.div_u i32.rem_s i32.rem_u i32.and i32.or i32.xor
74 ii:i i32.shl i32.shr_s i32.shr_u i32.rotl i32.rotr
79 I:I i64.clz i64.ctz i64.popcnt
7c II:I i64.add i64.sub i64.mul i64.div_s i64.div_u i64.rem_s i64.rem_u i64.and i64.or i64.xor
86 II:I i64.shl i64.shr_s i64.shr_u i64.rotl i64.rotr
8b f:f f32.abs f32.neg f32.ceil f32.floor f32.trunc f32.nearest f32.sqrt
92 ff:f f32.add f32.sub f32.mul f32.div f32.min f32.max f32.copysign
99 F:F f64.abs f64.neg f64.ceil f64.floor f64.trunc f64.nearest f64.sqrt
a0 FF:F f64.add f64.sub f64.mul f64.div f64.min f64.max f64.copysign
a7 I:i i32.wrap_i64
a8 f:i i32.trunc_f32_s i32.trunc_f32_u
aa F:i i32.trunc_f64_s i32.trunc_f64_u
ac i:I i64.extend_i32_s i64.extend_i32_u
ae f:I i64.trunc_f32_s i64.trunc_f32_u
b0 F:I i64.trunc_f64_s i64.trunc_f64_u
b2 i:f f32.convert_i32_s f32.convert_i32_u
b4 I:f f32.convert_i64_s f32.convert_i64_u
b6 F:f f32.demote_f64
b7 i:F f64.convert_i32_s f64.convert_i32_u
b9 I:F f64.convert_i64_s f64.convert_i64_u
bb f:F f64.promote_f32
bc f:i i32.reinterpret_f32
bd F:I i64.reinterpret_f64
be i:f f32.reinterpret_i32
bf I:F f64.reinterpret_i64
c0 i:i i32.extend8_s i32.extend16_s
c2 I:I i64.extend8_s i64.extend16_s i64.extend32_s
bulk 0 f:i i32.trunc_sat_f32_s i32.trunc_sat_f32_u
bulk 2 F:i i32.trunc_sat_f64_s i32.trunc_sat_f64_u
bulk 4 f:I i64.trunc_sat_f32_s i64.trunc_sat_f32_u
bulk 6 F:I i64.trunc_sat_f64_s i64.trunc_sat_f64_u
simd 0 i:v@ v128.load:4 v128.load8x8_s:3 v128.load8x8_u:3 v128.load16x4_s:3 v128.load16x4_u:3
simd 5 i:v@ v128.load32x2_s:3 v128.load32x2_u:3
simd 7 i:v@ v128.load8_splat:0 v128.load16_splat:1 v128.load32_splat:2 v128.load64_splat:3
simd 11 iv:@ v128.store:4
simd 14 vv:v i8x16.swizzle
simd 15 i:v i8x16.splat i16x8.splat i32x4.splat
simd 18 I:v i64x2.splat
simd 19 f:v f32x4.splat
simd 20 F:v f64x2.splat
simd 21 v:i# i8x16.extract_lane_s i8x16.extract_lane_u
simd 23 vi:v# i8x16.replace_lane
simd 24 v:i# i16x8.extract_lane_s i16x8.extract_lane_u
simd 26 vi:v# i16x8.replace_lane
simd 27 v:i# i32x4.extract_lane
simd 28 vi:v# i32x4.replace_lane
simd 29 v:I# i64x2.extract_lane
simd 30 vI:v# i64x2.replace_lane
simd 31 v:f# f32x4.extract_lane
simd 32 vf:v# f32x4.replace_lane
simd 33 v:F# f64x2.extract_lane
simd 34 vF:v# f64x2.replace_lane
simd 35 vv:v i8x16.eq i8x16.ne i8x16.lt_s i8x16.lt_u i8x16.gt_s i8x16.gt_u i8x16.le_s i8x16.le_u
simd 43 vv:v i8x16.ge_s i8x16.ge_u
simd 45 vv:v i16x8.eq i16x8.ne i16x8.lt_s i16x8.lt_u i16x8.gt_s i16x8.gt_u i16x8.le_s i16x8.le_u
simd 53 vv:v i16x8.ge_s i16x8.ge_u
simd 55 vv:v i32x4.eq i32x4.ne i32x4.lt_s i32x4.lt_u i32x4.gt_s i32x4.gt_u i32x4.le_s i32x4.le_u
simd 63 vv:v i32x4.ge_s i32x4.ge_u
simd 65 vv:v f32x4.eq f32x4.ne f32x4.lt f32x4.gt f32x4.le f32x4.ge
simd 71 vv:v f64x2.eq f64x2.ne f64x2.lt f64x2.gt f64x2.le f64x2.ge
simd 77 v:v v128.not
simd 78 vv:v v128.and v128.andnot v128.or v128.xor
simd 82 vvv:v v128.bitselect
simd 83 v:i v128.any_true
simd 84 iv:v@# v128.load8_lane:0 v128.load16_lane:1 v128.load32_lane:2 v128.load64_lane:3
simd 88 iv:@# v128.store8_lane:0 v128.store16_lane:1 v128.store32_lane:2 v128.store64_lane:3
simd 92 i:v@ v128.load32_zero:2 v128.load64_zero:3
simd 94 v:v f32x4.demote_f64x2_zero f64x2.promote_low_f32x4
simd 96 v:v i8x16.abs i8x16.neg i8x16.popcnt
simd 99 v:i i8x16.all_true i8x16.bitmask
simd 101 vv:v i8x16.narrow_i16x8_s i8x16.narrow_i16x8_u
simd 103 v:v f32x4.ceil f32x4.floor f32x4.trunc f32x4.nearest
simd 107 vi:v i8x16.shl i8x16.shr_s i8x16.shr_u
simd 110 vv:v i8x16.add i8x16.add_sat_s i8x16.add_sat_u i8x16.sub i8x16.sub_sat_s i8x16.sub_sat_u
simd 116 v:v f64x2.ceil f64x2.floor
simd 118 vv:v i8x16.min_s i8x16.min_u i8x16.max_s i8x16.max_u
simd 122 v:v f64x2.trunc
simd 123 vv:v i8x16.avgr_u
simd 124 v:v i16x8.extadd_pairwise_i8x16_s i16x8.extadd_pairwise_i8x16_u
simd 126 v:v i32x4.extadd_pairwise_i16x8_s i32x4.extadd_pairwise_i16x8_u
simd 128 v:v i16x8.abs i16x8.neg
simd 130 vv:v i16x8.q15mulr_sat_s
simd 131 v:i i16x8.all_true i16x8.bitmask
simd 133 vv:v i16x8.narrow_i32x4_s i16x8.narrow_i32x4_u
simd 135 v:v i16x8.extend_low_i8x16_s i16x8.extend_high_i8x16_s
simd 137 v:v i16x8.extend_low_i8x16_u i16x8.extend_high_i8x16_u
simd 139 vi:v i16x8.shl i16x8.shr_s i16x8.shr_u
simd 142 vv:v i16x8.add i16x8.add_sat_s i16x8.add_sat_u i16x8.sub i16x8.sub_sat_s i16x8.sub_sat_u
simd 148 v:v f64x2.nearest
simd 149 vv:v i16x8.mul i16x8.min_s i16x8.min_u i16x8.max_s i16x8.max_u
simd 155 vv:v i16x8.avgr_u i16x8.extmul_low_i8x16_s i16x8.extmul_high_i8x16_s
simd 158 vv:v i16x8.extmul_low_i8x16_u i16x8.extmul_high_i8x16_u
simd 160 v:v i32x4.abs i32x4.neg
simd 163 v:i i32x4.all_true i32x4.bitmask
simd 167 v:v i32x4.extend_low_i16x8_s i32x4.extend_high_i16x8_s
simd 169 v:v i32x4.extend_low_i16x8_u i32x4.extend_high_i16x8_u
simd 171 vi:v i32x4.shl i32x4.shr_s i32x4.shr_u
simd 174 vv:v i32x4.add
simd 177 vv:v i32x4.sub
simd 181 vv:v i32x4.mul i32x4.min_s i32x4.min_u i32x4.max_s i32x4.max_u i32x4.dot_i16x8_s
simd 188 vv:v i32x4.extmul_low_i16x8_s i32x4.extmul_high_i16x8_s
simd 190 vv:v i32x4.extmul_low_i16x8_u i32x4.extmul_high_i16x8_u
simd 192 v:v i64x2.abs i64x2.neg
simd 195 v:i i64x2.all_true i64x2.bitmask
simd 199 v:v i64x2.extend_low_i32x4_s i64x2.extend_high_i32x4_s
simd 201 v:v i64x2.extend_low_i32x4_u i64x2.extend_high_i32x4_u
simd 203 vi:v i64x2.shl i64x2.shr_s i64x2.shr_u
simd 206 vv:v i64x2.add
simd 209 vv:v i64x2.sub
simd 213 vv:v i64x2.mul i64x2.eq i64x2.ne i64x2.lt_s i64x2.gt_s i64x2.le_s i64x2.ge_s
simd 220 vv:v i64x2.extmul_low_i32x4_s i64x2.extmul_high_i32x4_s
simd 222 vv:v i64x2.extmul_low_i32x4_u i64x2.extmul_high_i32x4_u
simd 224 v:v f32x4.abs f32x4.neg
simd 227 v:v f32x4.sqrt
simd 228 vv:v f32x4.add f32x4.sub f32x4.mul f32x4.div f32x4.min f32x4.max f32x4.pmin f32x4.pmax
simd 236 v:v f64x2.abs f64x2.neg
simd 239 v:v f64x2.sqrt
simd 240 vv:v f64x2.add f64x2.sub f64x2.mul f64x2.div f64x2.min f64x2.max f64x2.pmin f64x2.pmax
simd 248 v:v i32x4.trunc_sat_f32x4_s i32x4.trunc_sat_f32x4_u
simd 250 v:v f32x4.convert_i32x4_s f32x4.convert_i32x4_u
simd 252 v:v i32x4.trunc_sat_f64x2_s_zero i32x4.trunc_sat_f64x2_u_zero
simd 254 v:v f64x2.convert_low_i32x4_s f64x2.convert_low_i32x4_u
simd 256 vv:v i8x16.relaxed_swizzle
simd 257 v:v i32x4.relaxed_trunc_f32x4_s i32x4.relaxed_trunc_f32x4_u
simd 259 v:v i32x4.relaxed_trunc_f64x2_s_zero i32x4.relaxed_trunc_f64x2_u_zero
simd 261 vvv:v f32x4.relaxed_madd f32x4.relaxed_nmadd f64x2.relaxed_madd f64x2.relaxed_nmadd
simd 265 vvv:v i8x16.relaxed_laneselect i16x8.relaxed_laneselect
simd 267 vvv:v i32x4.relaxed_laneselect i64x2.relaxed_laneselect
simd 269 vv:v f32x4.relaxed_min f32x4.relaxed_max f64x2.relaxed_min f64x2.relaxed_max
simd 273 vv:v i16x8.relaxed_q15mulr_s i16x8.relaxed_dot_i8x16_i7x16_s
simd 275 vvv:v i32x4.relaxed_dot_i8x16_i7x16_add_s
atomic 0 ii:i@ memory.atomic.notify:2
atomic 1 iiI:i@ memory.atomic.wait32:2
atomic 2 iII:i@ memory.atomic.wait64:3
atomic 16 i:i@ i32.atomic.load:2
atomic 17 i:I@ i64.atomic.load:3
atomic 18 i:i@ i32.atomic.load8_u:0 i32.atomic.load16_u:1
atomic 23 ii:@ i32.atomic.store:2
atomic 24 iI:@ i64.atomic.store:3
atomic 25 ii:@ i32.atomic.store8:0 i32.atomic.store16:1
atomic 30 ii:i@ i32.atomic.rmw.add:2
atomic 31 iI:I@ i64.atomic.rmw.add:3
atomic 37 ii:i@ i32.atomic.rmw.sub:2
atomic 38 iI:I@ i64.atomic.rmw.sub:3
atomic 44 ii:i@ i32.atomic.rmw.and:2
atomic 51 ii:i@ i32.atomic.rmw.or:2
atomic 58 ii:i@ i32.atomic.rmw.xor:2
atomic 65 ii:i@ i32.atomic.rmw.xchg:2
atomic 72 iii:i@ i32.atomic.rmw.cmpxchg:2
atomic 73 iII:I@ i64.atomic.rmw.cmpxchg:3
"""

#: Immediates that never vary.
_FIXED = """
3f00 :i memory.size
4000 i:i memory.grow
fc0a0000 iii: memory.copy
fc0b00 iii: memory.fill
fe0300 : atomic.fence
00 : unreachable
01 : nop
"""

_PREFIXES = {"bulk": 0xFC, "simd": 0xFD, "atomic": 0xFE}


@dataclass(frozen=True, slots=True)
class Opcode:
    """``align`` is the log2 of the natural alignment, -1 where no memory is touched."""

    name: str
    code: bytes
    operands: tuple[Type, ...]
    result: Type | None
    align: int = -1
    lane: bool = False


def leb(value: int) -> bytes:
    """Unsigned LEB128."""
    assert value >= 0, value
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signature(text: str) -> tuple[tuple[Type, ...], Type | None]:
    before, after = text.rstrip("@#").split(":")
    return tuple(TYPES[c] for c in before), TYPES[after] if after else None


def _read() -> dict[str, Opcode]:
    table: dict[str, Opcode] = {}
    for line in _TEXT.split("\n")[1:-1]:
        words = line.split(" ")
        prefix = _PREFIXES.get(words[0])
        if prefix is None:
            number, signature, names = int(words[0], 16), words[1], words[2:]
        else:
            number, signature, names = int(words[1]), words[2], words[3:]
        operands, result = _signature(signature)
        lane = signature[-1] == "#"
        for name in names:
            code = bytes((number,)) if prefix is None else bytes((prefix,)) + leb(number)
            number += 1
            align = -1
            if "@" in signature:
                name, _, natural = name.partition(":")
                align = int(natural)
            table[name] = Opcode(name, code, operands, result, align, lane)
    for line in _FIXED.split("\n")[1:-1]:
        digits, signature, name = line.split(" ")
        operands, result = _signature(signature)
        table[name] = Opcode(name, bytes.fromhex(digits), operands, result)
    return table


OPCODES: dict[str, Opcode] = _read()

"""WGSL that multiplies a piece of a stored row by the same piece of x: one lane's step along a row.

Blocks of 32 are read a word at a time, so that neighbouring lanes read neighbouring words of w and
neighbouring quads of x; a lane that read whole blocks would find its quads of x 128 bytes from its
neighbour's (on an H100 an eighth of the read rate). Other dtypes are read a span at a time
(``blocks.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fanlight.codegen.wgsl import blocks
from fanlight.dtypes import DType
from fanlight.kernels.launch import Binding


@dataclass(frozen=True, slots=True)
class Piece:
    """``body``: a function body as ``blocks.Row.span``; ``at``: the quads of x that it wants;
    ``types``: how it binds the planes."""

    types: tuple[str, ...]
    body: str
    at: tuple[str, ...]

    @property
    def step(self) -> int:
        """Elements of one piece."""
        return 4 * len(self.at)


_WORD = """let w = P0[row * (QUADS / 2u) + s];
  let unit = row * (QUADS / 8u) + s / 4u;
"""
# odd blocks take their second quad first: then 32 lanes' quads are 4 whole lines of 128 bytes
_DOT = "dot(nibbles(w >> (s & 4u)), x[0]) + dot(nibbles(w >> (4u - (s & 4u))), x[1])"
_SUM = "dot(x[0] + x[1], vec4<f32>(1.0))"
_HALVES = ("(s / 4u) * 8u + (s & 7u)", "(s / 4u) * 8u + ((s & 7u) ^ 4u)")
_WORDS = "array<u32>"

PIECES: dict[str, Piece] = {
    "q4_0": Piece(
        (_WORDS, _WORDS),
        f"{_WORD}  return half_of(P1[unit >> 1u], unit) * ({_DOT} - 8.0 * {_SUM});",
        _HALVES,
    ),
    "q4_1": Piece(
        (_WORDS, _WORDS),
        f"{_WORD}  let d = unpack2x16float(P1[unit]);\n  return d.x * ({_DOT}) + d.y * {_SUM};",
        _HALVES,
    ),
    "q8_0": Piece(
        (_WORDS, _WORDS),
        """let unit = row * (QUADS / 8u) + s / 8u;
  return half_of(P1[unit >> 1u], unit) * dot(signed4(P0[row * QUADS + s]), x[0]);""",
        ("s",),
    ),
}

_SHIFTS = "vec4<u32>(0u, 8u, 16u, 24u)"
_NIBBLES = f"""fn nibbles(w: u32) -> vec4<f32> {{ // the low four bits of each byte
  return vec4<f32>((vec4<u32>(w & 0x0f0f0f0fu) >> {_SHIFTS}) & vec4<u32>(255u));
}}
"""
# 0x4b000000 are the bits of 2^23, whose last bit is worth 1
_BITS = f"""fn by_bits(w: u32) -> vec4<f32> {{ // the bytes, plus 2^23
  let bytes = (vec4<u32>(w) >> {_SHIFTS}) & vec4<u32>(255u);
  return bitcast<vec4<f32>>(bytes | vec4<u32>(0x4b000000u));
}}
"""
_NIBBLES_BY_BITS = """fn nibbles(w: u32) -> vec4<f32> {
  return by_bits(w & 0x0f0f0f0fu) - 8388608.0;
}
"""
_SIGNED_BY_BITS = """fn signed4(w: u32) -> vec4<f32> {
  return by_bits(w ^ 0x80808080u) - 8388736.0;
}
"""


def piece_of(dtype: DType, wide: bool) -> Piece:
    """The piece that a lane takes of rows of ``dtype``."""
    row = blocks.ROWS[dtype.name]
    spans = Piece(tuple(p.type for p in row.planes), row.span, row.at)
    return spans if wide else PIECES.get(dtype.name, spans)


def bindings(piece: Piece) -> tuple[Binding, ...]:
    return tuple(Binding(kind, "read") for kind in piece.types)


def functions(found: Sequence[tuple[Piece, int]], quads: str, bits: bool) -> str:
    """``fn w0_dot(row, s, x) -> f32``, ``w1_dot`` … for pieces whose planes are bound from the
    given numbers on, and what they call. ``quads``: those of a row, a u32 expression. ``bits``:
    small integers become floats by their bits, not by a conversion, which some GPUs do slowly."""
    shared: dict[str, str] = {}
    helpers = {**blocks.HELPERS, "nibbles(": _NIBBLES}
    if bits:
        shared["by_bits("] = _BITS
        helpers |= {"nibbles(": _NIBBLES_BY_BITS, "signed4(": _SIGNED_BY_BITS}
    code = ""
    for number, (piece, first) in enumerate(found):
        kind = f"array<vec4<f32>, {len(piece.at)}>"
        body = piece.body
        own = ""
        for call, helper in helpers.items():
            if call not in body:
                continue
            if "P0[" in helper:  # reads this weight's planes
                own += helper.replace(call, f"w{number}_{call}")
                body = body.replace(call, f"w{number}_{call}")
            else:
                shared[call] = helper
        own += f"fn w{number}_dot(row: u32, s: u32, x: {kind}) -> f32 {{\n  {body}\n}}\n"
        for plane in range(len(piece.types)):
            own = own.replace(f"P{plane}[", f"b{first + plane}[")
        code += own
    return "".join(shared.values()) + code.replace("QUADS", quads)

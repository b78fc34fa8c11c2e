"""The values of small tensors, and the raw form of every tensor's bytes. Pure Python.

In: a :class:`Tensor` and the bytes of its source. Out: raw bytes (little-endian elements, those of
less than a byte packed), or Python numbers. For scalars, shapes and tests: weights are decoded on
the device.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Union

from fanlight.errors import FormatError, InputError
from fanlight.formats.onnx_model import Source, Tensor
from fanlight.formats.onnx_types import ElementType
from fanlight.formats.protobuf import (
    FIXED32,
    FIXED64,
    VARINT,
    WireError,
    fields,
    varints,
)
from fanlight.formats.skim import Read

MAX_SMALL = 1 << 16  # bytes

Number = Union[bool, int, float, complex]

_CODES = {  # names → struct's codes
    "float": "f",
    "double": "d",
    "float16": "e",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "bool": "?",
    "complex64": "f",
    "complex128": "d",
}
# names → bits of exponent and mantissa, bias, what the largest exponent means: "ieee" infinities
# and NaNs, "fn" NaN where all bits are set, "fnuz" nothing (NaN is -0), "finite" nothing
_SMALL_FLOATS = {
    "float8e4m3fn": (4, 3, 7, "fn"),
    "float8e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8e5m2": (5, 2, 15, "ieee"),
    "float8e5m2fnuz": (5, 2, 16, "fnuz"),
    "float6e2m3": (2, 3, 1, "finite"),
    "float6e3m2": (3, 2, 3, "finite"),
    "float4e2m1": (2, 1, 1, "finite"),
}


def decode_text(raw: bytes) -> str:
    """``raw`` as UTF-8; other bytes as Python's "surrogateescape" has them."""
    return str(raw, "utf-8", "surrogateescape")


async def read_small(tensor: Tensor, read: Read) -> bytes:
    """The bytes of ``tensor``'s source, at most 64 KB. ``read``: of the source's file. Raises
    InputError for a larger one, FormatError where the file ends too early."""
    source = tensor.source
    if source is None:
        return b""
    if source.data is not None:
        return source.data
    if source.length > MAX_SMALL:
        raise InputError(
            "tensor is too large", where=_place(tensor), got=source.length, wanted=MAX_SMALL
        )
    data = await read(source.offset, source.length)
    if len(data) != source.length:
        raise FormatError("file ends inside a tensor", where=_place(tensor), got=source.file)
    return data


def decode(tensor: Tensor, data: bytes) -> bytes:
    """Raw elements, from ``data``, the bytes of ``tensor``'s source. Raises FormatError where they
    are not what the shape wants, InputError for a tensor of strings."""
    source, dtype = _checked(tensor, data), tensor.dtype
    if dtype.bits == 0:
        raise InputError("strings have no raw form", where=_place(tensor))
    if source is None or source.encoding == "raw":
        return data
    wanted = dtype.stored_values(math.prod(tensor.shape))
    try:
        if source.encoding == "varints":
            raw, count = _pack(list(varints(data)), dtype)
        else:
            raw, count = _from_fields(data, dtype)
    except WireError as error:
        raise FormatError(error.what, where=_place(tensor)) from error
    if count != wanted:
        raise FormatError(
            "data doesn't fit the shape", where=_place(tensor), got=count, wanted=wanted
        )
    return raw


def values(tensor: Tensor, data: bytes | None = None) -> list[Number]:
    """The elements in a flat list, outermost dimension first. ``data``: the bytes of the tensor's
    source, if it doesn't hold them itself. Raises as :func:`decode`."""
    raw = decode(tensor, _held(tensor, data))
    return _numbers(raw, tensor.dtype, math.prod(tensor.shape))


def strings(tensor: Tensor, data: bytes | None = None) -> list[str]:
    """The elements of a tensor of strings, as :func:`values`."""
    held = _held(tensor, data)
    _checked(tensor, held)
    if tensor.dtype.bits:
        raise InputError("not a tensor of strings", where=_place(tensor), got=tensor.dtype)
    try:
        found = [decode_text(held[start:end]) for _, start, end in fields(held, 0, len(held))]
    except WireError as error:
        raise FormatError(error.what, where=_place(tensor)) from error
    if len(found) != math.prod(tensor.shape):
        raise FormatError("data doesn't fit the shape", where=_place(tensor), got=len(found))
    return found


def _place(tensor: Tensor) -> str:
    return f"tensor {tensor.name[:100]!r}"


def _held(tensor: Tensor, data: bytes | None) -> bytes:
    if data is not None or tensor.source is None:
        return data or b""
    if tensor.source.data is None:
        raise InputError(
            "the tensor's bytes are not at hand", where=_place(tensor), hint="Read them."
        )
    return tensor.source.data


def _checked(tensor: Tensor, data: bytes) -> Source | None:
    length = tensor.source.length if tensor.source else 0
    if len(data) != length:
        raise InputError(
            "not the tensor's bytes", where=_place(tensor), got=len(data), wanted=length
        )
    return tensor.source


def _from_fields(data: bytes, dtype: ElementType) -> tuple[bytes, int]:
    """Raw elements from unpacked numbers, and how many numbers."""
    wires = {"float_data": FIXED32, "double_data": FIXED64}
    wire = wires.get(dtype.stored, VARINT)
    found: list[tuple[int, int]] = []
    for tag, value, end in fields(data, 0, len(data)):
        if tag & 7 != wire:
            raise WireError("unpacked numbers of several types", end)
        found.append((value, end))
    if wire == VARINT:
        return _pack([value for value, _ in found], dtype)
    return b"".join(data[start:end] for start, end in found), len(found)


def _pack(numbers: list[int], dtype: ElementType) -> tuple[bytes, int]:
    """The low bits of each number: whole elements, or a byte of packed ones; of six bits alone."""
    if dtype.bits == 6:
        packed = 0
        for index, number in enumerate(numbers):
            packed |= (number & 63) << 6 * index
        return packed.to_bytes(-(-6 * len(numbers) // 8), "little"), len(numbers)
    size = max(1, dtype.bits // 8)
    mask = (1 << 8 * size) - 1
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    raw = struct.pack(f"<{len(numbers)}{code}", *(number & mask for number in numbers))
    return raw, len(numbers)


def _numbers(raw: bytes, dtype: ElementType, count: int) -> list[Number]:
    name = dtype.name
    if name in _CODES:
        found = list(struct.unpack(f"<{len(raw) * 8 // _code_bits(dtype)}{_CODES[name]}", raw))
        if name.startswith("complex"):
            return [complex(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
        return found
    if name == "bfloat16":
        halves = struct.unpack(f"<{count}H", raw)
        return list(
            struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(h << 16 for h in halves)))
        )
    meaning = _meaning(dtype)
    return [meaning(bits) for bits in _split(raw, dtype.bits, count)]


def _code_bits(dtype: ElementType) -> int:
    return dtype.bits // 2 if dtype.name.startswith("complex") else dtype.bits


def _split(raw: bytes, bits: int, count: int) -> Iterator[int]:
    """Elements of ``bits`` bits, the first in the lowest ones."""
    mask = (1 << bits) - 1
    for index in range(count):
        byte, shift = divmod(bits * index, 8)
        yield int.from_bytes(raw[byte : byte + 2], "little") >> shift & mask


def _meaning(dtype: ElementType) -> Callable[[int], Number]:
    """What the bits of one element of at most eight bits mean."""
    name = dtype.name
    if name.startswith("uint"):
        return lambda bits: bits
    if name.startswith("int"):
        half = 1 << dtype.bits - 1
        return lambda bits: (bits ^ half) - half
    if name == "float8e8m0":
        return lambda bits: math.nan if bits == 255 else 2.0 ** (bits - 127)
    exponent_bits, mantissa_bits, bias, kind = _SMALL_FLOATS[name]

    def number(bits: int) -> float:
        sign = -1.0 if bits >> dtype.bits - 1 else 1.0
        exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
        mantissa = bits & (1 << mantissa_bits) - 1
        last = exponent == (1 << exponent_bits) - 1
        if kind == "ieee" and last:
            return math.nan if mantissa else sign * math.inf
        if kind == "fn" and last and mantissa == (1 << mantissa_bits) - 1:
            return math.nan
        if kind == "fnuz" and sign < 0 and not exponent and not mantissa:
            return math.nan
        if exponent:
            mantissa += 1 << mantissa_bits
        return sign * math.ldexp(mantissa, max(exponent, 1) - bias - mantissa_bits)

    return number

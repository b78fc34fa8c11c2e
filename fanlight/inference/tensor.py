"""Tensors as callers see them: bytes with a shape and an element type. No arithmetic.

In: anything with the buffer protocol or ``__array__``, or numbers. Out: the same, through
``__array__``, ``memoryview()`` and ``tolist()``. Elements lie in C order, little-endian; those of
less than a byte are packed, the first in the lowest bits. Not here: strings, and the values of
float8 and float4 elements without numpy and ml_dtypes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, Union

from fanlight.dtypes import DTYPES, DType
from fanlight.errors import InputError, MissingDependencyError, UnsupportedError

View: TypeAlias = memoryview  # the name is a method's below
Numbers: TypeAlias = Union[int, float, bool, Sequence["Numbers"]]

#: our dtypes by the names that callers use: numpy's and ml_dtypes'
NAMES = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    **{f"{u}int{bits}": f"{u or 'i'}{bits}" for u in ("", "u") for bits in (2, 4, 8, 16, 32, 64)},
    "bool": "bool",
    "float8_e4m3fn": "f8e4m3fn",
    "float8_e4m3fnuz": "f8e4m3fnuz",
    "float8_e5m2": "f8e5m2",
    "float8_e5m2fnuz": "f8e5m2fnuz",
    "float8_e8m0fnu": "f8e8m0",
    "float4_e2m1fn": "f4e2m1",
}
_CALLERS = {ours: name for name, ours in NAMES.items()}
_FORMATS = {  # of struct and memoryview
    "f32": "f",
    "f16": "e",
    "f64": "d",
    "i64": "q",
    "i32": "i",
    "i16": "h",
    "i8": "b",
    "u64": "Q",
    "u32": "I",
    "u16": "H",
    "u8": "B",
    "bool": "?",
}
_KINDS = {**dict.fromkeys("bhilqn", "i"), **dict.fromkeys("BHILQN", "u"), "?": "bool"}


class Tensor:
    """``shape`` and ``dtype``, a name as numpy has it (``float32``, ``int64``, ``bool``, …), of
    ``data``, which is not copied."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(
        self, data: Any, dtype: str | None = None, shape: Sequence[int] | None = None
    ) -> None:
        """``data``: a buffer, an object with ``__array__``, or (nested) numbers, for which
        ``dtype`` is needed. ``dtype``, ``shape``: what the bytes of a plain buffer mean, where it
        is not what the buffer says. Raises InputError where they don't fit."""
        if dtype is not None and dtype not in NAMES:
            raise InputError("unknown dtype", got=dtype, wanted=", ".join(NAMES))
        if isinstance(data, (int, float, list, tuple)):
            data, found = _pack_numbers(data, dtype)
            dtype = dtype or "float32"
        else:
            data, own, found = _bytes_of(data)
            dtype = dtype or own
        self.data = memoryview(data)
        self.dtype = dtype
        self.shape = tuple(found if shape is None else shape)
        if shape is None and nbytes(dtype_of(dtype), self.shape) != len(self.data):
            self.shape = (len(self.data) * dtype_of(dtype).block // dtype_of(dtype).bytes,)
        wanted = nbytes(dtype_of(dtype), self.shape)
        if wanted != len(self.data) or any(s < 0 for s in self.shape):
            raise InputError(
                "the data doesn't fill the shape",
                where=f"{dtype}{list(self.shape)}",
                got=f"{len(self.data)} bytes",
                wanted=f"{wanted}",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return len(self.data)

    def __buffer__(self, flags: int) -> View:
        return self.memoryview()

    def memoryview(self) -> View:
        """The elements, in their shape where there are any; bytes of those that Python has no
        format for."""
        letter = _FORMATS.get(NAMES[self.dtype])
        if letter is None or not len(self.data):
            return self.data
        return self.data.cast("B").cast(letter, self.shape)  # type: ignore[call-overload,no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """A numpy array; elements of less than a byte get a byte each (ml_dtypes).

        Raises MissingDependencyError without the packages."""
        try:
            import numpy
        except ImportError as error:
            raise MissingDependencyError(
                "arrays need numpy", hint="Install it, or use tolist() or memoryview()."
            ) from error
        own = DTYPES[NAMES[self.dtype]]
        if own.block > 1:
            count = math.prod(self.shape)
            raw = numpy.frombuffer(self.data, numpy.uint8)
            bits = 8 // own.block
            parts = [(raw >> (bits * i)) & ((1 << bits) - 1) for i in range(own.block)]
            unpacked = numpy.stack(parts, -1).reshape(-1)[:count]
            if own.kind == "int":
                half = 1 << (bits - 1)
                unpacked = (unpacked ^ half).astype(numpy.int8) - numpy.int8(half)
            kind = _numpy_type(numpy, self.dtype)
            array = unpacked.view(kind) if own.kind == "float" else unpacked.astype(kind)
        else:
            array = numpy.frombuffer(self.data, _numpy_type(numpy, self.dtype))
        array = array.reshape(self.shape)
        return array if dtype is None and not copy else array.astype(dtype or array.dtype)

    def tolist(self) -> Any:
        """Nested lists of numbers, one number for a shape of no axes."""
        own = DTYPES[NAMES[self.dtype]]
        count = math.prod(self.shape)
        values: Iterable[Any]
        if own.name in _FORMATS:
            values = struct.unpack(f"<{count}{_FORMATS[own.name]}", self.data)
        elif own.name == "bf16":
            words = struct.unpack(f"<{count}H", self.data)
            values = struct.unpack(
                f"<{count}f", struct.pack(f"<{count}I", *(w << 16 for w in words))
            )
        elif own.kind in ("int", "uint"):
            values = _unpack(self.data, own, count)
        else:
            hint = "Use numpy.asarray, or the bytes in memoryview()."
            raise UnsupportedError(f"Python has no numbers of {self.dtype}", hint=hint)
        return _nest(list(values), self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}{list(self.shape)})"


def dtype_of(name: str) -> DType:
    """Ours, by the name that callers use."""
    return DTYPES[NAMES[name]]


def name_of(dtype: str) -> str:
    """The name that callers use, by ours."""
    return _CALLERS[dtype]


def nbytes(dtype: DType, shape: Sequence[int]) -> int:
    """Bytes of a tensor; the last byte of packed elements may be in part unused."""
    return -(-math.prod(shape) * dtype.bytes // dtype.block)


def as_tensor(value: Any) -> Tensor:
    """``value`` itself, or what it says of its elements. Raises InputError where it says nothing
    that is known."""
    return value if isinstance(value, Tensor) else Tensor(value)


def _bytes_of(value: Any) -> tuple[bytes | memoryview, str, tuple[int, ...]]:
    """Bytes in C order, dtype and shape of a tensor, an array or a buffer."""
    if isinstance(value, Tensor):
        return value.data, value.dtype, value.shape
    if hasattr(value, "__array__"):
        array = value.__array__()
        name = str(array.dtype.name)
        if name not in NAMES:
            raise InputError("elements of a type that no model takes", got=name)
        shape = tuple(int(s) for s in array.shape)
        own = DTYPES[NAMES[name]]
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        raw = array.tobytes()
        return (_pack_small(raw, own) if own.block > 1 else raw), name, shape
    try:
        view = memoryview(value)
    except TypeError as error:
        raise InputError(
            "neither a buffer nor an array",
            got=type(value).__name__,
            wanted="an array, bytes, array.array or fanlight.Tensor",
        ) from error
    return _raw(view), _name_of_format(view), tuple(view.shape or ())


def _raw(view: memoryview) -> bytes | memoryview:
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def _name_of_format(view: memoryview) -> str:
    letter = view.format.lstrip("@=<")
    bits = 8 * view.itemsize
    if letter in ("e", "f", "d"):
        return f"float{bits}"
    kind = _KINDS.get(letter)
    if kind is None:
        raise InputError("elements of a type that no model takes", got=view.format)
    return kind if kind == "bool" else f"{'u' if kind == 'u' else ''}int{bits}"


def _pack_numbers(data: Numbers, dtype: str | None) -> tuple[bytes, tuple[int, ...]]:
    name = NAMES[dtype or "float32"]
    letter = _FORMATS.get(name)
    if letter is None:
        raise InputError("numbers can't be packed as this", got=dtype, wanted=", ".join(_FORMATS))
    shape: list[int] = []
    level: Any = data
    while isinstance(level, (list, tuple)):
        shape.append(len(level))
        level = level[0] if level else None
    flat: list[Any] = [data]
    for size in shape:
        if any(not isinstance(v, (list, tuple)) or len(v) != size for v in flat):
            raise InputError("lists of different lengths", got=shape)
        flat = [v for inner in flat for v in inner]
    try:
        return struct.pack(f"<{len(flat)}{letter}", *flat), tuple(shape)
    except (struct.error, OverflowError) as error:
        raise InputError("a number doesn't fit", got=str(error), wanted=dtype) from error


def _pack_small(raw: bytes, dtype: DType) -> bytes:
    """Elements of less than a byte, a byte each, packed."""
    bits = 8 // dtype.block
    raw += b"\0" * (-len(raw) % dtype.block)
    out = bytearray(len(raw) // dtype.block)
    for i, value in enumerate(raw):
        out[i // dtype.block] |= (value & ((1 << bits) - 1)) << (bits * (i % dtype.block))
    return bytes(out)


def _unpack(data: memoryview, dtype: DType, count: int) -> list[int]:
    bits = 8 // dtype.block
    half = 1 << (bits - 1) if dtype.kind == "int" else 0
    values = (
        (data[i // dtype.block] >> (bits * (i % dtype.block))) & ((1 << bits) - 1)
        for i in range(count)
    )
    return [(v ^ half) - half for v in values]


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    each = math.prod(shape[1:])
    return [_nest(flat[i * each : (i + 1) * each], shape[1:]) for i in range(shape[0])]


def _numpy_type(numpy: Any, name: str) -> Any:
    if NAMES[name] in _FORMATS:
        return numpy.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingDependencyError(
            f"arrays of {name} need ml_dtypes", hint="Install it, or use memoryview()."
        ) from error
    return numpy.dtype(getattr(ml_dtypes, name))

"""GGUF, versions 2 and 3: the metadata and the tensor table, read lazily from a file's first bytes.

In: a prefix of the file, or an async ``read(offset, length)``. Out: :class:`Gguf`; tensor bytes are
never touched. Every malformed file ends in a FormatError, TruncatedError or UnsupportedError, in
bounded time and memory. Not known here: version 1, big-endian files, files split in shards.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Union

from fanlight.dtypes import DType
from fanlight.errors import FormatError, TruncatedError, UnsupportedError
from fanlight.formats.cursor import MAX_HEADER, Cursor, NeedMoreData, StringArray
from fanlight.formats.ggml_types import find_dtype, type_name

__all__ = ["Gguf", "NeedMoreData", "StringArray", "TensorInfo", "Value", "parse", "read_header"]

Value = Union[bool, int, float, str, Sequence["Value"]]
"""A metadata value. Arrays: StringArray, ``array.array`` of numbers, or tuple (bools, arrays)."""

MAGIC = b"GGUF"
FIRST_READ = 1 << 20  # bytes
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_DIMS = 4
MAX_NESTING = 4  # arrays in arrays
MAX_NESTED = 1 << 16  # arrays inside arrays, in the whole header
MAX_ELEMENTS = 1 << 62
MAX_ALIGNMENT = 1 << 20

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, struct.Struct] = {  # value type → layout
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
# array.array's codes of the same size: "l" and "L" differ between machines, the others don't
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. ``shape``: outermost dimension first, as in numpy (GGUF's ``ne`` reversed).
    ``offset``: of its first byte in the file. ``length``: bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A file's header. ``data_offset``: where the tensors begin, bytes from the file's start."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    data_offset: int

    @property
    def architecture(self) -> str:
        """``general.architecture``. Raises FormatError where the file does not say."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise FormatError("missing key", where="general.architecture", got=value)
        return value


async def read_header(
    read: Callable[[int, int], Awaitable[bytes]], file_size: int | None = None
) -> Gguf:
    """The header of the file behind ``read(offset, length)``, which returns fewer bytes only at the
    file's end. Fetches 1 MB first, then doubles; never more than 64 MB.

    Raises as :func:`parse`; errors of ``read`` pass through.
    """
    data = bytearray()
    want = FIRST_READ
    while True:
        want = min(want, MAX_HEADER, file_size if file_size is not None else want)
        piece = await read(len(data), want - len(data))
        data += piece[: want - len(data)]
        if len(data) < want:
            file_size = len(data)
        try:
            with memoryview(data) as view:
                return parse(view, file_size=file_size)
        except NeedMoreData as more:
            want = max(2 * len(data), more.at_least)


def parse(data: bytes | memoryview, *, file_size: int | None) -> Gguf:
    """The header at the start of ``data``, the first bytes of a file of ``file_size`` bytes.

    Raises NeedMoreData where ``data`` ends inside the header and the file is longer (or its size is
    not known); TruncatedError where the file is too short for the header or for a tensor;
    UnsupportedError for versions, byte orders and tensor types that we don't read (all such tensors
    at once); FormatError for everything else that is wrong.
    """
    view = memoryview(data).cast("B") if not isinstance(data, memoryview) else data
    cursor = Cursor(view if file_size is None else view[:file_size], file_size)
    version = _read_version(cursor)
    tensor_count, key_count = cursor.u64("tensor count"), cursor.u64("key count")
    _check_limit(tensor_count, MAX_TENSORS, "tensor count")
    _check_limit(key_count, MAX_KEYS, "key count")
    cursor.check_count(key_count, 13, "key count")
    metadata = _read_metadata(cursor, key_count)
    alignment = _alignment(metadata)
    cursor.check_count(tensor_count, 24, "tensor count")
    rows = [_read_row(cursor, i) for i in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    return Gguf(version, metadata, _table(rows, data_offset, alignment, file_size), data_offset)


def _read_version(cursor: Cursor) -> int:
    start = cursor.need(4, "magic")
    magic = bytes(cursor.data[start : start + 4])
    if magic != MAGIC:
        raise FormatError("not a GGUF file", where="byte 0", got=magic, wanted=MAGIC)
    version = cursor.u32("version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError("big-endian GGUF files are not supported", where="byte 4")
    if version not in (2, 3):
        raise UnsupportedError("unknown GGUF version", where="byte 4", got=version, wanted="2 or 3")
    return version


def _check_limit(count: int, most: int, where: str) -> None:
    if count > most:
        raise FormatError("absurd count", where=where, got=count, wanted=f"at most {most}")


# --- metadata


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    nested = [MAX_NESTED]
    for index in range(count):
        key = cursor.string(f"key {index}")
        if key in metadata:
            raise FormatError("duplicate key", where=key)
        metadata[key] = _read_value(cursor, cursor.u32(key), key, 0, nested)
    return metadata


def _read_value(cursor: Cursor, kind: int, where: str, depth: int, nested: list[int]) -> Value:
    """One value of type ``kind``; ``nested[0]`` is how many more arrays in arrays may follow."""
    if kind in _SCALARS:
        return cursor.unpack(_SCALARS[kind], where)
    if kind == _BOOL:
        return _read_bools(cursor, 1, where)[0]
    if kind == _STRING:
        return cursor.string(where)
    if kind != _ARRAY:
        raise FormatError("unknown value type", where=where, got=kind, wanted="0 to 12")
    if depth >= MAX_NESTING:
        raise FormatError("arrays nested too deep", where=where, wanted=f"at most {MAX_NESTING}")
    kind, count = cursor.u32(where), cursor.u64(where)
    if kind in _SCALARS:
        return _read_numbers(cursor, kind, count, where)
    if kind == _BOOL:
        return _read_bools(cursor, count, where)
    if kind == _STRING:
        return cursor.strings(count, where)
    cursor.check_count(count, 12, where)
    nested[0] -= count
    if nested[0] < 0:
        raise FormatError("too many nested arrays", where=where, got=count, wanted=MAX_NESTED)
    return tuple(
        _read_value(cursor, kind, f"{where}[{i}]", depth + 1, nested) for i in range(count)
    )


def _read_numbers(cursor: Cursor, kind: int, count: int, where: str) -> Sequence[float]:
    size = _SCALARS[kind].size
    cursor.check_count(count, size, where)
    start = cursor.need(count * size, where)
    numbers: array[float] = array(_CODES[kind])
    numbers.frombytes(cursor.data[start : cursor.position])
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _read_bools(cursor: Cursor, count: int, where: str) -> tuple[bool, ...]:
    cursor.check_count(count, 1, where)
    start = cursor.need(count, where)
    raw = bytes(cursor.data[start : cursor.position])
    if raw.strip(b"\0\1"):  # what is left begins with the first byte that is neither
        raise FormatError("not a boolean", where=where, got=raw.strip(b"\0\1")[0], wanted="0 or 1")
    return tuple(map(bool, raw))


def _alignment(metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not 0 < value <= MAX_ALIGNMENT
        or value & (value - 1)
    ):
        raise FormatError(
            "not a sensible alignment", where="general.alignment", got=value, wanted="a power of 2"
        )
    return value


# --- tensors


@dataclass(frozen=True, slots=True)
class _Row:
    """A tensor as the file has it: ``ne`` innermost first, ``offset`` from the data's start."""

    name: str
    ne: tuple[int, ...]
    kind: int
    offset: int


def _read_row(cursor: Cursor, index: int) -> _Row:
    name = cursor.string(f"tensor {index}")
    dims = cursor.u32(name)
    if dims > MAX_DIMS:
        raise FormatError("too many dimensions", where=name, got=dims, wanted=f"up to {MAX_DIMS}")
    ne = tuple(cursor.u64(name) for _ in range(dims))
    if 0 in ne or math.prod(ne) > MAX_ELEMENTS:
        raise FormatError("not a sensible shape", where=name, got=ne)
    return _Row(name, ne, cursor.u32(name), cursor.u64(name))


def _table(
    rows: list[_Row], data_offset: int, alignment: int, file_size: int | None
) -> dict[str, TensorInfo]:
    _check_types(rows)
    tensors: dict[str, TensorInfo] = {}
    for row in rows:
        if row.name in tensors:
            raise FormatError("duplicate tensor", where=row.name)
        tensors[row.name] = _tensor(row, data_offset, alignment, file_size)
    end, last = data_offset, ""
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise FormatError("tensors overlap", where=tensor.name, got=f"inside {last}")
        end, last = tensor.offset + tensor.length, tensor.name
    return tensors


def _check_types(rows: list[_Row]) -> None:
    """Raises one UnsupportedError that names every type that we don't read."""
    unknown: dict[str, list[str]] = {}
    for row in rows:
        if find_dtype(row.kind) is None:
            unknown.setdefault(type_name(row.kind), []).append(row.name)
    if not unknown:
        return
    listed = [
        f"{kind} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for kind, names in list(unknown.items())[:20]
    ]
    raise UnsupportedError(
        f"tensor types not supported: {', '.join(listed)}",
        hint="Use a file quantised to Q8_0, Q4_0, Q4_1, Q4_K or Q6_K.",
    )


def _tensor(row: _Row, data_offset: int, alignment: int, file_size: int | None) -> TensorInfo:
    dtype = find_dtype(row.kind)
    assert dtype is not None  # _check_types saw to it
    inner = row.ne[0] if row.ne else 1
    if inner % dtype.block:
        raise FormatError(
            f"rows are not whole {dtype} blocks", where=row.name, got=inner, wanted=dtype.block
        )
    if row.offset % alignment:
        raise FormatError(
            "offset is not aligned", where=row.name, got=row.offset, wanted=f"× {alignment}"
        )
    length, offset = dtype.nbytes(math.prod(row.ne)), data_offset + row.offset
    if file_size is not None and offset + length > file_size:
        raise TruncatedError(
            "file ends before the tensor does",
            where=row.name,
            got=f"{file_size} bytes",
            wanted=f"at least {offset + length}",
            hint="Download the file again.",
        )
    return TensorInfo(row.name, dtype, row.ne[::-1], offset, length)

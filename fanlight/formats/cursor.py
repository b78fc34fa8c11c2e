"""A bounded little-endian reader over the first bytes of a file, and its array of strings.

It tells three ends apart: the prefix at hand is too short (:class:`NeedMoreData`), the file is too
short (TruncatedError), and the claim is absurd (FormatError). Nothing is allocated in proportion to
a count that a file claims: bytes are there, or an error is raised.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from fanlight.errors import FormatError, TruncatedError

MAX_HEADER = 1 << 26  # bytes; 262,000 tokens with their merges and scores take about 20 MB
MAX_STRINGS = 1 << 20  # in all arrays of a header; 262,000 tokens have about 600,000 merges

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class NeedMoreData(Exception):
    """The prefix ends inside the header: try again with at least ``at_least`` bytes of the file."""

    def __init__(self, at_least: int) -> None:
        super().__init__(f"needs at least {at_least} bytes")
        self.at_least = at_least


class StringArray(Sequence[str]):
    """The strings of one array, kept as the file's bytes and decoded at each access.

    A vocabulary of 49,000 tokens takes 0.9 MB so, against 3.5 MB as Python strings. Access raises
    FormatError where a string is not UTF-8.
    """

    __slots__ = ("_blob", "_ends", "_where")

    def __init__(self, blob: bytes, ends: array[int], where: str) -> None:
        self._blob, self._ends, self._where = blob, ends, where

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        count = len(self._ends)
        if isinstance(index, slice):
            start, stop, step = index.indices(count)
            if step == 1:
                return list(self._run(start, stop))
            return [self[i] for i in range(start, stop, step)]
        if not -count <= index < count:
            raise IndexError(index)
        return next(self._run(index % count, index % count + 1))

    def __iter__(self) -> Iterator[str]:
        return self._run(0, len(self._ends))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = ", …" if len(self) > 3 else ""
        return f"StringArray[{len(self)}]({', '.join(map(repr, self[:3]))}{more})"

    def _run(self, start: int, stop: int) -> Iterator[str]:
        """The strings from ``start`` to before ``stop``."""
        blob, begin = self._blob, self._ends[start - 1] if start else 0
        for index, end in enumerate(self._ends[start:stop], start):
            try:
                yield str(blob[begin + 8 : end], "utf-8")  # behind its length, 8 bytes
            except UnicodeDecodeError as error:
                where = f"{self._where}[{index}]"
                raise FormatError("string is not UTF-8", where=where, got=error.reason) from error
            begin = end


class Cursor:
    """Reads ``data``, the first bytes of a file of ``file_size`` bytes (None: not known)."""

    def __init__(self, data: memoryview, file_size: int | None) -> None:
        self.data, self.file_size = data, file_size
        self.position = 0
        self._strings_left = MAX_STRINGS

    def need(self, count: int, where: str) -> int:
        """The position, moved over ``count`` bytes that are at hand; raises as the module says."""
        start = self.position
        end = start + count
        if end > len(self.data):
            if self.file_size is not None and end > self.file_size:
                raise TruncatedError(
                    "file ends inside the header",
                    where=f"{where} at byte {start}",
                    got=f"{self.file_size} bytes",
                    wanted=f"at least {end}",
                    hint="Download the file again.",
                )
            if end > MAX_HEADER:
                raise FormatError(
                    "header is larger than any sensible one",
                    where=f"{where} at byte {start}",
                    got=f"at least {end} bytes",
                    wanted=f"at most {MAX_HEADER}",
                )
            raise NeedMoreData(end)
        self.position = end
        return start

    def check_count(self, count: int, each: int, where: str) -> None:
        """Raises unless ``count`` items of at least ``each`` bytes may still follow."""
        room = (MAX_HEADER if self.file_size is None else self.file_size) - self.position
        if count * each > room:
            raise TruncatedError(
                "count is larger than the rest of the file holds",
                where=f"{where} at byte {self.position}",
                got=count,
                wanted=f"at most {max(0, room // each)}",
            )

    def unpack(self, layout: struct.Struct, where: str) -> bool | int | float:
        """One value of ``layout``."""
        start = self.need(layout.size, where)
        value: bool | int | float = layout.unpack_from(self.data, start)[0]
        return value

    def u32(self, where: str) -> int:
        return int(_U32.unpack_from(self.data, self.need(4, where))[0])

    def u64(self, where: str) -> int:
        return int(_U64.unpack_from(self.data, self.need(8, where))[0])

    def string(self, where: str) -> str:
        length = self.u64(where)
        start = self.need(length, where)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(
                "string is not UTF-8", where=f"{where} at byte {start}", got=error.reason
            ) from error

    def strings(self, count: int, where: str) -> StringArray:
        """An array of ``count`` strings: their lengths are walked, their text is left alone."""
        self.check_count(count, 8, where)
        self._strings_left -= count
        if self._strings_left < 0:
            raise FormatError("too many strings", where=where, got=count, wanted=MAX_STRINGS)
        data, start, limit = self.data, self.position, len(self.data)
        position, ends, unpack = start, array("I"), _U64.unpack_from
        for index in range(count):
            if position + 8 > limit:
                self.position = position
                self.need(8, f"{where}[{index}]")
            length = unpack(data, position)[0]
            if position + 8 + length > limit:
                self.position = position
                self.need(8 + length, f"{where}[{index}]")
            position += 8 + length
            ends.append(position - start)
        self.position = position
        return StringArray(bytes(data[start:position]), ends, where)

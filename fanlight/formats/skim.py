"""A protobuf file without its weights: what is structure is kept, large weights are skipped.

In: an async ``read(offset, length)`` and the schema's outermost message. Out: :class:`Skeleton`,
bytes of the same message in which each large field of weights is empty, and where it lies in the
file. The file is read forward, in requests of 16 KB behind what was skipped, up to 1 MB else, and
never behind the end that its messages announce. Not known here: what the fields mean.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fanlight.errors import FormatError, TruncatedError
from fanlight.formats.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    MAX_DEPTH,
    Kind,
    Message,
    WireError,
    read_varint,
    split_tag,
    write_varint,
)

Read = Callable[[int, int], Awaitable[bytes]]
"""``read(offset, length)`` gives fewer bytes only at the file's end."""

KEPT = 4096  # bytes; a field up to this size stays, whatever it is
MAX_STRUCTURE = 1 << 26  # bytes
MAX_HOLES = 1 << 17
MAX_SKIMMED = 1 << 19  # fields of messages larger than KEPT: nodes of a graph, above all
FIRST_READ, SMALL_READ, LARGE_READ = 1 << 16, 1 << 14, 1 << 20  # bytes

_NO_END = 1 << 62
_HEAD = 32  # bytes; a tag and a number take at most 20
_SLOT = 5  # bytes of the length of a message that was walked, as a padded varint


@dataclass(slots=True)
class Skeleton:
    """``data``: the message. ``holes``: position of an empty field in ``data`` → offset and length
    in the file of what it holds there. ``whole``: nothing was left out or cut."""

    data: bytes
    holes: dict[int, tuple[int, int]] = field(default_factory=dict)
    positions: array[int] = field(default_factory=lambda: array("Q", [0]))
    offsets: array[int] = field(default_factory=lambda: array("Q", [0]))
    whole: bool = True

    def offset(self, position: int) -> int:
        """Where the byte at ``position`` of ``data`` lies in the file."""
        run = bisect_right(self.positions, position) - 1
        return self.offsets[run] + position - self.positions[run]


async def skim(read: Read, file_size: int | None, message: Message) -> Skeleton:
    """The skeleton of the file behind ``read``, of ``file_size`` bytes (None: not known).

    Raises FormatError and TruncatedError; errors of ``read`` pass through.
    """
    skimmer = _Skimmer(read, file_size)
    await skimmer.walk(message, 0, skimmer.end, 0)
    return skimmer.skeleton()


class _Skimmer:
    """``end``: of the file, as far as known. ``window``: its bytes from ``base``. ``done``: up to
    this offset the file's bytes are in ``out``, or left out."""

    def __init__(self, read: Read, file_size: int | None) -> None:
        self.read = read
        self.end = _NO_END if file_size is None else file_size
        self.window, self.base, self.done = b"", 0, 0
        self.request, self.fields = FIRST_READ // 2, 0
        self.out = bytearray()
        self.holes: dict[int, tuple[int, int]] = {}
        self.positions, self.offsets = array("Q", [0]), array("Q", [0])

    def skeleton(self) -> Skeleton:
        return Skeleton(bytes(self.out), self.holes, self.positions, self.offsets, whole=False)

    async def walk(self, message: Message, offset: int, end: int, depth: int) -> None:
        """Keeps the fields from ``offset`` to ``end``, but for large ones of weights or unknown."""
        if depth > MAX_DEPTH:
            raise FormatError("messages are nested too deep", where=f"byte {offset}")
        while offset < end:
            if offset + _HEAD > self.base + len(self.window):
                await self.fill(offset, _HEAD)
                if offset == self.end:
                    if end == _NO_END:
                        break
                    raise self.truncated(offset, end)
            start = offset
            tag, stop, offset = self.head(offset)
            if stop > end or stop > self.end:
                raise self.too_long(start, stop, end)
            if stop - offset > KEPT:
                await self.large(message, tag, start, offset, stop, depth)
            elif stop > self.base + len(self.window):
                await self.fill(start, stop - start)
                if stop > self.end:
                    raise self.truncated(start, stop)
            self.fields += 1
            if self.fields > MAX_SKIMMED:
                wanted = f"at most {MAX_SKIMMED}"
                raise FormatError("too many fields", where=f"byte {start}", wanted=wanted)
            offset = stop
        self.keep(offset)

    def head(self, offset: int) -> tuple[int, int, int]:
        """Tag, offset behind the field, offset of what is in it."""
        data, base = self.window, self.base
        start = offset - base
        size = len(data)
        if start + 2 < size:  # a field of bytes with a short tag, as almost all are
            tag, low, high = data[start], data[start + 1], data[start + 2]
            if 7 < tag < 128 and tag & 7 == BYTES:
                if low < 128:
                    return tag, offset + 2 + low, offset + 2
                if high < 128:
                    return tag, offset + 3 + (low & 127 | high << 7), offset + 3
        try:
            tag, position = read_varint(data, start, size)
            wire = split_tag(tag, start)
            if wire in (FIXED64, FIXED32):
                return tag, base + position + (8 if wire == FIXED64 else 4), base + position
            value, position = read_varint(data, position, size)
            return tag, base + position + (value if wire == BYTES else 0), base + position
        except WireError as error:
            if error.end > len(data):
                raise self.truncated(base + start, base + error.end) from error
            raise FormatError(error.what, where=f"byte {base + error.position}") from error

    async def large(
        self, message: Message, tag: int, start: int, offset: int, stop: int, depth: int
    ) -> None:
        """The field from ``start`` to ``stop``, more than KEPT bytes from ``offset``."""
        entry = message.tags.get(tag)
        if entry is None:
            self.keep(start)
            if tag >> 3 in message.numbers:
                raise FormatError(
                    "field of another type than its number has",
                    where=f"{message.name}Proto at byte {start}",
                    got=f"number {tag >> 3}",
                )
            self.done = stop
        elif entry.kind in (Kind.RAW, Kind.FLOATS, Kind.VARINTS):
            self.open(tag, start, offset)
            self.out.append(0)
            self.holes[len(self.out)] = offset, stop - offset
            if len(self.holes) > MAX_HOLES:
                wanted = f"at most {MAX_HOLES}"
                raise FormatError("too many tensors", where=f"byte {start}", wanted=wanted)
            self.done = stop
        elif entry.message is not None:
            self.open(tag, start, offset)
            self.out += bytes(_SLOT)
            begin = len(self.out)
            await self.walk(entry.message, offset, stop, depth + 1)
            self.out[begin - _SLOT : begin] = _padded(len(self.out) - begin)
        else:
            while self.done < stop:
                edge = min(stop, self.base + len(self.window))
                self.keep(edge)
                if edge < stop:
                    await self.fill(edge, 1)
                    if edge == self.end:
                        raise self.truncated(start, stop)

    def open(self, tag: int, start: int, offset: int) -> None:
        """Writes the tag of the field from ``start``; its bytes from ``offset`` are next."""
        self.keep(start)
        self.out += write_varint(tag)
        self.done = offset

    def keep(self, offset: int) -> None:
        """Copies what lies in the window up to ``offset``, from what is done."""
        size = offset - self.done
        if size == 0:
            return
        if len(self.out) + size > MAX_STRUCTURE:
            raise FormatError(
                "structure is larger than any sensible one",
                where=f"byte {offset}",
                wanted=f"at most {MAX_STRUCTURE} bytes beside weights",
            )
        if self.offsets[-1] - self.positions[-1] != self.done - len(self.out):
            self.positions.append(len(self.out))
            self.offsets.append(self.done)
        self.out += self.window[self.done - self.base : offset - self.base]
        self.done = offset

    async def fill(self, offset: int, need: int) -> None:
        """Makes the window begin at ``offset`` and hold ``need`` bytes, or all up to the file's
        end."""
        window_end = self.base + len(self.window)
        if offset <= window_end:
            self.keep(offset)
            rest, at = self.window[offset - self.base :], window_end
            self.request = min(2 * self.request, LARGE_READ)
        else:  # one byte earlier, to see that the file reaches so far
            rest, at = b"", offset - 1
            self.request = SMALL_READ
        want = min(max(self.request, need - len(rest) + 1), self.end - at)
        more = (await self.read(at, want))[:want] if want else b""
        if len(more) < want:
            if self.end != _NO_END or at + len(more) < offset:
                raise self.truncated(at + len(more), max(offset, at + want))
            self.end = at + len(more)
        self.window, self.base = rest + more[max(0, offset - at) :], offset

    def too_long(self, start: int, stop: int, end: int) -> FormatError:
        """The error for a field that reaches over ``end``, its message's, or the file's."""
        if stop > self.end or end == self.end:
            return self.truncated(start, stop)
        return FormatError(
            "field is longer than its message",
            where=f"byte {start}",
            got=f"up to byte {stop}",
            wanted=f"at most {end}",
        )

    def truncated(self, offset: int, wanted: int) -> TruncatedError:
        """The error for a file that ends too early."""
        return TruncatedError(
            "file ends inside a message",
            where=f"byte {offset}",
            got=f"{self.end} bytes" if self.end != _NO_END else None,
            wanted=f"at least {wanted}",
            hint="Download the file again.",
        )


def _padded(length: int) -> bytes:
    """``length`` as a varint of _SLOT bytes."""
    last = _SLOT - 1
    return bytes(length >> 7 * i & 127 | (128 if i < last else 0) for i in range(_SLOT))

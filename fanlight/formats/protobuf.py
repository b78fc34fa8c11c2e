"""The protobuf wire format: fields of a message, varints, and tables of messages.

In: bytes, and a schema as text. Out: fields as numbers and positions; nothing is copied. Malformed
bytes raise :class:`WireError`, which names the position. Groups are not known here (deprecated).

The format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_DEPTH = 100  # messages in messages, as protobuf's own readers have it
MAX_FIELDS = 1 << 20  # in a file; numbers in packed fields count. 70,000 nodes have about as many

_CONTINUED = bytes(range(128, 256))  # all bytes of a varint but its last
_MAX_NUMBER = (1 << 29) - 1


class WireError(Exception):
    """``what`` is wrong at ``position``. ``end``: where the field would end, if it is too long."""

    def __init__(self, what: str, position: int, end: int = 0) -> None:
        super().__init__(f"{what} at {position}")
        self.what, self.position, self.end = what, position, end


class Kind(Enum):
    """What a field holds. The last four are weights: they are left where they are."""

    INT = "int"
    FLOAT = "float"
    STRING = "string"
    BYTES = "bytes"
    MESSAGE = "message"
    RAW = "raw"
    FLOATS = "floats"  # f32 or f64
    VARINTS = "varints"
    STRINGS = "strings"


WEIGHTS = frozenset({Kind.RAW, Kind.FLOATS, Kind.VARINTS, Kind.STRINGS})


class Field(NamedTuple):
    """A row of a schema. ``message``: the type of a MESSAGE field."""

    kind: Kind
    name: str
    repeated: bool
    message: Message | None


@dataclass(slots=True)
class Message:
    """A type of message. ``tags``: tag (number and wire type) → field. A repeated number has two,
    as it may be packed. ``numbers``: of all fields; others are unknown, and skipped."""

    name: str
    tags: dict[int, Field] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)


_WIRE_TYPES = {  # kind → wire types; a kind that is not here is of BYTES alone
    Kind.INT: (VARINT,),
    Kind.FLOAT: (FIXED32,),
    Kind.FLOATS: (FIXED32, FIXED64, BYTES),
    Kind.VARINTS: (VARINT, BYTES),
}


def read_schema(text: Mapping[str, str]) -> dict[str, Message]:
    """Messages by name, from rows like ``{"Node": "1 input string*, 5 attribute Attribute*"}``.

    A row is a number, a name and a kind or the name of a message; ``*`` says repeated.
    """
    messages = {name: Message(name) for name in text}
    for name, rows in text.items():
        for row in rows.split(","):
            number, label, kind = row.split()
            _add(messages[name], int(number), label, kind, messages)
    return messages


def _add(
    owner: Message, number: int, label: str, kind_name: str, messages: dict[str, Message]
) -> None:
    repeated = kind_name.endswith("*")
    kind_name = kind_name.removesuffix("*")
    message = messages.get(kind_name)
    kind = Kind.MESSAGE if message else Kind(kind_name)
    wire_types = _WIRE_TYPES.get(kind, (BYTES,))
    if repeated and kind in (Kind.INT, Kind.FLOAT):
        wire_types = (*wire_types, BYTES)
    entry = Field(kind, label, repeated, message)
    owner.numbers.add(number)
    owner.tags.update({number << 3 | wire: entry for wire in wire_types})


def read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The unsigned number at ``position`` and the position behind it. Raises WireError."""
    value = shift = 0
    start = position
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                raise WireError("number has more than 64 bits", start)
            return value, position
        shift += 7
        if shift > 63:
            raise WireError("number has more than ten bytes", start)
    raise WireError("message ends inside a number", start, position + 1)


def write_varint(value: int) -> bytes:
    """``value`` in as few bytes as it takes."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def split_tag(tag: int, position: int) -> int:
    """The wire type of ``tag``. Raises WireError where no field has such a tag."""
    wire = tag & 7
    if not 0 < tag >> 3 <= _MAX_NUMBER or wire not in (VARINT, FIXED64, BYTES, FIXED32):
        raise WireError("not a field", position)
    return wire


def fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message from ``position`` to ``end``: tag, value, end of the field.

    The value of a varint is the number, unsigned; of all others the position of their bytes.
    Raises WireError.
    """
    while position < end:
        start = position
        tag = data[position]
        position += 1
        if tag > 127:
            tag, position = read_varint(data, start, end)
        wire = tag & 7
        if wire == BYTES and tag > 7:
            if position < end and data[position] < 128:
                stop = position + 1 + data[position]
                position += 1
            else:
                size, position = read_varint(data, position, end)
                stop = position + size
        elif wire == VARINT and tag > 7:
            if position < end and data[position] < 128:
                value = data[position]
                position += 1
            else:
                value, position = read_varint(data, position, end)
            yield tag, value, position
            continue
        else:
            stop = position + (8 if split_tag(tag, start) == FIXED64 else 4)
        if stop > end:
            raise WireError("field is longer than its message", start, stop)
        yield tag, position, stop
        position = stop


def count_varints(data: bytes) -> int:
    """How many numbers end in ``data``, packed varints."""
    return len(data.translate(None, _CONTINUED))


def varints(data: bytes) -> Iterator[int]:
    """The numbers of packed varints, unsigned. Raises WireError."""
    if data.isascii():  # each of one byte
        yield from data
        return
    position, end = 0, len(data)
    while position < end:
        value = data[position]
        if value < 128:
            position += 1
        else:
            value, position = read_varint(data, position, end)
        yield value


def signed(value: int) -> int:
    """A varint's number as int64."""
    return value - (1 << 64) if value >> 63 else value

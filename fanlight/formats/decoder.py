"""A protobuf message → Python objects, by its schema; weights only as where they are.

In: a :class:`Skeleton`. Out: for each message, innermost first, what its builder makes of its
fields, or the fields themselves. Depth and number of fields are bounded. Not known here: ONNX.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats.protobuf import (
    BYTES,
    MAX_DEPTH,
    MAX_FIELDS,
    Kind,
    Message,
    WireError,
    count_varints,
    fields,
    signed,
    varints,
)
from fanlight.formats.skim import Skeleton

Values = dict[str, Any]
"""The fields of a message that are there: name → value, or list of values."""

Run = tuple[bool, int, int]
"""Weights: whether each value stands behind a tag, start and end."""

MAX_TEXTS = 1 << 16
MAX_SEEN = 128  # bytes of a message

_F32 = struct.Struct("<f")
_STRING, _INT, _FLOAT = Kind.STRING, Kind.INT, Kind.FLOAT  # faster to reach


class Decoder:
    """``builders``: by the message's name; they take its fields and the position where it begins.
    ``texts``: strings seen so far, as names come again and again; ``seen``: likewise, by name,
    small messages."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton, self.data = skeleton, skeleton.data
        self.fields_left = MAX_FIELDS
        self.texts: dict[bytes, str] = {}
        self.seen: dict[str, dict[bytes, Any]] = {}
        self.builders: dict[str, Callable[[Values, int], object]] = {}

    def message(self, message: Message, start: int, end: int, depth: int = 0) -> Any:
        """What the message from ``start`` to ``end`` builds. ``depth``: in how many others it is.

        Raises FormatError, UnsupportedError, WireError.
        """
        if depth > MAX_DEPTH:
            raise FormatError("messages are nested too deep", where=self.where(message.name, start))
        data, tags, texts = self.data, message.tags, self.texts
        values: Values = {}
        item: Any
        before = start
        for tag, value, after in fields(data, start, end):
            self.fields_left -= 1
            if self.fields_left < 0:
                self.count(0, value)
            entry = tags.get(tag)
            if entry is None:
                self.unknown(message, tag, before)
                before = after
                continue
            kind, name, repeated, inner = entry
            if kind is _STRING:
                raw = data[value:after]
                item = texts.get(raw)
                if item is None:
                    item = self.text(raw, value)
            elif inner is not None:
                item = self.inner(inner, value, after, depth + 1)
                if name in values and not repeated:
                    raise self.error(f"{name} is there twice", message.name, start)
            elif kind is _INT or kind is _FLOAT:
                if tag & 7 == BYTES:
                    values.setdefault(name, []).extend(self.packed(kind, value, after))
                    before = after
                    continue
                item = signed(value) if kind is _INT else _F32.unpack_from(data, value)[0]
            elif kind is Kind.BYTES:
                item = data[value:after]
            else:
                tagged = kind is Kind.STRINGS or tag & 7 != BYTES
                item = self.weights(values.get(name), tagged, before, value, after)
            if not repeated:
                values[name] = item
            elif name in values:
                values[name].append(item)
            else:
                values[name] = [item]
            before = after
        build = self.builders.get(message.name)
        return build(values, start) if build else values

    def inner(self, message: Message, start: int, end: int, depth: int) -> Any:
        """As :meth:`message`. Equal bytes give the same object where ``seen`` has the message."""
        seen = self.seen.get(message.name)
        if seen is None or end - start > MAX_SEEN:
            return self.message(message, start, end, depth)
        raw = self.data[start:end]
        item = seen.get(raw)
        if item is None:
            item = self.message(message, start, end, depth)
            if len(seen) < MAX_TEXTS and self.shareable(item):
                seen[raw] = item
        return item

    def shareable(self, item: object) -> bool:
        """Whether ``item`` would be the same wherever in the file its bytes stood."""
        return True

    def count(self, number: int, position: int) -> None:
        """Counts ``number`` values more, so that a file of many tiny ones ends before memory."""
        self.fields_left -= number
        if self.fields_left < 0:
            where = f"byte {self.skeleton.offset(position)}"
            raise FormatError("too many fields", where=where, wanted=f"at most {MAX_FIELDS}")

    def unknown(self, message: Message, tag: int, position: int) -> None:
        """Lets a field pass that the schema doesn't have, but not one of a wrong type."""
        if tag >> 3 in message.numbers:
            raise self.error(f"field {tag >> 3} is of wire type {tag & 7}", message.name, position)

    def text(self, raw: bytes, position: int) -> str:
        """A string that was not seen yet."""
        try:
            text = str(raw, "utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {self.skeleton.offset(position)}"
            raise FormatError("string is not UTF-8", where=where, got=error.reason) from error
        if len(self.texts) < MAX_TEXTS:
            self.texts[raw] = text
        return text

    def packed(self, kind: Kind, start: int, end: int) -> Iterable[float]:
        """The numbers of a packed field."""
        raw = self.data[start:end]
        if kind is Kind.INT:
            self.count(count_varints(raw), start)
            try:
                return [signed(value) for value in varints(raw)]
            except WireError as error:
                raise WireError(error.what, start + error.position) from error
        if len(raw) % 4:
            raise WireError("packed numbers are cut", start)
        self.count(len(raw) // 4, start)
        return struct.unpack(f"<{len(raw) // 4}f", raw)

    def weights(self, run: Run | None, tagged: bool, before: int, start: int, end: int) -> Run:
        """A field of weights, from ``before`` with its tag: alone, or as the next of ``run``."""
        if run is None:
            return (True, before, end) if tagged else (False, start, end)
        if tagged and run[0] and run[2] == before:
            return True, run[1], end
        raise UnsupportedError(
            "a tensor's data is in several pieces", where=self.where("Tensor", before)
        )

    def where(self, message: str, position: int, name: str = "") -> str:
        """``NodeProto 'conv1' at byte 1234``."""
        shown = f" {name[:200]!r}" if name else ""
        return f"{message}Proto{shown} at byte {self.skeleton.offset(position)}"

    def error(self, what: str, message: str, position: int, name: str = "") -> FormatError:
        """A FormatError that names the message. What the file says of itself may be long."""
        return FormatError(what[:300], where=self.where(message, position, name))

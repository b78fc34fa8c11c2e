"""Broken ONNX files, each from a seed, and a worker that reads them in bounded memory.

    python -m tests.formats.onnx_mutants FIRST COUNT FILE…

reads mutants FIRST … FIRST + COUNT - 1 of the files, in turn, and prints JSON: ``outcomes``, how
many ended how; ``slowest``, CPU seconds and seed; ``failure``, the first that is no typed error, or
null. A file of more than 1 MB is changed in its structure only, by bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Union

from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats import onnx
from fanlight.formats.onnx_model import Model, check_external_sizes
from fanlight.formats.onnx_schema import SCHEMA
from fanlight.formats.onnx_values import strings, values
from fanlight.formats.protobuf import (
    BYTES,
    VARINT,
    Message,
    fields,
    write_varint,
)
from fanlight.formats.skim import Skeleton, skim

MEMORY = 256 << 20  # bytes above what the worker has before the first mutant
ABSURD = [0, 1, 127, 128, 255, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 64) - 1]
PATHS = r"""
    /etc/passwd ../w.bin a/../../w.bin C:\w.bin C:w.bin \\host\w.bin file:///w.bin http://h/w.bin
    %2e%2e/w.bin .. . / w.bin sub/w.bin ./w.bin .../w.bin a?b a#b a\..\b
""".split()
PATHS += ["", "a\0b", "../", ".. /w.bin", "x" * 5000, "a/" * 600 + "b"]


# --- trees: mutants whose lengths are right


@dataclass(slots=True)
class Field:
    """A field of a message; ``value`` is a list where it is a message itself."""

    tag: int
    value: Union[int, bytes, list[Field]]


Tree = list[Field]


def read_tree(data: bytes, message: Message, start: int, end: int) -> Tree:
    """The fields of a well-formed message."""
    tree = []
    for tag, value, after in fields(data, start, end):
        entry = message.tags.get(tag)
        if tag & 7 == VARINT:
            tree.append(Field(tag, value))
        elif entry is not None and entry.message is not None:
            tree.append(Field(tag, read_tree(data, entry.message, value, after)))
        else:
            tree.append(Field(tag, data[value:after]))
    return tree


def write_tree(tree: Tree) -> bytes:
    """The inverse of :func:`read_tree`."""
    out = bytearray()
    for field in tree:
        out += write_varint(field.tag)
        if isinstance(field.value, int):
            out += write_varint(field.value)
            continue
        value = write_tree(field.value) if isinstance(field.value, list) else field.value
        if field.tag & 7 == BYTES:
            out += write_varint(len(value))
        out += value
    return bytes(out)


def walk(tree: Tree) -> Iterator[tuple[Tree, int]]:
    """All fields of ``tree``, as lists and indices."""
    for index, field in enumerate(tree):
        yield tree, index
        if isinstance(field.value, list):
            yield from walk(field.value)


def _pick(tree: Tree, rng: Random, *kinds: type) -> tuple[Tree, int]:
    """One of the fields with values of ``kinds``."""
    found = [(t, i) for t, i in walk(tree) if isinstance(t[i].value, kinds)]
    return rng.choice(found)


def _number(tree: Tree, rng: Random) -> None:
    owner, index = _pick(tree, rng, int)
    owner[index].value = rng.choice([*ABSURD, rng.randrange(40)])


def _bytes(tree: Tree, rng: Random) -> None:
    owner, index = _pick(tree, rng, bytes)
    value = owner[index].value
    assert isinstance(value, bytes)
    owner[index].value = rng.choice(
        [b"", value[:-1], value * 2, rng.randbytes(len(value)), bytes(10_000), b"\xff\xfe"]
    )


def _delete(tree: Tree, rng: Random) -> None:
    owner, index = _pick(tree, rng, object)
    del owner[index]


def _repeat(tree: Tree, rng: Random) -> None:
    owner, index = _pick(tree, rng, object)
    owner[index:index] = [owner[index]] * rng.choice([1, 2, 100])


def _transplant(tree: Tree, rng: Random) -> None:
    (owner, index), (other, place) = _pick(tree, rng, object), _pick(tree, rng, object)
    value = owner[index].value
    copy = Field(owner[index].tag, write_tree(value) if isinstance(value, list) else value)
    other.insert(place, copy)


def _tag(tree: Tree, rng: Random) -> None:
    owner, index = _pick(tree, rng, object)
    field = owner[index]
    if rng.random() < 0.5:
        field.tag = rng.randrange(32) << 3 | field.tag & 7
    else:
        field.tag = field.tag & ~7 | rng.randrange(8)


def _path(tree: Tree, rng: Random) -> None:
    """A tensor in another file."""
    tensors = [t for t, i in walk(tree) if t[i].tag in (9 << 3 | 2, 5 << 3 | 2, 7 << 3 | 2)]
    tensor = rng.choice(tensors or [tree])
    if rng.random() < 0.8:
        tensor[:] = [field for field in tensor if field.tag in (8, 10, 16, 66)]
    numbers = [str(n) for n in ABSURD] + ["-1", "1e3", "0x10", "٣", "", "9" * 5000, " 1"]
    entries = {"location": rng.choice(PATHS)}
    for key in ("offset", "length"):
        if rng.random() < 0.4:
            entries[key] = rng.choice(numbers)
    for key, text in entries.items():
        entry = [Field(10, key.encode()), Field(18, text.encode())]
        tensor.append(Field(13 << 3 | 2, list(entry)))
    tensor.append(Field(14 << 3, 1))


def _deepen(tree: Tree, rng: Random) -> None:
    """Graphs in graphs, or types in types."""
    depth = rng.choice([5, 20, 30, 40, 100, 2000])
    if rng.random() < 0.5:
        chain: Tree = []
        for _ in range(depth):
            attribute = [Field(10, b"body"), Field(6 << 3 | 2, chain), Field(20 << 3, 5)]
            node = [Field(4 << 3 | 2, b"Loop"), Field(5 << 3 | 2, attribute)]
            chain = [Field(10, write_tree(node))]
        for field in tree:
            if field.tag == 7 << 3 | 2 and isinstance(field.value, list):
                field.value += chain
    else:
        inner = b""
        for _ in range(depth):
            inner = _message(4, _message(1, inner))
        for owner, index in walk(tree):
            if owner[index].tag == 11 << 3 | 2 and isinstance(owner[index].value, list):
                owner[index].value = _message(1, b"x") + _message(2, inner)
                break


def _message(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + write_varint(len(data)) + data


TREE_MUTATIONS: list[Callable[[Tree, Random], None]] = [
    _number,
    _number,
    _bytes,
    _delete,
    _repeat,
    _transplant,
    _tag,
    _path,
    _deepen,
]


# --- bytes: mutants whose lengths may be wrong


@dataclass(frozen=True, slots=True)
class Edit:
    """``removed`` bytes at ``offset`` give way to ``added``."""

    offset: int
    removed: int
    added: bytes


def byte_edit(rng: Random, offset: int, near: bytes) -> Edit:
    """A change at ``offset``, where the file has ``near``."""
    match rng.randrange(6):
        case 0:
            return Edit(offset, 1, bytes([near[0] ^ 1 << rng.randrange(8)]))
        case 1:
            return Edit(offset, 1, write_varint(rng.choice(ABSURD)))
        case 2:
            return Edit(offset, 1, b"\xff" * rng.choice([1, 4, 9, 10, 11]))
        case 3:
            return Edit(offset, rng.randrange(1, 9), b"")
        case 4:
            return Edit(offset, 0, rng.randbytes(rng.randrange(1, 9)))
        case _:
            return Edit(offset, 0, near[: rng.randrange(1, len(near) + 1)])


class Edited:
    """A file with edits, none of it copied; ``size`` cuts it."""

    def __init__(self, data: bytes | mmap.mmap, edits: list[Edit], cut: float) -> None:
        self.pieces: list[tuple[bytes | mmap.mmap, int, int]] = []
        position = 0
        for edit in sorted(edits, key=lambda e: e.offset):
            if edit.offset < position:
                continue
            self.pieces.append((data, position, edit.offset))
            self.pieces.append((edit.added, 0, len(edit.added)))
            position = min(len(data), edit.offset + edit.removed)
        self.pieces.append((data, position, len(data)))
        self.size = int(sum(stop - start for _, start, stop in self.pieces) * cut)

    async def read(self, offset: int, length: int) -> bytes:
        """As a file does."""
        out, length = b"", max(0, min(length, self.size - offset))
        for data, start, stop in self.pieces:
            if offset < stop - start and length:
                piece = data[start + offset : min(stop, start + offset + length)]
                out, length, offset = out + piece, length - len(piece), 0
            else:
                offset = max(0, offset - (stop - start))
        return out


# --- the worker


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What ``work``, which never waits, returns."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


class Original:
    """A file to change."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.small = len(self.data) < 1 << 20
        if self.small:
            self.data = bytes(self.data)
        whole = Edited(self.data, [], 1.0)
        self.skeleton: Skeleton = run(skim(whole.read, whole.size, SCHEMA["Model"]))

    def mutant(self, rng: Random) -> Edited:
        """One of its broken forms."""
        if self.small and rng.random() < 0.6:
            assert isinstance(self.data, bytes)
            tree = read_tree(self.data, SCHEMA["Model"], 0, len(self.data))
            for _ in range(rng.choice([1, 1, 2, 4])):
                rng.choice(TREE_MUTATIONS)(tree, rng)
            return Edited(write_tree(tree), [], 1.0)
        edits = []
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            offset = self.skeleton.offset(rng.randrange(len(self.skeleton.data)))
            edits.append(byte_edit(rng, offset, self.data[offset : offset + 64]))
        return Edited(self.data, edits, rng.random() if rng.random() < 0.1 else 1.0)


def use(model: Model) -> None:
    """What an importer does with a model: looks at all tensors, and at the values of small ones."""
    check_external_sizes(model, dict.fromkeys(model.external_files(), 1 << 62))
    for tensor in model.tensors():
        source = tensor.source
        if math.prod(tensor.shape) < 10_000 and (source is None or source.data is not None):
            (values if tensor.dtype.bits else strings)(tensor)


def outcome(original: Original, file: Edited, rng: Random) -> str:
    """How reading ``file``, a mutant of ``original``, ends: "read", or the error's name."""
    try:
        if original.small and rng.random() < 0.3:
            model = onnx.parse(run(file.read(0, file.size)))
        else:
            known = rng.random() < 0.5
            model = run(onnx.read_model(file.read, file.size if known else None))
        use(model)
    except (FormatError, UnsupportedError) as error:
        message, name = str(error), error.code
        assert len(message) < 10_000, message[:1000]
        return name
    return "read"


def limit_memory() -> None:
    """At most MEMORY more address space from here on, where the system can tell."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """The command line above."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    originals = [Original(Path(name)) for name in sys.argv[3:]]
    limit_memory()
    outcomes: dict[str, int] = {}
    slowest, failure = (0.0, first), None
    for seed in range(first, first + count):
        rng, original = Random(seed), originals[seed % len(originals)]
        file = original.mutant(rng)
        begin = time.process_time()
        try:
            name = outcome(original, file, rng)
        except BaseException:  # noqa: BLE001 - whatever it is, it is the answer
            failure = f"seed {seed}: {traceback.format_exc(limit=-8)}"
            break
        outcomes[name] = outcomes.get(name, 0) + 1
        slowest = max(slowest, (time.process_time() - begin, seed))
    print(json.dumps({"outcomes": outcomes, "slowest": slowest, "failure": failure}))


if __name__ == "__main__":
    main()

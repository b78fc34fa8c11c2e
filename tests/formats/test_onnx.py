"""The ONNX reader: what it refuses and why, how it reads files, and that bounds hold."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fanlight.errors import FormatError, InputError, TruncatedError, UnsupportedError
from fanlight.formats import onnx
from fanlight.formats.onnx_external import safe_path
from fanlight.formats.onnx_model import Model, Tensor, TensorType, check_external_sizes
from fanlight.formats.onnx_values import read_small, strings, values
from fanlight.formats.protobuf import (
    MAX_DEPTH,
    WireError,
    fields,
    read_varint,
    varints,
    write_varint,
)
from tests.formats import onnx_mutants

HEAD = b"\x08\x08"  # ir_version 8


def _message(number: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return write_varint(number << 3 | 2) + write_varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return write_varint(number << 3) + write_varint(value & (1 << 64) - 1)


def _graph(*parts: bytes) -> bytes:
    return HEAD + _message(7, *parts)


def _tensor(*parts: bytes, dims: list[int] | None = None, kind: int = 1) -> bytes:
    """A graph with one initializer, "w"."""
    sizes = b"".join(_number(1, size) for size in dims or [])
    return _graph(_message(5, sizes, _number(2, kind), _message(8, b"w"), *parts))


def _node(*attributes: bytes) -> bytes:
    """A graph with one node, "Op"."""
    found = [_message(5, attribute) for attribute in attributes]
    return _graph(_message(1, _message(4, b"Op"), *found))


def _entry(key: str, value: str) -> bytes:
    return _message(13, _message(1, key.encode()), _message(2, value.encode()))


def _external(**entries: str) -> bytes:
    found = [_entry(key, value) for key, value in entries.items()]
    return _tensor(*found, _number(14, 1), dims=[2, 3])


def _read(data: bytes, size: int | None = None) -> Model:
    async def read(offset: int, length: int) -> bytes:
        assert length > 0
        return data[offset : offset + length]

    return asyncio.run(onnx.read_model(read, size))


def _weight(data: bytes) -> Tensor:
    return onnx.parse(data).graph.initializers["w"]


# --- what it refuses


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not an ONNX file"),
        (b"GGUF\3\0\0\0", "not an ONNX file"),
        (b"version https://git-lfs", "not an ONNX file"),
        (b"PK\3\4", "not an ONNX file"),
        (HEAD, "no graph"),
        (_graph() + _message(7), "graph is there twice"),
        (HEAD + b"\x3b", "not a field"),
        (HEAD + b"\0\0", "not a field"),
        (HEAD + b"\x3a\x80" + b"\x80" * 9 + b"\1", "more than ten bytes"),
        (b"\x08" + b"\xff" * 9 + b"\x02" + _graph(), "more than 64 bits"),
        (_graph(b"\x0a\x05\x22\x09Op") + bytes([18, 2]) + b"id", "longer than its message"),
        (HEAD + _number(7, 3), "field 7 is of wire type 0"),
        (_graph(_message(2, b"\xff")), "not UTF-8"),
        (_graph(_message(1, _message(1, b"x"))), "node without an operator"),
        (_node(_message(1, b"a")), "unknown type 0"),
        (_node(_number(20, 2)), "attribute without a name"),
        (_node(*[_message(1, b"a") + _number(20, 2)] * 2), "duplicate attribute a"),
        (_node(_message(1, b"a") + _number(20, 99)), "unknown type 99"),
        (_node(_message(1, b"a") + _number(20, 2) + _message(4, b"x")), "int attribute holds s"),
        (_node(_message(1, b"a") + _number(20, 4)), "tensor attribute without a value"),
        (_tensor(kind=0), "without an element type"),
        (_tensor(_message(9, bytes(4)), dims=[-1]), "not a sensible shape"),
        (_tensor(_message(9, bytes(4)), dims=[1 << 31, 1 << 31]), "not a sensible shape"),
        (_tensor(_message(9, bytes(4)), dims=[1] * 65), "not a sensible shape"),
        (_tensor(_message(9, bytes(4)), dims=[2]), "doesn't fit the shape"),
        (_tensor(_message(9, bytes(8)), dims=[1]), "doesn't fit the shape"),
        (_tensor(_message(9, bytes(1)), dims=[0]), "doesn't fit the shape"),
        (_tensor(_message(9, bytes(2)), dims=[3], kind=25), "doesn't fit the shape"),
        (_tensor(_message(7, b"\1" * 31), dims=[3], kind=7), "doesn't fit the shape"),
        (_tensor(dims=[1]), "tensor without data"),
        (_tensor(_message(7, b"\1"), dims=[1]), "float elements are in int64_data"),
        (_tensor(_message(9, b"\1"), dims=[1], kind=8), "string elements are in raw_data"),
        (_tensor(_message(9, bytes(4)), _message(4, bytes(4)), dims=[1]), "in two places"),
        (_tensor(_number(14, 2), dims=[1]), "unknown location of data 2"),
        (_graph(_message(5, _number(2, 1), _number(1, 0))), "initializer without a name"),
    ],
)
def test_malformed(data: bytes, complaint: str) -> None:
    for size in (None, len(data)):
        with pytest.raises(FormatError, match=complaint):
            _read(data, size)
    with pytest.raises(FormatError, match=complaint):
        onnx.parse(data)


def test_duplicate_initializers() -> None:
    tensor = _message(5, _number(1, 0), _number(2, 1), _message(8, b"w"))
    with pytest.raises(FormatError, match="duplicate initializer w"):
        onnx.parse(_graph(tensor, tensor))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (_tensor(_message(9, bytes(4)), dims=[1], kind=99), "unknown element type"),
        (_tensor(_message(3, b""), dims=[1]), "several segments"),
        (_tensor(_message(4, bytes(4)), _message(4, bytes(4)), dims=[2]), "several pieces"),
    ],
)
def test_unsupported(data: bytes, complaint: str) -> None:
    with pytest.raises(UnsupportedError, match=complaint):
        onnx.parse(data)


def test_every_cut_is_noticed() -> None:
    """Truncated anywhere but between fields of the model, which is another whole model."""
    data = _tensor(_message(9, bytes(9000)), dims=[2250]) + _message(2, b"producer")
    whole = {len(HEAD), len(data) - len(_message(2, b"producer"))}
    for cut in [*range(1, 60), 4000, 9000, *range(len(data) - 15, len(data))]:
        if cut in whole:
            continue
        for read in (onnx.parse, _read, lambda piece: _read(piece, len(piece))):
            with pytest.raises(TruncatedError):
                read(data[:cut])
    with pytest.raises(TruncatedError):
        _read(data[:5000], len(data))


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        inner = b""
        for _ in range(depth):
            inner = _message(4, _message(1, inner))
        return _graph(_message(11, _message(1, b"x"), _message(2, inner)))

    assert onnx.parse(nested(MAX_DEPTH // 2 - 3)).graph.inputs[0].type is not None
    for depth in (MAX_DEPTH, 10_000):
        for read in (onnx.parse, _read):
            with pytest.raises(FormatError, match="nested too deep"):
                read(nested(depth))


def test_large_nesting_is_bounded() -> None:
    """Each level is too large to be kept as it is."""
    body = b""
    for _ in range(60):
        attribute = _message(1, b"body") + _message(6, body, _message(10, bytes(5000)))
        body = _message(1, _message(4, b"Loop"), _message(5, attribute))
    with pytest.raises(FormatError, match="nested too deep"):
        _read(_graph(body))


# --- external data


OUTSIDE = r"""
    /w.bin // ../w.bin a/../w.bin a/.. .. . ./ C:\w.bin C:w.bin c:/w \\host\w a\b file:///w
    http://host/w data:w %2e%2e/w a/%2E%2e/w .%2e/w ... a/.../w w?x w#x
""".split()


@pytest.mark.parametrize("location", [*OUTSIDE, "", "a\0b", "a\nb", ".. /w", " /w", "w" * 2000])
def test_paths_out_of_the_folder(location: str) -> None:
    with pytest.raises(FormatError, match="not a path inside the model's folder"):
        onnx.parse(_external(location=location))


@pytest.mark.parametrize(
    ("location", "path"),
    [("w.bin", "w.bin"), ("./a//b/./w", "a/b/w"), ("..w", "..w"), ("é 1.bin", "é 1.bin")],
)
def test_paths_inside_the_folder(location: str, path: str) -> None:
    assert safe_path(location, "") == path


@pytest.mark.parametrize("text", ["-1", "1.0", "0x10", "", "٣", " 1", "1" * 20, str(1 << 63)])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_external_numbers(key: str, text: str) -> None:
    with pytest.raises(FormatError, match=f"external {key} is not a number"):
        onnx.parse(_external(location="w", **{key: text}))


def test_external_data() -> None:
    model = onnx.parse(_external(location="w", offset=str(5 << 30), length="24", checksum="x"))
    source = model.graph.initializers["w"].source
    assert source is not None
    assert (source.file, source.offset, source.length) == ("w", 5 << 30, 24)
    check_external_sizes(model, {"w": (5 << 30) + 24})
    with pytest.raises(TruncatedError, match="ends before the tensor"):
        check_external_sizes(model, {"w": (5 << 30) + 23})
    with pytest.raises(FormatError, match="missing"):
        check_external_sizes(model, {})
    with pytest.raises(FormatError, match="doesn't fit the shape"):
        onnx.parse(_external(location="w", length="23"))
    with pytest.raises(FormatError, match="in two places"):
        onnx.parse(
            _tensor(_message(9, bytes(4)), _entry("location", "w"), _number(14, 1), dims=[1])
        )


# --- what it reads


def test_fields_that_nobody_knows_yet() -> None:
    """Small ones, large ones, and all wire types."""
    unknown = (
        _message(99, b"x")
        + _message(98, bytes(1 << 20))
        + _number(97, 5)
        + write_varint(96 << 3 | 1)
        + bytes(8)
        + write_varint(95 << 3 | 5)
        + bytes(4)
    )
    plain = _graph(_message(2, b"g"))
    data = HEAD + unknown + _message(7, _message(2, b"g"), unknown) + unknown
    assert onnx.parse(data) == onnx.parse(plain)
    assert _read(data) == onnx.parse(plain)


def test_dims() -> None:
    dims = [_number(1, 3), _message(2, b"n"), b"", _message(2, b""), _number(1, -1), _number(1, 0)]
    shape = _message(2, *(_message(1, dim) for dim in dims))
    value = _message(1, b"x") + _message(2, _message(1, _number(1, 1), shape))
    found = onnx.parse(_graph(_message(11, value))).graph.inputs[0].type
    assert isinstance(found, TensorType)
    assert found.shape == (3, "n", None, None, None, 0)
    for wrong in (_number(1, -2), _number(1, 3) + _message(2, b"n")):
        bad = _message(2, _message(1, _message(2, _message(1, wrong))))
        with pytest.raises(FormatError, match="not a dimension"):
            onnx.parse(_graph(_message(11, bad)))


def test_attributes_without_type_or_value() -> None:
    """Old files lack types, some writers leave out zeros."""
    data = _node(
        _message(1, b"old") + _number(3, 7),
        _message(1, b"zero") + _number(20, 2),
        _message(1, b"none") + _number(20, 7),
        _message(1, b"packed") + _number(20, 7) + _message(8, b"\1\2\x80\1"),
        _message(1, b"bytes") + _number(20, 3) + _message(4, b"a\xff"),
    )
    found = {k: a.value for k, a in onnx.parse(data).graph.nodes[0].attributes.items()}
    assert found == {"old": 7, "zero": 0, "none": (), "packed": (1, 2, 128), "bytes": "a\udcff"}


def test_few_large_ordered_requests() -> None:
    """Structure is read in growing requests, weights are passed over."""
    node = _message(1, _message(4, b"Op"), _message(3, b"n" * 50))
    weight = _message(
        5, _number(1, 1 << 20), _number(2, 1), _message(8, b"w"), _message(9, bytes(4 << 20))
    )
    data = _graph(node * 50_000, weight, node * 1000)
    requests: list[tuple[int, int]] = []

    async def read(offset: int, length: int) -> bytes:
        requests.append((offset, length))
        return data[offset : offset + length]

    model = asyncio.run(onnx.read_model(read, len(data)))
    assert len(model.graph.nodes) == 51_000
    source = model.graph.initializers["w"].source
    assert source is not None
    assert data[source.offset - 4 : source.offset + source.length].endswith(bytes(4 << 20))
    assert len(requests) < 12
    ends = [offset + length for offset, length in requests[1:]]
    assert all(end <= start for end, (start, _) in zip(ends, requests[2:], strict=False))
    assert sum(length for _, length in requests) < len(data) - (4 << 20) + (1 << 20)


def test_a_broken_read_passes_through() -> None:
    async def read(offset: int, length: int) -> bytes:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(onnx.read_model(read))


# --- values


def test_values_are_counted() -> None:
    tensor = _weight(_tensor(_message(7, b"\1\2\3\4"), dims=[3], kind=7))
    with pytest.raises(FormatError, match="doesn't fit the shape"):
        values(tensor)
    tensor = _weight(_tensor(_message(7, b"\1\2\x83"), dims=[3], kind=7))
    with pytest.raises(FormatError, match="ends inside a number"):
        values(tensor)
    texts = _weight(_tensor(_message(6, b"a"), _message(6, b"bc"), dims=[1, 2], kind=8))
    assert strings(texts) == ["a", "bc"]
    with pytest.raises(InputError, match="no raw form"):
        values(texts)


def test_small_tensors_are_read_on_demand() -> None:
    data = _tensor(_message(9, bytes(8000)), dims=[1000], kind=7)
    tensor = _weight(data)

    async def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    with pytest.raises(InputError, match="not at hand"):
        values(tensor)
    assert values(tensor, asyncio.run(read_small(tensor, read))) == [0] * 1000
    data = _tensor(_message(9, bytes(80_000)), dims=[10_000], kind=7)
    with pytest.raises(InputError, match="too large"):
        asyncio.run(read_small(_weight(data), read))


# --- the wire format


def test_varints() -> None:
    for value in (0, 1, 127, 128, 300, 1 << 35, (1 << 64) - 1):
        raw = write_varint(value)
        assert read_varint(raw, 0, len(raw)) == (value, len(raw))
        assert list(varints(raw + b"\5")) == [value, 5]
    assert read_varint(b"\x81\x80\0", 0, 3) == (1, 3)  # longer than it need be
    with pytest.raises(WireError, match="ends inside a number"):
        read_varint(b"\x81", 0, 1)
    assert list(fields(b"\x08\x96\1\x12\2hi", 0, 7)) == [(8, 150, 3), (18, 5, 7)]


# --- bounds


BOMBS = {
    "nodes": lambda: _graph(b"\x0a\x03\x22\x01A" * 5_000_000),
    "empty nodes": lambda: _graph(b"\x0a\0" * 10_000_000),
    "names": lambda: _graph(_message(1, b"\x0a\0" * 10_000_000)),
    "packed ints": lambda: _node(_message(1, b"a") + _number(20, 7) + _message(8, bytes(30 << 20))),
    "floats": lambda: _node(_message(1, b"a") + _number(20, 6) + _message(7, bytes(60 << 20))),
    "doc string": lambda: HEAD + _message(6, b"a" * (70 << 20)),
}


def explode(name: str) -> None:
    """Reads a bomb in bounded memory, in a process of its own, and prints how it ends."""
    data = BOMBS[name]()
    onnx_mutants.limit_memory()
    start = time.process_time()
    try:
        _read(data)
    except FormatError as error:
        print(error.what, time.process_time() - start, sep="; ")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    """Tens of megabytes of many tiny things."""
    code = f"from tests.formats import test_onnx; test_onnx.explode({name!r})"
    what, seconds = _python(code).split(";")
    assert what in ("too many fields", "structure is larger than any sensible one")
    assert float(seconds) < 1.5


def test_needs_no_more_than_the_standard_library() -> None:
    """It also runs where there is no numpy."""
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from fanlight.formats import onnx, onnx_values\n"
        f"print(onnx.parse({_graph(_message(2, b'g'))!r}).graph.name)"
    )
    assert _python(code) == "g\n"


def _python(code: str) -> str:
    """What ``code`` prints, in another process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

"""The GGUF reader: what it reads, what it refuses, and that nothing malformed gets further."""

from __future__ import annotations

import asyncio
import struct
from array import array
from pathlib import Path

import pytest

from fanlight.errors import FormatError, TruncatedError, UnsupportedError
from fanlight.formats import cursor, gguf
from fanlight.formats.ggml_types import TYPE_NAMES
from fanlight.formats.gguf import Gguf, NeedMoreData, StringArray, parse, read_header
from tests import gguf_files


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _key(name: str, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


def _tensor(name: str, ne: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
    return _string(name) + sizes + struct.pack("<IQ", kind, offset)


def _file(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = 3,
    data: int = 4096,
) -> bytes:
    keys, tensors = keys or [], tensors or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    return head + b"".join(keys) + b"".join(tensors) + bytes(data)


def _parse(data: bytes) -> Gguf:
    return parse(data, file_size=len(data))


# --- what it reads


def test_values() -> None:
    numbers = struct.pack("<IQ3f", 6, 3, 0.5, -1.0, 2.0)
    nested = struct.pack("<IQ", 9, 1) + struct.pack("<IQ2h", 3, 2, -3, 4)
    read = _parse(
        _file(
            [
                _key("u8", 0, b"\xff"),
                _key("i8", 1, b"\xff"),
                _key("bool", 7, b"\x01"),
                _key("u64", 10, struct.pack("<Q", 2**64 - 1)),
                _key("f64", 12, struct.pack("<d", 0.1)),
                _key("text", 8, _string("é")),
                _key("floats", 9, numbers),
                _key("bools", 9, struct.pack("<IQ", 7, 2) + b"\1\0"),
                _key("texts", 9, struct.pack("<IQ", 8, 2) + _string("a") + _string("")),
                _key("none", 9, struct.pack("<IQ", 8, 0)),
                _key("nested", 9, nested),
            ],
            version=2,
        )
    )
    m = read.metadata
    assert [m[k] for k in ("u8", "i8", "bool", "u64", "f64")] == [255, -1, True, 2**64 - 1, 0.1]
    assert m["bool"] is True
    assert m["text"] == "é"
    assert m["bools"] == (True, False)
    assert m["texts"] == ["a", ""]
    assert m["none"] == []
    assert isinstance(m["floats"], array)
    assert m["floats"].tolist() == [0.5, -1.0, 2.0]
    assert isinstance(m["nested"], tuple)
    assert [list(x) for x in m["nested"]] == [[-3, 4]]
    assert read.version == 2


def test_string_array() -> None:
    texts = ["<s>", "", "日本", "a" * 300]
    raw = struct.pack("<IQ", 8, len(texts)) + b"".join(map(_string, texts))
    got = _parse(_file([_key("t", 9, raw)])).metadata["t"]
    assert isinstance(got, StringArray)
    assert list(got) == texts
    assert [got[i] for i in range(-4, 4)] == texts * 2
    assert got[1:3] == texts[1:3]
    assert len(got) == 4
    assert "日本" in got
    assert got == texts
    assert got != texts[:3]
    with pytest.raises(IndexError):
        got[4]


def test_shapes_are_numpys_and_offsets_the_files() -> None:
    data = _file([], [_tensor("a", (64, 3), 2, 0), _tensor("b", (5,), 0, 128)])
    read = _parse(data)
    assert read.data_offset % 32 == 0
    a, b = read.tensors["a"], read.tensors["b"]
    assert (a.dtype.name, a.shape, a.offset, a.length) == ("q4_0", (3, 64), read.data_offset, 108)
    assert (b.shape, b.offset, b.length) == ((5,), read.data_offset + 128, 20)


def test_alignment() -> None:
    aligned = _key("general.alignment", 4, struct.pack("<I", 256))
    assert _parse(_file([aligned])).data_offset == 256


def test_architecture() -> None:
    named = _parse(_file([_key("general.architecture", 8, _string("llama"))]))
    assert named.architecture == "llama"
    with pytest.raises(FormatError, match=r"general\.architecture"):
        _ = _parse(_file()).architecture


# --- prefixes


def _small_file(tmp_path: Path) -> bytes:
    gguf_files.write(tmp_path / "m.gguf", gguf_files.Model(layers=1, llama3_factor=8.0))
    return (tmp_path / "m.gguf").read_bytes()


def test_every_prefix_asks_for_more(tmp_path: Path) -> None:
    data = _small_file(tmp_path)
    end = _parse(data).data_offset
    view = memoryview(data)
    for length in [*range(600), *range(600, end, 37)]:
        with pytest.raises(NeedMoreData) as caught:
            parse(view[:length], file_size=len(data))
        assert length < caught.value.at_least <= end
        with pytest.raises(NeedMoreData):
            parse(view[:length], file_size=None)
        with pytest.raises(TruncatedError):
            parse(view[:length], file_size=length)


def test_read_header_fetches_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "FIRST_READ", 1024)
    data = _small_file(tmp_path)
    fetched: list[tuple[int, int]] = []

    async def read(offset: int, length: int) -> bytes:
        fetched.append((offset, length))
        return data[offset : offset + length]

    for size in (len(data), None):
        fetched.clear()
        header = asyncio.run(read_header(read, size))
        assert header == _parse(data)
        ends = [0, *(offset + length for offset, length in fetched)]
        assert [offset for offset, _ in fetched] == ends[:-1]  # nothing twice
        assert ends[-1] <= 2 * header.data_offset + 1024


def test_read_header_of_a_short_file() -> None:
    async def read(offset: int, length: int) -> bytes:
        return _file([_key("k", 8, _string("text"))], data=0)[:-2][offset : offset + length]

    with pytest.raises(TruncatedError):
        asyncio.run(read_header(read))


def test_read_header_stops_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "MAX_HEADER", 1 << 21)
    monkeypatch.setattr(gguf, "MAX_HEADER", 1 << 21)
    endless = _file([_key("k", 8, struct.pack("<Q", 1 << 40))], data=0)

    async def read(offset: int, length: int) -> bytes:
        assert offset + length <= 1 << 21
        return endless[offset : offset + length].ljust(length, b"\0")

    with pytest.raises(FormatError, match="larger than any sensible"):
        asyncio.run(read_header(read, 1 << 50))


# --- what it refuses

_LONG = struct.pack("<Q", 1 << 60)
_DEEP = struct.pack("<IQ", 9, 1) * 8 + struct.pack("<IQ", 0, 0)
_WIDE = struct.pack("<IQ", 9, 70_000) + struct.pack("<IQ", 0, 0) * 70_000

REFUSED: dict[str, tuple[bytes, type[Exception], str]] = {
    "magic": (b"GGML" + _file()[4:], FormatError, "not a GGUF file"),
    "version 1": (_file(version=1), UnsupportedError, "version"),
    "version 4": (_file(version=4), UnsupportedError, "version"),
    "big endian": (_file(version=3 << 24), UnsupportedError, "big-endian"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0), FormatError, "tensor count"),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63), FormatError, "key count"),
    "some tensors": (b"GGUF" + struct.pack("<IQQ", 3, 9999, 0), TruncatedError, "tensor count"),
    "some keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 9999), TruncatedError, "key count"),
    "key length": (_file([_LONG]), TruncatedError, "key 0"),
    "key text": (_file([_key("k", 0, b"\0")]).replace(b"k", b"\xff"), FormatError, "UTF-8"),
    "text": (_file([_key("k", 8, _string(b"\xc3"))]), FormatError, "UTF-8"),
    "duplicate key": (_file([_key("k", 0, b"\0")] * 2), FormatError, "duplicate key"),
    "value type": (_file([_key("k", 13, b"")]), FormatError, "unknown value type"),
    "item type": (_file([_key("k", 9, struct.pack("<IQ", 77, 1))]), FormatError, "value type"),
    "boolean": (_file([_key("k", 7, b"\2")]), FormatError, "boolean"),
    "text count": (_file([_key("k", 9, b"\x08\0\0\0" + _LONG)]), TruncatedError, "count"),
    "number count": (_file([_key("k", 9, b"\x06\0\0\0" + _LONG)]), TruncatedError, "count"),
    "array count": (_file([_key("k", 9, b"\x09\0\0\0" + _LONG)]), TruncatedError, "count"),
    "deep": (_file([_key("k", 9, _DEEP)]), FormatError, "nested"),
    "wide": (_file([_key("k", 9, _WIDE)]), FormatError, "nested"),
    "alignment 0": (_file([_key("general.alignment", 4, bytes(4))]), FormatError, "alignment"),
    "alignment 48": (
        _file([_key("general.alignment", 4, struct.pack("<I", 48))]),
        FormatError,
        "alignment",
    ),
    "alignment text": (
        _file([_key("general.alignment", 8, _string("32"))]),
        FormatError,
        "alignment",
    ),
    "five dims": (_file([], [_tensor("a", (1,) * 5, 0, 0)]), FormatError, "dimensions"),
    "zero": (_file([], [_tensor("a", (4, 0), 0, 0)]), FormatError, "shape"),
    "overflow": (_file([], [_tensor("a", (1 << 40,) * 4, 0, 0)]), FormatError, "shape"),
    "huge": (_file([], [_tensor("a", (1 << 40, 1 << 20), 0, 0)]), TruncatedError, "ends before"),
    "blocks": (_file([], [_tensor("a", (48, 2), 2, 0)]), FormatError, "whole q4_0 blocks"),
    "unaligned": (_file([], [_tensor("a", (4,), 0, 4)]), FormatError, "aligned"),
    "outside": (_file([], [_tensor("a", (4,), 0, 8192)]), TruncatedError, "ends before"),
    "overlap": (
        _file([], [_tensor("a", (64,), 0, 0), _tensor("b", (4,), 0, 32)]),
        FormatError,
        "overlap",
    ),
    "duplicate": (_file([], [_tensor("a", (4,), 0, 0)] * 2), FormatError, "duplicate tensor"),
    "type": (_file([], [_tensor("a", (256,), 13, 0)]), UnsupportedError, "Q5_K"),
    "type 99": (_file([], [_tensor("a", (256,), 99, 0)]), UnsupportedError, "type 99"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    data, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        _parse(data)


def test_all_unsupported_types_are_named_at_once() -> None:
    kinds = {"a": 13, "b": 6, "c": 13, "d": 20}
    rows = [_tensor(n, (256,), kind, 0) for n, kind in kinds.items()]
    with pytest.raises(UnsupportedError) as caught:
        _parse(_file([], rows))
    assert "Q5_K (a and 1 more), Q5_0 (b), IQ4_NL (d)" in str(caught.value)


def test_type_names_are_the_references() -> None:
    import gguf as reference

    for kind in reference.GGMLQuantizationType:
        assert TYPE_NAMES[int(kind)] == kind.name


def test_bad_text_inside_an_array_is_said_when_read() -> None:
    raw = struct.pack("<IQ", 8, 2) + _string("good") + _string(b"\xff")
    texts = _parse(_file([_key("k", 9, raw)])).metadata["k"]
    assert isinstance(texts, StringArray)
    assert texts[0] == "good"
    with pytest.raises(FormatError, match=r"k\[1\]"):
        list(texts)


def test_real_header(smollm2_gguf: Path) -> None:
    async def read(offset: int, length: int) -> bytes:
        with smollm2_gguf.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    header = asyncio.run(read_header(read, smollm2_gguf.stat().st_size))
    assert header.architecture == "llama"
    assert len(header.tensors) == 272
    assert header.tensors["token_embd.weight"].shape == (49152, 576)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert len(tokens) == 49152

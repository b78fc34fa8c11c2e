"""Broken GGUF files end in a typed error, within a second and in bounded memory. Every case has a
seed, which a failure names."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats import cursor
from fanlight.formats.gguf import NeedMoreData, StringArray, parse
from tests import gguf_files

SECONDS = 1.0
ABSURD = [(1 << 64) - 1, 1 << 63, 1 << 62, 1 << 48, 1 << 32, (1 << 32) - 1, 1 << 31, 1 << 20, 0]


def _truncate(raw: bytearray, rng: Random) -> None:
    del raw[rng.randrange(len(raw)) :]


def _flip(raw: bytearray, rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def _absurd(raw: bytearray, rng: Random) -> None:
    size = rng.choice([4, 8])
    position = rng.randrange(len(raw) - 8)
    value = rng.choice(ABSURD) & ((1 << 8 * size) - 1)
    raw[position : position + size] = value.to_bytes(size, "little")


def _shift(raw: bytearray, rng: Random) -> None:
    position = rng.randrange(len(raw))
    if rng.random() < 0.5:
        del raw[position : position + rng.randrange(1, 9)]
    else:
        raw[position:position] = rng.randbytes(rng.randrange(1, 9))


def _copy(raw: bytearray, rng: Random) -> None:
    a, b, n = rng.randrange(len(raw)), rng.randrange(len(raw)), rng.randrange(1, 256)
    raw[b : b + n] = raw[a : a + n]


MUTATIONS: list[Callable[[bytearray, Random], None]] = [_truncate, _flip, _absurd, _shift, _copy]


def _survives(raw: bytes, seed: int) -> str:
    """The outcome of reading all of ``raw``: "read", or the error's name. Anything else fails."""
    start = time.perf_counter()
    try:
        header = parse(raw, file_size=len(raw))
        for value in header.metadata.values():
            if isinstance(value, StringArray):
                list(value)
        _ = header.architecture
        outcome = "read"
    except (FormatError, UnsupportedError) as error:
        outcome = error.code
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    seconds = time.perf_counter() - start
    assert seconds < SECONDS, f"seed {seed}: {outcome} after {seconds:.2f} s"
    return outcome


def _fuzz(original: bytes, header: int, rounds: int, first_seed: int) -> dict[str, int]:
    outcomes: dict[str, int] = {}
    for seed in range(first_seed, first_seed + rounds):
        rng = Random(seed)
        raw = bytearray(original[:header])
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if len(raw) > 16:
                rng.choice(MUTATIONS)(raw, rng)
        outcome = _survives(bytes(raw) + original[header:], seed)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(f"seeds {first_seed} … {first_seed + rounds - 1}: {outcomes}")
    return outcomes


def test_fuzz_small_file(tmp_path: Path) -> None:
    data = _small_file(tmp_path)
    outcomes = _fuzz(data, parse(data, file_size=len(data)).data_offset, 3000, first_seed=0)
    assert outcomes.keys() >= {"FormatError", "TruncatedError", "UnsupportedError", "read"}


def test_fuzz_afresh(tmp_path: Path, seed: int) -> None:
    """Other cases at each run; ``--seed`` repeats them."""
    data = _small_file(tmp_path)
    _fuzz(data, parse(data, file_size=len(data)).data_offset, 1000, first_seed=seed)


def test_fuzz_real_header(smollm2_gguf: Path) -> None:
    with smollm2_gguf.open("rb") as file:
        start = file.read(1 << 21)
    size = smollm2_gguf.stat().st_size
    header = parse(start, file_size=size).data_offset
    # the tensors' bytes are never looked at, so the file need not have them: only its size counts
    outcomes: dict[str, int] = {}
    for seed in range(50):
        rng = Random(seed)
        raw = bytearray(start[:header])
        rng.choice(MUTATIONS)(raw, rng)
        begin = time.perf_counter()
        try:
            parse(bytes(raw), file_size=size if len(raw) >= header else len(raw))
            outcome = "read"
        except (FormatError, UnsupportedError, NeedMoreData) as error:
            outcome = type(error).__name__
        assert time.perf_counter() - begin < SECONDS, f"seed {seed}: {outcome}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(outcomes)


def test_memory_is_bounded_by_the_file(tmp_path: Path) -> None:
    """Absurd counts at every place of a header cost no memory: at most four times the file."""
    data = _small_file(tmp_path)
    header = parse(data, file_size=len(data)).data_offset
    tracemalloc.start()
    try:
        for position in range(8, header - 8, 61):
            raw = bytearray(data)
            raw[position : position + 8] = ((1 << 62) - 1).to_bytes(8, "little")
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            _survives(bytes(raw), position)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 4 * len(data) + 100_000, f"position {position}: {peak} bytes"
    finally:
        tracemalloc.stop()


def test_a_header_full_of_strings_is_refused_in_time() -> None:
    """A million empty strings and one more: the bound holds, and soon enough."""
    count = cursor.MAX_STRINGS + 1
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    raw = head + struct.pack("<IIQ", 9, 8, count) + bytes(8 * count)
    start = time.perf_counter()
    with pytest.raises(FormatError, match="too many strings"):
        parse(raw, file_size=len(raw))
    fits = head + struct.pack("<IIQ", 9, 8, count - 1) + bytes(8 * (count - 1))
    parse(fits, file_size=len(fits))
    assert time.perf_counter() - start < SECONDS


def _small_file(tmp_path: Path) -> bytes:
    gguf_files.write(tmp_path / "m.gguf", gguf_files.Model(layers=1, llama3_factor=8.0))
    return (tmp_path / "m.gguf").read_bytes()

"""Each row of the table against the ``gguf`` package, bit for bit, on random and on edge blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from fanlight.dtypes import DTYPES
from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats.dequant import BLOCKS, dequantise

BLOCK_COUNT = 512
# where the f16 scales of a block lie, so that a test can make them finite
SCALES = {"q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q4_k": [0, 2], "q6_k": [208]}
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, 65504.0, -65504.0, 6e-8, -6e-8, 6.1e-5, 0.1], dtype=np.float16
)


def _reference(raw: np.ndarray, name: str) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[name.upper()]
    if name in ("f32", "f16"):
        return raw.view("<f4" if name == "f32" else "<f2").astype(np.float32).ravel()
    return np.asarray(gguf.dequantize(raw, kind)).ravel()


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("fill", ["random", "zeros", "ones", "edges"])
def test_equals_gguf(name: str, fill: str) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(7)
    raw = rng.integers(0, 256, (BLOCK_COUNT, dtype.bytes), dtype=np.uint8)
    if fill in ("zeros", "ones"):
        raw[:] = 0 if fill == "zeros" else 255
    for offset in SCALES.get(name, []):
        choice = EDGES if fill == "edges" else rng.standard_normal(BLOCK_COUNT)
        scale = np.resize(np.asarray(choice, np.float16), BLOCK_COUNT)
        raw[:, offset : offset + 2] = scale.reshape(-1, 1).view(np.uint8)
    got = dequantise(raw.tobytes(), dtype, (BLOCK_COUNT, dtype.block))
    assert got.dtype == np.float32
    want = _reference(raw, name)
    # the same bits, but for which NaN
    np.testing.assert_array_equal(got.ravel(), want)
    assert (np.signbit(got.ravel()) == np.signbit(want))[~np.isnan(want)].all()


def test_every_block_dtype_has_a_row() -> None:
    assert {d.name for d in DTYPES.values() if d.kind == "block"} <= BLOCKS.keys()


def test_a_wrong_block_is_seen() -> None:
    """The comparison notices one bit in one quant."""
    raw = np.zeros((1, 18), np.uint8)
    raw[0, 1] = 0x3C  # scale 1.0
    wrong = raw.copy()
    wrong[0, 17] ^= 1
    q4_0 = DTYPES["q4_0"]
    a = dequantise(raw.tobytes(), q4_0, (32,))
    b = dequantise(wrong.tobytes(), q4_0, (32,))
    assert np.flatnonzero(a != b).tolist() == [15]


def test_errors() -> None:
    with pytest.raises(FormatError):
        dequantise(bytes(17), DTYPES["q4_0"], (32,))
    with pytest.raises(FormatError):
        dequantise(bytes(18), DTYPES["q4_0"], (64,))
    with pytest.raises(UnsupportedError, match="i64"):
        dequantise(bytes(8), DTYPES["i64"], (1,))

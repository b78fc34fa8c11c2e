"""What the bytes of each weight dtype mean: slow, obvious, the reference for every kernel.

In: bytes as a file has them. Out: float32, with the operations in the order of ggml's
``dequantize_row_*`` (ggml-quants.c), each rounded to float32. Layouts: ggml-common.h. numpy is
imported on use: this is for tests and tools, nothing in the browser calls it. One more format is
one row of ``BLOCKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fanlight.dtypes import DType
from fanlight.errors import FormatError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]
    Floats = np.ndarray[Any, np.dtype[np.float32]]


def dequantise(data: bytes | memoryview, dtype: DType, shape: tuple[int, ...]) -> Floats:
    """float32 array of ``shape``. Raises FormatError where ``data`` has another length,
    UnsupportedError for a dtype without a row, MissingDependencyError without numpy."""
    try:
        import numpy as np
    except ImportError as error:
        raise MissingDependencyError(
            "numpy is needed to dequantise", hint="Run: pip install numpy"
        ) from error
    if dtype.name not in BLOCKS:
        raise UnsupportedError("no dequantisation", got=dtype, wanted=", ".join(BLOCKS))
    raw = np.frombuffer(data, np.uint8)
    blocks = raw.size // dtype.bytes
    if blocks * dtype.bytes != raw.size or blocks * dtype.block != np.prod(shape, dtype=np.int64):
        raise FormatError(f"not {shape} of {dtype}", got=f"{raw.size} bytes")
    with np.errstate(invalid="ignore", over="ignore"):  # random bits hold infinities and NaNs
        return BLOCKS[dtype.name](raw.reshape(blocks, dtype.bytes)).reshape(shape)


def _f16(raw: Bytes) -> Floats:
    """[n, 2k] → [n, k]."""
    import numpy as np

    return np.ascontiguousarray(raw).view(np.dtype("<f2")).astype(np.float32)


def _nibbles(raw: Bytes) -> Floats:
    """[n, k] → [n, 2k]: all low halves, then all high ones."""
    import numpy as np

    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.float32)


def _f32(raw: Bytes) -> Floats:
    import numpy as np

    return raw.view(np.dtype("<f4")).astype(np.float32)


def _bf16(raw: Bytes) -> Floats:
    import numpy as np

    bits = raw.view(np.dtype("<u2")).astype(np.uint32) << 16
    return bits.view(np.float32)


def _q8_0(raw: Bytes) -> Floats:
    """Scale f16, 32 × i8: d·q."""
    import numpy as np

    return _f16(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(raw: Bytes) -> Floats:
    """Scale f16, 32 × 4 bits: d·(q - 8)."""
    import numpy as np

    return (_nibbles(raw[:, 2:]) - np.float32(8)) * _f16(raw[:, :2])


def _q4_1(raw: Bytes) -> Floats:
    """Scale and minimum f16, 32 × 4 bits: d·q + m."""
    return _f16(raw[:, :2]) * _nibbles(raw[:, 4:]) + _f16(raw[:, 2:4])


def _q4_k(raw: Bytes) -> Floats:
    """d, dmin f16; 8 scales and 8 minima of 6 bits in 12 bytes; 256 × 4 bits, 64 elements to 32
    bytes. Sub-block j of 32: (d·scale_j)·q - dmin·min_j."""
    import numpy as np

    d, dmin = _f16(raw[:, 0:2]), _f16(raw[:, 2:4])  # [n, 1]
    packed, quants = raw[:, 4:16], raw[:, 16:].reshape(-1, 4, 32)
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    # 0 … 3: the low six bits of a and b; 4 … 7: a half of c, topped by the high two bits of a, b
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1).astype(np.float32)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1).astype(np.float32)
    # [n, 4, 2, 32] → [n, 8, 32]: low halves are the even sub-blocks
    q = np.stack([quants & 15, quants >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    out = (d * scales)[:, :, None] * q - (dmin * minima)[:, :, None]
    return np.asarray(out, np.float32).reshape(-1, 256)


def _q6_k(raw: Bytes) -> Floats:
    """256 × 4 low bits in 128 bytes, × 2 high bits in 64; 16 scales i8; d f16. Sub-block j of 16:
    (d·scale_j)·(q - 32)."""
    import numpy as np

    low = raw[:, :128].reshape(-1, 2, 2, 32)  # [n, half, part, 32]
    high = raw[:, 128:192].reshape(-1, 2, 1, 32)
    # quarter k of a half: low bits from part k mod 2, half k div 2 of the byte; high bits 2k, 2k+1
    four = np.concatenate([low & 15, low >> 4], axis=2)  # [n, 2, 4, 32]
    two = high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    q = (four | two << 4).astype(np.float32) - np.float32(32)
    scales = _f16(raw[:, 208:]) * raw[:, 192:208].view(np.int8).astype(np.float32)  # [n, 16]
    out = scales[:, :, None] * q.reshape(-1, 16, 16)
    return np.asarray(out, np.float32).reshape(-1, 256)


BLOCKS: dict[str, Callable[[Bytes], Floats]] = {  # [blocks, bytes] → [blocks, elements]
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q4_k": _q4_k,
    "q6_k": _q6_k,
}

"""com.microsoft's embeddings and tables of few bits against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.importers.microsoft import Array, check

RNG = np.random.default_rng(10)


def _normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype("f4")


def _ids(most: int) -> Array:
    return RNG.integers(0, most, (2, 6)).astype("i4")


TABLES = [_normal(20, 16), _normal(8, 16), _normal(2, 16), _normal(16), _normal(16)]
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], "i4")
EMBEDDED: dict[str, tuple[list[Array | None], dict[str, Any], list[str]]] = {
    "plain": ([_ids(20), _ids(2), *TABLES], {}, ["y", "mask"]),
    "mask": ([_ids(20), _ids(2), *TABLES, MASK], {"epsilon": 1e-6}, ["y", "mask", "sum"]),
    "no-segments": (
        [_ids(20), None, *TABLES[:2], None, *TABLES[3:], None, _ids(8)], {}, ["y", "mask"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EMBEDDED)
def test_embed_layer_normalization(name: str) -> None:
    inputs, attributes, outputs = EMBEDDED[name]
    check("EmbedLayerNormalization", inputs, attributes, outputs)


def test_matmul_bits_by_groups() -> None:
    """Each place of K names its block."""
    inputs: list[Array | None] = [
        _normal(3, 64), RNG.integers(0, 256, (5, 4, 8)).astype("u1"), _normal(5, 4),
        None, RNG.integers(0, 4, 64).astype("i4"),
    ]  # fmt: skip
    sizes = {"K": 64, "N": 5, "bits": 4, "block_size": 16}
    check("MatMulNBits", inputs, sizes, fixed=[1, 2, 4])


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gather_block_quantized(bits: int, zeros: bool) -> None:
    table = RNG.integers(0, 256, (20, 64 * bits // 8)).astype("u1")
    points = RNG.integers(0, 256, (20, 4 * bits // 8)).astype("u1") if zeros else None
    inputs = [table, _ids(20), _normal(20, 4), points]
    check("GatherBlockQuantized", inputs, {"bits": bits, "block_size": 16}, fixed=[0, 2, 3])

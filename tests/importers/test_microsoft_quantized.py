"""com.microsoft's operators of 8-bit values against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.importers.microsoft import Array, check

RNG = np.random.default_rng(11)


def _normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype("f4")


def _bytes(*shape: int) -> Array:
    return RNG.integers(0, 256, shape).astype("u1")


def _signed(*shape: int) -> Array:
    return RNG.integers(-128, 128, shape).astype("i1")


def _scale(value: float) -> Array:
    return np.array(value, "f4")


def _zero(value: int) -> Array:
    return np.array(value, "u1")


X = [_bytes(2, 3, 4, 4), _scale(0.03), _zero(120)]
OTHER = [_bytes(2, 3, 4, 4), _scale(0.05), _zero(100)]
OUT = [_scale(0.06), _zero(110)]
WEIGHTS = _normal(8)
CASES: dict[str, tuple[list[Array | None], dict[str, Any]]] = {
    "QLinearAdd": ([*X, *OTHER, *OUT], {}),
    "QLinearAdd-broadcast": ([*X, _bytes(4), *OTHER[1:], *OUT], {}),
    "QLinearMul": ([*X, *OTHER, *OUT], {}),
    "QLinearMul-signed": (
        [_signed(2, 5), _scale(0.1), np.array(3, "i1"), _signed(2, 5), _scale(0.2),
         np.array(-4, "i1"), _scale(1.5), np.array(9, "i1")], {},
    ),
    "QLinearSigmoid": ([*X, _scale(1 / 256), _zero(0)], {}),
    "QLinearLeakyRelu": ([*X, *OUT], {"alpha": 0.2}),
    "QLinearGlobalAveragePool": ([*X, *OUT], {}),
    "QLinearGlobalAveragePool-last": ([*X, *OUT], {"channels_last": 1}),
    "QLinearConcat": ([*OUT, *X, *OTHER], {"axis": 1}),
    "MatMulIntegerToFloat": (
        [_bytes(5, 16), _bytes(16, 8), _scale(0.1), _scale(0.2), _zero(100), _zero(130)], {},
    ),
    "MatMulIntegerToFloat-columns": (
        [_bytes(2, 5, 16), _signed(16, 8), _scale(0.1), np.abs(_normal(8)), _zero(100),
         _signed(8), _normal(8)], {},
    ),
    "DynamicQuantizeMatMul": ([_normal(5, 16), _bytes(16, 8), _scale(0.2), _zero(130)], {}),
    "DynamicQuantizeMatMul-columns": (
        [_normal(2, 5, 16), _signed(16, 8), np.abs(_normal(8)), _signed(8), _normal(8)], {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_onnxruntime(name: str) -> None:
    inputs, attributes = CASES[name]
    operator = name.split("-")[0]
    given = [i for i, x in enumerate(inputs) if x is not None and x.ndim > 1]
    fixed = [i for i in range(len(inputs)) if i not in given]
    check(operator, inputs, attributes, fixed=fixed)

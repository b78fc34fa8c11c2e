"""com.microsoft's convolutions and products with an activation against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.importers.microsoft import Array, check

RNG = np.random.default_rng(12)


def _normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype("f4")


X, W, BIAS = _normal(1, 4, 6, 6), _normal(5, 4, 3, 3), _normal(5)
A, B, C = _normal(3, 7), _normal(7, 5), _normal(5)
CASES: dict[str, tuple[list[Array | None], dict[str, Any]]] = {
    "FusedConv-Relu": ([X, W, BIAS], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "FusedConv-Clip": ([X, W], {"activation": "Clip", "activation_params": [-1.0, 2.0]}),
    "FusedConv-LeakyRelu": ([X, W], {"activation": "LeakyRelu", "activation_params": [0.3]}),
    "FusedConv-HardSigmoid": (
        [X, W, BIAS], {"activation": "HardSigmoid", "activation_params": [0.1, 0.4]},
    ),
    "FusedConv-sum": ([X, W, BIAS, _normal(1, 5, 4, 4)], {"activation": "Relu"}),
    "FusedGemm-Relu": ([A, B, C], {"activation": "Relu", "alpha": 0.5}),
    "FusedGemm-LeakyRelu": ([A, B, C], {"activation": "LeakyRelu", "activation_alpha": 0.2}),
    "Trilu": ([A], {"upper": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_onnxruntime(name: str) -> None:
    inputs, attributes = CASES[name]
    check(name.split("-")[0], inputs, attributes, fixed=[1, 2])

"""Bounds between two roundings to f16 leave one of them, and the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.ir.build import cast, scalar
from fanlight.ir.build import op as do
from fanlight.ir.graph import Graph, Node
from fanlight.ir.interpreter import Interpreter
from fanlight.ir.ops import input_
from fanlight.passes import rounding

X = input_("x", dtypes.f32, (4096,))
ROUNDED = cast(cast(X, dtypes.f16), dtypes.f32)


def _bounded(kind: str, bound: float) -> Node:
    return do(kind, ROUNDED, scalar(bound, dtypes.f32))


@pytest.mark.parametrize(("kind", "bound"), [("max", 0.0), ("min", 6.0), ("max", -0.125)])
def test_the_bits_stay(kind: str, bound: float) -> None:
    graph = Graph("main", {"y": cast(_bounded(kind, bound), dtypes.f16)})
    cut = rounding.run(graph)
    assert [n.op for n in cut.nodes()].count("cast") == 1
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(4096) * 10.0 ** rng.uniform(-9, 6, 4096)).astype("f4")
    x[:4] = np.inf, -np.inf, np.nan, bound
    with np.errstate(over="ignore"):
        before, after = (Interpreter({}, {}).run(g, {"x": x}, {})["y"] for g in (graph, cut))
    np.testing.assert_array_equal(before, after)


def test_left_alone() -> None:
    relu = _bounded("max", 0.0)
    cases = {
        "a bound that f16 lacks": {"y": cast(_bounded("max", 0.1), dtypes.f16)},
        "too large a bound": {"y": cast(_bounded("min", 1e6), dtypes.f16)},
        "its value is an output": {"y": cast(relu, dtypes.f16), "z": relu},
        "others use what was rounded": {"y": cast(relu, dtypes.f16), "z": do("neg", ROUNDED)},
        "not rounded again": {"y": do("neg", relu)},
    }
    for name, outputs in cases.items():
        graph = Graph("main", outputs)
        assert rounding.run(graph) is graph, name

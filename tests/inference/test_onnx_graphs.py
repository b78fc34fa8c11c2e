"""The benchmark's models of random weights (bench/onnx_graphs.py), small: onnxruntime's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from bench import onnx_graphs
from fanlight import InferenceSession

Array = NDArray[Any]
MADE = {
    "resnet50": lambda: onnx_graphs.resnet50(33),
    "mobilenet": lambda: onnx_graphs.mobilenet(33),
}


@pytest.mark.parametrize("name", MADE)
async def test_numbers(name: str) -> None:
    model, feeds = MADE[name]()
    (wanted,) = onnxruntime.InferenceSession(model).run(None, feeds)
    async with await InferenceSession.create(model, execution_providers=["wasm"]) as session:
        (got,) = (await session.run(feeds)).values()
    np.testing.assert_allclose(np.asarray(got), wanted, atol=1e-5 * np.abs(wanted).max())

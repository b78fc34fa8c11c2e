"""Models of one com.microsoft node, run by onnxruntime and on WebAssembly, and compared."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fanlight.inference.session import InferenceSession
from fanlight.inference.tensor import Tensor

Array = NDArray[Any]
Shape = Sequence[int | str]


def one_node(
    name: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    outputs: Sequence[str],
    fed: Mapping[int, Shape],
) -> bytes:
    """A model whose inputs ``fed`` (by number, with their shapes, symbols among them) are given by
    the run; the others are initializers; None: left out."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(name, names, outputs, domain="com.microsoft", **attributes)
    present = {i: x for i, x in enumerate(inputs) if x is not None}
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(
                f"x{i}", helper.np_dtype_to_tensor_dtype(present[i].dtype), list(shape)
            )
            for i, shape in fed.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in outputs if n],
        [numpy_helper.from_array(x, f"x{i}") for i, x in present.items() if i not in fed],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


async def _run(data: bytes, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    async with await InferenceSession.create(data, execution_providers=["wasm"]) as session:
        return await session.run(dict(feeds))


def check(
    name: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    outputs: Sequence[str] = ("y",),
    *,
    free: Mapping[int, Shape] | None = None,
    fixed: Sequence[int] = (),
    judged: Sequence[Array | None] = (),
    tolerance: float = 2e-5,
) -> None:
    """Compares all outputs, relative to the largest number. ``free``: shapes with symbols;
    ``fixed``: inputs that are initializers; ``judged``: those that onnxruntime gets, where they are
    others. Whole numbers may differ by one."""

    def made_of(values: Sequence[Array | None]) -> tuple[bytes, dict[str, Array]]:
        given = {i: x for i, x in enumerate(values) if x is not None and i not in fixed}
        fed = {i: (free or {}).get(i, x.shape) for i, x in given.items()}
        model = one_node(name, values, attributes, outputs, fed)
        return model, {f"x{i}": x for i, x in given.items()}

    model, feeds = made_of(judged or inputs)
    reference = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in reference.get_outputs()]
    wanted = dict(zip(names, reference.run(None, feeds), strict=True))
    got = asyncio.run(_run(*made_of(inputs)))
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        made = np.asarray(got[key])
        assert made.shape == value.shape
        assert made.dtype == value.dtype
        if value.dtype.kind in "iu":
            assert np.abs(made.astype("i8") - value.astype("i8")).max(initial=0) <= 1
        else:
            scale = float(np.abs(value).max(initial=0.0))
            np.testing.assert_allclose(made, value, rtol=tolerance, atol=tolerance * scale)

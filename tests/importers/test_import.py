"""The importer's frame: folding of sizes, symbols that are one, errors that name everything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats.onnx import parse
from fanlight.importers.onnx import Value, ValuesNeededError, import_model
from fanlight.ir.graph import Module
from fanlight.ir.interpreter import Interpreter, array_of

Array = NDArray[Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    """A model of opset 21."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, t, list(s)) for n, (t, s) in inputs.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [onnx.numpy_helper.from_array(x, n) for n, x in (weights or {}).items()],
    )
    opsets = more.pop("opsets", [helper.make_opsetid("", 21)])
    return helper.make_model(graph, opset_imports=opsets, **more)


def module_of(model: onnx.ModelProto, **options: Any) -> Module:
    data = model.SerializeToString()

    async def read(file: str, offset: int, length: int) -> bytes:
        assert file == ""
        return bytes(data[offset : offset + length])

    return asyncio.run(import_model(parse(data), read=read, **options))


def run(module: Module, feeds: dict[str, Array], **dims: int) -> dict[str, Array]:
    weights = {
        name: array_of(source.data or b"", source.dtype, source.shape)
        for name, source in module.weights.items()
    }
    return Interpreter(weights, {}).run(module.graphs["main"], feeds, dims)


def _ops(module: Module) -> set[str]:
    return {node.op for node in module.graphs["main"].nodes()}


def test_chains_of_shape_arithmetic_vanish() -> None:
    """As exporters write ``x.view(b, s, 4, -1).transpose(1, 2)``."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["b"], axis=0),
        helper.make_node("Gather", ["shape", "one"], ["s"], axis=0),
        helper.make_node("Unsqueeze", ["b", "axes"], ["b1"]),
        helper.make_node("Unsqueeze", ["s", "axes"], ["s1"]),
        helper.make_node("Concat", ["b1", "s1", "heads", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["split"]),
        helper.make_node("Transpose", ["split"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Mul", ["s", "two"], ["double"]),
        helper.make_node("Div", ["double", "two"], ["again"]),
        helper.make_node("Unsqueeze", ["again", "axes"], ["again1"]),
        helper.make_node("Concat", ["b1", "again1", "whole"], ["back"], axis=0),
        helper.make_node("Transpose", ["turned"], ["straight"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["straight", "back"], ["y"]),
    ]
    weights: dict[str, Array] = {
        "zero": np.array(0), "one": np.array(1), "two": np.array(2), "axes": np.array([0]),
        "heads": np.array([4]), "rest": np.array([-1]), "whole": np.array([24]),
    }  # fmt: skip
    module = module_of(model_of(nodes, {"x": (FLOAT, ["b", "s", 24])}, ["y"], weights))
    assert _ops(module) <= {"input", "reshape", "permute"}
    assert not module.weights
    assert module.metadata["outputs"][0]["shape"] == ["b", "s", 24]
    x = np.random.default_rng(1).standard_normal((2, 3, 24)).astype("f4")
    np.testing.assert_array_equal(run(module, {"x": x}, b=2, s=3)["y"], x)


def test_symbols_that_meet_are_one() -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    module = module_of(model_of(nodes, {"x": (FLOAT, ["n"]), "y": (FLOAT, ["m"])}, ["z"]))
    assert [dim.name for dim in module.dims] == ["m"]
    shapes = {d["name"]: d["shape"] for d in module.metadata["inputs"]}
    assert shapes == {"x": ["m"], "y": ["m"]}


def test_a_symbol_may_be_a_sum_of_others() -> None:
    """Past and present of a cache beside a mask over both."""
    nodes = [
        helper.make_node("Concat", ["past", "now"], ["all"], axis=0),
        helper.make_node("Mul", ["all", "mask"], ["y"]),
    ]
    inputs = {"past": (FLOAT, ["p"]), "now": (FLOAT, ["s"]), "mask": (FLOAT, ["total"])}
    module = module_of(model_of(nodes, inputs, ["y"]))
    assert sorted(dim.name for dim in module.dims) == ["p", "s"]
    assert module.metadata["inputs"][2]["shape"] == [["+", "p", "s"]]


def test_a_table_of_positions_limits_a_symbol() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["n"]),
        helper.make_node("Slice", ["table", "zero", "n", "zero"], ["positions"]),
        helper.make_node("Add", ["x", "positions"], ["y"]),
    ]
    weights: dict[str, Array] = {"table": np.arange(512, dtype="f4"), "zero": np.array([0])}
    module = module_of(model_of(nodes, {"x": (FLOAT, ["n"])}, ["y"], weights))
    assert [(dim.name, dim.max) for dim in module.dims] == [("n", 512)]


def test_sizes_that_differ_are_an_error() -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    with pytest.raises(FormatError, match="sizes differ"):
        module_of(model_of(nodes, {"x": (FLOAT, [3]), "y": (FLOAT, [4])}, ["z"]))


def test_overrides_fix_a_size() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    module = module_of(model_of(nodes, {"x": (FLOAT, ["n", 2])}, ["y"]), overrides={"n": 5})
    assert not module.dims
    assert module.metadata["outputs"][0]["shape"] == [5, 2]


def test_all_that_is_unknown_is_named_at_once() -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
        helper.make_node("Frobnicate", ["x"], ["b"], name="second"),
        helper.make_node("Neg", ["x"], ["c"], sideways=1),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    with pytest.raises(UnsupportedError) as caught:
        module_of(model_of(nodes, {"x": (FLOAT, [3])}, ["y"]))
    text = str(caught.value)
    assert "operator Frobnicate (2 times, first at 'first')" in text
    assert "Neg's attribute sideways" in text


def test_an_opset_that_is_too_old_is_named() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    model = model_of(nodes, {"x": (FLOAT, [3])}, ["y"], opsets=[helper.make_opsetid("", 6)])
    with pytest.raises(UnsupportedError, match="Add of opset 6"):
        module_of(model)


def test_functions_of_the_model_are_inlined() -> None:
    inner = helper.make_function(
        "local",
        "Scaled",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"]),
            helper.make_node("Mul", ["a", "k"], ["b"]),
        ],
        [helper.make_opsetid("", 21)],
        ["factor"],
    )
    reference = inner.node[0].attribute.add()
    reference.name, reference.ref_attr_name = "value_float", "factor"
    reference.type = onnx.AttributeProto.FLOAT
    nodes = [
        helper.make_node("Scaled", ["x"], ["m"], domain="local", factor=3.0),
        helper.make_node("Scaled", ["m"], ["y"], domain="local", factor=-0.5),
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    model = model_of(nodes, {"x": (FLOAT, [4])}, ["y"], opsets=opsets, functions=[inner])
    x = np.array([1, -2, 0.5, 4], "f4")
    np.testing.assert_array_equal(run(module_of(model), {"x": x})["y"], x * -1.5)


def test_values_of_inputs_that_sizes_are_made_of() -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    model = model_of(nodes, {"x": (FLOAT, [2, 3]), "axes": (INT64, [1])}, ["y"])
    with pytest.raises(ValuesNeededError) as caught:
        module_of(model)
    assert caught.value.names == ("axes",)
    value = Value((1,), np.array([1], "i8").tobytes())
    module = module_of(model, values={"axes": value})
    assert [d["name"] for d in module.metadata["inputs"]] == ["x"]
    x = np.arange(6, dtype="f4").reshape(2, 3)
    np.testing.assert_array_equal(run(module, {"x": x})["y"], x.sum(1))


def test_large_initializers_stay_in_the_file() -> None:
    w = np.random.default_rng(2).standard_normal((64, 32)).astype("f4")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": (FLOAT, ["n", 64])}, ["y"], {"w": w})
    module = module_of(model)
    source = module.weights["w"]
    data = model.SerializeToString()
    assert source.data is None
    assert data[source.offset : source.offset + source.length] == w.tobytes()


def test_an_output_that_is_an_input_is_copied() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    module = module_of(model_of(nodes, {"x": (FLOAT, [3])}, ["y", "z"]))
    x = np.array([1, 2, 3], "f4")
    found = run(module, {"x": x})
    np.testing.assert_array_equal(found["y"], x)
    np.testing.assert_array_equal(found["z"], x)

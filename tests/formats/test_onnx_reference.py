"""The ONNX reader against the ``onnx`` package: the same structure, field by field."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fanlight.formats import onnx as reader
from fanlight.formats.onnx_model import Model, check_external_sizes
from fanlight.formats.onnx_types import ELEMENT_TYPES
from fanlight.formats.onnx_values import decode, read_small, values
from tests import onnx_files
from tests.conftest import model_file

T = TypeVar("T")


class Reads:
    """A file that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.requests = data, list[tuple[int, int]]()

    async def read(self, offset: int, length: int) -> bytes:
        assert length > 0
        piece = self.data[offset : offset + length]
        self.requests.append((offset, len(piece)))
        return piece


def run(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, which never waits. An event loop would take longer than it."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError("it waited")


def read(data: bytes, *, size: bool = True) -> Model:
    """``data`` read as a file; ``size``: whether its size is known before."""
    return run(reader.read_model(Reads(data).read, len(data) if size else None))


def check(proto: onnx.ModelProto) -> None:
    """All ways to read ``proto`` give the model that onnx has."""
    data = proto.SerializeToString()
    model = reader.parse(data)
    assert onnx_files.to_proto(model, {"": data}) == onnx_files.normalised(proto)
    assert read(data) == model
    assert read(data, size=False) == model


def test_all_node_cases() -> None:
    models = onnx_files.node_models()
    assert len(models) >= 1884
    for name, proto in models.items():
        try:
            check(proto)
        except BaseException as error:
            error.add_note(f"in {name}")
            raise


def test_everything() -> None:
    check(onnx_files.everything())


def test_large_nested_messages() -> None:
    """Weights inside subgraphs and attributes are skipped as well."""
    proto = onnx_files.everything()
    large = numpy_helper.from_array(np.zeros((300, 1000), np.float32), "zeros")
    node = proto.graph.node[1].attribute[0].g.node[0]
    node.attribute[0].g.initializer.append(large)
    node.attribute[1].g.node[0].attribute.append(helper.make_attribute("value", large))
    proto.functions[0].node[0].attribute.append(helper.make_attribute("value", large))
    proto.graph.sparse_initializer[0].values.CopyFrom(
        numpy_helper.from_array(np.ones(5000, np.float32), "sparse")
    )
    proto.graph.sparse_initializer[0].indices.CopyFrom(
        numpy_helper.from_array(np.arange(5000), "at")
    )
    check(proto)
    file = Reads(proto.SerializeToString())
    run(reader.read_model(file.read, len(file.data)))
    assert sum(length for _, length in file.requests) < 300_000
    assert len(file.data) > 3_600_000


def test_minilm() -> None:
    path = model_file("minilm")
    data = path.read_bytes()
    proto = onnx.load_from_string(data)
    file = Reads(data)
    model = run(reader.read_model(file.read, len(data)))
    assert onnx_files.to_proto(model, {"": data}) == onnx_files.normalised(proto)
    assert read(data, size=False) == model
    offsets = [offset for offset, _ in file.requests[1:]]
    assert offsets == sorted(offsets)
    assert sum(length for _, length in file.requests) < 1 << 20
    assert len(file.requests) < 60


@pytest.mark.parametrize("number", onnx_files.NUMERIC)
@pytest.mark.parametrize("raw", [True, False])
def test_values_of_all_dtypes(number: int, raw: bool) -> None:
    proto = onnx_files.stored_tensor(number, raw=raw, name="w")
    graph = helper.make_graph([], "g", [], [], [proto])
    tensor = reader.parse(helper.make_model(graph).SerializeToString()).graph.initializers["w"]
    want = numpy_helper.to_array(proto)
    name = ELEMENT_TYPES[number].name
    wide = "c16" if name.startswith("complex") else "f8" if "float" in name else "O"
    with np.errstate(invalid="ignore"):
        wanted = want.astype(wide)
    got = np.array(values(tensor), wide).reshape(3, 5)
    np.testing.assert_array_equal(got, wanted)


def test_small_floats_are_those_of_the_reference() -> None:
    """Each of the bit patterns."""
    for number, dtype in ELEMENT_TYPES.items():
        if dtype.bits > 8 or "float" not in dtype.name:
            continue
        count = 1 << dtype.bits
        bits = np.arange(count, dtype=np.uint8)
        array = bits.view(helper.tensor_dtype_to_np_dtype(number))
        proto = numpy_helper.from_array(array, "w")
        graph = helper.make_graph([], "g", [], [], [proto])
        tensor = reader.parse(helper.make_model(graph).SerializeToString()).graph.initializers["w"]
        got, want = np.array(values(tensor)), array.astype(np.float64)
        np.testing.assert_array_equal(got, want, err_msg=dtype.name)
        assert [math.copysign(1, v) for v in got[:-1]] == [
            math.copysign(1, v) if v == v else math.copysign(1, got[i])
            for i, v in enumerate(want[:-1])
        ], dtype.name


def test_all_dtypes_are_in_the_table() -> None:
    theirs = {n: name.lower() for name, n in TensorProto.DataType.items() if n}
    assert {n: t.name for n, t in ELEMENT_TYPES.items()} == theirs


def test_external_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.random((100, i + 1), np.float32) for i in range(5)}
    graph = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    )
    proto = helper.make_model(graph)
    onnx.save_model(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    data = (tmp_path / "m.onnx").read_bytes()
    model = read(data)
    assert model.external_files() == ("w.bin",)
    weights = (tmp_path / "w.bin").read_bytes()
    check_external_sizes(model, {"w.bin": len(weights)})
    for name, array in arrays.items():
        tensor = model.graph.initializers[name]
        assert tensor.source is not None
        raw = run(read_small(tensor, Reads(weights).read))
        assert decode(tensor, raw) == array.tobytes()
    assert onnx_files.to_proto(model, {"w.bin": weights}) == onnx_files.normalised(
        onnx.load(tmp_path / "m.onnx")
    )


def test_unpacked_numbers() -> None:
    """A tag before each number: what writers did before packing was the default."""
    proto = helper.make_model(helper.make_graph([], "g", [], [], []))
    want = {
        "int64_data": helper.make_tensor("a", TensorProto.INT64, [3], [1, -1, 1 << 40]),
        "float_data": helper.make_tensor("b", TensorProto.FLOAT, [2], [0.5, -2.0]),
        "double_data": helper.make_tensor("c", TensorProto.DOUBLE, [2], [0.1, 3.0]),
        "int32_data": helper.make_tensor("d", TensorProto.INT8, [4], [1, -2, 3, -128]),
        "uint64_data": helper.make_tensor("e", TensorProto.UINT64, [2], [7, (1 << 64) - 1]),
    }
    head = proto.SerializeToString()
    for field, tensor in want.items():
        graph = b"\x2a" + _sized(_unpacked(tensor, field))
        model = reader.parse(head[: head.index(b"\x3a")] + b"\x3a" + _sized(graph))
        found = model.graph.initializers[tensor.name]
        assert found.source is not None
        assert found.source.encoding == "fields"
        assert values(found) == numpy_helper.to_array(tensor).tolist()


def _sized(data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([len(data)]) + data


def _unpacked(tensor: TensorProto, field: str) -> bytes:
    number = TensorProto.DESCRIPTOR.fields_by_name[field].number
    numbers = list(getattr(tensor, field))
    tensor = TensorProto.FromString(tensor.SerializeToString())
    tensor.ClearField(field)
    out = bytearray(tensor.SerializeToString())
    wire = {"float_data": 5, "double_data": 1}.get(field, 0)
    for item in numbers:
        out.append(number << 3 | wire)
        if wire:
            out += np.array(item, "<f4" if wire == 5 else "<f8").tobytes()
            continue
        item &= (1 << 64) - 1
        while item > 127:
            out.append(item & 127 | 128)
            item >>= 7
        out.append(item)
    return bytes(out)

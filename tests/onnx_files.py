"""ONNX models for tests, made by the ``onnx`` package, and its protobuf made from what we read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fanlight.formats import onnx_model as ours
from fanlight.formats.onnx_schema import ATTRIBUTES
from fanlight.formats.onnx_types import ELEMENT_TYPES
from fanlight.formats.onnx_values import decode, strings

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
NUMERIC = [number for number, dtype in ELEMENT_TYPES.items() if dtype.bits]


def node_models() -> dict[str, onnx.ModelProto]:
    """The models of ONNX's own backend node tests, by name: 1,884 of them in onnx 1.23."""
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, while it computes the tests' answers
        cases = node.collect_testcases(None)
    return {case.name: case.model for case in cases if case.model is not None}


def stored_tensor(number: int, *, raw: bool, name: str = "") -> TensorProto:
    """[3, 5] of element type ``number``, as raw data or in the field of its type."""
    dtype = helper.tensor_dtype_to_np_dtype(number)
    bits = np.random.default_rng(number).integers(0, 256, 15 * dtype.itemsize, np.uint8)
    if ELEMENT_TYPES[number].bits < 8:
        bits &= (1 << ELEMENT_TYPES[number].bits) - 1
        if ELEMENT_TYPES[number].name.startswith("int"):  # their bits above are the sign's
            half = 1 << ELEMENT_TYPES[number].bits - 1
            bits = (bits ^ half) - half
    if ELEMENT_TYPES[number].name == "bool":
        bits &= 1
    array = bits.view(dtype).reshape(3, 5)
    tensor = numpy_helper.from_array(array, name or ELEMENT_TYPES[number].name)
    if raw:
        return tensor
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    if (kind := ELEMENT_TYPES[number]).bits == 6:
        tensor.int32_data.extend(int(bit) for bit in bits)
    elif kind.stored == "int32_data":
        size = max(1, kind.bits // 8)
        code = f"<{'u' if kind.name[0] in 'ub' and kind.name != 'bfloat16' else 'i'}{size}"
        if "float" in kind.name or kind.bits < 8:
            code = f"<u{size}"
        tensor.int32_data.extend(int(v) for v in np.frombuffer(data, code))
    else:
        codes = {"float_data": "<f4", "double_data": "<f8", "int64_data": "<i8"}
        unsigned = "<u4" if kind.bits == 32 else "<u8"
        values = np.frombuffer(data, codes.get(kind.stored, unsigned))
        getattr(tensor, kind.stored).extend(v.item() for v in values)
    return tensor


def everything() -> onnx.ModelProto:
    """A small model with each kind of message, attribute, type and storage. It computes nothing."""
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("Add", ["a", "inner"], ["b"], name="add")],
        "branch",
        [],
        [value("b", FLOAT, None)],
        [helper.make_tensor("inner", FLOAT, [2], [1.0, 2.0])],
    )
    body = helper.make_graph(
        [helper.make_node("If", ["cond"], ["b"], then_branch=branch, else_branch=branch)],
        "body",
        [value("i", INT64, []), value("cond", TensorProto.BOOL, [])],
        [value("cond", TensorProto.BOOL, []), value("b", FLOAT, [None])],
    )
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("at", INT64, [3, 2], [0, 1, 2, 0, 2, 2]),
        [3, 4],
    )
    types = [
        helper.make_tensor_type_proto(FLOAT, ["batch", 3, None]),
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(INT64, [])),
        helper.make_optional_type_proto(
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT4, None))
        ),
        helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(TensorProto.STRING, [2])),
        helper.make_sparse_tensor_type_proto(TensorProto.DOUBLE, [1, "n"]),
    ]
    attributes: dict[str, Any] = {
        "float": 0.5,
        "int": -3,
        "string": "é",
        "tensor": helper.make_tensor("t", TensorProto.UINT8, [2], [1, 255]),
        "sparse": sparse,
        "type": types[0],
        "floats": [1.0, -0.0, float("inf")],
        "ints": [0, -1, 1 << 62],
        "strings": ["", "b"],
        "tensors": [stored_tensor(FLOAT, raw=True), stored_tensor(INT64, raw=False)],
        "types": types,
        "graphs": [branch, body],
        "sparses": [sparse],
    }
    function = helper.make_function(
        "local",
        "Fn",
        ["x"],
        ["y"],
        [helper.make_node("LeakyRelu", ["x"], ["y"])],
        [helper.make_opsetid("", 21)],
        ["alpha"],
        [helper.make_attribute("beta", [1, 2])],
    )
    reference = function.node[0].attribute.add()
    reference.name, reference.ref_attr_name = "alpha", "alpha"
    reference.type = onnx.AttributeProto.FLOAT
    opaque = onnx.ValueInfoProto(name="opaque")
    opaque.type.opaque_type.domain, opaque.type.opaque_type.name = "d", "n"
    initializers = [stored_tensor(n, raw=True) for n in NUMERIC]
    initializers += [stored_tensor(n, raw=False, name=f"stored{n}") for n in NUMERIC]
    texts = TensorProto(name="texts", data_type=TensorProto.STRING, dims=[2])
    texts.string_data.extend([b"a\xff", b""])
    initializers.append(texts)
    initializers.append(numpy_helper.from_array(np.arange(3000, dtype=np.float32), "large"))
    initializers.append(helper.make_tensor("many", INT64, [3000], range(-1500, 1500)))
    graph = helper.make_graph(
        [
            helper.make_node("All", ["x", "", "large"], ["y"], "all", "doc", "test", **attributes),
            helper.make_node("Loop", ["", "cond"], ["z"], body=body),
            helper.make_node("Fn", ["y"], ["w"], domain="local", overload="v2"),
        ],
        "main",
        [onnx.ValueInfoProto(name=f"in{i}", type=t) for i, t in enumerate(types)],
        [onnx.ValueInfoProto(name="w")],
        initializers,
        "a graph",
        [opaque],
        [sparse],
    )
    model = helper.make_model(
        graph,
        functions=[function],
        producer_name="tests",
        producer_version="1",
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("local", 1)],
    )
    model.doc_string, model.domain, model.model_version = "a model", "org", -2
    helper.set_model_props(model, {"key": "value", "empty": ""})
    return model


# --- what we read, as protobuf again


def normalised(message: Any) -> Any:
    """A copy without what the reader skips and what is not there but for its default; tensors
    of numbers as raw data."""
    copy = type(message)()
    copy.CopyFrom(message)
    _normalise(copy)
    return copy


def _normalise(message: Any) -> None:
    kind = message.DESCRIPTOR.name
    if kind == "TensorProto" and message.data_type != TensorProto.STRING:
        raw = numpy_helper.from_array(numpy_helper.to_array(message), message.name)
        message.CopyFrom(raw)
    skipped = {"quantization_annotation", "denotation", "training_info", "configuration"}
    if kind not in ("ModelProto", "GraphProto"):
        skipped |= {"doc_string", "metadata_props", "device_configurations"}
    for field, value in message.ListFields():
        if field.name in skipped:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
                _normalise(inner)
        elif isinstance(value, str | bytes | int | float) and not value and kind != "Dimension":
            message.ClearField(field.name)


def to_proto(model: ours.Model, files: Mapping[str, bytes]) -> onnx.ModelProto:
    """``files``: by name, "" is the model's own."""
    proto = _Writer(files).model(model)
    _normalise(proto)
    return proto


class _Writer:
    """Ours → onnx's, message by message."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def model(self, model: ours.Model) -> onnx.ModelProto:
        return onnx.ModelProto(
            ir_version=model.ir_version,
            opset_import=_opsets(model.opset_import),
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            domain=model.domain,
            model_version=model.model_version,
            doc_string=model.doc_string,
            metadata_props=_entries(model.metadata),
            graph=self.graph(model.graph),
            functions=[
                onnx.FunctionProto(
                    name=f.name,
                    domain=f.domain,
                    overload=f.overload,
                    input=f.inputs,
                    output=f.outputs,
                    attribute=f.attributes,
                    attribute_proto=[self.attribute(k, a) for k, a in f.defaults.items()],
                    node=[self.node(n) for n in f.nodes],
                    opset_import=_opsets(f.opset_import),
                    value_info=[_value(v) for v in f.value_info],
                )
                for f in model.functions
            ],
        )

    def graph(self, graph: ours.Graph) -> onnx.GraphProto:
        return onnx.GraphProto(
            name=graph.name,
            node=[self.node(n) for n in graph.nodes],
            initializer=[self.tensor(t) for t in graph.initializers.values()],
            sparse_initializer=[self.sparse(s) for s in graph.sparse_initializers.values()],
            input=[_value(v) for v in graph.inputs],
            output=[_value(v) for v in graph.outputs],
            value_info=[_value(v) for v in graph.value_info],
            doc_string=graph.doc_string,
            metadata_props=_entries(graph.metadata),
        )

    def node(self, node: ours.Node) -> onnx.NodeProto:
        return onnx.NodeProto(
            op_type=node.op_type,
            domain=node.domain,
            overload=node.overload,
            name=node.name,
            input=node.inputs,
            output=node.outputs,
            attribute=[self.attribute(k, a) for k, a in node.attributes.items()],
        )

    def attribute(self, name: str, attribute: ours.Attribute) -> onnx.AttributeProto:
        number, field = next((n, f) for n, (k, f) in ATTRIBUTES.items() if k == attribute.kind)
        proto = onnx.AttributeProto(
            name=name,
            type=cast(onnx.AttributeProto.AttributeType, number),
            ref_attr_name=attribute.reference,
        )
        value = attribute.value
        if isinstance(value, tuple):
            getattr(proto, field).extend(self.item(item) for item in value)
        elif isinstance(value, str | int | float):
            setattr(proto, field, self.item(value))
        elif value is not None:
            getattr(proto, field).CopyFrom(self.item(value))
        return proto

    def item(self, value: object) -> Any:
        match value:
            case str():
                return value.encode("utf-8", "surrogateescape")
            case int() | float():
                return value
            case ours.Tensor():
                return self.tensor(value)
            case ours.SparseTensor():
                return self.sparse(value)
            case ours.Graph():
                return self.graph(value)
            case _:
                return _type(cast(ours.Type, value))

    def tensor(self, tensor: ours.Tensor) -> TensorProto:
        proto = TensorProto(name=tensor.name, dims=tensor.shape, data_type=tensor.dtype.number)
        data, source = b"", tensor.source
        if source is not None:
            data = self.files[source.file][source.offset : source.offset + source.length]
            assert source.data in (None, data), tensor.name
            kept = not source.file and source.length <= 4096
            assert (source.data is not None) == kept, tensor.name
        if tensor.dtype.bits:
            proto.raw_data = decode(tensor, data)
        else:
            found = strings(tensor, data) if math.prod(tensor.shape) else []
            proto.string_data.extend(s.encode("utf-8", "surrogateescape") for s in found)
        return proto

    def sparse(self, sparse: ours.SparseTensor) -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(
            values=self.tensor(sparse.values),
            indices=self.tensor(sparse.indices),
            dims=sparse.shape,
        )


def _opsets(versions: dict[str, int]) -> Iterable[onnx.OperatorSetIdProto]:
    return [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in versions.items()]


def _entries(entries: dict[str, str]) -> Iterable[onnx.StringStringEntryProto]:
    return [onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items()]


def _value(value: ours.ValueInfo) -> onnx.ValueInfoProto:
    proto = onnx.ValueInfoProto(name=value.name)
    if value.type is not None:
        proto.type.CopyFrom(_type(value.type))
    return proto


def _type(kind: ours.Type) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    match kind:
        case ours.TensorType() | ours.SparseTensorType():
            tensor = (
                proto.tensor_type if isinstance(kind, ours.TensorType) else proto.sparse_tensor_type
            )
            tensor.elem_type = kind.dtype.number if kind.dtype else 0
            if kind.shape is not None:
                tensor.shape.SetInParent()
                for dim in kind.shape:
                    added = tensor.shape.dim.add()
                    if isinstance(dim, int):
                        added.dim_value = dim
                    elif dim is not None:
                        added.dim_param = dim
        case ours.SequenceType(element):
            if element is not None:
                proto.sequence_type.elem_type.CopyFrom(_type(element))
        case ours.OptionalType(element):
            if element is not None:
                proto.optional_type.elem_type.CopyFrom(_type(element))
        case ours.MapType(key, value):
            proto.map_type.key_type = key.number if key else 0
            if value is not None:
                proto.map_type.value_type.CopyFrom(_type(value))
        case ours.OpaqueType(domain, name):
            proto.opaque_type.domain, proto.opaque_type.name = domain, name
    return proto

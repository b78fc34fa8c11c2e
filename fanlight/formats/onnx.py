"""ONNX files: the model's structure, read lazily; where its tensors lie, never their bytes.

In: an async ``read(offset, length)``, or the whole file as bytes. Out: :class:`Model`. Every
malformed file ends in a FormatError, TruncatedError or UnsupportedError, in bounded time and
memory. Not known here: what operators mean, whether names are defined, which opsets there are;
training information and descriptions of devices, which are skipped like unknown fields.

The format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, IR.md and ExternalData.md there
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from fanlight.errors import FormatError, TruncatedError, UnsupportedError
from fanlight.formats.decoder import Decoder, Run, Values
from fanlight.formats.onnx_external import external_source
from fanlight.formats.onnx_model import (
    Attribute,
    Dim,
    Encoding,
    Function,
    Graph,
    MapType,
    Model,
    Node,
    OpaqueType,
    OptionalType,
    SequenceType,
    Source,
    SparseTensor,
    SparseTensorType,
    Tensor,
    TensorType,
    Type,
    ValueInfo,
)
from fanlight.formats.onnx_schema import ATTRIBUTES, DATA_FIELDS, SCHEMA
from fanlight.formats.onnx_types import ELEMENT_TYPES, ElementType
from fanlight.formats.onnx_values import decode_text
from fanlight.formats.protobuf import WireError
from fanlight.formats.skim import KEPT, Read, Skeleton, skim

MAX_RANK = 64
MAX_ELEMENTS = 1 << 56

_DEFAULTS = {"float": 0.0, "int": 0, "string": b""}  # of a value that a writer left out


async def read_model(read: Read, file_size: int | None = None) -> Model:
    """The model in the file behind ``read(offset, length)``, which returns fewer bytes only at the
    file's end. Reads forward and fetches little of what weights take; at most 64 MB beside them.

    External files are not looked at: see :func:`onnx_model.check_external_sizes`. Raises
    TruncatedError where the file ends too early; UnsupportedError for element types that ONNX
    1.23 doesn't have and tensors in several pieces; FormatError for everything else that is wrong.
    Errors of ``read`` pass through.
    """

    async def read_checked(offset: int, length: int) -> bytes:
        piece = await read(offset, length)
        if offset == 0:
            _check_start(piece)
        return piece

    return _parse(await skim(read_checked, file_size, SCHEMA["Model"]))


def parse(data: bytes) -> Model:
    """The model in ``data``, a whole file. Raises as :func:`read_model`."""
    return _parse(Skeleton(data))


def _check_start(data: bytes) -> None:
    """Raises FormatError where ``data`` does not begin with a field of a model."""
    if not data or data[0] not in SCHEMA["Model"].tags:
        got = data[:4] or "an empty file"
        raise FormatError("not an ONNX file", where="byte 0", got=got)


def _parse(skeleton: Skeleton) -> Model:
    _check_start(skeleton.data)
    try:
        return cast(Model, _Parser(skeleton).message(SCHEMA["Model"], 0, len(skeleton.data)))
    except WireError as error:
        where = f"byte {skeleton.offset(error.position)}"
        if skeleton.whole and error.end > len(skeleton.data):
            raise TruncatedError(
                "file ends inside a field",
                where=where,
                got=f"{len(skeleton.data)} bytes",
                wanted=f"at least {error.end}",
                hint="Download the file again.",
            ) from error
        raise FormatError(error.what, where=where) from error


class _Parser(Decoder):
    """Messages → what they build. Builders take a message's fields and where it begins."""

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__(skeleton)
        self.seen = {"Type": {}, "Attribute": {}}
        self.builders = {
            "Model": self.model,
            "Graph": self.graph,
            "Node": self.node,
            "Attribute": self.attribute,
            "Function": self.function,
            "Tensor": self.tensor,
            "SparseTensor": self.sparse_tensor,
            "ValueInfo": self.value_info,
            "Type": self.type,
            "TensorShape": self.shape,
            "Dimension": self.dimension,
        }

    def shareable(self, item: object) -> bool:
        """Not where there may be tensors in it, which say their offset."""
        match item:
            case (str(), Attribute(kind=kind)):
                return not kind.startswith(("tensor", "graph", "sparse"))
        return True

    # --- model, graph, node

    def model(self, values: Values, start: int) -> Model:
        if "graph" not in values:
            raise FormatError("the model has no graph", hint="Is it an ONNX file?")
        return Model(
            ir_version=values.get("ir_version", 0),
            opset_import=self.opsets(values, "Model", start),
            producer_name=values.get("producer_name", ""),
            producer_version=values.get("producer_version", ""),
            domain=values.get("domain", ""),
            model_version=values.get("model_version", 0),
            doc_string=values.get("doc_string", ""),
            metadata=_entries(values.get("metadata_props", ())),
            graph=values["graph"],
            functions=tuple(values.get("functions", ())),
        )

    def opsets(self, values: Values, message: str, start: int) -> dict[str, int]:
        versions: dict[str, int] = {}
        for entry in values.get("opset_import", ()):
            domain, version = entry.get("domain", ""), entry.get("version", 0)
            if versions.setdefault(domain, version) != version:
                raise self.error(f"two versions of opset {domain!r}", message, start)
        return versions

    def graph(self, values: Values, start: int) -> Graph:
        name = values.get("name", "")
        initializers: dict[str, Tensor] = {}
        for tensor in values.get("initializer", ()):
            if tensor.name in initializers or not tensor.name:
                what = "duplicate initializer" if tensor.name else "initializer without a name"
                raise self.error(f"{what} {tensor.name}".rstrip(), "Graph", start, name)
            initializers[tensor.name] = tensor
        sparse: dict[str, SparseTensor] = {}
        for item in values.get("sparse_initializer", ()):
            key = item.values.name
            if key in sparse or key in initializers or not key:
                what = "duplicate initializer" if key else "initializer without a name"
                raise self.error(f"{what} {key}".rstrip(), "Graph", start, name)
            sparse[key] = item
        return Graph(
            name=name,
            nodes=tuple(values.get("node", ())),
            initializers=initializers,
            sparse_initializers=sparse,
            inputs=tuple(values.get("input", ())),
            outputs=tuple(values.get("output", ())),
            value_info=tuple(values.get("value_info", ())),
            doc_string=values.get("doc_string", ""),
            metadata=_entries(values.get("metadata_props", ())),
        )

    def node(self, values: Values, start: int) -> Node:
        get = values.get
        name = get("name", "")
        if not get("op_type"):
            raise self.error("node without an operator", "Node", start, name)
        return Node(
            values["op_type"],
            get("domain", ""),
            get("overload", ""),
            name,
            tuple(get("input", ())),
            tuple(get("output", ())),
            self.attributes(get("attribute", ()), "Node", start, name),
        )

    def attributes(
        self, pairs: Iterable[tuple[str, Attribute]], message: str, start: int, name: str
    ) -> dict[str, Attribute]:
        found: dict[str, Attribute] = {}
        for key, attribute in pairs:
            if key in found:
                raise self.error(f"duplicate attribute {key}", message, start, name)
            found[key] = attribute
        return found

    def attribute(self, values: Values, start: int) -> tuple[str, Attribute]:
        name, reference = values.pop("name", ""), values.pop("ref_attr_name", "")
        number = values.pop("type", 0)
        if not name:
            raise self.error("attribute without a name", "Attribute", start)
        if number == 0 and len(values) == 1:  # files from before there was a type
            number = next(n for n, (_, field) in ATTRIBUTES.items() if field in values)
        if number not in ATTRIBUTES:
            raise self.error(f"unknown type {number} of an attribute", "Attribute", start, name)
        kind, field = ATTRIBUTES[number]
        if reference and not values:
            return name, Attribute(kind, None, reference)
        if values.keys() - {field} or reference:
            held = ", ".join(values)
            raise self.error(f"{kind} attribute holds {held}", "Attribute", start, name)
        value = values.get(field, _DEFAULTS.get(kind, ()))
        if kind in ("tensor", "graph", "sparse_tensor", "type") and value in ((), None):
            raise self.error(f"{kind} attribute without a value", "Attribute", start, name)
        if kind == "string":
            value = decode_text(value)
        elif kind == "strings":
            value = tuple(map(decode_text, value))
        return name, Attribute(kind, tuple(value) if isinstance(value, list) else value)

    def function(self, values: Values, start: int) -> Function:
        name = values.get("name", "")
        return Function(
            name=name,
            domain=values.get("domain", ""),
            overload=values.get("overload", ""),
            inputs=tuple(values.get("input", ())),
            outputs=tuple(values.get("output", ())),
            attributes=tuple(values.get("attribute", ())),
            defaults=self.attributes(values.get("attribute_proto", ()), "Function", start, name),
            nodes=tuple(values.get("node", ())),
            opset_import=self.opsets(values, "Function", start),
            value_info=tuple(values.get("value_info", ())),
        )

    # --- tensors

    def element_type(self, number: int, message: str, start: int, name: str = "") -> ElementType:
        if number not in ELEMENT_TYPES:
            raise UnsupportedError(
                "unknown element type",
                where=self.where(message, start, name),
                got=number,
                wanted=f"1 to {max(ELEMENT_TYPES)}",
            )
        return ELEMENT_TYPES[number]

    def tensor(self, values: Values, start: int) -> Tensor:
        name = values.get("name", "")
        if "segment" in values:
            where = self.where("Tensor", start, name)
            raise UnsupportedError("a tensor is in several segments", where=where)
        if not values.get("data_type"):
            raise self.error("tensor without an element type", "Tensor", start, name)
        dtype = self.element_type(values["data_type"], "Tensor", start, name)
        shape = self.sizes(values, "Tensor", start, name)
        location = values.get("data_location", 0)
        found = [key for key in DATA_FIELDS if key in values and self.extent(values[key])[1]]
        if location not in (0, 1):
            raise self.error(f"unknown location of data {location}", "Tensor", start, name)
        if len(found) + location > 1:
            held = ", ".join(found) + (" and an external file" if location == 1 else "")
            raise self.error(f"data is in two places: {held}", "Tensor", start, name)
        if location == 1:
            entries = _entries(values.get("external_data", ()))
            where = self.where("Tensor", start, name)
            return Tensor(name, dtype, shape, external_source(entries, dtype, shape, where))
        count = math.prod(shape)
        if not found:
            if count:
                raise self.error("tensor without data", "Tensor", start, name)
            return Tensor(name, dtype, shape, None)
        return Tensor(name, dtype, shape, self.source(values, found[0], dtype, count, start))

    def extent(self, run: Run) -> tuple[int, int]:
        """Offset in the file and length of a tensor's data."""
        _, start, end = run
        if start == end and start in self.skeleton.holes:
            return self.skeleton.holes[start]
        return self.skeleton.offset(start), end - start

    def source(
        self, values: Values, key: str, dtype: ElementType, count: int, start: int
    ) -> Source:
        """Where the data in field ``key`` lies; its length must fit ``count`` elements."""
        name, (tagged, begin, end) = values.get("name", ""), values[key]
        offset, length = self.extent(values[key])
        if key != dtype.stored and (key != "raw_data" or dtype.bits == 0):
            raise self.error(f"{dtype} elements are in {key}", "Tensor", start, name)
        stored = dtype.stored_values(count)
        encoding: Encoding = "raw"
        least = most = dtype.nbytes(count)
        if tagged:  # a tag, then a number or a length and its bytes
            encoding, least, most = "fields", 2 * stored, length if stored else 0
        elif key not in ("raw_data", "float_data", "double_data"):
            encoding, least, most = "varints", stored, 10 * stored
        if not least <= length <= most:
            raise FormatError(
                "data doesn't fit the shape",
                where=self.where("Tensor", start, name),
                got=f"{length} bytes of {key}",
                wanted=f"{least} for {count} of {dtype}",
            )
        kept = begin < end and length <= KEPT
        return Source("", offset, length, encoding, self.data[begin:end] if kept else None)

    def sizes(self, values: Values, message: str, start: int, name: str) -> tuple[int, ...]:
        """The shape of a tensor: no size may be unknown."""
        shape: tuple[int, ...] = tuple(values.get("dims", ()))
        absurd = len(shape) > MAX_RANK or (shape and min(shape) < 0)
        if absurd or math.prod(shape) > MAX_ELEMENTS:
            shown = f"{list(shape[:8])}{' …' if len(shape) > 8 else ''}"
            raise self.error(f"not a sensible shape: {shown}", message, start, name)
        return shape

    def sparse_tensor(self, values: Values, start: int) -> SparseTensor:
        if "values" not in values or "indices" not in values:
            raise self.error("sparse tensor without values or indices", "SparseTensor", start)
        held, indices = values["values"], values["indices"]
        shape = self.sizes(values, "SparseTensor", start, held.name)
        rank_or_none = ((), (len(shape),))
        if (
            len(held.shape) != 1
            or indices.dtype.name != "int64"
            or indices.shape[:1] != held.shape
            or indices.shape[1:] not in rank_or_none
        ):
            what = f"indices {list(indices.shape)} don't fit values {list(held.shape)}"
            raise self.error(what, "SparseTensor", start, held.name)
        return SparseTensor(held, indices, shape)

    # --- types

    def value_info(self, values: Values, start: int) -> ValueInfo:
        return ValueInfo(values.get("name", ""), values.get("type"))

    def type(self, values: Values, start: int) -> Type | None:
        if len(values) > 1:
            raise self.error(f"two types at once: {', '.join(values)}", "Type", start)
        for key, item in values.items():
            if key == "opaque_type":
                return OpaqueType(item.get("domain", ""), item.get("name", ""))
            if key == "sequence_type":
                return SequenceType(item.get("elem_type"))
            if key == "optional_type":
                return OptionalType(item.get("elem_type"))
            if key == "map_type":
                return MapType(self.known(item.get("key_type"), start), item.get("value_type"))
            make = SparseTensorType if key == "sparse_tensor_type" else TensorType
            return make(self.known(item.get("elem_type"), start), item.get("shape"))
        return None

    def known(self, number: int | None, start: int) -> ElementType | None:
        return self.element_type(number, "Type", start) if number else None

    def shape(self, values: Values, start: int) -> tuple[Dim, ...]:
        dims: list[Dim] = values.get("dim", [])
        if len(dims) > MAX_RANK:
            raise self.error(f"{len(dims)} dimensions", "TensorShape", start)
        return tuple(dims)

    def dimension(self, values: Values, start: int) -> Dim:
        """-1 is what some exporters write for a size that nobody knows."""
        size: int = values.get("dim_value", -1)
        if size < -1 or len(values) > 1:
            raise self.error(f"not a dimension: {values}", "Dimension", start)
        return size if size >= 0 else values.get("dim_param") or None


def _entries(entries: Iterable[Values]) -> dict[str, str]:
    return {entry.get("key", ""): entry.get("value", "") for entry in entries}

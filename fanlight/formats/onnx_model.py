"""What an ONNX file says, as plain objects: model, graphs, nodes, tensors, types.

Tensors say where their bytes lie. Names, fields and meanings are those of onnx.proto; what only
people read (doc strings and metadata of nodes and values) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Union

from fanlight.errors import FormatError, TruncatedError
from fanlight.formats.onnx_types import ElementType

Dim = Union[int, str, None]
"""A size, a symbolic name, or None where nothing is known."""

Encoding = Literal["raw", "varints", "fields"]
"""How bytes hold a tensor's elements. ``raw``: little-endian elements, those of less than a byte
packed. ``varints``: packed varints. ``fields``: each behind a tag, as unpacked numbers and strings
are. ``onnx_values.decode`` makes the last two raw."""


@dataclass(frozen=True, slots=True)
class Source:
    """``length`` bytes from ``offset`` of ``file``: a path below the model's folder with ``/``, or
    "" for the model's own file. ``data``: the bytes, where they are few (up to 4 KB)."""

    file: str
    offset: int
    length: int
    encoding: Encoding
    data: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tensor:
    """``source``: None where there are no elements. ``name`` may be empty in attributes."""

    name: str
    dtype: ElementType
    shape: tuple[int, ...]
    source: Source | None


@dataclass(frozen=True, slots=True)
class SparseTensor:
    """``values`` [nnz] at ``indices``: [nnz] of the flat tensor or [nnz, rank]; all else is zero.
    An initializer's name is that of ``values``."""

    values: Tensor
    indices: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """``dtype``, ``shape``: None where nothing is known."""

    dtype: ElementType | None
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True, slots=True)
class SparseTensorType:
    """As :class:`TensorType`."""

    dtype: ElementType | None
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True, slots=True)
class SequenceType:
    """``element``: None where nothing is known."""

    element: Type | None


@dataclass(frozen=True, slots=True)
class OptionalType:
    """``element``: None where nothing is known."""

    element: Type | None


@dataclass(frozen=True, slots=True)
class MapType:
    """``key``: an integer or string type. ``value``: None where nothing is known."""

    key: ElementType | None
    value: Type | None


@dataclass(frozen=True, slots=True)
class OpaqueType:
    """A type that only its ``domain`` knows."""

    domain: str
    name: str


Type = Union[TensorType, SparseTensorType, SequenceType, OptionalType, MapType, OpaqueType]


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """A named value. ``type``: None where nothing is known."""

    name: str
    type: Type | None


Kind = Literal[
    "float",
    "int",
    "string",
    "tensor",
    "graph",
    "floats",
    "ints",
    "strings",
    "tensors",
    "graphs",
    "sparse_tensor",
    "sparse_tensors",
    "type",
    "types",
]
AttributeValue = Union[
    float,
    int,
    str,
    Tensor,
    "Graph",
    SparseTensor,
    Type,
    tuple[float, ...],
    tuple[int, ...],
    tuple[str, ...],
    tuple[Tensor, ...],
    tuple["Graph", ...],
    tuple[SparseTensor, ...],
    tuple[Type, ...],
    None,
]


@dataclass(frozen=True, slots=True)
class Attribute:
    """``value`` is what ``kind`` says; lists are tuples. A string that is not UTF-8 holds its other
    bytes as Python's "surrogateescape" does. ``reference``: in a function's node, the name of the
    function's attribute whose value this one takes; ``value`` is None then."""

    kind: Kind
    value: AttributeValue
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """``inputs``: "" is one that is left out. ``domain``: "" and "ai.onnx" are the same."""

    op_type: str
    domain: str
    overload: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


@dataclass(frozen=True, slots=True)
class Graph:
    """``initializers``, ``sparse_initializers``: by name. ``inputs`` may have names of these: they
    are defaults then. The repr leaves out what may be long."""

    name: str
    nodes: tuple[Node, ...] = field(repr=False)
    initializers: dict[str, Tensor] = field(repr=False)
    sparse_initializers: dict[str, SparseTensor] = field(repr=False)
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    value_info: tuple[ValueInfo, ...] = field(repr=False)
    doc_string: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the model. ``attributes``: names of those without a default; ``defaults``: the
    others. ``opset_import``: domain → version."""

    name: str
    domain: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    defaults: dict[str, Attribute]
    nodes: tuple[Node, ...] = field(repr=False)
    opset_import: dict[str, int]
    value_info: tuple[ValueInfo, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Model:
    """A file. ``opset_import``: domain → version. ``ir_version``: 0 where the file doesn't say."""

    ir_version: int
    opset_import: dict[str, int]
    producer_name: str
    producer_version: str
    domain: str
    model_version: int
    doc_string: str
    metadata: dict[str, str]
    graph: Graph
    functions: tuple[Function, ...] = field(repr=False)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors: of the graph, its subgraphs, attributes and functions."""
        yield from _graph_tensors(self.graph)
        for function in self.functions:
            yield from _attribute_tensors(function.defaults.values())
            yield from _node_tensors(function.nodes)

    def external_files(self) -> tuple[str, ...]:
        """The other files that hold tensors, each once."""
        files = (tensor.source.file for tensor in self.tensors() if tensor.source)
        return tuple(dict.fromkeys(file for file in files if file))


def check_external_sizes(model: Model, sizes: Mapping[str, int]) -> None:
    """Raises TruncatedError where a tensor reaches over the end of its external file, FormatError
    where ``sizes``, file → bytes, lacks the file."""
    for tensor in model.tensors():
        source = tensor.source
        if source is None or not source.file:
            continue
        if source.file not in sizes:
            raise FormatError(
                "external file is missing", where=f"tensor {tensor.name[:100]!r}", got=source.file
            )
        if source.offset + source.length > sizes[source.file]:
            raise TruncatedError(
                "external file ends before the tensor does",
                where=f"tensor {tensor.name[:100]!r}",
                got=f"{source.file} of {sizes[source.file]} bytes",
                wanted=f"at least {source.offset + source.length}",
                hint="Download the file again.",
            )


def _graph_tensors(graph: Graph) -> Iterator[Tensor]:
    yield from graph.initializers.values()
    for sparse in graph.sparse_initializers.values():
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.nodes)


def _node_tensors(nodes: Iterable[Node]) -> Iterator[Tensor]:
    for node in nodes:
        if node.attributes:
            yield from _attribute_tensors(node.attributes.values())


def _attribute_tensors(attributes: Iterable[Attribute]) -> Iterator[Tensor]:
    for attribute in attributes:
        value = attribute.value
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, SparseTensor):
                yield from (item.values, item.indices)
            elif isinstance(item, Graph):
                yield from _graph_tensors(item)

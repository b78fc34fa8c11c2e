"""What an operator's function gets: the ONNX node, its inputs as IR nodes, its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from fanlight.dtypes import DType
from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats.onnx_model import Attribute, Graph, Tensor
from fanlight.formats.onnx_model import Node as OnnxNode
from fanlight.formats.onnx_types import ELEMENT_TYPES
from fanlight.ir import build
from fanlight.ir.fold import Values
from fanlight.ir.graph import Node, Shape
from fanlight.shapes import Size

if TYPE_CHECKING:
    from fanlight.importers.onnx.model import Importer

_MISSING = object()


@dataclass(slots=True)
class Scope:
    """Values by name, the opsets that hold there, what references to attributes mean."""

    values: dict[str, Node]
    opsets: Mapping[str, int]
    prefix: str = ""
    depth: int = 0
    references: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """``inputs``: None for those that are left out, at the end as well; ``call[i]`` is one that
    must be there. ``attributes`` hold no references any more."""

    importer: Importer
    node: OnnxNode
    opset: int
    inputs: list[Node | None]
    attributes: Mapping[str, Attribute]
    scope: Scope

    def __getitem__(self, number: int) -> Node:
        found = self.get(number)
        if found is None:
            raise FormatError("an input is missing", where=self.where, got=f"input {number}")
        return found

    def get(self, number: int) -> Node | None:
        """An input that may be left out."""
        return self.inputs[number] if number < len(self.inputs) else None

    @property
    def where(self) -> str:
        node = self.node
        return f"{node.op_type} {(node.name or node.outputs[0])[:100]!r}"

    @property
    def outputs(self) -> int:
        """How many outputs the node has, unused ones at the end left out."""
        names = list(self.node.outputs)
        while names and not names[-1]:
            names.pop()
        return len(names)

    def wants(self, number: int) -> bool:
        """Whether output ``number`` has a name."""
        return number < len(self.node.outputs) and bool(self.node.outputs[number])

    def fail(self, what: str, *, got: object = None, hint: str = "") -> NoReturn:
        """Raises UnsupportedError for this node."""
        raise UnsupportedError(what, where=self.where, got=got, hint=hint)

    # --- attributes

    def _attr(self, name: str, kind: str, default: Any) -> Any:
        found = self.attributes.get(name)
        if found is None:
            if default is _MISSING:
                raise FormatError("an attribute is missing", where=self.where, wanted=name)
            return default
        if found.kind != kind:
            raise FormatError(
                f"attribute {name} is of another kind",
                where=self.where,
                got=found.kind,
                wanted=kind,
            )
        return found.value

    def attr_int(self, name: str, default: Any = _MISSING) -> int:
        return self._attr(name, "int", default)  # type: ignore[no-any-return]

    def attr_bool(self, name: str, default: bool) -> bool:
        return bool(self._attr(name, "int", int(default)))

    def attr_float(self, name: str, default: Any = _MISSING) -> float:
        return self._attr(name, "float", default)  # type: ignore[no-any-return]

    def attr_string(self, name: str, default: Any = _MISSING) -> str:
        return self._attr(name, "string", default)  # type: ignore[no-any-return]

    def attr_ints(self, name: str, default: Any = _MISSING) -> tuple[int, ...]:
        return self._attr(name, "ints", default)  # type: ignore[no-any-return]

    def attr_floats(self, name: str, default: Any = _MISSING) -> tuple[float, ...]:
        return self._attr(name, "floats", default)  # type: ignore[no-any-return]

    def attr_strings(self, name: str, default: Any = _MISSING) -> tuple[str, ...]:
        return self._attr(name, "strings", default)  # type: ignore[no-any-return]

    def attr_graph(self, name: str) -> Graph:
        return self._attr(name, "graph", _MISSING)  # type: ignore[no-any-return]

    def attr_tensor(self, name: str) -> Tensor | None:
        return self._attr(name, "tensor", None)  # type: ignore[no-any-return]

    def attr_dtype(self, name: str, default: DType | None = None) -> DType:
        """A dtype by ONNX's number."""
        number = self._attr(name, "int", None)
        if number is None:
            if default is None:
                raise FormatError("an attribute is missing", where=self.where, wanted=name)
            return default
        found = ELEMENT_TYPES.get(number)
        if found is None or found.dtype is None:
            self.fail(f"elements of type {found or number}")
        return found.dtype

    # --- what is known while compiling

    def known(self, number: int) -> Values | None:
        """The elements of an input, where they don't depend on the run: numbers and sizes."""
        node = self.get(number)
        return None if node is None else self.importer.folder.values(node)

    def sizes(self, number: int, what: str) -> list[Size]:
        """The elements of an input that must be known, as sizes. Raises UnsupportedError."""
        found = self.numbers(number, what)
        return [int(v) if isinstance(v, float) and v == int(v) else v for v in found]

    def numbers(self, number: int, what: str) -> Values:
        """The elements of an input that must be known. Raises UnsupportedError."""
        found = self.known(number)
        if found is None:
            self.importer.ask_for(self[number])
            self.fail(
                f"{what} depend on the run",
                hint="Give sizes as free_dimension_overrides, if they follow from some.",
            )
        return found

    def read_sizes(self, number: int) -> list[Size]:
        """The elements of an input, which may have one axis, as sizes: read back by the run where
        they are not known before; then they must not be negative."""
        return [
            self.importer.read_size(x, self.symbol(i)) for i, x in enumerate(self.parts(number))
        ]

    def parts(self, number: int) -> list[Node]:
        """The elements of an input of at most one axis, each without axes."""
        x = self[number]
        if not x.shape:
            return [x]
        if x.op == "concat":  # some may be known though others aren't
            return [part for inner in x.inputs for part in _elements(inner)]
        return _elements(x)

    def symbol(self, number: int = 0) -> str:
        """A name for a size that this node computes."""
        return f"{self.node.op_type.lower()}{self.importer.nodes}.{number}"

    def ints(self, number: int, what: str) -> list[int]:
        """As :meth:`sizes`, plain numbers only."""
        found = self.sizes(number, what)
        if not all(isinstance(v, int) for v in found):
            self.fail(f"{what} depend on free sizes", got=[str(v) for v in found])
        return [int(str(int(v))) if isinstance(v, bool) else v for v in found]  # type: ignore[misc]

    def axes(self, number: int = 1, name: str = "axes") -> list[int] | None:
        """Axes from an attribute or, in later opsets, an input; None where neither is there."""
        if name in self.attributes:
            return list(self.attr_ints(name))
        return self.ints(number, "axes") if self.get(number) is not None else None

    # --- shapes

    def broadcast(self, *nodes: Node) -> Shape:
        """What the nodes broadcast to; two symbols that meet are one from here on."""
        return self.importer.broadcast([n.shape for n in nodes], self.where)

    def same(self, a: Size, b: Size, what: str) -> None:
        """Takes two sizes for equal, which must be so."""
        self.importer.unify(a, b, f"{self.where}, {what}")

    def elementwise(self, name: str, *args: Node | float) -> Node:
        """An elementwise op with ONNX's broadcasting."""
        self.broadcast(*(a for a in args if isinstance(a, Node)))
        return build.op(name, *args)


def _elements(x: Node) -> list[Node]:
    count = x.shape[0]
    if not isinstance(count, int):
        raise UnsupportedError("a shape of free rank", got=str(count))
    return [build.reshape(build.part(x, 0, i, 1), ()) for i in range(count)]

"""An ONNX model → a module with one graph, ``main``.

Free dims become host dims. Two symbols that must be equal (operands of one sum, rows and columns of
a product) are made one, and the import begins anew with that known. Whatever can't be imported is
collected, so that one error names all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fanlight import shapes
from fanlight.errors import FormatError, GraphError, UnsupportedError
from fanlight.formats import onnx_model as onnx
from fanlight.formats.onnx_values import decode
from fanlight.importers.onnx import operators  # noqa: F401  fills the table
from fanlight.importers.onnx.call import Call, Scope
from fanlight.importers.onnx.order import in_order
from fanlight.importers.onnx.registry import OPERATORS, find
from fanlight.importers.onnx.stages import ReadSize, Region, add_stages
from fanlight.ir import build, ops
from fanlight.ir.fold import MAX_ELEMENTS, Folder
from fanlight.ir.graph import LEAVES, Module, Node, Shape, WeightSource, topological
from fanlight.ir.ops import apply
from fanlight.shapes import Dim, Size, dims_of

Read = Callable[[str, int, int], Awaitable[bytes]]
SMALL = 4096  # bytes: smaller tensors are constants, whose values are known while compiling
MAX_DIM = 1 << 20
MAX_NODES = 200_000  # after unrolling and inlining
_DEPTH = 64  # of functions and subgraphs inside each other


class ValuesNeededError(UnsupportedError):
    """Sizes or axes of the model are values of these inputs: it can be imported for known ones."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(
            "sizes or axes come from the values of inputs",
            got=", ".join(self.names),
            hint="Import it for known values of these.",
        )


@dataclass(frozen=True, slots=True)
class Value:
    """A value of an input: its shape and little-endian elements."""

    shape: tuple[int, ...]
    data: bytes


class _UnifyError(Exception):
    def __init__(self, name: str, size: Size) -> None:
        self.name, self.size = name, size


async def import_model(
    model: onnx.Model,
    *,
    read: Read,
    overrides: Mapping[str, int] | None = None,
    max_dim: int = MAX_DIM,
    values: Mapping[str, Value] | None = None,
) -> Module:
    """The module of ``model``. ``read(file, offset, length)``: bytes of its files, of which only
    those of small tensors are asked for, and of such as are kept in varints. ``overrides``: sizes
    of free dims by their names. ``max_dim``: no free dim can be larger. ``values``: of inputs that
    sizes are made of, which the module then doesn't take any more; ValuesNeededError names those
    that are missing.

    The module's metadata describe inputs and outputs: name, dtype, shape. Raises UnsupportedError,
    naming all that this version can't run; FormatError where the model breaks ONNX's rules.
    """
    data = await _small_tensors(model, read)
    known: dict[str, Size] = dict(overrides or {})
    for _ in range(100):
        importer = Importer(model, data, known, max_dim, values or {})
        try:
            return importer.run()
        except _UnifyError as found:
            known[found.name] = found.size
            for name, size in known.items():
                known[name] = _replaced(size, found.name, found.size)
    raise UnsupportedError("sizes that depend on each other", got=", ".join(known))


def _replaced(size: Size, name: str, by: Size) -> Size:
    if isinstance(size, Dim):
        return by if size.name == name else size
    if isinstance(size, shapes.Operation):
        return shapes.binary(size.op, _replaced(size.a, name, by), _replaced(size.b, name, by))
    return size


async def _small_tensors(model: onnx.Model, read: Read) -> dict[int, bytes]:
    """Raw elements of tensors that are small or not stored as such, by ``id``."""
    found: dict[int, bytes] = {}
    for tensor in model.tensors():
        source = tensor.source
        if source is None or tensor.dtype.bits == 0:
            found[id(tensor)] = b""
        elif source.data is not None or source.encoding != "raw" or source.length <= SMALL:
            data = source.data
            if data is None:
                data = await read(source.file, source.offset, source.length)
            found[id(tensor)] = decode(tensor, data)
    return found


class Importer:
    """One attempt. ``known``: names of free dims → what they are."""

    def __init__(
        self,
        model: onnx.Model,
        data: Mapping[int, bytes],
        known: Mapping[str, Size],
        max_dim: int,
        values: Mapping[str, Value],
    ) -> None:
        self.values = values
        self.model, self.data, self.known, self.max_dim = model, data, known, max_dim
        self.folder = Folder()
        self.module = Module()
        self.dims: dict[str, Dim] = {}
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self.missing: Counter[str] = Counter()
        self.places: dict[str, str] = {}
        self.nodes = 0
        self.reads: dict[Node, Size] = {}
        self.read_dims: dict[str, ReadSize] = {}
        self.regions: list[Region] = []
        self.looping = False  # whether a loop's body is being imported

    def run(self) -> Module:
        graph = self.model.graph
        opsets = {domain or "": version for domain, version in self.model.opset_import.items()}
        opsets[""] = max(opsets.get("", 0), opsets.pop("ai.onnx", 0)) or 1
        scope = Scope({}, opsets)
        self._initializers(graph, scope)
        inputs = [i for i in graph.inputs if i.name not in graph.initializers]
        described = []
        for info in inputs:
            node = self._input(info)
            scope.values[info.name] = node
            if node.op == "input":
                described.append(self._described(info.name, node))
        self._walk(graph.nodes, scope)
        self._report()
        outputs = {info.name: self._value(info.name, scope) for info in graph.outputs}
        self._describe_outputs(outputs, scope)
        self.module.metadata = {
            "inputs": described,
            "outputs": [self._described(name, node) for name, node in outputs.items()],
            "model": {
                "producer_name": self.model.producer_name,
                "producer_version": self.model.producer_version,
                "graph_name": graph.name,
                "domain": self.model.domain,
                "version": self.model.model_version,
                "metadata": dict(self.model.metadata),
            },
        }
        add_stages(self.module, outputs, list(self.read_dims.values()), self.regions)
        read = [r.dim for r in self.read_dims.values()]  # behind those that callers give
        self.module.dims = [*(d for d in self.dims.values() if d not in read), *read]
        return self.module

    def _describe_outputs(self, outputs: dict[str, Node], scope: Scope) -> None:
        """Outputs have buffers of their own: leaves, and values given out twice, are copied."""
        seen: set[Node] = set()
        for name, node in outputs.items():
            if node.op in ("input", "weight", "state", "constant") or node in seen:
                outputs[name] = self._copied(node)
            seen.add(outputs[name])

    def _copied(self, node: Node) -> Node:
        return apply("permute", node, axes=tuple(range(len(node.shape))))

    def _described(self, name: str, node: Node) -> dict[str, Any]:
        shape = [shapes.to_json(s) for s in node.shape]
        return {"name": name, "dtype": node.dtype.name, "shape": shape}

    # --- leaves

    def _input(self, info: onnx.ValueInfo) -> Node:
        where = f"input {info.name[:100]!r}"
        type_ = info.type
        if not isinstance(type_, onnx.TensorType) or type_.dtype is None:
            kind = type(type_).__name__
            raise UnsupportedError("an input that is no tensor", where=where, got=kind)
        if type_.dtype.dtype is None:
            raise UnsupportedError("an input of this element type", where=where, got=type_.dtype)
        if type_.shape is None:
            raise UnsupportedError(
                "an input of unknown rank", where=where, hint="Give its shape in the model."
            )
        value = self.values.get(info.name)
        if value is not None:
            dtype = type_.dtype.dtype
            return apply("constant", dtype=dtype, shape=value.shape, data=value.data)
        shape: list[Size] = []
        for axis, size in enumerate(type_.shape):
            if isinstance(size, int):
                shape.append(size)
            else:
                shape.append(self._dim(size or f"{info.name}.{axis}"))
        return ops.input_(info.name, type_.dtype.dtype, tuple(shape))

    def _dim(self, name: str) -> Size:
        if name in self.known:
            size = self.known[name]
            for dim in dims_of(size):
                self.dims.setdefault(dim.name, dim)
            return size
        return self.dims.setdefault(name, Dim(name, "host", self.max_dim))

    def read_size(self, node: Node, name: str) -> Size:
        """The number in ``node``, an integer without axes, as a size: read back by the run where it
        isn't known before. It must not be negative then. ``name``: of the new symbol."""
        known = self.folder.values(node)
        if known is not None:
            return int(known[0]) if isinstance(known[0], (int, float)) else known[0]
        if node not in self.reads:
            if self.looping:
                raise UnsupportedError("a size that a loop's body computes")
            while name in self.dims:
                name += "'"
            size = self.known.get(name)
            if size is None:
                size = Dim(name, "host", self.max_dim, least=0)
                self.dims[name] = size
                self.read_dims[name] = ReadSize(size, node)
            self.reads[node] = size
        return self.reads[node]

    def _initializers(self, graph: onnx.Graph, scope: Scope) -> None:
        for name, tensor in graph.initializers.items():
            scope.values[name] = self.tensor(tensor, scope.prefix + name)
        if graph.sparse_initializers:
            names = ", ".join(graph.sparse_initializers)
            raise UnsupportedError("sparse initializers", where=f"graph {graph.name!r}", got=names)

    def tensor(self, tensor: onnx.Tensor, name: str) -> Node:
        """A constant, or a weight of that name where it is large."""
        dtype = tensor.dtype.dtype
        if dtype is None:
            raise UnsupportedError(
                "a tensor of this element type", where=f"tensor {name[:100]!r}", got=tensor.dtype
            )
        data = self.data.get(id(tensor))
        if data is not None and len(data) <= SMALL:
            return apply("constant", dtype=dtype, shape=tensor.shape, data=data)
        while name in self.module.weights:
            name += "'"
        source = tensor.source
        assert source is not None
        if data is not None:
            found = WeightSource(dtype, tensor.shape, data=data, length=len(data))
        else:
            found = WeightSource(dtype, tensor.shape, source.file, source.offset, source.length)
        self.module.weights[name] = found
        return ops.weight(name, dtype, tensor.shape)

    # --- nodes

    def _walk(self, nodes: Sequence[onnx.Node], scope: Scope) -> None:
        for node in in_order(nodes):
            self.nodes += 1
            if self.nodes > MAX_NODES:
                raise UnsupportedError("too many nodes", wanted=f"at most {MAX_NODES}")
            self._node(node, scope)

    def _node(self, node: onnx.Node, scope: Scope) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self.functions.get((node.domain, node.op_type, node.overload))
        attributes = self._attributes(node, scope)
        if any(name and name not in scope.values for name in node.inputs):
            return  # behind something that can't be imported, which is told
        if function is not None:
            self._inline(function, node, attributes, scope)
            return
        opset = scope.opsets.get(domain, 1)
        row = find(domain, node.op_type, opset)
        title = f"{domain}.{node.op_type}" if domain else node.op_type
        if row is None:
            known = OPERATORS.get((domain, node.op_type))
            self._miss(f"{title} of opset {opset}" if known else f"operator {title}", node)
            return
        unknown = set(attributes) - row.attributes
        if unknown:
            self._miss(f"{title}'s attribute {', '.join(sorted(unknown))}", node)
            return
        inputs = [scope.values[name] if name else None for name in node.inputs]
        call = Call(self, node, opset, inputs, attributes, scope)
        try:
            made = row.function(call)
        except ValuesNeededError:
            raise
        except UnsupportedError as error:
            self._miss(str(error).removeprefix(f"{call.where}: "), node)
            return
        except GraphError as error:
            raise FormatError(str(error), where=call.where) from error
        results = made if isinstance(made, tuple) else (made,)
        for name, result in zip(node.outputs, results, strict=False):
            if name and result is not None:
                scope.values[name] = self.folded(result)
        lacking = [n for n in node.outputs if n and n not in scope.values]
        if lacking:
            self._miss(f"{title}'s output {', '.join(lacking)}", node)

    def folded(self, node: Node) -> Node:
        """``node``, as a constant where its values are known numbers."""
        if node.op == "constant":
            return node
        values = self.folder.values(node)
        if values is None or not all(isinstance(v, (int, float)) for v in values):
            return node
        if node.dtype.name not in build.CODES:
            return node
        shape = [int(str(s)) for s in node.shape]
        made = build.constant(list(values), node.dtype, shape)
        self.folder.found[made] = values
        return made

    def _attributes(self, node: onnx.Node, scope: Scope) -> dict[str, onnx.Attribute]:
        out = {}
        for name, attribute in node.attributes.items():
            if attribute.reference:
                given = scope.references.get(attribute.reference)
                if given is None:
                    continue
                attribute = given
            out[name] = attribute
        return out

    def _inline(
        self,
        function: onnx.Function,
        node: onnx.Node,
        attributes: Mapping[str, onnx.Attribute],
        scope: Scope,
    ) -> None:
        if scope.depth >= _DEPTH:
            raise FormatError("functions that call themselves", where=f"function {function.name}")
        opsets = {d if d != "ai.onnx" else "": v for d, v in function.opset_import.items()}
        inner = Scope(
            {},
            {**scope.opsets, **opsets},
            f"{scope.prefix}{node.name or node.outputs[0]}/",
            scope.depth + 1,
            {**function.defaults, **attributes},
        )
        for name, given in zip(function.inputs, node.inputs, strict=False):
            if given:
                inner.values[name] = scope.values[given]
        self._walk(function.nodes, inner)
        for name, taken in zip(function.outputs, node.outputs, strict=False):
            if taken and name in inner.values:
                scope.values[taken] = inner.values[name]

    def subgraph(
        self, graph: onnx.Graph, outer: Scope, given: Mapping[str, Node], name: str
    ) -> list[Node]:
        """The outputs of a node's subgraph, which sees what ``outer`` has; ``given``: its inputs.
        Raises UnsupportedError where something in it can't be imported."""
        if outer.depth >= _DEPTH:
            raise FormatError("subgraphs are nested too deeply", where=name)
        prefix = f"{outer.prefix}{name}/"
        values = dict(outer.values)
        inner = Scope(values, outer.opsets, prefix, outer.depth + 1, outer.references)
        before = sum(self.missing.values())
        self._initializers(graph, inner)
        values.update(given)
        self._walk(graph.nodes, inner)
        if sum(self.missing.values()) != before:
            raise UnsupportedError("its subgraph can't be imported")
        return [self._value(info.name, inner) for info in graph.outputs]

    def _value(self, name: str, scope: Scope) -> Node:
        if name not in scope.values:
            raise FormatError("no node makes an output", got=name[:100])
        return scope.values[name]

    def ask_for(self, node: Node) -> None:
        """Raises ValuesNeededError where ``node`` would be known if inputs were."""
        leaves = [x for x in topological([node]) if x.op in LEAVES]
        inputs = [x for x in leaves if x.op == "input"]
        small = all(_small(x.shape) for x in inputs)
        if inputs and small and all(x.op in ("input", "constant") for x in leaves):
            raise ValuesNeededError({x.name for x in inputs})

    # --- what can't be imported

    def _miss(self, what: str, node: onnx.Node) -> None:
        self.missing[what] += 1
        self.places.setdefault(what, node.name or node.outputs[0])

    def _report(self) -> None:
        if not self.missing:
            return
        parts = [
            f"{what} ({count} times, first at {self.places[what][:60]!r})"
            if count > 1
            else f"{what} (at {self.places[what][:60]!r})"
            for what, count in self.missing.most_common()
        ]
        raise UnsupportedError(
            "the model can't be imported: " + "; ".join(parts),
            hint="docs/operators.md lists what is there; onnxsim or another opset may help.",
        )

    # --- sizes

    def broadcast(self, given: list[Shape], where: str) -> Shape:
        """The common shape. Raises _UnifyError where two symbols meet."""
        rank = max((len(s) for s in given), default=0)
        out: list[Size] = []
        for axis in range(rank):
            size: Size = 1
            for shape in given:
                at = axis - rank + len(shape)
                here = shape[at] if at >= 0 else 1
                if here == 1 or here == size:
                    continue
                if size == 1:
                    size = here
                else:
                    self.unify(size, here, where)
            out.append(size)
        return tuple(out)

    def unify(self, a: Size, b: Size, where: str) -> None:
        """Nothing where the sizes are equal; else a symbol gets a meaning, and the import begins
        anew. Raises FormatError where they can't be equal."""
        if a == b:
            return
        for one, other in ((a, b), (b, a)):
            names = {d.name for d in dims_of(other)}
            if isinstance(one, Dim) and one.name in self.read_dims and one.name not in names:
                raise _UnifyError(one.name, other)
        for one, other in ((a, b), (b, a)):
            limit = _limit(one, other)
            if limit is not None:
                raise _UnifyError(limit.name, limit)
        for one, other in ((a, b), (b, a)):
            names = {d.name for d in dims_of(other)}
            if isinstance(one, Dim) and not names & {one.name, *self.read_dims}:
                raise _UnifyError(one.name, other)
        rest = shapes.binary("-", a, b)
        for dim in dims_of(rest):
            solved = _solved(rest, dim)
            names = {d.name for d in dims_of(solved)} if solved is not None else set()
            if solved is not None and (dim.name in self.read_dims or not names & {*self.read_dims}):
                raise _UnifyError(dim.name, solved)
        raise FormatError("sizes differ", where=where, got=f"{a} and {b}")


def _small(shape: Shape) -> bool:
    return len(shape) < 2 and all(not isinstance(s, int) or s <= MAX_ELEMENTS for s in shape)


def _limit(one: Size, other: Size) -> Dim | None:
    """Where ``one`` is ``min(other, number)``, ``other`` is at most the number: as when positions
    are cut out of a table."""
    if not isinstance(one, shapes.Operation) or one.op != "min" or one.a != other:
        return None
    if not isinstance(other, Dim) or not isinstance(one.b, int) or one.b >= other.max:
        return None
    return Dim(other.name, other.kind, one.b)


def _solved(rest: Size, dim: Dim) -> Size | None:
    """What ``dim`` is where ``rest``, ``± dim`` and other symbols or numbers, is 0."""
    at = [_replaced(rest, dim.name, value) for value in (0, 1, 2)]
    step = shapes.binary("-", at[1], at[0])
    if step not in (1, -1) or shapes.binary("-", at[2], at[1]) != step:
        return None
    solved = shapes.binary("*", at[0], -step)
    if isinstance(solved, int) and solved < 0:
        return None
    return solved

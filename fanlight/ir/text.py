"""The IR's text: printer and parser, inverse to each other.

    dim T host 128
    graph prefill
      %0 = input {"name": "tokens", …} : i32[T]
      %1 = matmul(%0, %2) : f32[T, 576]
      update k.0 = %5
      return logits = %9

Attributes are JSON: sizes in the plan's form, dtypes by name, bytes in hex. A line's type is
checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fanlight import shapes
from fanlight.errors import GraphError, PlanError
from fanlight.ir.graph import Graph, Node, dims_in, type_text
from fanlight.ir.ops import OPS, apply, dtype_named
from fanlight.shapes import Dim


def print_graph(graph: Graph) -> str:
    """The text of ``graph``."""
    nodes = graph.nodes()
    number = {node: i for i, node in enumerate(nodes)}
    lines = [f"dim {d.name} {d.kind} {d.max}" for d in dims_in(nodes).values()]
    lines.append(f"graph {graph.name}")
    for node in nodes:
        args = ", ".join(f"%{number[x]}" for x in node.inputs)
        call = f"{node.op}({args})" if args else node.op
        kinds = OPS[node.op].attrs
        attrs = {name: _attr_json(kind, node.attrs[name]) for name, kind in kinds.items()}
        text = f" {json.dumps(attrs)}" if attrs else ""
        type_ = type_text(node.dtype, node.shape)
        lines.append(f"  %{number[node]} = {call}{text} : {type_}")
    lines += [f"  update {name} = %{number[node]}" for name, node in graph.updates.items()]
    lines += [f"  return {name} = %{number[node]}" for name, node in graph.outputs.items()]
    return "\n".join(lines) + "\n"


_LINE = re.compile(r"%(\d+) = (\w+)(?:\(([^)]*)\))?(?: (\{.*\}))? : (.+)")
_END = re.compile(r"(update|return) (\S+) = %(\d+)")


def parse_graph(text: str) -> Graph:
    """Inverse of :func:`print_graph`. Raises GraphError with the line's number."""
    dims: dict[str, Dim] = {}
    values: dict[int, Node] = {}
    graph: Graph | None = None
    for at, raw in enumerate(text.splitlines(), 1):
        line, where = raw.strip(), f"line {at}"
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("dim "):
                _, name, kind, size = line.split()
                if kind not in ("host", "device"):
                    raise GraphError("unknown kind of dim", got=kind)
                dims[name] = Dim(name, "host" if kind == "host" else "device", int(size))
            elif line.startswith("graph "):
                graph = Graph(line[6:].strip())
            elif graph is not None and (match := _LINE.fullmatch(line)):
                _parse_node(match, dims, values)
            elif graph is not None and (match := _END.fullmatch(line)):
                table = graph.updates if match[1] == "update" else graph.outputs
                table[match[2]] = values[int(match[3])]
            else:
                raise GraphError("not a line of a graph", got=repr(line))
        except (GraphError, PlanError) as error:
            raise GraphError(str(error), where=where) from error
        except (KeyError, ValueError) as error:
            raise GraphError(f"malformed line: {error!r}", where=where) from error
    if graph is None:
        raise GraphError("no graph in the text")
    return graph


def _parse_node(match: re.Match[str], dims: Mapping[str, Dim], values: dict[int, Node]) -> None:
    inputs = [values[int(a.strip()[1:])] for a in (match[3] or "").split(",") if a.strip()]
    if match[2] not in OPS:
        raise GraphError("unknown op", got=match[2])
    kinds = OPS[match[2]].attrs
    given = json.loads(match[4]) if match[4] else {}
    if set(given) != set(kinds):
        raise GraphError("wrong attributes", got=sorted(given), wanted=sorted(kinds))
    attrs = {name: _attr_value(kinds[name], value, dims) for name, value in given.items()}
    node = apply(match[2], *inputs, **attrs)
    if type_text(node.dtype, node.shape) != match[5]:
        raise GraphError("wrong type", got=match[5], wanted=type_text(node.dtype, node.shape))
    values[int(match[1])] = node


def _attr_json(kind: str, value: Any) -> Any:
    if kind == "size":
        return shapes.to_json(value)
    if kind == "sizes":
        return [shapes.to_json(s) for s in value]
    if kind == "bytes":
        return value.hex()
    return value.name if kind == "dtype" else value


def _attr_value(kind: str, value: Any, dims: Mapping[str, Dim]) -> Any:
    if kind == "size":
        return shapes.from_json(value, dims)
    if kind == "sizes":
        return tuple(shapes.from_json(s, dims) for s in value)
    if kind == "ints":
        return tuple(value)
    if kind == "bytes":
        return bytes.fromhex(value)
    return dtype_named(value) if kind == "dtype" else value

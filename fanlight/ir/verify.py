"""The verifier: every rule of the IR, checked between passes.

Each node's type is worked out anew by its op's rule; leaves must be known to the module; updates
must fit their states; an ``update`` op must end in the update of its own state.
"""

from __future__ import annotations

from collections.abc import Container

from fanlight.errors import GraphError
from fanlight.ir.graph import Graph, Module, Node, dims_in, type_text
from fanlight.ir.ops import OPS, apply


def verify_graph(graph: Graph, after: str = "build", nodes: list[Node] | None = None) -> None:
    """Raises GraphError naming the pass (``after``), the graph, the node and the rule. ``nodes``:
    the graph's, where the caller has them."""
    nodes = graph.nodes() if nodes is None else nodes
    for number, node in enumerate(nodes):
        where = f"after {after}, graph {graph.name}, node %{number} ({node.op})"
        if node.op not in OPS:
            raise GraphError("unknown op", where=where)
        try:
            again = apply(node.op, *node.inputs, **node.attrs)
        except GraphError as error:
            raise GraphError(str(error), where=where) from error
        if (again.dtype, again.shape) != (node.dtype, node.shape):
            raise GraphError(
                "type doesn't follow from the op's rule",
                where=where,
                got=type_text(node.dtype, node.shape),
                wanted=type_text(again.dtype, again.shape),
            )
    _verify_updates(graph, after, nodes)


def _verify_updates(graph: Graph, after: str, nodes: list[Node]) -> None:
    for name, node in graph.updates.items():
        base = changed(node)
        if base is not node and (base.op != "state" or base.name != name):
            raise GraphError(
                "an update op must start at the state that it ends in",
                where=f"after {after}, graph {graph.name}, state {name}",
            )
    ends: set[Node] = set(graph.updates.values())
    kept = {(n.inputs[0], n.attrs["input"]) for n in ends if n.op == "after"}
    for node in nodes:
        lost = any((node, number) not in kept for number in OPS[node.op].changes)
        if lost or (node.op in ("update", "after") and node not in ends):
            raise GraphError(
                "the result of an update op must be a state's update",
                where=f"after {after}, graph {graph.name}",
            )


def changed(node: Node) -> Node:
    """What ``node`` is a later value of: the state at which its changes in place began."""
    while node.op in ("update", "after"):
        node = node.inputs[0] if node.op == "update" else node.inputs[0].inputs[node.attrs["input"]]
    return node


def verify_module(module: Module, after: str = "build", known: Container[Graph] = ()) -> None:
    """``verify_graph`` for all graphs but those of ``known``, and their leaves and updates against
    the module's tables."""
    for graph in module.graphs.values():
        if graph in known:
            continue
        nodes = graph.nodes()
        verify_graph(graph, after, nodes)
        where = f"after {after}, graph {graph.name}"
        for node in nodes:
            if node.op == "weight":
                source = module.weights.get(node.name)
                if source is None or (source.dtype, source.shape) != (node.dtype, node.shape):
                    raise GraphError("weight is not the module's", where=where, got=node.name)
            if node.op == "state":
                spec = module.states.get(node.name)
                if spec is None or (spec.dtype, spec.shape) != (node.dtype, node.shape):
                    raise GraphError("state is not the module's", where=where, got=node.name)
        used = dims_in(nodes)
        for moved in module.device_dims:
            if moved.state in graph.updates and moved.dim.name in used:
                raise GraphError(
                    "a graph that updates a device dim's state can't use the dim",
                    where=where,
                    got=moved.dim.name,
                )
        for name, node in graph.updates.items():
            spec = module.states.get(name)
            if spec is None or (spec.dtype, spec.shape) != (node.dtype, node.shape):
                raise GraphError("update doesn't fit its state", where=where, got=name)

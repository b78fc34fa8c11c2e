"""What passes are written with: who uses a value, and a graph with some of its nodes replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fanlight.ir.graph import LEAVES, Graph, Node

New = Callable[[Node], Node]  #: a node of the old graph → its stand-in in the new one
Build = Callable[[New], Node]


@dataclass(slots=True)
class Users:
    """``of[node]``: the nodes that take it as an input, once for each time. ``kept``: nodes that
    are outputs or updates."""

    of: dict[Node, list[Node]] = field(default_factory=dict)
    kept: set[Node] = field(default_factory=set)

    @classmethod
    def in_graph(cls, graph: Graph) -> Users:
        users = cls(kept=set(graph.roots()))
        for node in graph.nodes():
            users.of.setdefault(node, [])
            for x in node.inputs:
                users.of.setdefault(x, []).append(node)
        return users

    def only(self, node: Node) -> Node | None:
        """The one use of ``node``; None where it has more, or is an output or an update."""
        of = self.of[node]
        return of[0] if len(of) == 1 and node not in self.kept else None


def rewrite(graph: Graph, builds: Mapping[Node, Build]) -> Graph:
    """``graph`` with each node of ``builds`` replaced by what its build makes. A build may ask for
    the stand-ins of leaves and of nodes that its own node needed."""
    made: dict[Node, Node] = {}

    def new(node: Node) -> Node:
        return node if node.op in LEAVES else made[node]

    for node in graph.nodes():
        if node.op in LEAVES:
            continue
        if node in builds:
            made[node] = builds[node](new)
            continue
        inputs = tuple(new(x) for x in node.inputs)
        same = inputs == node.inputs
        made[node] = node if same else Node(node.op, inputs, node.attrs, node.dtype, node.shape)
    return Graph(
        graph.name,
        {name: new(node) for name, node in graph.outputs.items()},
        {name: new(node) for name, node in graph.updates.items()},
    )

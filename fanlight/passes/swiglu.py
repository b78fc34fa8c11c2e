"""silu(gate) * up of one ``project``: one ``swiglu``.

    p = project(x, g, w, u); silu(slice(p, w's)) * slice(p, u's)   →   swiglu(x, g, w, u)

Left alone: a project of other than two products, or one of whose halves is used elsewhere.
"""

from __future__ import annotations

from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, Users, rewrite
from fanlight.passes.project import weight_of


def run(graph: Graph) -> Graph:
    users = Users.in_graph(graph)
    builds: dict[Node, Build] = {}
    for node in graph.nodes():
        found = _match(node, users)
        if found is not None:
            builds[node] = _build(*found)
    return rewrite(graph, builds)


def _match(node: Node, users: Users) -> tuple[Node, Node, Node] | None:
    """The project and the weights of gate and up."""
    if node.op != "mul":
        return None
    act, up = node.inputs if node.inputs[0].op == "silu" else node.inputs[::-1]
    if act.op != "silu":
        return None
    gate = act.inputs[0]
    weights = weight_of(gate), weight_of(up)
    if weights[0] is None or weights[1] is None or gate.inputs[0] is not up.inputs[0]:
        return None
    project = gate.inputs[0]
    if len(project.inputs) != 4 or project in users.kept or len(users.of[project]) != 2:
        return None
    if any(users.only(x) is None for x in (act, gate, up)):
        return None
    return project, weights[0], weights[1]


def _build(project: Node, gate: Node, up: Node) -> Build:
    def build(new: New) -> Node:
        x, g = map(new, project.inputs[:2])
        return apply("swiglu", x, g, gate, up, eps=project.attrs["eps"])

    return build

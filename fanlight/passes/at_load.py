"""What follows from weights alone is computed once, by the program ``load``, into states.

    dot(x, mul(cast(weight), scale))   →   dot(x, state), and in ``load``: state = mul(cast(…), …)

Only values that a kernel would have to store in each run: inputs of ops with code of their own. Not
those that are small, are views of a weight as it lies in memory, or take many times the memory of
what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fanlight.ir.graph import Graph, Module, Node, StateSpec
from fanlight.ir.ops import OPS, apply
from fanlight.ir.rewrite import Build, rewrite
from fanlight.shapes import product

PROGRAM = "load"
_SMALLEST = 4096  # bytes that are worth a state
_GROWTH = 4  # times the bytes of what it is made of


def run(module: Module) -> Module:
    """``module`` with such values in states; itself where there are none."""
    graphs, states = dict(module.graphs), dict(module.states)
    load = Graph(PROGRAM)
    if PROGRAM in graphs:  # a module that has its own
        return module
    for name, graph in module.graphs.items():
        builds: dict[Node, Build] = {}
        for node in _constants(graph):
            state = f"{PROGRAM}.{len(load.updates)}"
            states[state] = StateSpec(node.dtype, node.shape)
            load.updates[state] = node
            read = apply("state", name=state, dtype=node.dtype, shape=node.shape)
            builds[node] = lambda new, read=read: read  # type: ignore[misc]
        if builds:
            graphs[name] = rewrite(graph, builds)
    if not load.updates:
        return module
    return replace(module, graphs=graphs | {PROGRAM: load}, states=states)


def _constants(graph: Graph) -> Iterator[Node]:
    """Values of weights alone that kernels would store in each run."""
    leaves: dict[Node, frozenset[Node] | None] = {}  # what a value is made of; None: of the run
    nodes = graph.nodes()
    for node in nodes:
        leaves[node] = _made_of(node, leaves)
    found: set[Node] = set()
    for node in nodes:
        if OPS[node.op].family not in ("block", "composite") or leaves[node] is not None:
            continue
        for x in node.inputs:
            if x not in found and _worth(x, leaves[x]):
                found.add(x)
                yield x


def _made_of(node: Node, leaves: dict[Node, frozenset[Node] | None]) -> frozenset[Node] | None:
    if node.op in ("weight", "constant"):
        return frozenset([node])
    known = all(isinstance(size, int) for size in node.shape)
    if node.op in ("input", "state") or not known or OPS[node.op].changes or node.op == "update":
        return None
    made: frozenset[Node] = frozenset()
    for x in node.inputs:
        its = leaves[x]
        if its is None:
            return None
        made |= its
    return made


def _worth(node: Node, leaves: frozenset[Node] | None) -> bool:
    base = node
    while base.op == "reshape":
        base = base.inputs[0]
    if not leaves or not base.inputs:
        return False
    sources = sum(_bytes(leaf) for leaf in leaves)
    return _SMALLEST <= _bytes(node) <= _GROWTH * sources


def _bytes(node: Node) -> int:
    return node.dtype.nbytes(int(str(product(node.shape)))) if node.dtype.block == 1 else 0

"""A graph whose sizes depend on its own values → graphs that run one after the other.

A size that the run itself computes (how many elements are not zero) is a dim. Its number is read
back between two stages; what a later stage needs of an earlier one becomes a state. In: outputs,
and the nodes that dims are read from. Out: one graph a stage, ``main``, ``main.1`` …, and what to
read behind each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fanlight import dtypes
from fanlight.ir import ops
from fanlight.ir.build import cast, reshape
from fanlight.ir.graph import LEAVES, Graph, Module, Node, StateSpec, dims_in, topological
from fanlight.passes.rewrite import New, rewrite
from fanlight.shapes import Dim


@dataclass(frozen=True, slots=True)
class ReadSize:
    """``dim`` is the number in ``node``, an integer without axes."""

    dim: Dim
    node: Node


def add_stages(module: Module, outputs: Mapping[str, Node], reads: Sequence[ReadSize]) -> None:
    """Adds the graphs to ``module`` and, where there are several, ``stages`` to its metadata: a
    list of ``{"program", "reads": {dim: buffer}}``, each buffer an i32."""
    if not reads:
        module.graphs["main"] = Graph("main", dict(outputs))
        return
    cut = _Cut(outputs, reads)
    module.metadata["stages"] = [cut.stage(number, module) for number in range(cut.count)]


class _Cut:
    def __init__(self, outputs: Mapping[str, Node], reads: Sequence[ReadSize]) -> None:
        self.outputs = dict(outputs)
        self.known: dict[str, int] = {}  # dim that is read → the first stage that knows it
        self.stages: dict[Node, int] = {}
        self.fixed: set[Node] = set()  # nodes that depend on sizes only: made anew where needed
        for read in reads:
            self._visit([read.node])
            self.known[read.dim.name] = self.stages[read.node] + 1
        self.reads = reads
        roots = [*self.outputs.values(), *(read.node for read in reads)]
        self.nodes = self._visit(roots)
        self.count = 1 + max(self.known.values())
        self.states = self._crossing()

    def _visit(self, roots: Sequence[Node]) -> list[Node]:
        nodes = topological(roots)
        for node in nodes:
            if node in self.stages:
                continue
            dims = (self.known.get(name, 0) for name in dims_in([node]))
            self.stages[node] = max([0, *dims, *(self.stages[x] for x in node.inputs)])
            if node.op not in ("input", "weight", "state") and self.fixed.issuperset(node.inputs):
                self.fixed.add(node)
        return nodes

    def _crossing(self) -> dict[Node, str]:
        """Values that a later stage takes → their states."""
        found: dict[Node, str] = {}
        for node in self.nodes:
            if node in self.fixed:
                continue
            for x in node.inputs:
                kept = x.op in LEAVES or x in self.fixed or x in found
                if not kept and self.stages[x] < self.stages[node]:
                    found[x] = f"kept.{len(found)}"
        return found

    def stage(self, number: int, module: Module) -> dict[str, object]:
        """Adds the graph of a stage, and its states, to ``module``."""
        read = {
            r.dim.name: f"size.{r.dim.name}"
            for r in self.reads
            if self.known[r.dim.name] == number + 1
        }
        outputs = {n: x for n, x in self.outputs.items() if self.stages[x] == number}
        for r in self.reads:
            if r.dim.name in read:
                outputs[read[r.dim.name]] = reshape(cast(r.node, dtypes.i32), (1,))
        updates = {name: x for x, name in self.states.items() if self.stages[x] == number}
        for x, name in self.states.items():
            if name in updates:
                module.states[name] = StateSpec(x.dtype, x.shape)
        name = f"main.{number}" if number else "main"
        held = {
            x: _from_state(name_, x) for x, name_ in self.states.items() if self.stages[x] < number
        }
        module.graphs[name] = rewrite(Graph(name, outputs, updates), held)
        return {"program": name, "reads": read}


def _from_state(name: str, node: Node) -> Callable[[New], Node]:
    return lambda new: ops.state(name, node.dtype, node.shape)

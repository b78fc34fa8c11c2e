"""A graph whose sizes depend on its own values, or with loops → graphs that run one after another.

A size that the run itself computes (how many elements are not zero) is a dim: its number is read
back between two stages. A loop is a stage's too: its body is a graph that runs as often as a size
says. What a later stage or a body needs of an earlier one becomes a state; so what a body computes
of outer values only is computed once. In: outputs, the nodes that dims are read from, loops. Out:
one graph a stage, ``main``, ``main.1`` …, their loops' programs, and what to read behind each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fanlight import dtypes
from fanlight.ir import build, ops
from fanlight.ir.graph import (
    LEAVES,
    DeviceDim,
    Graph,
    Module,
    Node,
    StateSpec,
    dims_in,
    topological,
)
from fanlight.ir.rewrite import Build, New, rewrite
from fanlight.plan import Call, Loop
from fanlight.shapes import Dim, Size, dims_of


@dataclass(frozen=True, slots=True)
class ReadSize:
    """``dim`` is the number in ``node``, an integer without axes."""

    dim: Dim
    node: Node


@dataclass(slots=True)
class Region:
    """A loop of ``count`` turns. States: ``first``: their values before it; ``next``: after a turn,
    from the state nodes in ``inner``. ``turn``: an i32 state [1] that counts. Behind the loop its
    states are read by nodes that are not in ``inner``."""

    name: str
    count: Size
    turn: Dim
    first: dict[str, Node] = field(default_factory=dict)
    next: dict[str, Node] = field(default_factory=dict)
    shapes: dict[str, StateSpec] = field(default_factory=dict)
    inner: set[Node] = field(default_factory=set)


def add_stages(
    module: Module,
    outputs: Mapping[str, Node],
    reads: Sequence[ReadSize],
    regions: Sequence[Region],
) -> None:
    """Adds graphs and programs to ``module`` and, where there are several, ``stages`` to its
    metadata: a list of ``{"program", "reads": {dim: buffer}}``, each buffer an i32."""
    if not reads and not regions:
        module.graphs["main"] = Graph("main", dict(outputs))
        return
    cut = _Cut(outputs, reads, regions)
    stages: list[dict[str, object]] = []
    for number in range(cut.count):
        stages += cut.stage(number, module)
    module.metadata["stages"] = stages


class _Cut:
    def __init__(
        self, outputs: Mapping[str, Node], reads: Sequence[ReadSize], regions: Sequence[Region]
    ) -> None:
        self.outputs = dict(outputs)
        self.reads = {read.dim.name: read for read in reads}
        self.regions = {name: region for region in regions for name in region.first}
        self.inner = {node for region in regions for node in region.inner}
        self.stages: dict[Node, int] = {}
        self.fixed: set[Node] = set()  # nodes that depend on sizes only: made anew where needed
        self.turning: set[Node] = set()  # nodes of bodies that change from turn to turn
        self.loops: dict[str, int] = {}  # region → its stage
        roots = [*self.outputs.values(), *(read.node for read in reads)]
        for region in regions:
            self._loop_stage(region)
            roots += [*region.first.values(), *region.next.values()]
        self._visit(roots)
        self.nodes = topological(roots)
        known = [self._known(name) for name in self.reads]
        self.count = 1 + max([*known, *(stage + 1 for stage in self.loops.values())])
        self.of_stage = [
            [r for r in regions if self.loops[r.name] == number] for number in range(self.count)
        ]
        self.states = self._crossing()

    def _known(self, dim: str) -> int:
        """The first stage that knows a dim."""
        read = self.reads.get(dim)
        if read is None:
            return 0
        if read.node not in self.stages:
            self._visit([read.node])
        return self.stages[read.node] + 1

    def _loop_stage(self, region: Region) -> int:
        if region.name not in self.loops:
            nodes = [*region.first.values(), *region.next.values()]
            self._visit(nodes)
            known = (self._known(dim.name) for dim in dims_of(region.count))
            self.loops[region.name] = max([0, *known, *(self.stages[x] for x in nodes)])
        return self.loops[region.name]

    def _visit(self, roots: Sequence[Node]) -> None:
        for node in topological(roots):
            if node in self.stages:
                continue
            stage = max([0, *(self._known(name) for name in dims_in([node]))])
            if node in self.inner:
                self.turning.add(node)
            elif node.op == "state":
                stage = self._loop_stage(self.regions[node.name]) + 1
            if not self.turning.isdisjoint(node.inputs):
                self.turning.add(node)
            self.stages[node] = max([stage, *(self.stages[x] for x in node.inputs)])
            if node.op not in ("input", "weight", "state") and self.fixed.issuperset(node.inputs):
                self.fixed.add(node)

    def _crossing(self) -> dict[Node, str]:
        """Values that a later stage or a body takes → their states."""
        found: dict[Node, str] = {}

        def keep(x: Node) -> None:
            if x.op not in LEAVES and x not in self.fixed and x not in self.turning:
                found.setdefault(x, f"kept.{len(found)}")

        for node in self.nodes:
            if node in self.fixed:
                continue
            for x in node.inputs:
                if node in self.turning or self.stages[x] < self.stages[node]:
                    keep(x)
        for region in {id(r): r for r in self.regions.values()}.values():
            for x in region.next.values():
                keep(x)
        return found

    def stage(self, number: int, module: Module) -> list[dict[str, object]]:
        """Adds the graphs of a stage, and its states, to ``module``. Returns what runs."""
        name = f"main.{number}" if number else "main"
        read = {dim: f"size.{dim}" for dim in self.reads if self._known(dim) == number + 1}
        outputs = {n: x for n, x in self.outputs.items() if self.stages[x] == number}
        for dim, buffer in read.items():
            value = build.cast(self.reads[dim].node, dtypes.i32)
            outputs[buffer] = build.reshape(value, (1,))
        updates = {}
        for x, state in self.states.items():
            if self.stages[x] == number:
                updates[state] = x
                module.states[state] = StateSpec(x.dtype, x.shape)
        for region in self.of_stage[number]:
            updates |= region.first
            module.states |= region.shapes
        module.graphs[name] = rewrite(Graph(name, outputs, updates), self._held(number))
        programs = [self._loop(region, module) for region in self.of_stage[number]]
        reading: list[Mapping[str, str]] = [{} for _ in programs] + [read]
        return [
            {"program": program, "reads": dict(reads)}
            for program, reads in zip([name, *programs], reading, strict=True)
        ]

    def _held(self, below: int) -> dict[Node, Build]:
        """Stand-ins for values of stages before ``below``."""
        return {x: _state(name, x) for x, name in self.states.items() if self.stages[x] < below}

    def _loop(self, region: Region, module: Module) -> str:
        """Adds a loop's program; returns its name."""
        turn = f"{region.name}.turn"
        held = self._held(self.loops[region.name] + 1)
        body = Graph(f"{region.name}.body", {}, {n: x for n, x in region.next.items() if n != turn})
        following = Graph(f"{region.name}.next", {}, {turn: region.next[turn]})
        for graph in (body, following):
            module.graphs[graph.name] = rewrite(graph, held)
        module.device_dims.append(DeviceDim(region.turn, turn, 0))
        steps = (Call(body.name), Call(following.name))
        module.programs[region.name] = (Loop(region.count, steps),)
        return region.name


def _state(name: str, node: Node) -> Callable[[New], Node]:
    return lambda new: ops.state(name, node.dtype, node.shape)

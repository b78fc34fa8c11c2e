"""The passes in their order. Each makes the fused op of its own name, where the target has it; the
last one (``plain.py``) leaves no op that the target hasn't but could do without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from fanlight.ir.graph import Graph, Module, Node
from fanlight.passes import (
    at_load,
    attend,
    attend_add,
    plain,
    project,
    residual,
    rounding,
    split,
    stored,
    swiglu,
)


@dataclass(frozen=True, slots=True)
class Pass:
    """``makes``: the op that the target must have code for."""

    name: str
    makes: str
    run: Callable[[Graph], Graph]


PASSES = (
    Pass("fuse norms into products", "project", project.run),
    Pass("fuse gate and up", "swiglu", swiglu.run),
    Pass("fuse rope, cache and attention", "attend", attend.run),
    Pass("fuse residual sums", "matmul_add", residual.run),
    Pass("fuse attention and its product", "attend_add", attend_add.run),
    Pass("read right sides as they are stored", "dot_stored", stored.run),
)


def run(
    module: Module,
    has: Callable[[str], bool],
    after: Callable[[Module, str], None] = lambda module, name: None,
    runs: Callable[[Node], bool] | None = None,
    parallel: bool = False,
) -> Module:
    """``module`` after all passes whose op the target ``has``. ``after(module, name)`` is called
    behind each. ``runs``: whether the target has code for a node; without it, for all nodes of ops
    that it has. ``parallel``: it has more threads than many values have elements."""
    for step in PASSES:
        if has(step.makes):
            graphs = {name: step.run(graph) for name, graph in module.graphs.items()}
            module = replace(module, graphs=graphs)
            after(module, step.name)
    general: tuple[tuple[str, Callable[[Graph], Graph]], ...] = (
        ("round once", rounding.run),
        ("split", partial(split.run, products=parallel)),
    )
    for label, change in general:
        graphs = {name: change(graph) for name, graph in module.graphs.items()}
        if any(graphs[name] is not graph for name, graph in module.graphs.items()):
            module = replace(module, graphs=graphs)
            after(module, label)
    moved = at_load.run(module)
    if moved is not module:
        module = moved
        after(module, "compute at load")
    kept = runs or (lambda node: has(node.op))
    graphs = {name: plain.run(graph, kept) for name, graph in module.graphs.items()}
    if any(graphs[name] is not graph for name, graph in module.graphs.items()):
        module = replace(module, graphs=graphs)
        after(module, "plain ops")
    return module

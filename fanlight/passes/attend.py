"""Rope, cache writes and attention of one ``project`` of queries, keys and values: one ``attend``.

    a = project(x, g, wq, wk, wv); q, k, v = slices of a, as heads
    q, k = rope([rms_norm](q)), rope([rms_norm](k))
    attention(q, update(cache k, k), update(cache v, v))    →   attend(a, cache k, cache v, …)

The project's products are put in the order q, k, v. Left alone: where any value on the way is used
elsewhere or kept, where ``a`` has other products, or where positions, tables or norms of q and k
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fanlight.ir.graph import Graph, Node
from fanlight.ir.ops import apply
from fanlight.ir.rewrite import Build, New, Users, rewrite
from fanlight.passes.project import weight_of


@dataclass(frozen=True, slots=True)
class _Heads:
    """Heads that are the product of ``whole`` by ``weight``; ``rope`` and ``norm`` are on the
    way."""

    whole: Node
    weight: Node
    rope: Node | None
    norm: Node | None


def run(graph: Graph) -> Graph:
    users = Users.in_graph(graph)
    builds: dict[Node, Build] = {}
    for node in graph.nodes():
        if node.op == "attention":
            builds |= _match(node, users)
    return rewrite(graph, builds)


def _match(node: Node, users: Users) -> dict[Node, Build]:
    query, *caches = node.inputs
    if any(c.op != "update" or c.inputs[0].op != "state" for c in caches):
        return {}
    if any(users.of[c] != [node] or len(users.of[c.inputs[0]]) != 1 for c in caches):
        return {}
    found = [_heads(x, users) for x in (query, caches[0].inputs[1], caches[1].inputs[1])]
    q, k, v = found
    if q is None or k is None or v is None or not q.whole is k.whole is v.whole:
        return {}
    if q.rope is None or k.rope is None or v.rope is not None or v.norm is not None:
        return {}
    start = node.attrs["start"]
    starts = [c.attrs["start"] for c in caches] + [r.attrs["start"] for r in (q.rope, k.rope)]
    if any(s != start for s in starts) or _rope_key(q.rope) != _rope_key(k.rope):
        return {}
    if (q.norm is None) != (k.norm is None):
        return {}
    norms = [n for n in (q.norm, k.norm) if n is not None]
    if len({n.attrs["eps"] for n in norms}) > 1 or any(n.inputs[1].op != "weight" for n in norms):
        return {}
    whole, weights = q.whole, [q.weight, k.weight, v.weight]
    if whole in users.kept or len(users.of[whole]) != 3 or len(whole.inputs) != 5:
        return {}
    if len(set(weights)) != 3:
        return {}
    return _builds(node, caches, whole, weights, q.rope, norms)


def _rope_key(rope: Node) -> tuple[object, ...]:
    """What q's and k's must have in common; leaves are the same where their names are."""
    tables = ((t.op, t.name) if t.op in ("state", "weight") else t for t in rope.inputs[1:])
    return (*tables, rope.attrs["interleaved"])


def _heads(x: Node, users: Users) -> _Heads | None:
    """``x`` read backwards: [rope] ← [rms_norm] ← reshape ← slice."""
    rope = norm = None
    for op in ("rope", "rms_norm", "reshape", "slice"):
        if x.op != op:
            if op in ("reshape", "slice"):
                return None
            continue
        if users.only(x) is None:
            return None
        rope = x if op == "rope" else rope
        norm = x if op == "rms_norm" else norm
        if op == "slice":
            weight = weight_of(x)
            return None if weight is None else _Heads(x.inputs[0], weight, rope, norm)
        x = x.inputs[0]
    return None


def _builds(
    attention: Node,
    caches: list[Node],
    whole: Node,
    weights: list[Node],
    rope: Node,
    norms: list[Node],
) -> dict[Node, Build]:
    @cache
    def fused(new: New) -> Node:
        tables = [new(t) for t in rope.inputs[1:]]
        return apply(
            "attend",
            apply("project", *map(new, whole.inputs[:2]), *weights, eps=whole.attrs["eps"]),
            *(c.inputs[0] for c in caches),
            *tables,
            *(n.inputs[1] for n in norms),
            start=attention.attrs["start"],
            scale=attention.attrs["scale"],
            interleaved=rope.attrs["interleaved"],
            eps=norms[0].attrs["eps"] if norms else 0.0,
        )

    def after(number: int) -> Build:
        return lambda new: apply("after", fused(new), input=number)

    return {caches[0]: after(1), caches[1]: after(2), attention: fused}

"""Of ``ai.onnx.ml``: ensembles of trees, and what stands around them."""

from __future__ import annotations

from typing import NamedTuple

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import product

_ML = "ai.onnx.ml"
_COMPARISONS = ("le", "lt", "ge", "gt", "eq", "ne")  # modes 0 to 5
_MEMBER = 6
_TREES = """aggregate_function leaf_targetids leaf_weights membership_values n_targets
nodes_falseleafs nodes_falsenodeids nodes_featureids nodes_hitrates nodes_missing_value_tracks_true
nodes_modes nodes_splits nodes_trueleafs nodes_truenodeids post_transform tree_roots"""


@op("ArrayFeatureExtractor", domain=_ML)
def _array_feature_extractor(call: Call) -> Node:
    """x [*S, F] at places of its last axis → [*S, places], of a vector [1, places]."""
    x, rank = call[0], len(call[0].shape)
    index = build.reshape(cast(call[1], dtypes.i32), (product(call[1].shape),))
    found = build.take_along(x, -1, build.reshape(index, ((1,) * (rank - 1) + index.shape)))
    return build.unsqueeze(found, [0]) if rank == 1 else found


@op("Binarizer", domain=_ML, attrs="threshold")
def _binarizer(call: Call) -> Node:
    return cast(do("gt", call[0], call.attr_float("threshold", 0.0)), call[0].dtype)


class _Forest(NamedTuple):
    """``yes`` and ``no``: the next place of each inner node; leaves stand behind the inner nodes,
    at places from ``inner`` on, and lead to themselves. ``depth``: steps that reach any leaf."""

    yes: list[int]
    no: list[int]
    roots: tuple[int, ...]
    inner: int
    depth: int


def _forest(call: Call) -> _Forest:
    yes_ids, no_ids = call.attr_ints("nodes_truenodeids"), call.attr_ints("nodes_falsenodeids")
    yes_leafs, no_leafs = call.attr_ints("nodes_trueleafs"), call.attr_ints("nodes_falseleafs")
    roots = call.attr_ints("tree_roots")
    inner, leaves = len(yes_ids), len(call.attr_ints("leaf_targetids"))
    if not all(0 <= root < inner for root in roots):
        call.fail("a root that is no node", got=list(roots))
    own = list(range(inner, inner + leaves))
    ways = []
    for ids, leafs in ((yes_ids, yes_leafs), (no_ids, no_leafs)):
        places = [i + inner if leaf else i for i, leaf in zip(ids, leafs, strict=True)]
        if not all(0 <= place < inner + leaves for place in places):
            call.fail("a branch that leads nowhere")
        ways.append(places + own)
    depth, reached = 0, set(roots)
    while reached:
        reached = {way[i] for i in reached for way in ways} - set(own)
        depth += 1
        if depth > inner:
            call.fail("a tree that comes back to itself")
    return _Forest(ways[0], ways[1], roots, inner, depth)


@op("TreeEnsemble", domain=_ML, since=5, attrs=_TREES)
def _tree_ensemble(call: Call) -> Node:
    """x [N, F] → [N, targets]. All trees are walked at once, each step a look into tables."""
    x = call[0]
    forest = _forest(call)
    leaves = len(forest.yes) - forest.inner
    transform = call.attr_int("post_transform", 0)
    if transform not in (0, 1, 2):
        call.fail("a post_transform", got=transform)
    features = _behind(build.constant(call.attr_ints("nodes_featureids"), dtypes.i32), leaves)
    missing = call.attr_ints("nodes_missing_value_tracks_true", (0,) * forest.inner)
    follows = _behind(build.constant([bool(v) for v in missing], dtypes.boolean), leaves)
    splits = _behind(cast(_table(call, "nodes_splits"), x.dtype), leaves)
    modes = _modes(call)
    numbers = _behind(build.constant(modes, dtypes.i32), leaves)
    sets = _members(call, modes, leaves)
    yes, no = (build.constant(way, dtypes.i32) for way in (forest.yes, forest.no))
    rows = (x.shape[0], len(forest.roots))
    at = build.expand(build.constant(forest.roots, dtypes.i32, (1, len(forest.roots))), rows)
    for _ in range(forest.depth):
        value = build.take(x, build.along(0, 2, x.shape[0]), build.take(features, at))
        mode = build.take(numbers, at)
        true = build.full(False, dtypes.boolean, rows)
        for number in sorted(set(modes)):
            if number == _MEMBER:
                assert sets is not None
                width = build.along(2, 3, sets.shape[1])
                members = build.take(sets, build.unsqueeze(at, [2]), width)
                same = apply("eq", build.unsqueeze(value, [2]), members)
                here = do("gt", build.reduce("sum", cast(same, dtypes.i32), [2], keep=False), 0)
            else:
                here = do(_COMPARISONS[number], value, build.take(splits, at))
            true = build.where(do("eq", mode, number), here, true)
        lost = do("and", apply("isnan", value), build.take(follows, at))
        at = build.where(do("or", true, lost), build.take(yes, at), build.take(no, at))
    result = _joined(call, do("sub", at, forest.inner), x)
    if transform == 1:
        return build.softmax(result, -1)
    return apply("sigmoid", result) if transform == 2 else result


def _table(call: Call, name: str) -> Node:
    """An attribute's tensor."""
    tensor = call.attr_tensor(name)
    if tensor is None:
        call.fail("an attribute is missing", got=name)
    return call.importer.tensor(tensor, f"{call.scope.prefix}{call.node.outputs[0]}.{name}")


def _known(call: Call, name: str) -> list[float]:
    """The elements of an attribute's tensor."""
    values = call.importer.folder.values(_table(call, name))
    if values is None:
        call.fail(f"{name} of so many elements")
    return [float(str(v)) for v in values]


def _behind(table: Node, leaves: int) -> Node:
    """A table of inner nodes, with anything for the leaves."""
    return build.pad(table, [0], [leaves], False if table.dtype.kind == "bool" else 0)


def _modes(call: Call) -> list[int]:
    modes = [int(v) for v in _known(call, "nodes_modes")]
    if any(mode not in range(_MEMBER + 1) for mode in modes):
        call.fail("a mode of nodes", got=sorted(set(modes)))
    return modes


def _members(call: Call, modes: list[int], leaves: int) -> Node | None:
    """[places, members], filled up with NaN, which equals nothing; None where no node asks."""
    if _MEMBER not in modes:
        return None
    sets: list[list[float]] = [[]]
    for value in _known(call, "membership_values"):
        if value != value:
            sets.append([])
        else:
            sets[-1].append(value)
    if len(sets) - 1 != modes.count(_MEMBER):
        call.fail("as many sets as nodes that ask for members", got=len(sets) - 1)
    width = max(1, *(len(s) for s in sets))
    found = iter(sets)
    nan = float("nan")
    table: list[float] = []
    for number in (*modes, *(0,) * leaves):
        held = next(found) if number == _MEMBER else []
        table += held + [nan] * (width - len(held))
    return build.constant(table, call[0].dtype, (len(modes) + leaves, width))


def _joined(call: Call, leaf: Node, x: Node) -> Node:
    """Leaves [N, trees] → what they add up to, [N, targets]."""
    kind = call.attr_int("aggregate_function", 1)
    if kind not in (0, 1, 2, 3):
        call.fail("an aggregate_function", got=kind)
    weights = build.take(cast(_table(call, "leaf_weights"), x.dtype), leaf)
    targets = build.take(build.constant(call.attr_ints("leaf_targetids"), dtypes.i32), leaf)
    count = call.attr_int("n_targets", 1)
    hit = do("eq", build.unsqueeze(targets, [2]), build.along(2, 3, count))
    other = (0.0, 0.0, float("inf"), float("-inf"))[kind]
    chosen = build.where(hit, build.unsqueeze(weights, [2]), other)
    total = build.reduce(("sum", "sum", "min", "max")[kind], chosen, [1], keep=False)
    return do("div", total, float(leaf.shape[1])) if kind == 0 else total  # type: ignore[arg-type]

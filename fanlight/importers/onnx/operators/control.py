"""If, Loop and Scan. Short loops of a known length are unrolled, and those that change shapes.
Optional values, of which it is known while importing whether there is one."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.errors import UnsupportedError
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.loops import UNROLLED, repeat
from fanlight.importers.onnx.registry import Result, op
from fanlight.ir import build
from fanlight.ir.build import axis_of
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size

MAX_TURNS = 4096  # that are unrolled
_FOR_EVER = 1 << 31  # as exporters write loops that only their condition ends


def _body(call: Call, name: str, given: list[Node], turn: str) -> list[Node]:
    graph = call.attr_graph(name)
    values = {info.name: node for info, node in zip(graph.inputs, given, strict=True)}
    label = f"{call.node.name or call.node.outputs[0]}{turn}"
    return call.importer.subgraph(graph, call.scope, values, label)


@op("If", attrs="then_branch else_branch")
def _if(call: Call) -> Result:
    """A condition of the run computes both branches and chooses, where they have equal shapes."""
    known = call.known(0)
    if known is not None:
        return tuple(_body(call, "then_branch" if known[0] else "else_branch", [], ""))
    one, other = (_body(call, name, [], "") for name in ("then_branch", "else_branch"))
    test = build.reshape(call[0], ())
    out = []
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or a.dtype is not b.dtype:
            call.importer.ask_for(call[0])
            call.fail("branches with results of different shapes, and a condition of the run")
        out.append(apply("where", test, a, b))
    return tuple(out)


@op("Loop", attrs="body")
def _loop(call: Call) -> Result:
    go = call.get(1)
    if go is None:
        go = build.scalar(True, dtypes.boolean)
    carried = [x for x in call.inputs[2:] if x is not None]
    if call.get(0) is None:
        return _unrolled(call, MAX_TURNS, go, carried)
    count = call.read_sizes(0)[0]
    if isinstance(count, int) and not UNROLLED < count < _FOR_EVER:
        return _unrolled(call, min(count, MAX_TURNS + 1), go, carried)
    importer = call.importer
    missing, places = importer.missing.copy(), importer.places.copy()
    try:
        return _repeated(call, count, go, carried)
    except UnsupportedError:
        if not isinstance(count, int):
            importer.ask_for(call[0])
            raise
        importer.missing, importer.places = missing, places
        return _unrolled(call, min(count, MAX_TURNS + 1), go, carried)


def _repeated(call: Call, count: Size, go: Node, carried: list[Node]) -> Result:
    """After a condition that ends it, the turns that are left change nothing."""
    start = [build.reshape(go, ()), build.scalar(0, dtypes.i32), *carried]

    def turn(number: Node, held: list[Node]) -> tuple[list[Node], list[Node]]:
        live, turns, *values = held
        given = [build.cast(number, dtypes.i64), live, *values]
        further, *made = _body(call, "body", given, ".turn")
        new, collected = made[: len(values)], made[len(values) :]
        for a, b in zip(new, values, strict=True):
            if a.shape != b.shape:
                raise UnsupportedError("a loop that changes the shape of what it carries")
        kept = [build.where(live, a, b) for a, b in zip(new, values, strict=True)]
        more = apply("and", live, build.reshape(further, ()))
        return [more, do("add", turns, build.cast(live, dtypes.i32)), *kept], collected

    _, turns, *results = repeat(call, count, start, turn)
    scans = results[len(carried) :]
    if scans:
        n = call.importer.read_size(turns, call.symbol())
        scans = [build.part(x, 0, 0, n) for x in scans]
    return (*results[: len(carried)], *scans)


def _unrolled(call: Call, count: int, go: Node, carried: list[Node]) -> Result:
    scans: list[list[Node]] = []
    turn = 0
    while turn < count:
        known = call.importer.folder.values(go)
        if known is None:
            call.importer.ask_for(go)
            call.fail("a loop whose end depends on the run")
        if not known[0]:
            break
        if turn >= MAX_TURNS:
            call.fail("a loop of more turns", got=count, hint=f"At most {MAX_TURNS}.")
        number = build.scalar(turn, dtypes.i64)
        go, *rest = _body(call, "body", [number, build.reshape(go, ()), *carried], f".{turn}")
        carried, new = rest[: len(carried)], rest[len(carried) :]
        scans = scans or [[] for _ in new]
        for held, x in zip(scans, new, strict=True):
            held.append(build.unsqueeze(x, [0]))
        turn += 1
    if not turn and call.outputs > len(carried):
        call.fail("a loop without turns that collects results")
    return (*carried, *(build.concat(held, 0) for held in scans))


_SCAN = """body num_scan_inputs scan_input_axes scan_input_directions scan_output_axes
scan_output_directions"""


@op("Scan", 9, attrs=_SCAN)
def _scan(call: Call) -> Result:
    return _scanned(call, [x for x in call.inputs if x is not None])


@op("Scan", 8, 8, attrs="body num_scan_inputs directions")
def _scan_batched(call: Call) -> Result:
    """With an axis in front for batches, each on its own."""
    if call.get(0) is not None:
        call.fail("lengths of sequences")
    inputs = [x for x in call.inputs if x is not None]
    batch = inputs[0].shape[0]
    if not isinstance(batch, int):
        call.fail("batches of a free size")
    made = [
        _scanned(call, [build.squeeze(build.part(x, 0, i, 1), [0]) for x in inputs], f".{i}")
        for i in range(batch)
    ]
    return tuple(
        build.concat([build.unsqueeze(row[i], [0]) for row in made], 0) for i in range(len(made[0]))
    )


def _scanned(call: Call, inputs: list[Node], label: str = "") -> tuple[Node, ...]:
    count = call.attr_int("num_scan_inputs")
    states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = call.attr_ints("scan_input_axes", (0,) * count)
    backward = call.attr_ints("scan_input_directions", call.attr_ints("directions", (0,) * count))
    places = [axis_of(a, len(x.shape)) for a, x in zip(axes, scanned, strict=True)]
    turns = scanned[0].shape[places[0]]
    out_axes = call.attr_ints("scan_output_axes", (0,) * (call.outputs - len(states)))
    out_backward = call.attr_ints("scan_output_directions", (0,) * len(out_axes))
    if not isinstance(turns, int) or turns > UNROLLED:
        last = do("sub", build.size(turns, dtypes.i32), 1)

        def step(number: Node, held: list[Node]) -> tuple[list[Node], list[Node]]:
            given = list(held)
            for x, axis, back in zip(scanned, places, backward, strict=True):
                at = do("sub", last, number) if back else number
                at = build.reshape(at, (1,) * len(x.shape))
                given.append(build.squeeze(build.take_along(x, axis, at), [axis]))
            made = _body(call, "body", given, label)
            return made[: len(held)], made[len(held) :]

        found = repeat(call, turns, states, step)
        rows = []
        for x, axis, back in zip(found[len(states) :], out_axes, out_backward, strict=True):
            if back:
                x = build.take_along(x, 0, do("sub", last, build.along(0, len(x.shape), turns)))
            order = list(range(1, len(x.shape)))
            order.insert(axis_of(axis, len(x.shape)), 0)
            rows.append(build.permute(x, order))
        return (*found[: len(states)], *rows)
    collected: list[list[Node]] = []
    for turn in range(turns):
        given = list(states)
        for x, axis, back in zip(scanned, places, backward, strict=True):
            at = turns - 1 - turn if back else turn
            given.append(build.squeeze(build.part(x, axis, at, 1), [axis]))
        made = _body(call, "body", given, f"{label}.{turn}")
        states, new = made[: len(states)], made[len(states) :]
        collected = collected or [[] for _ in new]
        for held, value in zip(collected, new, strict=True):
            held.append(value)
    results = []
    for held, axis, back in zip(collected, out_axes, out_backward, strict=True):
        rows = held[::-1] if back else held
        at = axis_of(axis, len(rows[0].shape) + 1)
        results.append(build.concat([build.unsqueeze(x, [at]) for x in rows], at))
    return (*states, *results)


@op("Optional", 15, attrs="type")
def _optional(call: Call) -> Node:
    """The tensor itself."""
    if call.get(0) is None:
        call.fail("an optional without an element")
    return call[0]


@op("OptionalHasElement", 15)
def _has_element(call: Call) -> Node:
    return build.scalar(call.get(0) is not None, dtypes.boolean)


@op("OptionalGetElement", 15)
def _get_element(call: Call) -> Node:
    return call[0]

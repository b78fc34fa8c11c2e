"""If, Loop and Scan, where what they depend on is known while importing; loops are unrolled."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import Result, op
from fanlight.ir import build
from fanlight.ir.build import axis_of
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply

MAX_TURNS = 4096


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
    count = MAX_TURNS
    if call.get(0) is not None:
        first = call.numbers(0, "the number of turns")[0]
        if not isinstance(first, int):
            call.fail("a number of turns that depends on free sizes", got=str(first))
        count = min(first, count + 1)
    go = call.get(1)
    if go is None:
        go = build.scalar(True, dtypes.boolean)
    carried = [x for x in call.inputs[2:] if x is not None]
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
    if not isinstance(turns, int) or turns > MAX_TURNS:
        call.fail("a scan over a free size", got=str(turns))
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
    count_out = len(collected)
    out_axes = call.attr_ints("scan_output_axes", (0,) * count_out)
    out_backward = call.attr_ints("scan_output_directions", (0,) * count_out)
    results = []
    for held, axis, back in zip(collected, out_axes, out_backward, strict=True):
        rows = held[::-1] if back else held
        at = axis_of(axis, len(rows[0].shape) + 1)
        results.append(build.concat([build.unsqueeze(x, [at]) for x in rows], at))
    return (*states, *results)

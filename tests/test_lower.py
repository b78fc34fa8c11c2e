"""Lowering and memory planning, run by a numpy target: the same numbers as the interpreter's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.archs import llama
from fanlight.errors import FanlightError, UnsupportedError
from fanlight.ir import ops
from fanlight.ir.graph import Graph, Module, Node, StateSpec, WeightSource
from fanlight.ir.interpreter import Interpreter
from fanlight.ir.ops import apply
from fanlight.ir.text import print_graph
from fanlight.ir.verify import verify_graph
from fanlight.kernels import loops
from fanlight.kernels.lower import lower
from fanlight.kernels.memory import assign
from fanlight.kernels.target import LOOP, Context, Operand, Part
from fanlight.shapes import Dim, evaluate, maximum, product
from tests.graphs import POS, RandomGraph, T, random_graph, random_values
from tests.loop_reference import NUMPY, NumpyLaunch, NumpyTarget, run_launches

Array = NDArray[Any]
SEEDS = 400


def _no_scratch(_: object) -> str:
    raise AssertionError("no rule of the numpy target needs scratch memory")


class Machine:
    """Runs graphs through ``lower`` and keeps states between runs."""

    def __init__(self, made: RandomGraph, weights: Mapping[str, Array]) -> None:
        self.made = made
        self.states = {
            name: np.zeros(_bytes(dtype, shape), np.uint8)
            for name, (dtype, shape) in made.states.items()
        }
        self.fixed = {name: _buffer(value) for name, value in weights.items()}

    def run(self, feeds: Mapping[str, Array], dims: Mapping[str, int]) -> dict[str, Array]:
        """The outputs; the graph's updates are applied to the states."""
        graph = self.made.graph
        buffers = {**self.fixed, **self.states}
        for name, (dtype, shape) in self.made.inputs.items():
            buffers[name] = np.full(_bytes(dtype, shape), 0xFF, np.uint8)
            buffers[name][: feeds[name].nbytes] = _buffer(feeds[name])[: feeds[name].nbytes]
        for name, node in graph.outputs.items():
            buffers[name] = np.full(_bytes(node.dtype, node.shape), 0xFF, np.uint8)

        def constant(node: Node) -> str:
            name = f"constant{len(buffers)}"
            data = np.frombuffer(node.attrs["data"], np.uint8)
            buffers[name] = np.concatenate([data, np.zeros(-len(data) % 4, np.uint8)])
            return name

        operands = {
            name: Operand(dtype, shape, (Part(0, 1, (name,)),))
            for name, (dtype, shape) in self.made.weights.items()
        }
        context = Context(frozenset(), _no_scratch)
        out = lower(graph, NumpyTarget(), operands, constant, context, "t")
        run_launches(out.launches, out.temporaries, buffers, dims)
        return {
            name: _values(buffers[name], node.dtype, node.shape, dims)
            for name, node in graph.outputs.items()
        }


def _bytes(dtype: dtypes.DType, shape: tuple[Any, ...]) -> int:
    return -(-maximum(product(shape)) * dtype.bytes // 4) * 4


def _buffer(value: Array) -> NDArray[np.uint8]:
    data = np.frombuffer(value.tobytes(), np.uint8)
    return np.concatenate([data, np.zeros(-len(data) % 4, np.uint8)])


def _values(
    buffer: NDArray[np.uint8], dtype: dtypes.DType, shape: tuple[Any, ...], dims: Mapping[str, int]
) -> Array:
    sizes = [evaluate(s, dims) for s in shape]
    values: Array = buffer.view(NUMPY[dtype.name])
    return values[: int(np.prod(sizes))].reshape(sizes)


def check(made: RandomGraph, runs: tuple[Mapping[str, int], ...], seed: int = 0) -> None:
    """Lowered and interpreted, ``made`` gives the same outputs and states, run after run."""
    verify_graph(made.graph)
    weights = random_values(made.weights, seed, {})
    machine = Machine(made, weights)
    zeros = {
        n: np.zeros([evaluate(s, {}) for s in shape], NUMPY[d.name])
        for n, (d, shape) in made.states.items()
    }
    reference = Interpreter(weights, zeros)
    for number, dims in enumerate(runs):
        feeds = random_values(made.inputs, seed + number + 1, dims)
        with np.errstate(all="ignore"):
            wanted = reference.run(made.graph, feeds, dims)
        got = machine.run(feeds, dims)
        for name in wanted:
            _same(got[name], wanted[name], made.graph, f"run {number}, output {name}")
        for name, (dtype, shape) in made.states.items():
            state = _values(machine.states[name], dtype, shape, dims)
            _same(state, reference.states[name], made.graph, f"run {number}, state {name}")


def _same(got: Array, wanted: Array, graph: Graph, where: str) -> None:
    if got.dtype.kind != "f":
        ok = np.array_equal(got, wanted)
    else:
        scale = 2e-3 if got.dtype.itemsize == 2 else 1e-5
        ok = np.allclose(got, wanted, rtol=scale, atol=scale, equal_nan=True)
    if not ok:
        raise AssertionError(f"{where}\n{print_graph(graph)}\ngot {got}\nwanted {wanted}")


RUNS = ({"T": 3, "pos": 0}, {"T": 1, "pos": 3}, {"T": 6, "pos": 5})


@pytest.mark.parametrize("block", range(8))
def test_random_graphs(block: int) -> None:
    """Fusion, broadcasting, movement of symbolic sizes, states, slots: any graph."""
    for seed in range(block * SEEDS // 8, (block + 1) * SEEDS // 8):
        try:
            check(random_graph(seed), RUNS, seed)
        except Exception as error:
            raise AssertionError(f"random_graph({seed})") from error


# --- states: hazards


def _states(*names: str) -> tuple[RandomGraph, list[Node]]:
    made = RandomGraph(Graph("states"))
    made.states = dict.fromkeys(names, (dtypes.f32, (4,)))
    made.inputs = {"x": (dtypes.f32, (4,))}
    return made, [ops.state(name, dtypes.f32, (4,)) for name in names]


def _x() -> Node:
    return ops.input_("x", dtypes.f32, (4,))


def test_states_swap_and_show_their_old_values() -> None:
    made, (a, b) = _states("a", "b")
    made.graph.outputs = {"old_a": a, "new_a": apply("add", b, _x()), "old_b": b}
    made.graph.updates = {"a": made.graph.outputs["new_a"], "b": a}
    check(made, RUNS)
    made.graph.updates = {"a": b, "b": a}
    check(made, RUNS)
    made.graph.updates = {"a": a, "b": _x()}
    check(made, RUNS)


def test_a_view_of_a_state_is_its_old_value() -> None:
    """The reshape is a view of the state's buffer, read after the state's new value is known."""
    made, (a,) = _states("a")
    view = apply("reshape", a, shape=(2, 2))
    new = apply("add", a, _x())
    product_ = apply("matmul", view, view)
    made.graph.updates = {"a": new}
    made.graph.outputs = {"y": apply("mul", apply("tanh", view), view), "z": product_}
    check(made, RUNS)
    made.graph.outputs = {"y": apply("mul", apply("reshape", new, shape=(2, 2)), view)}
    check(made, RUNS)


def test_a_state_moves_on_from_itself() -> None:
    """Every element depends on others of the old value: in place would be wrong."""
    made, (a,) = _states("a")
    first = apply("slice", a, starts=(1,), sizes=(3,))
    made.graph.updates = {
        "a": apply("concat", first, apply("slice", _x(), starts=(0,), sizes=(1,)), axis=0)
    }
    check(made, (*RUNS, *RUNS))


def test_narrow_rows_that_are_not_whole_words_are_refused() -> None:
    made = RandomGraph(Graph("narrow"))
    made.states = {"k": (dtypes.f16, (8, 3))}
    made.inputs = {"x": (dtypes.f32, (T, 3))}
    rows = ops.input_("x", dtypes.f32, (T, 3))
    made.graph.updates = {"k": apply("update", ops.state("k", dtypes.f16, (8, 3)), rows, start=POS)}
    with pytest.raises(UnsupportedError, match="multiples of 4"):
        check(made, RUNS)


# --- fusion


def _launch_names(graph: Graph) -> list[str]:
    out = lower(graph, NumpyTarget(), {}, lambda n: "c", Context(frozenset(), _no_scratch), "t")
    return [cast(NumpyLaunch, x).name.split("_")[0] for x in out.launches]


def test_a_chain_is_one_kernel() -> None:
    y = apply("silu", apply("add", _x(), apply("tanh", _x())))
    assert _launch_names(Graph("g", {"y": apply("mul", y, _x())})) == ["mul"]


def test_what_has_no_elements_is_no_kernel() -> None:
    y = apply("tanh", ops.input_("x", dtypes.f32, (3, 0, 4)))
    assert _launch_names(Graph("g", {"y": y})) == []


def test_a_value_of_two_users_is_computed_once() -> None:
    y = apply("tanh", _x())
    assert _launch_names(Graph("g", {"y": apply("mul", y, apply("neg", y))})) == ["tanh", "mul"]


def test_sums_of_many_values_are_split() -> None:
    """No kernel may bind more buffers than a stage has."""
    for shape_of_sum in ("chain", "tree", "both"):
        made = RandomGraph(Graph("wide"))
        made.inputs = {f"x{i}": (dtypes.f32, (4,)) for i in range(40)}
        values = [ops.input_(name, *spec) for name, spec in made.inputs.items()]
        if shape_of_sum == "both":
            values = [
                apply("mul", x, apply("tanh", y))
                for x, y in zip(values, values[::-1], strict=False)
            ]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            values = (
                [apply("add", values[0], values[1]), *values[2:]]
                if shape_of_sum == "chain"
                else [apply("add", a, b) for a, b in pairs] + values[len(values) // 2 * 2 :]
            )
        made.graph.outputs = {"sum": values[0]}
        check(made, RUNS)


def test_unsupported_ops_are_named_together() -> None:
    x = ops.weight("x", dtypes.DTYPES["q4_0"], (4, 32))
    y = ops.weight("y", dtypes.DTYPES["q8_0"], (4, 32))
    starts, sizes = (0, 0), (2, 32)
    slices = [apply("slice", w, starts=starts, sizes=sizes) for w in (x, y)]
    graph = Graph("g", {"a": slices[0], "b": apply("reshape", slices[1], shape=(64,))})
    with pytest.raises(UnsupportedError) as caught:
        _launch_names(graph)
    assert "slice of q4_0" in str(caught.value) and "reshape of q8_0" in str(caught.value)


def test_folded_integers_truncate_as_the_ops_do() -> None:
    for a in (-7, -1, 0, 1, 7):
        for b in (-2, 2, 3):
            for function in ("div", "mod"):
                folded = loops.apply(function, loops.integer(a), loops.integer(b))
                wanted = int(a / b) if function == "div" else a - int(a / b) * b
                assert folded == loops.integer(wanted), (function, a, b)
    big = loops.apply("mul", loops.integer(1 << 20), loops.integer(1 << 20))
    assert not isinstance(big, loops.Const)


# --- a whole model's graphs


@pytest.mark.parametrize("arch", sorted(llama.VARIANTS))
@pytest.mark.parametrize("kv", ["f32", "f16"])
def test_graphs_of_a_language_model(arch: str, kv: str) -> None:
    variant = llama.VARIANTS[arch]
    config = llama.Config(variant, 2, 32, 4, 2, 8, 50, 128, 1e-5, 10000.0, 8, 1.0)
    shapes = {"token_embd": (50, 32), "output_norm": (32,)}
    for i in range(2):
        b = f"blk.{i}."
        shapes |= {b + "attn_norm": (32,), b + "ffn_norm": (32,), b + "attn_q": (32, 32)}
        shapes |= {b + "attn_k": (16, 32), b + "attn_v": (16, 32), b + "attn_output": (32, 32)}
        shapes |= {b + "ffn_gate": (64, 32), b + "ffn_up": (64, 32), b + "ffn_down": (32, 64)}
        shapes |= {b + "attn_q_norm": (8,), b + "attn_k_norm": (8,)}
    weights = {f"{n}.weight": WeightSource(dtypes.f32, s) for n, s in shapes.items()}
    options = llama.Options(128, 8, 4, scores=True, kv=dtypes.DTYPES[kv])
    module = llama.build(config, weights, {}, options)
    for graph in module.graphs.values():
        check(
            _of_module(module, graph), ({"T": 5, "pos": 0}, {"T": 2, "pos": 5}, {"T": 8, "pos": 60})
        )


def _of_module(module: Module, graph: Graph) -> RandomGraph:
    made = RandomGraph(graph)
    for node in graph.nodes():
        if node.op in ("input", "weight", "state"):
            table = {"input": made.inputs, "weight": made.weights, "state": made.states}[node.op]
            table[node.name] = (node.dtype, node.shape)
    for name in graph.updates:
        spec: StateSpec = module.states[name]
        made.states[name] = (spec.dtype, spec.shape)
    return made


# --- memory planning


def test_slots_are_never_shared_by_values_that_live_together() -> None:
    generator = random.Random(7)
    dim = Dim("T", "host", 100)
    for _ in range(300):
        names = [f"%{i}" for i in range(generator.randint(1, 30))]
        sizes = {
            n: generator.choice([generator.randint(1, 4000), dim * generator.randint(1, 40)])
            for n in names
        }
        touched = [
            [*generator.sample(names, min(len(names), generator.randint(1, 4))), "weight"]
            for _ in range(generator.randint(1, 25))
        ]
        place, slots = assign(touched, sizes)
        spans = {
            n: [i for i, t in enumerate(touched) if n in t]
            for n in names
            if any(n in t for t in touched)
        }
        assert set(place) == set(spans)
        for a, spans_a in spans.items():
            for value in ({"T": 1}, {"T": 37}, {}):
                assert evaluate(slots[place[a]], value) >= evaluate(sizes[a], value)
            for b, spans_b in spans.items():
                apart = spans_a[-1] < spans_b[0] or spans_b[-1] < spans_a[0]
                assert a == b or apart or place[a] != place[b]


def test_slots_are_reused() -> None:
    chain = [[f"%{i}", f"%{i + 1}"] for i in range(20)]
    _, slots = assign(chain, {f"%{i}": 100 for i in range(21)})
    assert slots == [100, 100]


def test_the_numpy_target_is_total_and_catches_a_wrong_kernel() -> None:
    target = NumpyTarget()
    assert set(target.rules) == set(ops.OPS) and LOOP in target.rules.values()
    made, _ = _states("a")
    made.graph.outputs = {"y": apply("tanh", _x())}
    machine = Machine(made, {})
    feeds = random_values(made.inputs, 1, {})
    got = machine.run(feeds, {})["y"]
    with pytest.raises(AssertionError):
        _same(got * np.float32(1 + 1e-4), np.tanh(feeds["x"]), made.graph, "planted")
    with pytest.raises(FanlightError):
        apply("tanh", ops.input_("i", dtypes.i32, (4,)))

"""The IR: text, verifier, the rules of ops against the interpreter, its meanings against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.errors import GraphError
from fanlight.ir import ops
from fanlight.ir.graph import LEAVES, DeviceDim, Graph, Module, Node, StateSpec, WeightSource
from fanlight.ir.interpreter import MEANINGS, Interpreter
from fanlight.ir.ops import OPS, apply
from fanlight.ir.text import parse_graph, print_graph
from fanlight.ir.verify import verify_graph, verify_module
from fanlight.shapes import Dim, evaluate
from tests.graphs import POS, RandomGraph, T, random_graph, random_values

Array = NDArray[Any]
SEEDS = range(300)
FUSED = {op.name for op in OPS.values() if op.family == "fused"} | {"after"}  # see tests/passes


def _vector(name: str = "x", dtype: DType = dtypes.f32) -> Node:
    return ops.input_(name, dtype, (4,))


# --- text


def test_printing_and_parsing_are_inverse() -> None:
    for seed in SEEDS:
        text = print_graph(random_graph(seed).graph)
        again = parse_graph(text)
        verify_graph(again)
        assert print_graph(again) == text, f"random_graph({seed})"


def test_a_parsed_graph_means_the_same() -> None:
    for seed in range(40):
        made = random_graph(seed)
        again = parse_graph(print_graph(made.graph))
        for name, value in _run(made, made.graph, seed).items():
            np.testing.assert_array_equal(_run(made, again, seed)[name], value, f"seed {seed}")


def test_text_as_tests_write_it() -> None:
    graph = parse_graph(
        """
        # doubles, then keeps what is positive
        dim T host 8
        graph relu2
          %0 = input {"name": "x", "dtype": "f32", "shape": ["T", 2]} : f32[T, 2]
          %1 = add(%0, %0) : f32[T, 2]
          %2 = constant {"dtype": "f32", "shape": [], "data": "00000000"} : f32[]
          %3 = max(%1, %2) : f32[T, 2]
          return y = %3
        """
    )
    x = np.array([[1, -1]], "f4")
    y = Interpreter({}, {}).run(graph, {"x": x}, {"T": 1})["y"]
    np.testing.assert_array_equal(y, [[2, 0]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%1 = frobnicate(%0) : f32[4]", "line 3: unknown op .*frobnicate"),
        ("%1 = tanh(%7) : f32[4]", "line 3: malformed line"),
        ("%1 = tanh(%0) : f32[5]", "line 3: wrong type .*got f32\\[5\\], wanted f32\\[4\\]"),
        ("%1 = tanh(%0, %0) : f32[4]", "line 3: tanh: wrong number of inputs"),
        ('%1 = iota {"size": "U"} : i32[U]', "line 3: .*not a size expression"),
        ('%1 = iota {"size": 4, "step": 2} : i32[4]', "line 3: wrong attributes"),
        ("gibberish", "line 3: not a line of a graph"),
    ],
)
def test_errors_of_the_parser_name_the_line(line: str, message: str) -> None:
    leaf = '%0 = input {"name": "x", "dtype": "f32", "shape": [4]} : f32[4]'
    with pytest.raises(GraphError, match=message):
        parse_graph(f"graph g\n{leaf}\n{line}\n")


# --- verifier


def _node(
    op: str, *inputs: Node, dtype: DType = dtypes.f32, shape: Any = (4,), **attrs: Any
) -> Node:
    """A node that no rule has looked at."""
    return Node(op, inputs, attrs, dtype, shape)


@pytest.mark.parametrize(
    ("node", "rule"),
    [
        (_node("tanh", _vector(), shape=(5,)), r"%1 \(tanh\): type doesn't follow"),
        (_node("tanh", _vector(dtype=dtypes.i32), dtype=dtypes.i32), r"%1 \(tanh\).*floats only"),
        (_node("add", _vector(), _vector(dtype=dtypes.i32)), r"%2 \(add\).*different dtypes"),
        (_node("add", _vector(), ops.input_("y", dtypes.f32, (3,))), "shapes don't broadcast"),
        (_node("frobnicate", _vector()), r"%1 \(frobnicate\): unknown op"),
        (_node("tanh", _vector(), fast=True), "wrong attributes"),
        (_node("reshape", _vector(), shape=(4,)), "wrong attributes"),
        (_node("permute", _vector(), axes=(1,)), "axes are no permutation"),
        (_node("slice", _vector(), starts=(2,), sizes=(3,), shape=(3,)), "slice outside"),
        (_node("reduce_sum", _vector(), axes=(3,), keep=True), "bad axes"),
        (_node("matmul", _vector(), ops.weight("w", dtypes.f32, (2, 5)), shape=(2,)), "wants f32"),
        (_node("concat", _vector(), _vector(dtype=dtypes.i32), axis=0), "inputs differ"),
        (_node("gather", _vector(), _vector()), "i32 ids"),
        (_node("iota", dtype=dtypes.i32, size=4.0), "attribute size is not of kind size"),
    ],
)
def test_errors_of_the_verifier_name_pass_node_and_rule(node: Node, rule: str) -> None:
    # (?s): reprs of shapes may stand between
    with pytest.raises(
        GraphError, match=f"(?s)after folding, graph g, node .*{rule}|{rule}"
    ) as got:
        verify_graph(Graph("g", {"y": node}), "folding")
    assert "after folding, graph g, node %" in str(got.value)


def test_the_verifier_holds_updates() -> None:
    cache = ops.state("k", dtypes.f32, (8, 4))
    rows = ops.input_("x", dtypes.f32, (2, 4))
    update = apply("update", cache, rows, start=0)
    verify_graph(Graph("g", updates={"k": update}))
    with pytest.raises(GraphError, match="after build, graph g, state v: an update op must start"):
        verify_graph(Graph("g", updates={"v": update}))
    with pytest.raises(GraphError, match="must be a state's update"):
        verify_graph(Graph("g", {"y": apply("neg", update)}))


def test_the_verifier_holds_a_module() -> None:
    def module(**parts: Any) -> Module:
        x = apply("neg", ops.weight("w", dtypes.f32, (4,)))
        return Module({"g": Graph("g", updates={"s": x})}, **parts)

    weights = {"w": WeightSource(dtypes.f32, (4,), data=bytes(16))}
    states = {"s": StateSpec(dtypes.f32, (4,))}
    verify_module(module(weights=weights, states=states))
    with pytest.raises(GraphError, match=r"weight is not the module's \(got w\)"):
        verify_module(module(states=states))
    with pytest.raises(GraphError, match=r"update doesn't fit its state \(got s\)"):
        verify_module(module(weights=weights, states={"s": StateSpec(dtypes.f32, (5,))}))
    with pytest.raises(GraphError, match="update doesn't fit"):
        verify_module(module(weights=weights))


def test_a_graph_that_moves_a_device_dim_cannot_use_it() -> None:
    control = ops.state("control", dtypes.i32, (4,))
    table = ops.weight("w", dtypes.i32, (16,))
    part = apply("slice", table, starts=(POS,), sizes=(4,))
    module = Module({"g": Graph("g", updates={"control": apply("add", control, part)})})
    module.weights["w"] = WeightSource(dtypes.i32, (16,), data=bytes(64))
    module.states["control"] = StateSpec(dtypes.i32, (4,))
    verify_module(module)
    module.device_dims.append(DeviceDim(POS, "control", 0))
    with pytest.raises(GraphError, match="can't use the dim"):
        verify_module(module)


# --- the op list


def test_every_op_has_a_meaning() -> None:
    assert set(MEANINGS) | FUSED == set(OPS) - set(LEAVES)


def _run(made: RandomGraph, graph: Graph, seed: int) -> dict[str, Array]:
    dims = {"T": 1 + seed % T.max, "pos": seed % (POS.max + 1)}
    states = random_values(made.states, seed, dims)
    interpreter = Interpreter(random_values(made.weights, seed, dims), states)
    with np.errstate(all="ignore"):
        return interpreter.run(graph, random_values(made.inputs, seed, dims), dims)


def test_types_agree_with_what_the_interpreter_gives() -> None:
    """Every node of every random graph: its shape at the run's dims, its dtype's kind."""
    seen: set[str] = set()
    for seed in SEEDS:
        made = random_graph(seed)
        nodes = made.graph.nodes()
        everything = Graph("all", {str(i): node for i, node in enumerate(nodes)})
        dims = {"T": 1 + seed % T.max, "pos": seed % (POS.max + 1)}
        values = _run(made, everything, seed)
        for i, node in enumerate(nodes):
            value, where = values[str(i)], f"seed {seed}, node %{i} ({node.op})"
            assert value.shape == tuple(evaluate(s, dims) for s in node.shape), where
            kind = {"float": "f", "int": "i", "uint": "u", "bool": "b"}[node.dtype.kind]
            assert value.dtype.kind == kind, where
            seen.add(node.op)
    missing = set(OPS) - seen - FUSED - {"exp", "log", "sqrt", "rsqrt", "recip", "pow"}
    assert not missing, f"no random graph has {missing}"


# --- meanings against torch


def _evaluate(node: Node, /, feeds: dict[str, Array], **dims: int) -> Array:
    states = {k: v for k, v in feeds.items() if k in ("k", "v")}
    interpreter = Interpreter({}, states)
    graph = Graph("g", {"y": node})
    return interpreter.run(graph, feeds, dims)["y"]


def _normal(*shape: int) -> Array:
    seed = sum(n * 31**i for i, n in enumerate(shape))
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


_TORCH: dict[str, Any] = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "recip": torch.reciprocal, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "silu": torch.nn.functional.silu, "erf": torch.erf,
    "sin": torch.sin, "cos": torch.cos, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "add": torch.add, "sub": torch.sub, "mul": torch.mul,
    "div": torch.div, "mod": torch.fmod, "max": torch.maximum, "min": torch.minimum,
    "pow": torch.pow, "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le,
    "gt": torch.gt, "ge": torch.ge,
}  # fmt: skip


def test_the_elementwise_table_is_whole() -> None:
    assert set(_TORCH) == set(ops.ELEMENTWISE) - {"where"} - ops.LOGICAL


@pytest.mark.parametrize("op", sorted(_TORCH))
def test_elementwise(op: str) -> None:
    count = ops.ELEMENTWISE[op]
    arrays = [_normal(5, 7), _normal(1, 7)][:count]
    if op in ("log", "sqrt", "rsqrt", "pow"):
        arrays[0] = np.abs(arrays[0]) + 0.1
    names = ("x", "y")[:count]
    nodes = [ops.input_(n, dtypes.f32, a.shape) for n, a in zip(names, arrays, strict=True)]
    got = _evaluate(apply(op, *nodes), dict(zip(names, arrays, strict=True)))
    wanted = _TORCH[op](*(torch.from_numpy(a) for a in arrays)).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_integers_truncate() -> None:
    x, y = np.array([-7, 7, -7, 7], "i4"), np.array([2, -2, -2, 2], "i4")
    nodes = (_vector("x", dtypes.i32), _vector("y", dtypes.i32))
    assert _evaluate(apply("div", *nodes), {"x": x, "y": y}).tolist() == [-3, -3, 3, 3]
    assert _evaluate(apply("mod", *nodes), {"x": x, "y": y}).tolist() == [-1, 1, -1, 1]
    assert _evaluate(apply("cast", _vector(), to=dtypes.i32), {"x": x / 2}).tolist() == [
        -3,
        3,
        -3,
        3,
    ]


def test_narrow_floats_are_rounded() -> None:
    x = np.array([1 + 2**-9, 1 + 2**-12, 3.14159, 1e-3], "f4")
    half = _evaluate(apply("cast", _vector(), to=dtypes.f16), {"x": x})
    np.testing.assert_array_equal(half, torch.from_numpy(x).half().float().numpy())
    brain = _evaluate(apply("cast", _vector(), to=dtypes.bf16), {"x": x})
    np.testing.assert_array_equal(brain, torch.from_numpy(x).bfloat16().float().numpy())


def test_matmul() -> None:
    x, w = _normal(3, 5, 8), _normal(6, 8)
    node = apply(
        "matmul", ops.input_("x", dtypes.f32, (3, 5, 8)), ops.input_("w", dtypes.f32, (6, 8))
    )
    wanted = torch.nn.functional.linear(torch.from_numpy(x), torch.from_numpy(w))
    np.testing.assert_allclose(_evaluate(node, {"x": x, "w": w}), wanted, rtol=1e-5, atol=1e-6)


def test_rms_norm() -> None:
    x, w = _normal(5, 16), _normal(16)
    node = apply(
        "rms_norm",
        ops.input_("x", dtypes.f32, (5, 16)),
        ops.input_("w", dtypes.f32, (16,)),
        eps=1e-5,
    )
    wanted = torch.nn.functional.rms_norm(torch.from_numpy(x), (16,), torch.from_numpy(w), 1e-5)
    np.testing.assert_allclose(_evaluate(node, {"x": x, "w": w}), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [4, 3])
def test_rope_turns_complex_numbers(interleaved: bool, half: int) -> None:
    """A pair is a complex number, times exp(i · position · rate)."""
    start, rows, rates = 5, 3, np.array([1, 0.1, 0.01, 0.003])[:half]
    angles = np.arange(16)[:, None] * rates
    x = _normal(rows, 2, 8)
    tables = [ops.input_(n, dtypes.f32, (16, half)) for n in ("cos", "sin")]
    node = apply(
        "rope",
        ops.input_("x", dtypes.f32, (rows, 2, 8)),
        *tables,
        start=start,
        interleaved=interleaved,
    )
    got = _evaluate(
        node, {"x": x, "cos": np.cos(angles).astype("f4"), "sin": np.sin(angles).astype("f4")}
    )
    turn = torch.polar(
        torch.ones(rows, 1, half), torch.from_numpy(angles[start : start + rows, None]).float()
    )
    t = torch.from_numpy(x)[..., : 2 * half]
    pairs = t.reshape(rows, 2, half, 2) if interleaved else t.reshape(rows, 2, 2, half).mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    wanted = (turned if interleaved else turned.mT).reshape(rows, 2, 2 * half)
    np.testing.assert_allclose(got[..., : 2 * half], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize(("start", "rows"), [(0, 5), (3, 1), (4, 4)])
def test_attention(start: int, rows: int) -> None:
    q, k, v = _normal(rows, 6, 8), _normal(12, 2, 8), _normal(12, 2, 8) + 1
    pos, t = Dim("pos", "device", 8), Dim("T", "host", 8)
    node = apply(
        "attention",
        ops.input_("q", dtypes.f32, (t, 6, 8)),
        ops.state("k", dtypes.f32, (12, 2, 8)),
        ops.state("v", dtypes.f32, (12, 2, 8)),
        start=pos,
        scale=0.3,
    )
    got = _evaluate(node, {"q": q, "k": k, "v": v}, pos=start, T=rows)
    length = start + rows
    mask = torch.ones(rows, length, dtype=torch.bool).tril(start)
    tq, tk, tv = (
        torch.from_numpy(a[:length] if a is not q else a).transpose(0, 1) for a in (q, k, v)
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(
        tq[None], tk[None], tv[None], mask, scale=0.3, enable_gqa=True
    )[0]
    wanted = wanted.transpose(0, 1).reshape(rows, 48)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)

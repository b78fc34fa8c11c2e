"""The IR: text, verifier, the rules of ops against the interpreter, its meanings against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.errors import GraphError
from fanlight.ir import ops
from fanlight.ir.composite import define
from fanlight.ir.graph import LEAVES, DeviceDim, Graph, Module, Node, StateSpec, WeightSource
from fanlight.ir.interpreter import MEANINGS, Interpreter
from fanlight.ir.ops import OPS, apply
from fanlight.ir.text import parse_graph, print_graph
from fanlight.ir.verify import verify_graph, verify_module
from fanlight.shapes import Dim, evaluate
from tests.graphs import POS, RandomGraph, T, random_graph, random_values

Array = NDArray[Any]
SEEDS = range(300)
COMPOSITE = {op.name for op in OPS.values() if op.family == "composite"} | {
    "after"
}  # see tests/passes


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
    assert set(MEANINGS) | COMPOSITE == set(OPS) - set(LEAVES)


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
    missing = set(OPS) - seen - COMPOSITE - {"exp", "log", "sqrt", "rsqrt", "recip", "pow"}
    missing -= {"shl", "shr", "reduce_prod", "bitcast"}
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
    "gt": torch.gt, "ge": torch.ge, "atan": torch.atan, "sign": torch.sign,
    "isnan": torch.isnan, "isinf": torch.isinf,
}  # fmt: skip


def test_the_elementwise_table_is_whole() -> None:
    assert set(_TORCH) == set(ops.ELEMENTWISE) - {"where"} - ops.LOGICAL - ops.INTEGER_ONLY


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


@pytest.mark.parametrize("name", "i8 u8 i32 u32 i64 u64".split())
def test_bits_of_integers(name: str) -> None:
    """Python's integers, wrapped, are the reference; shifts by all bits and more included."""
    dtype, bits = dtypes.DTYPES[name], 8 * dtypes.DTYPES[name].bytes
    low = -(1 << bits - 1) if dtype.kind == "int" else 0
    values = [low, low + 1, 0, 1, 5, low + (1 << bits) - 1]
    x = np.array(values * len(values), {"i": "i", "u": "u"}[name[0]] + str(dtype.bytes))
    y = np.repeat(np.array([0, 1, 3, bits - 1, bits, bits + 9], x.dtype), len(values))
    nodes = [ops.input_(n, dtype, x.shape) for n in "xy"]

    def wrapped(value: int) -> int:
        value &= (1 << bits) - 1
        return value - (1 << bits) if low and value >> bits - 1 else value

    meanings: dict[str, Callable[[int, int], int]] = {
        "bitand": lambda a, b: a & b,
        "bitor": lambda a, b: a | b,
        "bitxor": lambda a, b: a ^ b,
        "shl": lambda a, b: a << b,
        "shr": lambda a, b: a >> b,
    }
    for op, meaning in meanings.items():
        got = _evaluate(apply(op, *nodes), {"x": x, "y": y})
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        assert got.tolist() == [wrapped(meaning(a, b)) for a, b in pairs], op
    got = _evaluate(apply("bitnot", nodes[0]), {"x": x})
    assert got.tolist() == [wrapped(~a) for a in x.tolist()]


def test_take_is_numpys_indexing() -> None:
    x = _normal(5, 7)
    rows, columns = np.array([[4], [0], [2]], "i4"), np.array([6, 6, 1, 0], "i4")
    indices = [ops.input_("r", dtypes.i32, (3, 1)), ops.input_("c", dtypes.i32, (4,))]
    node = apply("take", ops.input_("x", dtypes.f32, (5, 7)), *indices)
    got = _evaluate(node, {"x": x, "r": rows, "c": columns})
    np.testing.assert_array_equal(got, x[rows, columns])


def test_dot_and_its_definition_are_matmul() -> None:
    a, b = _normal(2, 1, 3, 5), _normal(4, 5, 6)
    nodes = ops.input_("a", dtypes.f32, a.shape), ops.input_("b", dtypes.f32, b.shape)
    for node in (apply("dot", *nodes), define("dot", nodes, {}).value):
        np.testing.assert_allclose(_evaluate(node, {"a": a, "b": b}), a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["i4", "u4", "i2", "u2", "f4e2m1", "f8e4m3fn", "f8e5m2", "f8e8m0"])
def test_small_types(name: str) -> None:
    """Constants are read, and casts rounded, as ml_dtypes does."""
    dtype = dtypes.DTYPES[name]
    kinds = {"i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2", "f4e2m1": "float4_e2m1fn"}
    kinds |= {"f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu"}
    kind = getattr(ml_dtypes, kinds[name])
    x = np.abs(_normal(37)) * 3 if name[0] == "u" or name == "f8e8m0" else _normal(37) * 3
    whole = x if dtype.kind == "float" else np.clip(np.trunc(x), -2 if name == "i2" else -8, 3)
    got = _evaluate(apply("cast", ops.input_("x", dtypes.f32, (37,)), to=dtype), {"x": whole})
    wanted = whole.astype("f4").astype(kind)
    np.testing.assert_array_equal(got.astype("f4"), wanted.astype("f4"))
    bits = 8 // dtype.block
    codes = wanted.view("u1") & ((1 << bits) - 1)
    codes = np.pad(codes, (0, -len(codes) % dtype.block)).reshape(-1, dtype.block)
    data = (codes << np.arange(0, 8, bits, dtype="u1")).sum(1).astype("u1").tobytes()
    constant = apply("constant", dtype=dtype, shape=(37,), data=data)
    np.testing.assert_array_equal(_evaluate(constant, {}), got)


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

"""Passes: the fused graph means what the plain one does, and what must not be fused is left alone.

Fused ops are defined by plain ones, so the interpreter's values are equal to the last bit.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.archs import llama
from fanlight.errors import GraphError
from fanlight.ir import ops
from fanlight.ir.graph import Graph, Module, Node
from fanlight.ir.ops import apply
from fanlight.ir.text import parse_graph, print_graph
from fanlight.ir.verify import verify_graph, verify_module
from fanlight.passes import attend, attend_add, pipeline, project, residual, swiglu
from fanlight.shapes import Dim, Size
from tests import gguf_files
from tests.modules import Interpreted, build

F32 = dtypes.f32
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 320, 40)]
MODELS = {
    "llama": gguf_files.Model(),
    "llama untied": gguf_files.Model(tied=False, types={"*": "q4_0"}),
    "qwen3": gguf_files.Model(arch="qwen3", head_size=32, eps=1e-6),
}


def fuse(module: Module) -> Module:
    return pipeline.run(module, lambda op: True, verify_module)


def counts(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes())


@pytest.mark.parametrize("kv", [dtypes.f32, dtypes.f16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_fused_models_mean_the_same(name: str, kv: dtypes.DType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(path, MODELS[name])
    plain = build(path, llama.Options(context=64, chunk=32, max_steps=4, scores=True, kv=kv))
    fused = fuse(plain)
    both = [Interpreted(path, module) for module in (plain, fused)]
    scores = [i.scores(TOKENS, 32) for i in both]
    np.testing.assert_array_equal(scores[0], scores[1])
    tokens = [i.decode(TOKENS[-1], len(TOKENS), 8) for i in both]
    assert tokens[0] == tokens[1]
    for key in ("k.0", "v.1"):
        np.testing.assert_array_equal(both[0].states[key], both[1].states[key])


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_becomes_four_ops(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(path, MODELS[name])
    module = fuse(build(path, llama.Options(scores=True)))
    layers = sum(1 for key in module.states if key.startswith("k."))
    prefill = counts(module.graphs["prefill"])  # ends with the last layer's keys and values
    ends = [prefill[op] for op in ("attend_add", "update", "project")]
    assert ends == [layers - 1, 2, layers]
    for graph in ("step", "score"):
        found = counts(module.graphs[graph])
        for op in ("swiglu", "attend_add", "matmul_add"):
            assert found[op] == layers, (graph, op)
        assert found["project"] == layers + 1
        gone = ("matmul", "attend", "rms_norm", "attention", "update", "rope", "silu", "add")
        assert not any(found[op] for op in gone), graph


def test_the_text_of_fused_graphs_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(path, MODELS["qwen3"])
    text = print_graph(fuse(build(path, llama.Options())).graphs["step"])
    again = parse_graph(text)
    verify_graph(again)
    assert print_graph(again) == text


def test_a_pass_whose_op_the_target_lacks_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(path, MODELS["llama"])
    module = build(path, llama.Options())
    left = pipeline.run(module, lambda op: op == "matmul_add")
    found = counts(left.graphs["step"])
    assert found["matmul_add"]
    assert not found["project"] + found["swiglu"] + found["attend"]


# --- graphs that are left alone


def _norm(x: Node) -> Node:
    return apply("rms_norm", x, ops.weight("g", F32, (4,)), eps=1e-5)


def _product(x: Node, name: str = "w", rows: int = 6) -> Node:
    return apply("matmul", x, ops.weight(name, F32, (rows, 4)))


def _input(name: str = "x", rows: Size = 2) -> Node:
    return ops.input_(name, F32, (rows, 4))


def test_a_norm_used_otherwise_is_left_alone() -> None:
    norm = _norm(_input())
    product = _product(norm)
    kept = Graph("g", {"y": product, "norm": norm})
    used = Graph("g", {"y": product, "z": apply("tanh", norm)})
    other = Graph("g", {"y": apply("matmul", _input(), ops.input_("w", F32, (6, 4)))})
    by_input = Graph("g", {"y": apply("matmul", norm, ops.input_("w", F32, (6, 4)))})
    for graph in (kept, used, other, by_input):
        assert print_graph(project.run(graph)) == print_graph(graph)


def _gated(**changes: Any) -> Graph:
    norm = _norm(_input())
    gate, up = _product(norm, "w"), _product(norm, "u")
    act = apply("silu", gate)
    graph = Graph("g", {"y": apply("mul", act, up)})
    if changes.get("kept"):
        graph.outputs["act"] = act
    if changes.get("third"):
        graph.outputs["third"] = _product(norm, "v")
    if changes.get("same"):
        graph.outputs["y"] = apply("mul", act, gate)
        graph.outputs["z"] = up
    if changes.get("tanh"):
        graph.outputs["y"] = apply("mul", apply("tanh", gate), up)
    return project.run(graph)


def test_gate_and_up() -> None:
    assert counts(swiglu.run(_gated()))["swiglu"] == 1
    for change in ("kept", "third", "same", "tanh"):
        graph = _gated(**{change: True})
        assert print_graph(swiglu.run(graph)) == print_graph(graph), change


def test_residual_sums() -> None:
    x, r = _input(), ops.input_("r", F32, (2, 6))
    product = _product(x)
    for y in (apply("add", product, r), apply("add", r, product)):
        assert counts(residual.run(Graph("g", {"y": y})))["matmul_add"] == 1
    wide = apply("add", product, ops.input_("r", F32, (1, 6)))
    twice = apply("add", product, product)
    for graph in (
        Graph("g", {"y": wide}),
        Graph("g", {"y": twice}),
        Graph("g", {"y": apply("add", product, r), "product": product}),
    ):
        assert print_graph(residual.run(graph)) == print_graph(graph)


T, POS = Dim("T", "host", 3), Dim("pos", "device", 5)


def _attention(**changes: Any) -> Graph:
    """Two heads of 4, one of keys and values, in a cache of 8 positions."""
    x = ops.input_("x", F32, (T, 4))
    norm = _norm(x)
    q, k, v = (_product(norm, name, rows) for name, rows in (("q", 8), ("k", 4), ("v", 4)))
    cos, sin = (ops.state(name, F32, (8, 2)) for name in ("cos", "sin"))

    def heads(y: Node, count: int) -> Node:
        return apply("reshape", y, shape=(T, count, 4))

    def rope(y: Node, start: Size, interleaved: bool = True) -> Node:
        return apply("rope", y, cos, sin, start=start, interleaved=interleaved)

    graph = Graph("g")
    key = rope(heads(k, 1), POS, not changes.get("other_rope"))
    if changes.get("head_norm"):
        key = apply("rms_norm", key, ops.weight("h", F32, (4,)), eps=1e-5)
    values = heads(v, 1)
    for name, value in (("k.0", key), ("v.0", values)):
        cache = ops.state(name, F32, (8, 1, 4))
        graph.updates[name] = apply("update", cache, value, start=POS)
    query = rope(heads(q, 2), POS + 1 if changes.get("later") else POS)
    graph.outputs["y"] = apply(
        "attention", query, graph.updates["k.0"], graph.updates["v.0"], start=POS, scale=0.5
    )
    if changes.get("kept"):
        graph.outputs["key"] = key
    if changes.get("read"):
        graph.outputs["used"] = apply("tanh", graph.updates["v.0"])
    if changes.get("twice"):
        graph.outputs["used"] = apply("tanh", values)
    return project.run(graph)


def test_attention() -> None:
    fused = attend.run(_attention())
    verify_graph(fused)
    assert counts(fused)["attend"] == 1
    assert counts(fused)["after"] == 2
    for change in ("other_rope", "head_norm", "later", "kept", "read", "twice"):
        graph = _attention(**{change: True})
        assert print_graph(attend.run(graph)) == print_graph(graph), change


def test_attention_and_its_product() -> None:
    def graph(**changes: bool) -> Graph:
        made = attend.run(_attention())
        values = made.outputs["y"]
        late = apply("tanh", apply("after", values, input=1))
        residual = apply("reshape", late, shape=(8, 4)) if changes.get("late") else None
        if residual is None:
            residual = ops.input_("r", F32, (T, 6))
        else:
            residual = apply("slice", residual, starts=(0, 0), sizes=(T, 4))
        rows = 4 if changes.get("late") else 6
        weight = ops.weight("o", F32, (rows, 8))
        made.outputs["y"] = apply("matmul_add", values, weight, residual)
        if changes.get("kept"):
            made.outputs["values"] = values
        return made

    fused = attend_add.run(graph())
    verify_graph(fused)
    assert counts(fused)["attend_add"] == 1
    assert not counts(fused)["attend"]
    for change in ("kept", "late"):
        made = graph(**{change: True})
        assert print_graph(attend_add.run(made)) == print_graph(made), change


def test_a_change_in_place_must_end_in_its_state() -> None:
    fused = attend.run(_attention())
    del fused.updates["v.0"]
    with pytest.raises(GraphError, match="must be a state's update"):
        verify_graph(fused)
    fused = attend.run(_attention())
    fused.updates["other"] = fused.updates.pop("v.0")
    with pytest.raises(GraphError, match="must start at the state"):
        verify_graph(fused)


def test_definitions_check_their_inputs() -> None:
    x, g = _input(), ops.weight("g", F32, (4,))
    with pytest.raises(GraphError, match="wants x, g and products"):
        apply("project", x, g, eps=1e-5)
    with pytest.raises(GraphError, match="wants r of the product's shape"):
        apply("matmul_add", x, ops.weight("w", F32, (6, 4)), x)
    with pytest.raises(GraphError, match="an input that the op doesn't change"):
        apply("after", x, input=0)

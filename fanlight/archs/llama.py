"""Decoder-only transformers of the Llama family: configuration and weights → module.

In: a GGUF's metadata and tensor table, and the bytes of the few small tensors that shape constants
(``small_tensors``). Out: a module with the programs below. A new member is a row of ``VARIANTS``.
Not known here: mixture of experts, sliding windows, biases, yarn rope scaling.

Programs and their states (i32 unless said)
    load      fills the rope tables; runs once.
    prefill   ``tokens`` [T] at positions ``pos`` … ``pos + T - 1``: writes the KV cache, nothing
              else.
    decode    ``steps`` times: one token through the layers, then ``sample``. Leaves the chosen
              tokens in ``chosen`` [K] (K = ``max_steps``; -1 after a stop token).
    sample    logits → ``control``, ``chosen``. Greedy: the largest logit, the lowest id of equals.
    score     (option) like prefill, and the logits of all T positions in the output ``scores``.
    control   [8]: position of the next token, that token, 1 once stopped, next slot of ``chosen``,
              4 spare.
    stops     [8]: ids that end the generation; unused ones -1.
    k.i, v.i  [context, kv heads, head size]; logits: f32 [1, vocab].
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fanlight import dtypes
from fanlight.dtypes import DType
from fanlight.errors import FormatError, UnsupportedError
from fanlight.ir import ops
from fanlight.ir.graph import DeviceDim, Graph, Module, Node, StateSpec, WeightSource
from fanlight.ir.ops import apply
from fanlight.plan import Call, Loop
from fanlight.shapes import Dim, Size

CONTROL, POSITION, TOKEN, STOPPED, SLOT = 8, 0, 1, 2, 3
MAX_STOPS = 8
_LOW = 64  # rope tables are the product of a table of 64 positions and one of every 64th


@dataclass(frozen=True, slots=True)
class Variant:
    """How a GGUF architecture differs. ``interleaved``: rope rotates pairs (2i, 2i + 1), as
    llama.cpp stores Llama's weights; otherwise (i, i + R/2). ``head_norms``: RMS norms on each head
    of q and k."""

    interleaved: bool
    head_norms: bool = False


VARIANTS: dict[str, Variant] = {
    "llama": Variant(interleaved=True),
    "qwen3": Variant(interleaved=False, head_norms=True),
}


@dataclass(frozen=True, slots=True)
class Config:
    variant: Variant
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    context: int
    eps: float
    rope_base: float
    rope_size: int
    rope_scale: float


@dataclass(frozen=True, slots=True)
class Options:
    """``context``: positions of the KV cache (the model's own length, at most 4,096, if None).
    ``chunk``: most tokens of a prefill. ``max_steps``: most decode steps of one run. ``scores``:
    add the program ``score``. ``kv``: f32 or f16 storage of the cache."""

    context: int | None = None
    chunk: int = 128
    max_steps: int = 16
    scores: bool = False
    kv: DType = dtypes.f32


def config_from_gguf(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The configuration. Raises UnsupportedError for other architectures, FormatError for missing
    keys."""
    arch = metadata.get("general.architecture")
    if arch not in VARIANTS:
        raise UnsupportedError(
            "unknown architecture",
            where="general.architecture",
            got=arch,
            wanted=", ".join(VARIANTS),
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise FormatError("missing key", where=f"{arch}.{key}")
        return value

    def count(key: str, default: Any = None) -> int:
        value = get(key, default)
        if not isinstance(value, int) or not 0 < value < 1 << 24:
            raise FormatError("not a sensible count", where=f"{arch}.{key}", got=value)
        return value

    if int(get("expert_count", 0)):
        raise UnsupportedError("mixture of experts is not supported", where=f"{arch}.expert_count")
    scaling = get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedError("unknown rope scaling", where=f"{arch}.rope.scaling", got=scaling)
    hidden, heads = count("embedding_length"), count("attention.head_count")
    head_size = count("attention.key_length", hidden // heads)
    if count("attention.value_length", head_size) != head_size:
        raise UnsupportedError("keys and values of different sizes", where=arch)
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise FormatError("missing tensor", where="token_embd.weight")
    return Config(
        VARIANTS[arch],
        count("block_count"),
        hidden,
        heads,
        count("attention.head_count_kv", heads),
        head_size,
        embedding[0],
        count("context_length"),
        float(get("attention.layer_norm_rms_epsilon")),
        float(get("rope.freq_base", 10000.0)),
        count("rope.dimension_count", head_size),
        float(get("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0,
    )


def small_tensors(weights: Mapping[str, WeightSource]) -> list[str]:
    """Names of the tensors whose bytes :func:`build` wants: llama3's factors of the rope
    frequencies."""
    return [name for name in ("rope_freqs.weight",) if name in weights]


def build(
    config: Config,
    weights: Mapping[str, WeightSource],
    small: Mapping[str, bytes],
    options: Options = Options(),
) -> Module:
    """The module. Raises FormatError where a tensor is missing or of the wrong shape."""
    return _Builder(config, weights, small, options).build()


class _Builder:
    def __init__(
        self,
        config: Config,
        weights: Mapping[str, WeightSource],
        small: Mapping[str, bytes],
        options: Options,
    ) -> None:
        self.c, self.weights, self.small, self.options = config, weights, small, options
        context = options.context or min(config.context, 4096)
        self.context = -(-context // _LOW) * _LOW
        self.pos = Dim("pos", "device", self.context)
        self.rows = Dim("T", "host", min(options.chunk, self.context))
        self.steps = Dim("steps", "host", options.max_steps)
        self.module = Module(dims=[self.rows, self.steps])

    def build(self) -> Module:
        c, m = self.c, self.module
        cache = (self.context, c.kv_heads, c.head_size)
        table = (self.context, c.rope_size // 2)
        for i in range(c.layers):
            m.states[f"k.{i}"] = m.states[f"v.{i}"] = StateSpec(self.options.kv, cache)
        m.states["rope.cos"] = m.states["rope.sin"] = StateSpec(dtypes.f32, table)
        m.states["control"] = StateSpec(dtypes.i32, (CONTROL,))
        m.states["stops"] = StateSpec(dtypes.i32, (MAX_STOPS,))
        m.states["chosen"] = StateSpec(dtypes.i32, (self.options.max_steps,))
        m.states["logits"] = StateSpec(dtypes.f32, (1, c.vocab))
        m.device_dims.append(DeviceDim(self.pos, "control", POSITION))
        m.graphs = {g.name: g for g in (self.tables(), self.prefill(), self.step(), sample(m))}
        m.graphs["begin"] = begin(m)
        m.programs = {
            "load": (Call("tables"),),
            "prefill": (Call("prefill"),),
            "decode": (Call("begin"), Loop(self.steps, (Call("step"), Call("sample")))),
        }
        if self.options.scores:
            m.graphs["score"] = self.score()
            m.programs["score"] = (Call("score"),)
        return m

    # --- graphs

    def tables(self) -> Graph:
        """cos and sin of every position, by the addition theorem from small f64-made tables; one of
        them turns backwards, so that both are sums and take one kernel."""
        high, low = range(0, self.context, _LOW), range(_LOW)
        ch = self._table("cos.high", math.cos, high, (len(high), 1))
        sh = self._table("sin.high", math.sin, high, (len(high), 1))
        cl = self._table("cos.low", math.cos, low, (1, _LOW))
        sl = self._table("sin.low", math.sin, low, (1, _LOW))
        back = self._table("sin.back", math.sin, range(0, -_LOW, -1), (1, _LOW))
        shape = (self.context, self.c.rope_size // 2)
        cos = apply("add", apply("mul", ch, cl), apply("mul", sh, back))
        sin = apply("add", apply("mul", sh, cl), apply("mul", ch, sl))
        values = {"rope.cos": cos, "rope.sin": sin}
        return Graph(
            "tables", updates={k: apply("reshape", v, shape=shape) for k, v in values.items()}
        )

    def prefill(self) -> Graph:
        graph = Graph("prefill")
        tokens = ops.input_("tokens", dtypes.i32, (self.rows,))
        self._layers(graph, tokens)
        return graph

    def score(self) -> Graph:
        graph = Graph("score")
        tokens = ops.input_("tokens", dtypes.i32, (self.rows,))
        graph.outputs["scores"] = self._head(self._layers(graph, tokens))
        return graph

    def step(self) -> Graph:
        graph = Graph("step")
        token = _element(ops.state("control", dtypes.i32, (CONTROL,)), TOKEN)
        graph.updates["logits"] = self._head(self._layers(graph, token))
        return graph

    # --- their parts

    def _layers(self, graph: Graph, tokens: Node) -> Node:
        """tokens [T] → hidden [T, d]; adds the caches' updates to ``graph``."""
        x = apply("gather", self._weight("token_embd.weight"), tokens)
        for i in range(self.c.layers):
            x = apply(
                "add", x, self._attention(graph, i, self._norm(x, f"blk.{i}.attn_norm.weight"))
            )
            h = self._norm(x, f"blk.{i}.ffn_norm.weight")
            gate = apply("silu", self._linear(h, f"blk.{i}.ffn_gate.weight"))
            up = self._linear(h, f"blk.{i}.ffn_up.weight")
            x = apply("add", x, self._linear(apply("mul", gate, up), f"blk.{i}.ffn_down.weight"))
        return x

    def _attention(self, graph: Graph, i: int, x: Node) -> Node:
        c = self.c
        rows = x.shape[0]
        q = self._heads(x, i, "q", (rows, c.heads, c.head_size))
        k = self._heads(x, i, "k", (rows, c.kv_heads, c.head_size))
        v = self._linear(x, f"blk.{i}.attn_v.weight", c.kv_heads * c.head_size)
        v = apply("reshape", v, shape=(rows, c.kv_heads, c.head_size))
        for name, value in (("k", k), ("v", v)):
            spec = self.module.states[f"{name}.{i}"]
            cache = ops.state(f"{name}.{i}", spec.dtype, spec.shape)
            graph.updates[f"{name}.{i}"] = apply("update", cache, value, start=self.pos)
        out = apply(
            "attention",
            q,
            graph.updates[f"k.{i}"],
            graph.updates[f"v.{i}"],
            start=self.pos,
            scale=1.0 / math.sqrt(c.head_size),
        )
        return self._linear(out, f"blk.{i}.attn_output.weight")

    def _heads(self, x: Node, i: int, which: str, shape: tuple[Size, ...]) -> Node:
        """Projected, normed where the variant says so, rotated: [T, heads, D]."""
        _, heads, depth = shape
        assert isinstance(heads, int) and isinstance(depth, int)
        y = self._linear(x, f"blk.{i}.attn_{which}.weight", heads * depth)
        y = apply("reshape", y, shape=shape)
        if self.c.variant.head_norms:
            y = self._norm(y, f"blk.{i}.attn_{which}_norm.weight")
        table = self.module.states["rope.cos"].shape
        cos, sin = (ops.state(f"rope.{f}", dtypes.f32, table) for f in ("cos", "sin"))
        return apply("rope", y, cos, sin, start=self.pos, interleaved=self.c.variant.interleaved)

    def _head(self, x: Node) -> Node:
        tied = "output.weight" not in self.weights
        x = self._norm(x, "output_norm.weight")
        return self._linear(x, "token_embd.weight" if tied else "output.weight", self.c.vocab)

    def _norm(self, x: Node, name: str) -> Node:
        return apply("rms_norm", x, self._weight(name), eps=self.c.eps)

    def _linear(self, x: Node, name: str, rows: int | None = None) -> Node:
        w = self._weight(name)
        if len(w.shape) != 2 or w.shape[1] != x.shape[-1] or (rows and w.shape[0] != rows):
            wanted = [rows or "…", x.shape[-1]]
            raise FormatError("tensor of the wrong shape", where=name, got=w.shape, wanted=wanted)
        return apply("matmul", x, w)

    def _weight(self, name: str) -> Node:
        source = self.weights.get(name)
        if source is None:
            raise FormatError("missing tensor", where=name)
        self.module.weights[name] = source
        return ops.weight(name, source.dtype, source.shape)

    def _table(
        self,
        name: str,
        function: Callable[[float], float],
        positions: range,
        rows: tuple[int, int],
    ) -> Node:
        """``function`` of position × frequency, [*rows, R / 2], computed in f64."""
        shape = (*rows, self.c.rope_size // 2)
        rates = self._rates(shape[2])
        data = b"".join(_pack(function, p, rates) for p in positions)
        self.module.weights[f"rope.{name}"] = WeightSource(dtypes.f32, shape, data=data)
        return ops.weight(f"rope.{name}", dtypes.f32, shape)

    def _rates(self, half: int) -> list[float]:
        """Radians per position of each pair (RoFormer, arXiv 2104.09864; llama3 scaling as
        factors)."""
        factors = [1.0] * half
        if "rope_freqs.weight" in self.small:
            raw = self.small["rope_freqs.weight"]
            if len(raw) != 4 * half:
                raise FormatError("wrong size", where="rope_freqs.weight", got=len(raw) // 4)
            factors = list(struct.unpack(f"<{half}f", raw))
        base, size = self.c.rope_base, self.c.rope_size
        return [base ** (-2 * i / size) / f / self.c.rope_scale for i, f in enumerate(factors)]


def _pack(function: Callable[[float], float], position: int, rates: list[float]) -> bytes:
    return struct.pack(f"<{len(rates)}f", *(function(position * rate) for rate in rates))


def _element(vector: Node, index: int) -> Node:
    return apply("slice", vector, starts=(index,), sizes=(1,))


def sample(module: Module) -> Graph:
    """The graph ``sample``: chooses a token from the logits and moves ``control`` and ``chosen``
    on."""
    logits, control, stops, chosen = (
        ops.state(name, module.states[name].dtype, module.states[name].shape)
        for name in ("logits", "control", "stops", "chosen")
    )
    one, none = ops.integers([1]), ops.integers([-1])
    slots = ops.integers([int(str(chosen.shape[0]))])
    position, token, stopped, slot = (
        _element(control, i) for i in (POSITION, TOKEN, STOPPED, SLOT)
    )
    best = apply("argmax", logits)
    is_stopped = apply("ne", stopped, ops.integers([0]))
    hits = apply("cast", apply("eq", stops, best), to=dtypes.i32)
    hit = apply("reduce_max", hits, axes=(0,), keep=True)
    here = apply("eq", apply("iota", size=chosen.shape[0]), slot)
    moved = [
        apply("add", position, apply("sub", one, stopped)),
        apply("where", is_stopped, token, best),
        apply("max", stopped, hit),
        apply("mod", apply("add", slot, one), slots),
        apply("slice", control, starts=(SLOT + 1,), sizes=(CONTROL - SLOT - 1,)),
    ]
    shown = apply("where", is_stopped, none, best)
    return Graph(
        "sample",
        updates={
            "chosen": apply("where", here, shown, chosen),
            "control": apply("concat", *moved, axis=0),
        },
    )


def begin(module: Module) -> Graph:
    """The graph ``begin``: the next token goes to slot 0 of ``chosen``."""
    control = ops.state("control", dtypes.i32, (CONTROL,))
    keep = apply("ne", apply("iota", size=CONTROL), ops.integers([SLOT]))
    return Graph("begin", updates={"control": apply("where", keep, control, ops.integers([0]))})

"""RNN, GRU and LSTM: a loop over the sequence, unrolled where that is short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.loops import sequence
from fanlight.importers.onnx.operators.elementwise import softplus
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import Result, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply

Function = Callable[[Node], Node]
_ATTRS = """activation_alpha activation_beta activations clip direction hidden_size layout
linear_before_reset input_forget output_sequence"""
_PLAIN = {"Sigmoid": "sigmoid", "Tanh": "tanh"}


def _activation(call: Call, name: str, alpha: float | None, beta: float | None) -> Function:
    def value(given: float | None, default: float) -> float:
        return default if given is None else given

    match name:
        case "Sigmoid" | "Tanh":
            return lambda x: apply(_PLAIN[name], x)
        case "Relu":
            return lambda x: do("max", x, 0.0)
        case "LeakyRelu":
            return lambda x: build.where(do("ge", x, 0.0), x, do("mul", x, value(alpha, 0.01)))
        case "HardSigmoid":
            return lambda x: do(
                "max",
                do("min", do("add", do("mul", x, value(alpha, 0.2)), value(beta, 0.5)), 1.0),
                0.0,
            )
        case "Affine":
            return lambda x: do("add", do("mul", x, value(alpha, 1.0)), value(beta, 0.0))
        case "ScaledTanh":
            return lambda x: do(
                "mul", apply("tanh", do("mul", x, value(beta, 1.0))), value(alpha, 1.0)
            )
        case "Softplus":
            return softplus
    if name != "Softsign":
        call.fail("an activation", got=name)
    return lambda x: do("div", x, do("add", apply("abs", x), 1.0))


@dataclass(slots=True)
class _Layer:
    """One direction. ``x`` [S, B, I]; ``w`` [G H, I], ``r`` [G H, H], ``bias`` [2 G H];
    ``peepholes`` [3 H]; ``lengths`` [B]. Sums of the sequence are one product for all steps."""

    call: Call
    x: Node
    w: Node
    r: Node
    bias: Node | None
    peepholes: Node | None
    lengths: Node | None
    functions: Sequence[Function]
    hidden: int
    gates: int

    def clipped(self, x: Node) -> Node:
        limit = self.call.attr_float("clip", 0.0)
        return do("max", do("min", x, limit), -limit) if limit else x

    def part(self, x: Node, number: int) -> Node:
        """Gate ``number`` of [B, G H]."""
        return build.part(x, -1, number * self.hidden, self.hidden)

    def bias_of(self, first: int) -> Node | None:
        count = self.gates * self.hidden
        return None if self.bias is None else build.part(self.bias, 0, first * count, count)

    def inputs(self) -> Node:
        """x wᵀ + its bias: [S, B, G H]."""
        made = apply("dot", self.x, build.transpose(self.w))
        bias = self.bias_of(0)
        return made if bias is None else do("add", made, bias)

    def recurrence(self, h: Node) -> Node:
        """h rᵀ + its bias: [B, G H]."""
        made = apply("dot", h, build.transpose(self.r))
        bias = self.bias_of(1)
        return made if bias is None else do("add", made, bias)

    def run(self, states: list[Node], backward: bool) -> tuple[Node, list[Node]]:
        """Hidden states [S, B, H], and the states after the last step."""
        given = self.inputs()
        places = [build.along(i, 2, size) for i, size in enumerate(given.shape[1:])]

        def step(at: Node, held: list[Node]) -> tuple[list[Node], list[Node]]:
            new = self.step(build.take(given, at, *places), held)
            if self.lengths is None:
                return new, [new[0]]
            live = do("gt", build.reshape(self.lengths, (self.lengths.shape[0], 1)), at)
            kept = [build.where(live, a, b) for a, b in zip(new, held, strict=True)]
            return kept, [build.where(live, new[0], 0.0)]

        ends, (rows,) = sequence(self.call, self.x.shape[0], states, step, backward)
        return rows, ends

    def step(self, given: Node, states: list[Node]) -> list[Node]:
        """The next states from ``given`` [B, G H]."""
        name = self.call.node.op_type
        if name == "RNN":
            total = do("add", given, self.recurrence(states[0]))
            return [self.functions[0](self.clipped(total))]
        return self.gru(given, states[0]) if name == "GRU" else self.lstm(given, *states)

    def gru(self, given: Node, h: Node) -> list[Node]:
        """Gates z, r, h."""
        f, g = self.functions
        z, r, n = (self.part(given, i) for i in range(3))
        back = self.recurrence(h)
        update = f(self.clipped(do("add", z, self.part(back, 0))))
        reset = f(self.clipped(do("add", r, self.part(back, 1))))
        if self.call.attr_int("linear_before_reset", 0):
            inner = do("mul", reset, self.part(back, 2))
        else:
            weights = build.part(self.r, 0, 2 * self.hidden, self.hidden)
            inner = apply("dot", do("mul", reset, h), build.transpose(weights))
            bias = self.bias_of(1)
            inner = inner if bias is None else do("add", inner, self.part(bias, 2))
        new = g(self.clipped(do("add", n, inner)))
        kept = do("mul", update, h)
        return [do("add", do("mul", do("sub", 1.0, update), new), kept)]

    def lstm(self, given: Node, h: Node, c: Node) -> list[Node]:
        """Gates i, o, f, c; peepholes i, o, f."""
        f, g, last = self.functions
        total = do("add", given, self.recurrence(h))
        i, o, forget, n = (self.part(total, k) for k in range(4))
        if self.peepholes is not None:
            i = do("add", i, do("mul", self.part(self.peepholes, 0), c))
            forget = do("add", forget, do("mul", self.part(self.peepholes, 2), c))
        taken = f(self.clipped(i))
        if self.call.attr_int("input_forget", 0):
            kept = do("sub", 1.0, taken)
        else:
            kept = f(self.clipped(forget))
        cell = do("add", do("mul", kept, c), do("mul", taken, g(self.clipped(n))))
        if self.peepholes is not None:
            o = do("add", o, do("mul", self.part(self.peepholes, 1), cell))
        return [do("mul", f(self.clipped(o)), last(cell)), cell]


_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@op("RNN", 7, attrs=_ATTRS)
@op("GRU", 7, attrs=_ATTRS)
@op("LSTM", 7, attrs=_ATTRS)
def _recurrent(call: Call) -> Result:
    name, dtype = call.node.op_type, call[0].dtype
    kind = wide(dtype)
    batch_first = bool(call.attr_int("layout", 0))
    x = cast(call[0], kind)
    x = build.transpose(x, 0, 1) if batch_first else x
    direction = call.attr_string("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    hidden = call.attr_int("hidden_size", 0) or int(str(call[2].shape[2]))
    functions = _functions(call, len(ways))
    kinds = 2 if name == "LSTM" else 1
    rows, ends = [], []
    for number, backward in enumerate(ways):

        def own(at: int, number: int = number) -> Node | None:
            """Input ``at`` of this direction."""
            found = call.get(at)
            if found is None:
                return None
            return cast(build.squeeze(build.part(found, 0, number, 1), [0]), kind)

        w, r = own(1), own(2)
        assert w is not None and r is not None
        lengths = call.get(4)
        layer = _Layer(
            call, x, w, r, own(3), own(7) if name == "LSTM" else None,
            None if lengths is None else cast(lengths, dtypes.i32),
            functions[number], hidden, _GATES[name],
        )  # fmt: skip
        states = []
        for at in range(5, 5 + kinds):
            given = call.get(at)
            if given is None:
                states.append(build.full(0.0, kind, (x.shape[1], hidden)))
            else:
                axis = 1 if batch_first else 0
                states.append(cast(build.squeeze(build.part(given, axis, number, 1), [axis]), kind))
        made, last = layer.run(states, backward)
        rows.append(build.unsqueeze(made, [1]))
        ends.append(last)
    whole = build.concat(rows, 1)  # [S, D, B, H]
    last_axis = 1 if batch_first else 0
    finals = [
        cast(build.concat([build.unsqueeze(e[i], [last_axis]) for e in ends], last_axis), dtype)
        for i in range(kinds)
    ]
    whole = build.permute(whole, (2, 0, 1, 3)) if batch_first else whole
    return cast(whole, dtype), *finals


def _functions(call: Call, ways: int) -> list[list[Function]]:
    """The activations of each direction."""
    defaults = _DEFAULTS[call.node.op_type]
    names = call.attr_strings("activations", defaults * ways)
    alphas = list(call.attr_floats("activation_alpha", ()))
    betas = list(call.attr_floats("activation_beta", ()))
    takes_alpha = ("LeakyRelu", "HardSigmoid", "Affine", "ScaledTanh", "ThresholdedRelu", "Elu")
    found = []
    for name in names:
        alpha = alphas.pop(0) if alphas and name in takes_alpha else None
        beta = betas.pop(0) if betas and name in ("HardSigmoid", "Affine", "ScaledTanh") else None
        found.append(_activation(call, name, alpha, beta))
    count = len(defaults)
    return [found[i * count : (i + 1) * count] for i in range(ways)]

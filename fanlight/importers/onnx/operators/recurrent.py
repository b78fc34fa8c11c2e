"""RNN, GRU and LSTM: a loop over the sequence, unrolled where that is short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.loops import sequence
from fanlight.importers.onnx.operators.elementwise import softplus
from fanlight.importers.onnx.operators.quantization import dynamically, integer_product
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import MICROSOFT, Result, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply

Function = Callable[[Node], Node]
_ATTRS = """activation_alpha activation_beta activations clip direction hidden_size layout
linear_before_reset input_forget output_sequence"""
_PLAIN = {"Sigmoid": "sigmoid", "Tanh": "tanh"}


def activation(call: Call, name: str, alpha: float | None, beta: float | None) -> Function:
    """An activation by ONNX's name; raises UnsupportedError for another."""

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


@dataclass(frozen=True, slots=True)
class _Dense:
    """``weights`` [G H, I]."""

    weights: Node

    def times(self, x: Node) -> Node:
        """[…, I] → […, G H]."""
        return apply("dot", x, build.transpose(self.weights))


@dataclass(frozen=True, slots=True)
class _Quantised:
    """``weights`` [I, G H] of 8 bits, times ``scale``, less ``zero``, of each one or G H. What they
    are multiplied with is made 8 bits first, in the range of all of it."""

    call: Call
    weights: Node
    scale: Node
    zero: Node | None

    def times(self, x: Node) -> Node:
        """[…, I] → […, G H]."""
        whole, scale, zero = dynamically(x)
        made = integer_product(self.call, whole, zero, self.weights, self.zero)
        return do("mul", cast(made, dtypes.f32), do("mul", scale, self.scale))


@dataclass(slots=True)
class _Layer:
    """One direction. ``x`` [S, B, I]; ``bias`` [2 G H]; ``peepholes`` [3 H]; ``lengths`` [B]. Sums
    of the sequence are one product for all steps."""

    call: Call
    name: str
    x: Node
    w: _Dense | _Quantised
    r: _Dense | _Quantised
    bias: Node | None
    peepholes: Node | None
    lengths: Node | None
    functions: Sequence[Function]
    hidden: int

    def clipped(self, x: Node) -> Node:
        limit = self.call.attr_float("clip", 0.0)
        return do("max", do("min", x, limit), -limit) if limit else x

    def part(self, x: Node, number: int) -> Node:
        """Gate ``number`` of [B, G H]."""
        return build.part(x, -1, number * self.hidden, self.hidden)

    def bias_of(self, first: int) -> Node | None:
        count = _GATES[self.name] * self.hidden
        return None if self.bias is None else build.part(self.bias, 0, first * count, count)

    def inputs(self) -> Node:
        """x wᵀ + its bias: [S, B, G H]."""
        made = self.w.times(self.x)
        bias = self.bias_of(0)
        return made if bias is None else do("add", made, bias)

    def recurrence(self, h: Node) -> Node:
        """h rᵀ + its bias: [B, G H]."""
        made = self.r.times(h)
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
        if self.name == "RNN":
            total = do("add", given, self.recurrence(states[0]))
            return [self.functions[0](self.clipped(total))]
        return self.gru(given, states[0]) if self.name == "GRU" else self.lstm(given, *states)

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
            assert isinstance(self.r, _Dense)
            weights = build.part(self.r.weights, 0, 2 * self.hidden, self.hidden)
            inner = _Dense(weights).times(do("mul", reset, h))
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
    kind = wide(call[0].dtype)

    def weights(at: int, number: int) -> _Dense:
        found = _own(call, at, number)
        assert found is not None
        return _Dense(cast(found, kind))

    hidden = int(str(call[2].shape[2]))
    return _layers(call, call.node.op_type, hidden, weights)


@op("DynamicQuantizeLSTM", domain=MICROSOFT, attrs=_ATTRS)
def _quantised_lstm(call: Call) -> Result:
    """An LSTM of 8-bit weights w [D, I, 4 H], r [D, H, 4 H], with scales and zero points [D] or
    [D, 4 H]."""

    def weights(at: int, number: int) -> _Quantised:
        found, scale, zero = (_own(call, i, number) for i in (at, 6 + 2 * at, 7 + 2 * at))
        assert found is not None and scale is not None
        return _Quantised(call, found, scale, zero)

    return _layers(call, "LSTM", int(str(call[2].shape[1])), weights)


def _own(call: Call, at: int, number: int) -> Node | None:
    """Input ``at`` of direction ``number``."""
    found = call.get(at)
    return None if found is None else build.squeeze(build.part(found, 0, number, 1), [0])


def _layers(
    call: Call, name: str, hidden: int, weights: Callable[[int, int], _Dense | _Quantised]
) -> Result:
    """All directions. ``weights``: input 1 or 2 of one of them."""
    dtype = call[0].dtype
    kind = wide(dtype)
    batch_first = bool(call.attr_int("layout", 0))
    x = cast(call[0], kind)
    x = build.transpose(x, 0, 1) if batch_first else x
    direction = call.attr_string("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    hidden = call.attr_int("hidden_size", 0) or hidden
    functions = _functions(call, name, len(ways))
    kinds = 2 if name == "LSTM" else 1
    rows, ends = [], []
    for number, backward in enumerate(ways):
        bias, peepholes = (_own(call, at, number) for at in (3, 7))
        lengths = call.get(4)
        layer = _Layer(
            call, name, x, weights(1, number), weights(2, number),
            None if bias is None else cast(bias, kind),
            None if peepholes is None or name != "LSTM" else cast(peepholes, kind),
            None if lengths is None else cast(lengths, dtypes.i32), functions[number], hidden,
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


def _functions(call: Call, name: str, ways: int) -> list[list[Function]]:
    """The activations of each direction."""
    defaults = _DEFAULTS[name]
    names = call.attr_strings("activations", defaults * ways)
    alphas = list(call.attr_floats("activation_alpha", ()))
    betas = list(call.attr_floats("activation_beta", ()))
    takes_alpha = ("LeakyRelu", "HardSigmoid", "Affine", "ScaledTanh", "ThresholdedRelu", "Elu")
    found = []
    for kind in names:
        alpha = alphas.pop(0) if alphas and kind in takes_alpha else None
        beta = betas.pop(0) if betas and kind in ("HardSigmoid", "Affine", "ScaledTanh") else None
        found.append(activation(call, kind, alpha, beta))
    count = len(defaults)
    return [found[i * count : (i + 1) * count] for i in range(ways)]

"""LoopKernel → WGSL. One invocation writes one element, or one 32-bit word of a narrower output.

Where a kernel has few elements and long reductions, one workgroup computes one element together.
Inside, each expression becomes one ``let``; equal ones in one scope are one. Not here: anything
with two outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fanlight.codegen.wgsl import maths, text, wide
from fanlight.codegen.wgsl.formats import FORMATS
from fanlight.dtypes import DType
from fanlight.kernels import loops
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.loops import Expr, LoopKernel, Reduce
from fanlight.shapes import ceildiv, maximum

THREADS = 64
TEAM = 64  # threads that share one element's reduction
_TEAM_EXTENT, _TEAM_ELEMENTS = 64, 4096

_TYPES = {"f64": "f32", "i64": "vec2<u32>", "u64": "vec2<u32>"}  # scalars that WGSL lacks

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "and": "&", "or": "|"}
_INFIX |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_INFIX |= {"bitand": "&", "bitor": "|", "bitxor": "^"}
_FUNCTION = {name: name for name in "max min abs sqrt floor ceil round sign".split()}
_OWN = "exp log pow tanh sigmoid silu erf atan isnan isinf".split()
_FUNCTION |= {name: f"fl_{name}" for name in _OWN}
_FUNCTION["rsqrt"] = "inverseSqrt"
_FORM = {
    "not": "!{0}",
    "neg": "-({0})",  # "--4i" is a token of its own
    "recip": "1.0 / {0}",
    "sin": "fl_wave({0}, 0)",
    "cos": "fl_wave({0}, 1)",
    "where": "select({2}, {1}, {0})",
    "bitnot": "~{0}",
}
_SPECIAL = wide.CALLS | {
    ("max", "bool"): "{0} | {1}",
    ("min", "bool"): "{0} & {1}",
    ("add", "bool"): "{0} | {1}",
    ("mul", "bool"): "{0} & {1}",
    ("lt", "bool"): "!{0} & {1}",
    ("le", "bool"): "!{0} | {1}",
    ("gt", "bool"): "{0} & !{1}",
    ("ge", "bool"): "{0} | !{1}",
    ("abs", "bool"): "{0}",
    ("sign", "bool"): "{0}",
    ("sign", "f32"): "fl_sign({0})",
    ("neg", "u32"): "0u - {0}",
    ("sign", "u32"): "min({0}, 1u)",
    ("div", "i32"): "fl_div_i32({0}, {1})",
    ("mod", "i32"): "fl_mod_i32({0}, {1})",
    ("mod", "f32"): "fl_mod_f32({0}, {1})",
    ("div", "u32"): "fl_div_u32({0}, {1})",
    ("mod", "u32"): "fl_mod_u32({0}, {1})",
    ("shl", "i32"): "select({0} << (u32({1}) & 31u), 0i, u32({1}) > 31u)",
    ("shr", "i32"): "{0} >> min(u32({1}), 31u)",
    ("shl", "u32"): "select({0} << ({1} & 31u), 0u, {1} > 31u)",
    ("shr", "u32"): "select({0} >> ({1} & 31u), 0u, {1} > 31u)",
}
#: by an extent or a number that is neither 0 nor -1
_DIVISION = {
    ("div", "i32"): "{0} / {1}",
    ("mod", "i32"): "{0} - {0} / {1} * {1}",  # % of negative values differs on NVIDIA's Vulkan
    ("div", "u32"): "{0} / {1}",
    ("mod", "u32"): "{0} % {1}",
}
_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def wgsl_type(scalar: str) -> str:
    """The WGSL type of a scalar: f64 is f32, 64-bit integers are pairs of words."""
    return _TYPES.get(scalar, scalar)


def function_text(name: str, args: list[str], scalar: str) -> str:
    """The WGSL expression of an elementwise op on ``scalar``. KeyError for one that is not here."""
    scalar = "f32" if scalar == "f64" else scalar
    if (name, scalar) in _SPECIAL:
        return _SPECIAL[name, scalar].format(*args)
    if name in _INFIX:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if name in _FUNCTION:
        return f"{_FUNCTION[name]}({', '.join(args)})"
    return _FORM[name].format(*args)


def _cast_text(value: str, of: str, to: str) -> str:
    of, to = ("f32" if s == "f64" else s for s in (of, to))
    if wgsl_type(of) == wgsl_type(to):
        return value
    return wide.CASTS.get((of, to), f"{to}({{0}})").format(value)


def launch(kernel: LoopKernel, buffers: tuple[str, ...], cpu: bool = False) -> WgslLaunch:
    """The launch of ``kernel``; ``buffers`` are its inputs, then its output. ``cpu``: the adapter
    is one, where threads of a team wait for each other at a price."""
    width = FORMATS[kernel.output.name].width
    team = width == 1 and _wants_team(kernel, cpu)
    writer = _Writer(kernel, team)
    body = _team_body(kernel, writer) if team else _element_body(kernel, writer, width)
    loads = "".join(_load_function(i, d) for i, d in enumerate(kernel.inputs))
    code = loads + "".join(writer.helpers) + body
    code = maths.functions(code) + code
    bindings = tuple(Binding("array<u32>", "read") for _ in kernel.inputs)
    bindings += (Binding("array<u32>", "read_write"),)
    label = kernel.name.split("_")[0]
    words = ceildiv(kernel.elements, width)
    grid = text.fold_grid(words if team else ceildiv(words, THREADS))
    wgsl = text.kernel(label, code, bindings, loops.sizes(kernel))
    return WgslLaunch(wgsl, buffers, grid)


def _wants_team(kernel: LoopKernel, cpu: bool) -> bool:
    reductions = [e for e in loops.walk(kernel.value) if isinstance(e, Reduce)]
    long = [e for e in reductions if maximum(e.extent) >= _TEAM_EXTENT]
    if maximum(kernel.elements) <= _TEAM_ELEMENTS:
        return bool(long)
    return not cpu and any(_along_memory(e) for e in long)


def _along_memory(reduction: Reduce) -> bool:
    """Whether its elements lie side by side, so that threads of a team read them together."""

    def step_of_one(index: Expr) -> bool:
        if isinstance(index, loops.Apply) and index.function in ("add", "sub"):
            return any(map(step_of_one, index.args))
        return isinstance(index, loops.Axis) and index.number == reduction.axis

    loads = (e for e in loops.walk(reduction.body) if isinstance(e, loops.Load))
    return any(step_of_one(load.index) for load in loads)


def _load_function(param: int, dtype: DType) -> str:
    scalar = wgsl_type(loops.SCALAR[dtype.name])
    value = FORMATS[dtype.name].load(f"b{param}")
    return f"fn load{param}(at: i32) -> {scalar} {{ let i = u32(at); return {value}; }}\n"


def _element_body(kernel: LoopKernel, writer: _Writer, width: int) -> str:
    """``element(flat)`` and an entry point that writes one word with it."""
    value, scalar = writer.value(kernel.value), wgsl_type(kernel.value.type)
    element = f"fn element(flat: i32) -> {scalar} {{\n{writer.text()}  return {value};\n}}\n"
    moved = kernel.offset != loops.integer(0)
    if moved:
        start = _Writer(kernel, False)
        offset = start.value(kernel.offset)
        element += (
            f"fn offset() -> i32 {{\n  let flat = 0i;\n{start.text()}  return {offset};\n}}\n"
        )
    out = f"b{len(kernel.inputs)}"
    at = f"u32(offset()) / {width}u + word" if moved else "word"
    held = FORMATS[kernel.output.name]
    count = text.size_i32(kernel.elements)
    if width == 1:
        store = f"  let v = element(i32(word));\n  {held.store(out, at)}"
    else:
        store = _packed_store(width, held.code, f"{out}[{at}]", count)
    main = f"""  let word = {text.GROUP} * {THREADS}u + lane;
  if (word >= u32(({count} + {width - 1}) / {width})) {{ return; }}
{store}"""
    return element + text.entry(THREADS, main)


def _packed_store(width: int, bits: str, target: str, count: str) -> str:
    """The last word may reach beyond the elements: those bytes keep their value."""
    size = 32 // width
    mask = f"{hex((1 << size) - 1)}u"
    return f"""  let whole = u32({count});
  var bits = {target};
  for (var j = 0u; j < {width}u; j++) {{
    let at = word * {width}u + j;
    if (at < whole) {{
      let v = element(i32(at));
      bits = (bits & ~({mask} << (j * {size}u))) | ({bits} << (j * {size}u));
    }}
  }}
  {target} = bits;"""


def _team_body(kernel: LoopKernel, writer: _Writer) -> str:
    value, offset = writer.value(kernel.value), writer.value(kernel.offset)
    out = f"b{len(kernel.inputs)}"
    store = FORMATS[kernel.output.name].store(out, f"u32({offset} + flat)")
    main = f"""  let flat = i32({text.GROUP});
  if (flat >= {text.size_i32(kernel.elements)}) {{ return; }}
{writer.text()}  if (lane == 0u) {{
    let v = {value};
    {store}
  }}"""
    return text.entry(TEAM, main)


@dataclass(slots=True)
class _Scope:
    """Statements, and what is named already: by object (shared parts of the tree) and by text."""

    indent: str
    lines: list[str] = field(default_factory=list)
    by_id: dict[int, str] = field(default_factory=dict)
    by_text: dict[str, str] = field(default_factory=dict)


class _Writer:
    """Expressions → statements. Text and name of a value are found in any open scope."""

    def __init__(self, kernel: LoopKernel, team: bool) -> None:
        self.kernel, self.team = kernel, team
        self.scopes = [_Scope("  ")]
        self.axes: dict[int, str] = {}
        self.helpers: list[str] = []
        self.names = 0
        self.keep: list[Expr] = []  # alive while their ids are keys

    def text(self) -> str:
        return "".join(f"{self.scopes[0].indent}{line}\n" for line in self.scopes[0].lines)

    def value(self, expr: Expr) -> str:
        """An atom: a literal or the name of a ``let``."""
        for scope in self.scopes:
            if id(expr) in scope.by_id:
                return scope.by_id[id(expr)]
        name = self._value(expr)
        self.keep.append(expr)
        self.scopes[-1].by_id[id(expr)] = name
        return name

    def _value(self, expr: Expr) -> str:
        match expr:
            case loops.Const():
                return text.literal(expr.value, expr.type)
            case loops.Axis():
                at = self._axis(expr.number)
                form = _cast_text(at, "i32", expr.type)
                return at if form == at else self._let(form)
            case loops.Extent():
                at = self._let(text.size_i32(expr.size))
                form = _cast_text(at, "i32", expr.type)
                return at if form == at else self._let(form)
            case loops.Load():
                return self._let(f"load{expr.param}({self.value(expr.index)})")
            case loops.Cast():
                inner = self.value(expr.value)
                form = _cast_text(inner, expr.value.type, expr.type)
                return inner if form == inner else self._let(form)
            case loops.Apply():
                args = [self.value(a) for a in expr.args]
                scalar = expr.args[-1].type
                if _safe_divisor(expr.args[-1]) and (expr.function, scalar) in _DIVISION:
                    return self._let(_DIVISION[expr.function, scalar].format(*args))
                return self._let(function_text(expr.function, args, scalar))
            case loops.Reduce():
                return self._reduce(expr)

    def _let(self, form: str) -> str:
        for scope in self.scopes:
            if form in scope.by_text:
                return scope.by_text[form]
        name = self._name("v")
        self.scopes[-1].lines.append(f"let {name} = {form};")
        self.scopes[-1].by_text[form] = name
        return name

    def _name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def _axis(self, number: int) -> str:
        if number in self.axes:
            return self.axes[number]
        shape = self.kernel.shape
        assert number < len(shape), f"axis {number} outside its reduction"
        stride: list[str] = [text.size_i32(s) for s in shape[number + 1 :] if s != 1]
        at = self._let(f"flat / ({' * '.join(stride)})") if stride else "flat"
        if any(s != 1 for s in shape[:number]):
            at = self._let(f"{at} % {text.size_i32(shape[number])}")
        return at

    def _reduce(self, expr: Reduce) -> str:
        outer = self.scopes[-1]
        team = self.team and len(self.scopes) == 1
        extent, total = self._let(text.size_i32(expr.extent)), self._name("total")
        axis = self._name("i")
        combine = function_text(_COMBINE[expr.kind], ["{a}", "{b}"], expr.type)
        first, step = ("i32(lane)", f"{TEAM}") if team else ("0", "1")
        outer.lines.append(f"var {total} = {self._start(expr, extent)};")
        outer.lines.append(f"for (var {axis} = {first}; {axis} < {extent}; {axis} += {step}) {{")
        self.scopes.append(_Scope(outer.indent + "  "))
        self.axes[expr.axis] = axis
        body = self.value(expr.body)
        del self.axes[expr.axis]
        inner = self.scopes.pop()
        outer.lines += [f"  {line}" for line in inner.lines]
        outer.lines.append(f"  {total} = {combine.format(a=total, b=body)};")
        outer.lines.append("}")
        if not team:
            return total
        function = self._name("reduce")
        self.helpers.append(text.reduction(function, wgsl_type(expr.type), TEAM, combine))
        return self._let(f"{function}({total}, lane)")

    def _start(self, expr: Reduce, extent: str) -> str:
        """The neutral element."""
        if expr.kind in ("sum", "prod"):
            return text.literal(int(expr.kind == "prod"), expr.type)
        low = expr.kind == "max"
        if expr.type in ("f32", "f64"):
            return f"{'-' if low else ''}bitcast<f32>(infinity_bits)"
        if expr.type == "bool":
            return "false" if low else "true"
        bits, signed = int(expr.type[1:]), expr.type[0] == "i"
        limits = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        return text.literal(limits[0 if low else 1], expr.type)


def _safe_divisor(expr: Expr) -> bool:
    """Whether what it divides has elements at all only if it is not 0."""
    return isinstance(expr, loops.Extent) or (
        isinstance(expr, loops.Const) and expr.value not in (0, -1)
    )

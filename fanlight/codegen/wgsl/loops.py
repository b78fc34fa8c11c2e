"""LoopKernel → WGSL. One invocation writes one element, or one 32-bit word of a narrower output.

Where a kernel has few elements and long reductions, one workgroup computes one element together.
Inside, each expression becomes one ``let``; equal ones in one scope are one. Not here: anything
with two outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fanlight.codegen.wgsl import maths, text
from fanlight.dtypes import DType
from fanlight.kernels import loops
from fanlight.kernels.launch import Binding, WgslLaunch
from fanlight.kernels.loops import Expr, LoopKernel, Reduce
from fanlight.shapes import ceildiv, maximum

THREADS = 64
TEAM = 64  # threads that share one element's reduction
_TEAM_EXTENT, _TEAM_ELEMENTS = 64, 4096

#: dtype → (elements in a word, the value of element ``i`` of ``B``, the bits of a value ``v``)
_PACKING: dict[str, tuple[int, str, str]] = {
    "f32": (1, "bitcast<f32>(B[i])", "bitcast<u32>(v)"),
    "i32": (1, "bitcast<i32>(B[i])", "bitcast<u32>(v)"),
    "u32": (1, "B[i]", "v"),
    "f16": (2, "unpack2x16float(B[i >> 1u] >> ((i & 1u) * 16u)).x", "to_f16(v)"),
    "bf16": (2, "bitcast<f32>((B[i >> 1u] >> ((i & 1u) * 16u)) << 16u)", "to_bf16(v)"),
    "u8": (4, "extractBits(B[i >> 2u], (i & 3u) * 8u, 8u)", "(v & 0xffu)"),
    "i8": (
        4,
        "extractBits(bitcast<i32>(B[i >> 2u]), (i & 3u) * 8u, 8u)",
        "(bitcast<u32>(v) & 0xffu)",
    ),
    "bool": (4, "(extractBits(B[i >> 2u], (i & 3u) * 8u, 8u) != 0u)", "select(0u, 1u, v)"),
}

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "and": "&", "or": "|"}
_INFIX |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_FUNCTION = {name: name for name in "max min abs sqrt floor ceil round".split()}
_FUNCTION |= {name: f"fl_{name}" for name in "exp log pow tanh sigmoid silu erf".split()}
_FUNCTION["rsqrt"] = "inverseSqrt"
_FORM = {
    "not": "!{0}",
    "neg": "-({0})",  # "--4i" is a token of its own
    "recip": "1.0 / {0}",
    "sin": "fl_wave({0}, 0)",
    "cos": "fl_wave({0}, 1)",
    "where": "select({2}, {1}, {0})",
}
_SPECIAL = {
    ("max", "bool"): "{0} | {1}",
    ("min", "bool"): "{0} & {1}",
    ("neg", "u32"): "0u - {0}",
    ("mod", "i32"): "{0} - {0} / {1} * {1}",  # % of negative values differs on NVIDIA's Vulkan
}


def _combine(kind: str, scalar: str) -> str:
    """A form of ``{a}`` and ``{b}``."""
    return "{a} + {b}" if kind == "sum" else function_text(kind, ["{a}", "{b}"], scalar)


def function_text(name: str, args: list[str], scalar: str) -> str:
    """The WGSL expression of an elementwise op on ``scalar``. KeyError for one that is not here."""
    if (name, scalar) in _SPECIAL:
        return _SPECIAL[name, scalar].format(*args)
    if name in _INFIX:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if name in _FUNCTION:
        return f"{_FUNCTION[name]}({', '.join(args)})"
    return _FORM[name].format(*args)


def launch(kernel: LoopKernel, buffers: tuple[str, ...]) -> WgslLaunch:
    """The launch of ``kernel``; ``buffers`` are its inputs, then its output."""
    width = _PACKING[kernel.output.name][0]
    team = width == 1 and _wants_team(kernel)
    writer = _Writer(kernel, team)
    body = _team_body(kernel, writer) if team else _element_body(kernel, writer, width)
    loads = "".join(_load_function(i, d) for i, d in enumerate(kernel.inputs))
    code = "".join(writer.helpers) + body
    code = maths.functions(code) + loads + code
    bindings = tuple(Binding("array<u32>", "read") for _ in kernel.inputs)
    bindings += (Binding("array<u32>", "read_write"),)
    label = kernel.name.split("_")[0]
    words = ceildiv(kernel.elements, width)
    grid = text.fold_grid(words if team else ceildiv(words, THREADS))
    wgsl = text.kernel(label, code, bindings, loops.sizes(kernel))
    return WgslLaunch(wgsl, buffers, grid)


def _wants_team(kernel: LoopKernel) -> bool:
    extents = [maximum(e.extent) for e in loops.walk(kernel.value) if isinstance(e, Reduce)]
    return max(extents, default=0) >= _TEAM_EXTENT and (maximum(kernel.elements) <= _TEAM_ELEMENTS)


def _load_function(param: int, dtype: DType) -> str:
    scalar = loops.SCALAR[dtype.name]
    value = _PACKING[dtype.name][1].replace("B[", f"b{param}[")
    return f"fn load{param}(at: i32) -> {scalar} {{ let i = u32(at); return {value}; }}\n"


def _element_body(kernel: LoopKernel, writer: _Writer, width: int) -> str:
    """``element(flat)`` and an entry point that writes one word with it."""
    value, scalar = writer.value(kernel.value), kernel.value.type
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
    bits = _PACKING[kernel.output.name][2]
    count = text.size_i32(kernel.elements)
    if width == 1:
        store = f"  let v = element(i32(word));\n  {out}[{at}] = {bits};"
    else:
        store = _packed_store(width, bits, f"{out}[{at}]", count)
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
    bits = _PACKING[kernel.output.name][2]
    main = f"""  let flat = i32({text.GROUP});
  if (flat >= {text.size_i32(kernel.elements)}) {{ return; }}
{writer.text()}  if (lane == 0u) {{
    let v = {value};
    b{len(kernel.inputs)}[u32({offset} + flat)] = {bits};
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
                return at if expr.type == "i32" else self._let(f"{expr.type}({at})")
            case loops.Extent():
                at = self._let(text.size_i32(expr.size))
                return at if expr.type == "i32" else self._let(f"{expr.type}({at})")
            case loops.Load():
                return self._let(f"load{expr.param}({self.value(expr.index)})")
            case loops.Cast():
                inner = self.value(expr.value)
                return inner if expr.value.type == expr.type else self._let(f"{expr.type}({inner})")
            case loops.Apply():
                args = [self.value(a) for a in expr.args]
                return self._let(function_text(expr.function, args, expr.args[-1].type))
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
        axis, combine = self._name("i"), _combine(expr.kind, expr.type)
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
        self.helpers.append(text.reduction(function, expr.type, TEAM, combine))
        return self._let(f"{function}({total}, lane)")

    def _start(self, expr: Reduce, extent: str) -> str:
        """The neutral element."""
        if expr.kind == "sum":
            return text.literal(0, expr.type)
        low = expr.kind == "max"
        if expr.type == "f32":
            return f"{'-' if low else ''}bitcast<f32>(infinity_bits)"
        if expr.type == "bool":
            return "false" if low else "true"
        limits = {"i32": (-(1 << 31), (1 << 31) - 1), "u32": (0, (1 << 32) - 1)}[expr.type]
        return text.literal(limits[0 if low else 1], expr.type)

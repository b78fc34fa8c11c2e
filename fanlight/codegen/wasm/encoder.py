"""WebAssembly modules as bytes, and functions written as expressions. Knows no ML.

A ``Value`` is code that pushes one number; it does nothing until a statement uses it, and it runs each time it
is used (``f.let`` keeps its result in a local). Values combine by operators and by ``op``; statements are
methods of ``Function``. Plain ints and floats stand for constants. Example: y += a * x, four at a time:

    module = Module(memory=Memory(1, 65536))
    f = module.function("axpy", params=("i32", "i32", "f32", "i32"), export=True)
    x, y, a, n = f.params                        # locals are values too
    a4 = f.let(op("f32x4.splat", a))
    with f.for_range(0, n, 4) as i:              # i: a new i32 local; i < n is a signed comparison
        at = f.let(y + (i << 2))
        product = op("f32x4.mul", a4, op("v128.load", x + (i << 2), offset=0, align=4))
        f.do("v128.store", at, op("f32x4.add", op("v128.load", at), product))
    module.encode()

Instructions are named as in the specification (``opcodes.py`` has them all); operands are checked against
their signatures here. ``align`` is in bytes and only a hint: unaligned accesses are always right (but for
atomics). Blocks: ``with f.block() as out: … f.br_if(out, i >= n)``, ``with f.loop() as again: … f.br(again)``,
``with f.if_(a < b): …`` directly followed by ``with f.else_(): …``. A function that several share is made
once by ``f.module.helper(name, …)`` and called by ``call(helper, …)`` (a value) or ``f.call(…)``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, Union

from fanlight.codegen.wasm.opcodes import OPCODES, TYPE_CODES, Type, leb

MAX_PAGES = 65536
_I32, _F32 = b"\x41", b"\x43"


def sleb(value: int) -> bytes:
    """Signed LEB128."""
    if -64 <= value < 64:
        return bytes((value & 0x7F,))
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


# --- values


class Value:
    """Code that pushes one ``type``. Operators work on i32, i64, f32 and f64; ``>>``, ``//`` and comparisons
    are signed, ``//`` truncates. Other forms: ``op("i32.shr_u", a, b)``."""

    __slots__ = ("code", "type")

    def __init__(self, type: Type, code: bytes) -> None:
        self.type, self.code = type, code

    def __add__(self, other: Operand) -> Value:
        return op(f"{self.type}.add", self, other)

    def __radd__(self, other: float) -> Value:
        return op(f"{self.type}.add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return op(f"{self.type}.sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return op(f"{self.type}.sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return op(f"{self.type}.mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return op(f"{self.type}.mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return op(f"{self.type}.div", self, other)

    def __floordiv__(self, other: Operand) -> Value:
        return op(f"{self.type}.div_s", self, other)

    def __mod__(self, other: Operand) -> Value:
        return op(f"{self.type}.rem_s", self, other)

    def __and__(self, other: Operand) -> Value:
        return op(f"{self.type}.and", self, other)

    def __or__(self, other: Operand) -> Value:
        return op(f"{self.type}.or", self, other)

    def __xor__(self, other: Operand) -> Value:
        return op(f"{self.type}.xor", self, other)

    def __lshift__(self, other: Operand) -> Value:
        return op(f"{self.type}.shl", self, other)

    def __rshift__(self, other: Operand) -> Value:
        return op(f"{self.type}.shr_s", self, other)

    def __lt__(self, other: Operand) -> Value:
        return op(self._compare("lt"), self, other)

    def __le__(self, other: Operand) -> Value:
        return op(self._compare("le"), self, other)

    def __gt__(self, other: Operand) -> Value:
        return op(self._compare("gt"), self, other)

    def __ge__(self, other: Operand) -> Value:
        return op(self._compare("ge"), self, other)

    def _compare(self, name: str) -> str:
        return f"{self.type}.{name}_s" if self.type[0] == "i" else f"{self.type}.{name}"


class Local(Value):
    """A parameter or a local variable: as a value, its content."""

    __slots__ = ("index",)

    def __init__(self, type: Type, index: int) -> None:
        super().__init__(type, b"\x20" + leb(index))
        self.index = index


@dataclass(frozen=True, slots=True)
class Global:
    """A mutable i32 of one instance (each thread has its own)."""

    index: int

    @property
    def value(self) -> Value:
        return Value("i32", b"\x23" + leb(self.index))


Operand: TypeAlias = Union[Value, int, float]


def i32(value: int) -> Value:
    """A constant from -2**31 to 2**32 - 1."""
    assert -(1 << 31) <= value < 1 << 32, value
    return Value("i32", _I32 + sleb(value - (1 << 32) if value >= 1 << 31 else value))


def i64(value: int) -> Value:
    """A constant from -2**63 to 2**64 - 1."""
    assert -(1 << 63) <= value < 1 << 64, value
    return Value("i64", b"\x42" + sleb(value - (1 << 64) if value >= 1 << 63 else value))


def f32(value: float) -> Value:
    return Value("f32", _F32 + pack_f32(value))


def f64(value: float) -> Value:
    return Value("f64", b"\x44" + struct.pack("<d", value))


def v128(data: bytes) -> Value:
    """A constant of 16 bytes."""
    assert len(data) == 16
    return Value("v128", b"\xfd\x0c" + data)


def i8x16(*lanes: int) -> Value:
    """A constant; one lane stands for all. Lanes may be signed or unsigned."""
    return _vector(lanes, 1)


def i16x8(*lanes: int) -> Value:
    return _vector(lanes, 2)


def i32x4(*lanes: int) -> Value:
    return _vector(lanes, 4)


def f32x4(*lanes: float) -> Value:
    return v128(b"".join(pack_f32(x) for x in (lanes * 4 if len(lanes) == 1 else lanes)))


def pack_f32(value: float) -> bytes:
    """The nearest f32's bytes; infinity where there is none."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _vector(lanes: tuple[int, ...], width: int) -> Value:
    mask = (1 << 8 * width) - 1
    data = b"".join((x & mask).to_bytes(width, "little") for x in lanes)
    return v128(data * (16 // width) if len(lanes) == 1 else data)


_CONSTANTS: dict[Type, Callable[[float], Value]] = {
    "i32": lambda x: i32(int(x)),
    "i64": lambda x: i64(int(x)),
    "f32": f32,
    "f64": f64,
}


def value_of(operand: Operand, type: Type) -> Value:
    """``operand`` as a value of ``type``."""
    if isinstance(operand, Value):
        assert operand.type == type, f"{operand.type} where {type} is wanted"
        return operand
    return _CONSTANTS[type](operand)


def _code(
    name: str, operands: tuple[Operand, ...], offset: int, align: int | None, lane: int | None
) -> tuple[bytes, Type | None]:
    spec = OPCODES[name]
    assert len(operands) == len(spec.operands), f"{name} takes {spec.operands}"
    out = b""
    for operand, wanted in zip(operands, spec.operands, strict=True):
        if isinstance(operand, Value):
            assert operand.type == wanted, f"{name}: {operand.type} where {wanted} is wanted"
            out += operand.code
        else:
            out += _CONSTANTS[wanted](operand).code
    out += spec.code
    if spec.align >= 0:
        hint = spec.align if align is None else min(spec.align, align.bit_length() - 1)
        assert "atomic" not in name or hint == spec.align, f"{name} must be aligned"
        out += bytes((hint,)) + leb(offset)
    else:
        assert offset == 0 and align is None, f"{name} touches no memory"
    assert spec.lane == (lane is not None), f"{name}: lane"
    if lane is not None:
        out += bytes((lane,))
    return out, spec.result


def op(
    name: str,
    *operands: Operand,
    offset: int = 0,
    align: int | None = None,
    lane: int | None = None,
) -> Value:
    """The result of instruction ``name``. ``offset`` and ``align`` (bytes) for loads."""
    code, result = _code(name, operands, offset, align, lane)
    assert result is not None, f"{name} has no result: use Function.do"
    return Value(result, code)


def shuffle(a: Value, b: Value, *lanes: int) -> Value:
    """``i8x16.shuffle``: 16 byte numbers, 0 to 31."""
    assert len(lanes) == 16 and a.type == b.type == "v128"
    return Value("v128", a.code + b.code + b"\xfd\x0d" + bytes(lanes))


def select(condition: Operand, a: Value, b: Operand) -> Value:
    """``a`` where ``condition`` (i32) is not 0, else ``b``; both are computed."""
    code = a.code + value_of(b, a.type).code + value_of(condition, "i32").code
    if a.type == "v128":
        return Value(a.type, code + b"\x1c\x01\x7b")
    return Value(a.type, code + b"\x1b")


def call(function: Function, *args: Operand) -> Value:
    """The result of a call; ``function`` has exactly one."""
    assert len(function.results) == 1, function.name
    return Value(function.results[0], _call(function, args))


def _call(function: Function, args: Sequence[Operand]) -> bytes:
    types = [p.type for p in function.params]
    assert len(args) == len(types), f"{function.name} takes {types}"
    code = b"".join(value_of(a, t).code for a, t in zip(args, types, strict=True))
    return code + b"\x10" + leb(function.index)


# --- functions


@dataclass(frozen=True, slots=True)
class Label:
    """A block or loop that is open; ``level`` counts from 1 at the outermost."""

    level: int


class Function:
    """A function that is being written. Statements run in the order in which they are called."""

    def __init__(
        self,
        module: Module,
        name: str,
        index: int,
        params: Sequence[Type],
        results: Sequence[Type],
    ) -> None:
        self.module, self.name, self.index = module, name, index
        self.results = tuple(results)
        self.params = tuple(Local(t, i) for i, t in enumerate(params))
        self.body = bytearray()
        self._locals: list[Type] = []
        self._level = 0
        self._ended_if = -1  # where the body was after the end of an ``if``

    def local(self, type: Type) -> Local:
        """A new variable; zero at the function's start."""
        self._locals.append(type)
        return Local(type, len(self.params) + len(self._locals) - 1)

    def let(self, value: Value) -> Local:
        """A new variable that holds ``value`` as it is now."""
        local = self.local(value.type)
        self.set(local, value)
        return local

    def set(self, local: Local, value: Operand) -> None:
        self.body += value_of(value, local.type).code + b"\x21" + leb(local.index)

    def set_global(self, variable: Global, value: Operand) -> None:
        self.body += value_of(value, "i32").code + b"\x24" + leb(variable.index)

    def do(
        self,
        name: str,
        *operands: Operand,
        offset: int = 0,
        align: int | None = None,
        lane: int | None = None,
    ) -> None:
        """An instruction as a statement: a store, a copy, a fence; a result is dropped."""
        code, result = _code(name, operands, offset, align, lane)
        self.body += code if result is None else code + b"\x1a"

    def call(self, function: Function, *args: Operand) -> None:
        """Calls; results are dropped."""
        self.body += _call(function, args) + b"\x1a" * len(function.results)

    def call_indirect(self, params: Sequence[Type], index: Operand, *args: Operand) -> None:
        """Calls entry ``index`` of the module's table, a function of ``params`` without a result."""
        self.body += b"".join(value_of(a, t).code for a, t in zip(args, params, strict=True))
        number = self.module.type_index(tuple(params), ())
        self.body += value_of(index, "i32").code + b"\x11" + leb(number) + b"\0"

    def push(self, value: Value) -> None:
        """Leaves ``value`` on the stack: the function's result, as its last statement."""
        self.body += value.code

    def return_(self, value: Value | None = None) -> None:
        self.body += (value.code if value is not None else b"") + b"\x0f"

    # --- control

    @contextmanager
    def block(self) -> Iterator[Label]:
        """``br`` to its label leaves it."""
        yield self._open(b"\x02\x40")
        self._close()

    @contextmanager
    def loop(self) -> Iterator[Label]:
        """``br`` to its label starts it again; it ends by itself at its end."""
        yield self._open(b"\x03\x40")
        self._close()

    @contextmanager
    def if_(self, condition: Operand) -> Iterator[Label]:
        yield self._open(value_of(condition, "i32").code + b"\x04\x40")
        self._close()
        self._ended_if = len(self.body)

    @contextmanager
    def else_(self) -> Iterator[Label]:
        """Directly after the end of an ``if_``."""
        assert self._ended_if == len(self.body), "else_ without an if_ before it"
        self.body[-1] = 0x05
        self._level += 1
        yield Label(self._level)
        self._close()

    def br(self, label: Label) -> None:
        self.body += b"\x0c" + leb(self._depth(label))

    def br_if(self, label: Label, condition: Operand) -> None:
        self.body += value_of(condition, "i32").code + b"\x0d" + leb(self._depth(label))

    def br_table(self, labels: Sequence[Label], default: Label, index: Operand) -> None:
        """To ``labels[index]``, or to ``default`` beyond their end."""
        self.body += value_of(index, "i32").code + b"\x0e" + leb(len(labels))
        for label in (*labels, default):
            self.body += leb(self._depth(label))

    @contextmanager
    def for_range(
        self, start: Operand, end: Operand, step: Operand = 1, local: Local | None = None
    ) -> Iterator[Local]:
        """Counts ``local`` (a new one by default) from ``start`` while it is below ``end``, signed.

        ``end`` and ``step`` are computed once (a local given as one is read again and must not change).
        After the loop the local is ``end`` or the first value above.
        """
        i = local or self.local("i32")
        self.set(i, start)
        end, step = self._kept(end), self._kept(step)
        with self.if_(i < end), self.loop() as again:
            yield i
            self.set(i, i + step)
            self.br_if(again, i < end)

    def _kept(self, value: Operand) -> Operand:
        simple = isinstance(value, (Local, int, float))
        return value if simple else self.let(value_of(value, "i32"))

    def _open(self, code: bytes) -> Label:
        self.body += code
        self._level += 1
        return Label(self._level)

    def _close(self) -> None:
        self.body.append(0x0B)
        self._level -= 1

    def _depth(self, label: Label) -> int:
        assert 0 < label.level <= self._level, "a branch to a block that is closed"
        return self._level - label.level

    def encode(self) -> bytes:
        """The entry of the code section."""
        assert self._level == 0
        runs: list[tuple[int, Type]] = []
        for type in self._locals:
            if runs and runs[-1][1] == type:
                runs[-1] = (runs[-1][0] + 1, type)
            else:
                runs.append((1, type))
        head = leb(len(runs)) + b"".join(leb(n) + bytes((TYPE_CODES[t],)) for n, t in runs)
        return leb(len(head) + len(self.body) + 1) + head + bytes(self.body) + b"\x0b"


# --- modules


@dataclass(frozen=True, slots=True)
class Memory:
    """The imported memory, in pages of 64 KiB."""

    min: int
    max: int = MAX_PAGES
    shared: bool = False
    module: str = "env"
    name: str = "memory"


class Module:
    """Functions over one imported memory, mutable i32 globals, at most one table and data segments."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.functions: list[Function] = []
        self._types: dict[tuple[tuple[Type, ...], tuple[Type, ...]], int] = {}
        self._exports: list[tuple[str, int]] = []
        self._helpers: dict[str, Function] = {}
        self._globals: list[int] = []
        self._table: list[Function] = []
        self._data: list[tuple[int, bytes]] = []

    def function(
        self,
        name: str,
        params: Sequence[Type] = (),
        results: Sequence[Type] = (),
        export: bool = False,
    ) -> Function:
        """A new function; ``name`` is its export's."""
        made = Function(self, name, len(self.functions), params, results)
        self.functions.append(made)
        if export:
            self._exports.append((name, made.index))
        return made

    def helper(
        self,
        name: str,
        params: Sequence[Type],
        results: Sequence[Type],
        write: Callable[[Function], None],
    ) -> Function:
        """The module's one function ``name``; ``write`` fills it at the first call."""
        if name not in self._helpers:
            self._helpers[name] = made = self.function(name, params, results)
            write(made)
        return self._helpers[name]

    def global_(self, initial: int = 0) -> Global:
        self._globals.append(initial)
        return Global(len(self._globals) - 1)

    def in_table(self, function: Function) -> int:
        """Appends to the table of ``call_indirect``; the index there."""
        self._table.append(function)
        return len(self._table) - 1

    def data(self, offset: int, content: bytes) -> None:
        """Bytes that every instantiation writes at ``offset``."""
        self._data.append((offset, content))

    def type_index(self, params: tuple[Type, ...], results: tuple[Type, ...]) -> int:
        return self._types.setdefault((params, results), len(self._types))

    def encode(self) -> bytes:
        """The module's bytes."""
        types = [
            self.type_index(tuple(p.type for p in f.params), f.results) for f in self.functions
        ]
        signatures = [
            b"\x60"
            + _vec([bytes((TYPE_CODES[t],)) for t in side[0]])
            + _vec([bytes((TYPE_CODES[t],)) for t in side[1]])
            for side in self._types
        ]
        m = self.memory
        memory = _name(m.module) + _name(m.name) + b"\x02" + bytes((3 if m.shared else 1,))
        memory += leb(m.min) + leb(m.max)
        table = leb(len(self._table))
        element = b"\x00\x41\x00\x0b" + _vec([leb(f.index) for f in self._table])
        return b"\0asm\x01\0\0\0" + b"".join(
            (
                _section(1, signatures),
                _section(2, [memory]),
                _section(3, [leb(t) for t in types]),
                _section(4, [b"\x70\x01" + table + table] if self._table else []),
                _section(6, [b"\x7f\x01\x41" + sleb(g) + b"\x0b" for g in self._globals]),
                _section(7, [_name(name) + b"\0" + leb(index) for name, index in self._exports]),
                _section(9, [element] if self._table else []),
                _section(10, [f.encode() for f in self.functions]),
                _section(
                    11, [b"\0\x41" + sleb(at) + b"\x0b" + leb(len(d)) + d for at, d in self._data]
                ),
            )
        )


def _vec(items: list[bytes]) -> bytes:
    return leb(len(items)) + b"".join(items)


def _section(number: int, items: list[bytes]) -> bytes:
    if not items:
        return b""
    content = _vec(items)
    return bytes((number,)) + leb(len(content)) + content


def _name(name: str) -> bytes:
    data = name.encode()
    return leb(len(data)) + data

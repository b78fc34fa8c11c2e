"""Matrix products, and what is written with them."""

from __future__ import annotations

from fanlight.errors import FormatError
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.operators.reduction import wide
from fanlight.importers.onnx.registry import MICROSOFT, op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply
from fanlight.shapes import Size, product


def matmul(call: Call, a: Node, b: Node) -> Node:
    """numpy.matmul, vectors included."""
    rows, columns = len(a.shape) == 1, len(b.shape) == 1
    if not a.shape or not b.shape:
        raise FormatError("a product of a number", where=call.where)
    a = build.unsqueeze(a, [0]) if rows else a
    b = build.unsqueeze(b, [1]) if columns else b
    call.same(a.shape[-1], b.shape[-2], "the axis that is summed up")
    call.importer.broadcast([a.shape[:-2], b.shape[:-2]], call.where)
    kind = wide(a.dtype)
    out = cast(apply("dot", cast(a, kind), cast(b, kind)), a.dtype)
    dropped = [len(out.shape) - 2] * rows + [len(out.shape) - 1] * columns
    return build.squeeze(out, dropped) if dropped else out


@op("MatMul")
def _matmul(call: Call) -> Node:
    return matmul(call, call[0], call[1])


@op("Gemm", 7, attrs="alpha beta transA transB")
def gemm(call: Call) -> Node:
    """alpha a b + beta c."""
    a, b, c = call[0], call[1], call.get(2)
    a = build.transpose(a) if call.attr_bool("transA", False) else a
    b = build.transpose(b) if call.attr_bool("transB", False) else b
    out = _scaled(matmul(call, a, b), call.attr_float("alpha", 1.0))
    if c is None or call.attr_float("beta", 1.0) == 0.0:
        return out
    return call.elementwise("add", out, _scaled(c, call.attr_float("beta", 1.0)))


def _scaled(x: Node, factor: float) -> Node:
    return x if factor == 1.0 else do("mul", x, factor)


@op("FusedMatMul", domain=MICROSOFT, attrs="alpha transA transB transBatchA transBatchB")
def _fused_matmul(call: Call) -> Node:
    if call.attr_bool("transBatchA", False) or call.attr_bool("transBatchB", False):
        call.fail("products of transposed batches")
    a, b = call[0], call[1]
    a = build.transpose(a) if call.attr_bool("transA", False) else a
    b = build.transpose(b) if call.attr_bool("transB", False) else b
    return _scaled(matmul(call, a, b), call.attr_float("alpha", 1.0))


@op("Det", 11)
def _det(call: Call) -> Node:
    """By Laplace's expansion, for small matrices."""
    x = call[0]
    n = x.shape[-1]
    if not isinstance(n, int) or n > 5 or n != x.shape[-2]:
        call.fail("determinants of matrices larger than 5 x 5", got=n)
    at = {
        (i, j): build.squeeze(build.part(build.part(x, -2, i, 1), -1, j, 1), [-1, -2])
        for i in range(n)
        for j in range(n)
    }

    def minor(row: int, columns: tuple[int, ...]) -> Node:
        if len(columns) == 1:
            return at[row, columns[0]]
        total: Node | None = None
        for number, column in enumerate(columns):
            rest = columns[:number] + columns[number + 1 :]
            term = do("mul", at[row, column], minor(row + 1, rest))
            if total is None:
                total = term
            else:
                total = do("sub" if number % 2 else "add", total, term)
        assert total is not None
        return total

    return minor(0, tuple(range(n)))


# --- einsum


@op("Einsum", 12, attrs="equation")
def _einsum(call: Call) -> Node:
    equation = call.attr_string("equation").replace(" ", "")
    given, arrow, wanted = equation.partition("->")
    terms = given.split(",")
    nodes = [call[i] for i in range(len(terms))]
    dots = max(len(x.shape) - len(t.replace("...", "")) for x, t in zip(nodes, terms, strict=True))
    extra = "".join(chr(0x2460 + i) for i in range(max(dots, 0)))  # letters for "..."
    spelt = []
    for x, term in zip(nodes, terms, strict=True):
        count = len(x.shape) - len(term.replace("...", ""))
        spelt.append(term.replace("...", extra[len(extra) - count :]))
    if arrow:
        out = wanted.replace("...", extra)
    else:
        letters = "".join(spelt).translate({ord(c): None for c in extra})
        out = extra + "".join(c for c in sorted(set(letters)) if letters.count(c) == 1)
    sizes: dict[str, Size] = {}
    for x, term in zip(nodes, spelt, strict=True):
        for letter, size in zip(term, x.shape, strict=True):
            if letter in sizes and size != 1 and sizes[letter] != 1:
                call.same(sizes[letter], size, f"index {letter}")
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
    total, term = _diagonal(nodes[0], spelt[0])
    for number, (x, letters) in enumerate(zip(nodes[1:], spelt[1:], strict=True), 1):
        x, letters = _diagonal(x, letters)
        kept = out + "".join(spelt[number + 1 :])
        total, term = _contract(total, term, x, letters, kept, sizes)
    summed = [i for i, c in enumerate(term) if c not in out]
    total = build.reduce("sum", total, summed, keep=False)
    term = "".join(c for c in term if c in out)
    return build.permute(total, [term.index(c) for c in out])


def _diagonal(x: Node, term: str) -> tuple[Node, str]:
    """Indices that are named twice, once."""
    unique = "".join(dict.fromkeys(term))
    if len(unique) == len(term):
        return x, term
    shape = {c: x.shape[term.index(c)] for c in unique}
    places = [build.along(unique.index(c), len(unique), shape[c]) for c in term]
    return build.take(x, *places), unique


def _contract(
    a: Node, left: str, b: Node, right: str, kept: str, sizes: dict[str, Size]
) -> tuple[Node, str]:
    """The product of two terms, summed over what nobody else wants, as one batched product."""
    for_a = [i for i, c in enumerate(left) if c not in kept and c not in right]
    for_b = [i for i, c in enumerate(right) if c not in kept and c not in left]
    a, b = build.reduce("sum", a, for_a, keep=False), build.reduce("sum", b, for_b, keep=False)
    left = "".join(c for i, c in enumerate(left) if i not in for_a)
    right = "".join(c for i, c in enumerate(right) if i not in for_b)
    summed = "".join(c for c in left if c in right and c not in kept)
    batch = "".join(c for c in left if c in right and c in kept)
    rows = "".join(c for c in left if c not in right)
    columns = "".join(c for c in right if c not in left)
    if not summed:
        letters = batch + rows + columns
        x = _arranged(a, left, letters)
        return do("mul", x, _arranged(b, right, letters)), letters
    x, y = _arranged(a, left, batch + rows + summed), _arranged(b, right, batch + summed + columns)
    whole = [sizes[c] for c in batch]
    shape_a = [x.shape[i] for i in range(len(batch))]
    shape_b = [y.shape[i] for i in range(len(batch))]
    k = product([sizes[c] for c in summed])
    x = build.expand(x, [*x.shape[: len(batch) + len(rows)], *(sizes[c] for c in summed)])
    y = build.expand(y, [*shape_b, *(sizes[c] for c in summed), *y.shape[len(batch + summed) :]])
    m = product(x.shape[len(batch) : len(batch) + len(rows)])
    n = product(y.shape[len(batch + summed) :])
    x = build.reshape(x, (*shape_a, m, k))
    y = build.reshape(y, (*shape_b, k, n))
    made = apply("dot", x, y)
    full = [*whole, *(sizes[c] for c in rows + columns)]
    return build.reshape(made, full), batch + rows + columns


def _arranged(x: Node, term: str, wanted: str) -> Node:
    """Axes in the order of ``wanted``, those that it lacks of one element."""
    x = build.permute(x, [term.index(c) for c in wanted if c in term])
    return build.unsqueeze(x, [i for i, c in enumerate(wanted) if c not in term])

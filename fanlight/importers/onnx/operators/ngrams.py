"""Counts of n-grams, of tokens that are numbers."""

from __future__ import annotations

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.importers.onnx.registry import op
from fanlight.ir import build
from fanlight.ir.build import cast
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.ir.ops import apply

_ATTRS = """max_gram_length max_skip_count min_gram_length mode ngram_counts ngram_indexes
pool_int64s pool_strings weights"""


@op("TfIdfVectorizer", 9, attrs=_ATTRS)
def _tf_idf(call: Call) -> Node:
    """Tokens [C] or [N, C] → f32 [O] or [N, O]: how often each n-gram of the pool occurs, with 0 to
    ``max_skip_count`` tokens skipped between neighbours. Weights are counted as the outputs are."""
    x = call[0]
    if "pool_strings" in call.attributes:
        call.fail("tokens that are strings")
    mode = call.attr_string("mode")
    if mode not in ("TF", "IDF", "TFIDF"):
        call.fail("a mode", got=mode)
    places = call.attr_ints("ngram_indexes")
    width = max(places) + 1
    if len(set(places)) != len(places):
        call.fail("n-grams that share an output")
    rows = x if len(x.shape) == 2 else build.unsqueeze(x, [0])
    counted = [_counts(call, rows, size, grams) for size, grams in _pools(call)]
    order = _inverse(places, width)
    whole = build.concat([*counted, build.full(0, dtypes.i32, (rows.shape[0], 1))], 1)
    found = build.take_along(whole, 1, build.reshape(build.constant(order, dtypes.i32), (1, width)))
    weights = call.attr_floats("weights", (1.0,) * width)
    if len(weights) < width:
        call.fail("fewer weights than outputs", got=len(weights))
    amount = cast(found if mode != "IDF" else do("gt", found, 0), dtypes.f32)
    if mode != "TF":
        amount = do("mul", amount, build.constant(weights[:width], dtypes.f32))
    return amount if len(x.shape) == 2 else build.squeeze(amount, [0])


def _inverse(places: tuple[int, ...], width: int) -> list[int]:
    """For each output the number of its n-gram; one behind the last where there is none."""
    order = [len(places)] * width
    for number, place in enumerate(places):
        order[place] = number
    return order


def _pools(call: Call) -> list[tuple[int, list[tuple[int, ...]]]]:
    """The n-grams of each size, from 1 on."""
    starts, pool = call.attr_ints("ngram_counts"), call.attr_ints("pool_int64s")
    found = []
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(pool)
        size = number + 1
        found.append((size, [pool[i : i + size] for i in range(start, end, size)]))
    return found


def _counts(call: Call, rows: Node, size: int, grams: list[tuple[int, ...]]) -> Node:
    """[N, C] and n-grams of one size → i32 [N, their number]."""
    total = build.full(0, dtypes.i32, (rows.shape[0], len(grams)))
    shortest, longest = call.attr_int("min_gram_length"), call.attr_int("max_gram_length")
    length = rows.shape[1]
    if not isinstance(length, int):
        call.fail("a number of tokens that is free", got=str(length))
    if not shortest <= size <= longest:
        return total
    for step in range(1, call.attr_int("max_skip_count") + 2 if size > 1 else 2):
        count = length - (size - 1) * step
        if count <= 0 or not grams:
            break
        hit: Node | None = None
        for i in range(size):
            token = build.unsqueeze(build.part(rows, 1, i * step, count), [2])
            same = apply("eq", token, build.constant([g[i] for g in grams], rows.dtype))
            hit = same if hit is None else do("and", hit, same)
        assert hit is not None
        total = do("add", total, build.reduce("sum", cast(hit, dtypes.i32), [1], keep=False))
    return total

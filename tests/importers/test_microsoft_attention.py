"""com.microsoft's attention against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.importers.microsoft import Array, check

RNG = np.random.default_rng(9)
B, S, T, H, G, D, P = 2, 3, 5, 4, 2, 16, 4


def _normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype("f4")


def _ints(*values: Any) -> Array:
    return np.array(values, "i4")


WIDE = H * D
Q, K, V = _normal(B, S, WIDE), _normal(B, T, WIDE), _normal(B, T, WIDE)
PAST = [_normal(B, H, P, D), _normal(B, H, P, D)]
MULTI: dict[str, tuple[list[Array | None], dict[str, Any], list[str]]] = {
    "cross": ([Q, K, V], {}, ["y"]),
    "bias": ([Q, K, V, _normal(3 * WIDE)], {"scale": 0.2}, ["y"]),
    "mask": ([Q, K, V, None, _ints([1, 1, 1, 1, 0], [1, 1, 0, 0, 0])], {}, ["y"]),
    "lengths": ([Q, K, V, None, _ints(5, 2)], {"mask_filter_value": -5.0}, ["y"]),
    "scores": ([Q, K, V, None, None, _normal(1, H, S, T)], {}, ["y"]),
    "past": (
        [Q, K[:, :S], V[:, :S], None, None, None, *PAST], {"unidirectional": 1}, ["y", "k", "v"],
    ),
    "heads": ([Q, _normal(B, H, T, D), _normal(B, H, T, D)], {}, ["y"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTI)
def test_multi_head_attention(name: str) -> None:
    inputs, attributes, outputs = MULTI[name]
    check("MultiHeadAttention", inputs, {"num_heads": H, **attributes}, outputs)


def test_multi_head_attention_packed() -> None:
    """Keys and values in one tensor, and queries too: onnxruntime takes them apart on the CPU."""
    parts = [_normal(B, S, H, 1, D) for _ in range(3)]
    apart: list[Array | None] = [x.reshape(B, S, WIDE) for x in parts]
    for packed in ([np.concatenate(parts, 3)], [apart[0], np.concatenate(parts[1:], 3)]):
        check("MultiHeadAttention", packed, {"num_heads": H}, judged=apart)


X, WEIGHTS, BIAS = _normal(B, S, 16), _normal(16, 3 * WIDE), _normal(3 * WIDE)
WHOLE: dict[str, tuple[list[Array | None], dict[str, Any], list[str]]] = {
    "plain": ([X, WEIGHTS, BIAS], {}, ["y"]),
    "causal": ([X, WEIGHTS, BIAS], {"unidirectional": 1, "scale": 0.3}, ["y", "present"]),
    "mask": ([X, WEIGHTS, BIAS, _ints([1, 1, 0], [0, 1, 1])], {}, ["y"]),
    "ends": ([X, WEIGHTS, BIAS, _ints(3, 1)], {}, ["y"]),
    "ends-and-starts": ([X, WEIGHTS, BIAS, _ints(3, 2, 1, 0)], {}, ["y"]),
    "mask-of-rows": ([X, WEIGHTS, BIAS, RNG.integers(0, 2, (B, S, S)).astype("i4")], {}, ["y"]),
    "past": (
        [X, WEIGHTS, BIAS, None, _normal(2, B, H, P, D)], {"unidirectional": 1}, ["y", "present"],
    ),
    "widths": (
        [X, _normal(16, 2 * WIDE + 16), _normal(2 * WIDE + 16)],
        {"qkv_hidden_sizes": [WIDE, WIDE, 16]}, ["y"],
    ),
    "scores": ([X, WEIGHTS, BIAS, None, None, _normal(B, H, S, S)], {}, ["y"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_attention(name: str) -> None:
    inputs, attributes, outputs = WHOLE[name]
    check("Attention", inputs, {"num_heads": H, **attributes}, outputs, fixed=[1, 2])


def _group(rows: int, past: int, length: int, last: list[int]) -> list[Array | None]:
    """Inputs 0 to 8 of GroupQueryAttention."""
    batch = len(last)
    angles = RNG.uniform(0, 3, (16, D // 2)).astype("f4")
    return [
        _normal(batch, rows, WIDE), _normal(batch, rows, G * D), _normal(batch, rows, G * D),
        _normal(batch, G, past, D), _normal(batch, G, past, D),
        _ints(*last), np.array(length, "i4"), np.cos(angles), np.sin(angles),
    ]  # fmt: skip


GROUPS: dict[str, tuple[list[Array | None], dict[str, Any]]] = {
    "prompt": (_group(5, 0, 5, [4, 4]), {}),
    "prompt-uneven": (_group(5, 0, 5, [4, 2]), {"do_rotary": 1}),
    "step": (_group(1, 4, 5, [4, 4]), {"do_rotary": 1}),
    "step-uneven": (_group(1, 4, 5, [4, 2]), {"do_rotary": 1, "rotary_interleaved": 1}),
    "rows": (_group(3, 4, 7, [6]), {"do_rotary": 1, "scale": 0.2}),
    "buffer": (_group(1, 9, 5, [4, 4]), {"do_rotary": 1}),
    "window": (_group(6, 0, 6, [5, 5]), {"local_window_size": 2}),
    "window-step": (_group(1, 6, 7, [6, 5]), {"local_window_size": 3}),
    "softcap": (_group(1, 4, 5, [4, 4]), {"softcap": 2.0}),
    "smooth": (_group(1, 4, 5, [4, 4]), {"smooth_softmax": 1}),
    "sink": ([*_group(1, 4, 5, [4, 4]), None, None, _normal(H)], {}),
    "bias": ([*_group(2, 3, 5, [4]), None, _normal(1, 1, 2, 5)], {"do_rotary": 1}),
    "positions": (
        [*_group(2, 3, 5, [4]), np.array([[3, 7]], "i8")], {"do_rotary": 1},
    ),
    "packed": (
        [_normal(B, 1, (H + 2 * G) * D), None, None, *_group(1, 4, 5, [4, 4])[3:]],
        {"do_rotary": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("free", [False, True], ids=["known", "free"])
@pytest.mark.parametrize("name", GROUPS)
def test_group_query_attention(name: str, free: bool) -> None:
    """``free``: rows, the past and the length are given by the run."""
    inputs, attributes = GROUPS[name]
    shapes: dict[int, tuple[int | str, ...]] = {}
    if free:
        for at in range(3):
            if (x := inputs[at]) is not None:
                shapes[at] = ("b", "s", x.shape[2])
        shapes |= {3: ("b", G, "p", D), 4: ("b", G, "p", D), 5: ("b",)}
    fixed = [7, 8] if free else [6, 7, 8]
    attributes = {"num_heads": H, "kv_num_heads": G, **attributes}
    check("GroupQueryAttention", inputs, attributes, ["y", "k", "v"], free=shapes, fixed=fixed)


ANGLES = _normal(16, D // 2)
ROTARY: dict[str, tuple[list[Array | None], dict[str, Any]]] = {
    "from": ([Q, np.array([3], "i8"), ANGLES, _normal(16, D // 2)], {}),
    "heads": (
        [PAST[0], RNG.integers(0, 16, (B, P)), ANGLES, _normal(16, D // 2)], {"interleaved": 1},
    ),
    "part": (
        [Q, RNG.integers(0, 16, (B, S)), ANGLES[:, :2], _normal(16, 2)],
        {"num_heads": H, "rotary_embedding_dim": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_embedding(name: str) -> None:
    inputs, attributes = ROTARY[name]
    check("RotaryEmbedding", inputs, attributes, fixed=[2, 3])

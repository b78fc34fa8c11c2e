"""``Tensor``: what goes in comes out, for every element type, through each door."""

from __future__ import annotations

import array
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fanlight import Tensor
from fanlight.errors import InputError, UnsupportedError
from fanlight.inference.tensor import NAMES, as_tensor, dtype_of, nbytes

SMALL = {"int2": (-2, 1), "int4": (-8, 7), "uint2": (0, 3), "uint4": (0, 15)}


def numpy_type(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, name))


def sample(name: str, shape: tuple[int, ...]) -> Any:
    """Values that the type holds exactly."""
    rng = np.random.default_rng(len(name))
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    low, high = SMALL.get(name, (0, 100) if name.startswith("uint") else (-100, 100))
    if name.startswith(("float8", "float4", "bfloat")):
        low, high = 0, 2
    if name == "float8_e8m0fnu":
        low, high = 1, 2
    return rng.integers(low, high + 1, shape).astype("f8").astype(numpy_type(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 0, 3)])
def test_arrays_come_back(name: str, shape: tuple[int, ...]) -> None:
    given = sample(name, shape)
    tensor = as_tensor(given)
    assert (tensor.dtype, tensor.shape) == (name, shape)
    assert tensor.nbytes == nbytes(dtype_of(name), shape) == len(tensor.data)
    back = np.asarray(tensor)
    assert back.dtype == given.dtype and back.shape == shape
    assert back.tobytes() == given.tobytes()
    if dtype_of(name).kind == "float" and dtype_of(name).bytes == 1:
        with pytest.raises(UnsupportedError, match="no numbers"):
            tensor.tolist()
    else:
        assert tensor.tolist() == given.astype("f8").tolist()


def test_packed_elements_begin_in_the_lowest_bits() -> None:
    assert bytes(as_tensor(np.array([1, -2, 3], ml_dtypes.int4)).data) == b"\xe1\x03"
    assert bytes(as_tensor(np.array([1, 2, 3, 0, 1], ml_dtypes.uint2)).data) == b"\x39\x01"


def test_order_of_bytes_and_elements() -> None:
    given = np.arange(12, dtype=">i4").reshape(3, 4).T
    tensor = as_tensor(given)
    assert tensor.shape == (4, 3)
    assert tensor.tolist() == given.tolist()


def test_buffers() -> None:
    assert str(as_tensor(array.array("f", [1, 2.5]))) == "Tensor(float32[2])"
    assert as_tensor(array.array("q", [-1])).tolist() == [-1]
    assert as_tensor(b"ab").tolist() == [97, 98]
    shaped = memoryview(bytes(range(24))).cast("i", (2, 3))
    assert as_tensor(shaped).shape == (2, 3)
    assert as_tensor(shaped).memoryview().tolist() == shaped.tolist()
    assert Tensor(bytes(8), "float32").shape == (2,)
    assert Tensor(bytes(8), "float16", (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_numbers() -> None:
    assert Tensor([[1, 2], [3, 4]], "int64").shape == (2, 2)
    assert Tensor(3).tolist() == 3.0
    assert Tensor([True, False], "bool").tolist() == [True, False]
    with pytest.raises(InputError, match="different lengths"):
        Tensor([[1], [2, 3]])
    with pytest.raises(InputError, match="doesn't fit"):
        Tensor([300], "uint8")


def test_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="doesn't fill the shape"):
        Tensor(bytes(8), "float32", (3,))
    with pytest.raises(InputError, match="unknown dtype"):
        Tensor(bytes(8), "f32")
    with pytest.raises(InputError, match="neither a buffer nor an array"):
        as_tensor(object())
    with pytest.raises(InputError, match="no model takes"):
        as_tensor(np.array([1j]))

"""Files of arrays: numpy reads what we write, and we read what numpy writes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fanlight.cli import npy
from fanlight.errors import FormatError, StoreError, UnsupportedError
from fanlight.inference.tensor import as_tensor

TYPES = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 ?".split()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_both_ways(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    given = np.random.default_rng(1).integers(0, 100, shape).astype(kind)
    np.save(tmp_path / "a.npy", given)
    tensor = npy.read(tmp_path / "a.npy")
    assert (tensor.dtype, tensor.shape) == (given.dtype.name, shape)
    assert bytes(tensor.data) == given.tobytes()
    npy.write(tmp_path / "folder" / "b.npy", tensor)
    back = np.load(tmp_path / "folder" / "b.npy")
    assert back.dtype == given.dtype and back.shape == shape
    assert np.array_equal(back, given)


def test_types_that_numpy_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    npy.write(path, as_tensor(np.array([[1, -2, 3]], ml_dtypes.int4)))
    assert np.load(path).tolist() == [[1, -2, 3]]
    npy.write(path, as_tensor(np.array([1.5, -2], ml_dtypes.bfloat16)))
    assert np.load(path).view(ml_dtypes.bfloat16).tolist() == [1.5, -2]


def test_what_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't open"):
        npy.read(tmp_path / "none.npy")
    path = tmp_path / "a.npy"
    path.write_bytes(b"text, and more of it")
    with pytest.raises(FormatError, match=r"not a \.npy"):
        npy.read(path)
    for wrong in (np.zeros(2, ">f4"), np.zeros((2, 3), "f4", order="F"), np.zeros(2, "c8")):
        np.save(path, wrong)
        with pytest.raises(UnsupportedError, match="ascontiguousarray"):
            npy.read(path)
    np.save(path, np.arange(4.0))
    path.write_bytes(path.read_bytes().replace(b"'shape'", b"'shap '"))
    with pytest.raises(FormatError, match="malformed"):
        npy.read(path)

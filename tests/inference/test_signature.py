"""Dims from tensors where an input's axis is a formula of another's symbols."""

from __future__ import annotations

import pytest

from fanlight.errors import InputError
from fanlight.inference.signature import Signature, TensorInfo
from fanlight.inference.tensor import Tensor
from fanlight.shapes import Dim

N = Dim("n", "host", 100)


def test_formulas_wait_for_their_symbols() -> None:
    double = TensorInfo("double", "uint8", (N * 2, 3), "double")
    plain = TensorInfo("plain", "uint8", (N,), "plain")
    signature = Signature((double, plain), ())

    def dims(rows: int, n: int) -> dict[str, int]:
        data = Tensor(bytes(3 * rows), shape=(rows, 3))
        return signature.dims({"double": data, "plain": Tensor(bytes(n))})

    assert dims(14, 7) == {"n": 7}
    assert dims(0, 0) == {"n": 0}
    with pytest.raises(InputError, match=r"input double, axis 0: wrong size .got 12, wanted 14 = "):
        dims(12, 7)
    with pytest.raises(InputError, match=r"input plain, axis 0: too large .got 101, wanted at mos"):
        dims(202, 101)

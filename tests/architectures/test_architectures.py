"""Exported architectures equal onnxruntime, at two sets of free sizes, on every backend."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from fanlight import InferenceSession
from tests.architectures import exported, genai

Array = NDArray[Any]
BOUND = 3e-5  # of the greatest output; f32 sums in another order


@cache
def _exported(name: str) -> bytes:
    return exported.EXPORTS[name]()


@cache
def _reference(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data)


async def _compare(data: bytes, runs: list[dict[str, Array]], provider: str) -> None:
    async with await InferenceSession.create(data, execution_providers=[provider]) as session:
        assert session.info.backend == provider
        for feeds in runs:
            got = await session.run(feeds)
            for value, wanted in zip(got.values(), _reference(data).run(None, feeds), strict=True):
                assert np.abs(wanted).max() > 1e-3  # not zeros
                np.testing.assert_allclose(value, wanted, rtol=0, atol=BOUND * np.abs(wanted).max())


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
@pytest.mark.parametrize("name", exported.EXPORTS)
async def test_exported_by_torch(name: str, provider: str) -> None:
    data = _exported(name)
    await _compare(data, [exported.feeds(data, sizes) for sizes in exported.SIZES], provider)


@pytest.mark.parametrize("provider", ["wasm", "webgpu"])
async def test_a_decoder_of_genais(provider: str) -> None:
    runs = [genai.feeds(past, sequence, batch) for past, sequence, batch in ((0, 7, 1), (7, 1, 1))]
    await _compare(genai.decoder(), [*runs, genai.feeds(20, 1, 2)], provider)

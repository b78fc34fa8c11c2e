"""The files that tests write: read by our reader and by the ``gguf`` package alike."""

from __future__ import annotations

from pathlib import Path

import gguf as reference
import numpy as np
import pytest

from fanlight.formats import gguf
from fanlight.formats.dequant import dequantise
from tests import gguf_files

MODELS = {
    "llama": gguf_files.Model(
        hidden=256, ffn=512, types={"*": "q4_0", "*attn_v*": "q6_k", "*ffn_down*": "q4_k"}
    ),
    "llama3": gguf_files.Model(llama3_factor=8.0, tied=False, types={"*": "q4_1", "out*": "f16"}),
    "qwen3": gguf_files.Model(arch="qwen3", head_size=32, types={"token*": "bf16", "*q.*": "f32"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_reads_as_the_reference_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(path, MODELS[name])
    data = path.read_bytes()
    ours = gguf.parse(data, file_size=len(data))
    theirs = reference.GGUFReader(path)
    assert ours.architecture == MODELS[name].arch
    assert ours.version == 3
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for key, value in fields.items():
        mine = ours.metadata[key]
        assert (list(mine) if isinstance(value, list) else mine) == value, key  # type: ignore[arg-type]
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.dtype.name == tensor.tensor_type.name.lower()
        assert info.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert info.offset == tensor.data_offset
        assert info.length == tensor.n_bytes
        weights = dequantise(data[info.offset : info.offset + info.length], info.dtype, info.shape)
        want = reference.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape)
        np.testing.assert_array_equal(weights, want)
        if len(info.shape) == 2:
            deviation = float(weights.std()) * info.shape[1] ** 0.5
            assert 0.7 < deviation < 1.4, tensor.name
            assert abs(float(weights.mean())) < 0.15 * float(weights.std())


def test_llama3_factors_are_llama_cpps() -> None:
    """A constant part at both ends, as in Llama 3.1 (head 128, base 500,000, 8,192 → 131,072)."""
    model = gguf_files.Model(
        hidden=4096, heads=32, rope_base=500000.0, context=32768, llama3_factor=8.0
    )
    factors = gguf_files.llama3_factors(model)
    assert factors.shape == (64,)
    assert (factors[:29] == 1).all()
    assert (factors[36:] == 8).all()
    assert (np.diff(factors) >= 0).all()

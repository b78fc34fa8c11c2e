"""Architectures: graphs run by the interpreter, against transformers over the same weights.

What is held here is independent of code generation. NMSE is over the logits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanlight import dtypes
from fanlight.archs import llama
from fanlight.errors import FormatError, UnsupportedError
from fanlight.ir.graph import WeightSource
from fanlight.ir.verify import verify_module
from tests import gguf_files
from tests.modules import Interpreted, build, nmse
from tests.prompts import PROMPTS
from tests.reference import answers, torch_models

BOUND = 1e-9  # f32 variants; measured: 1e-11 at most
OPTIONS = llama.Options(context=1024, chunk=128, max_steps=4, scores=True)
TOKENS = [int(t) for t in np.random.default_rng(5).integers(0, 320, 100)]

_BLOCKS = gguf_files.Model(hidden=256, heads=4, ffn=512)  # whole blocks of every type
MODELS: dict[str, gguf_files.Model] = {
    **{
        f"llama {kind}": replace(_BLOCKS, types={"*": kind})
        for kind in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k")
    },
    "llama untied": gguf_files.Model(tied=False),
    "llama head size": gguf_files.Model(head_size=32, kv_heads=1),
    "llama heads": gguf_files.Model(kv_heads=4, rope_base=500000.0, eps=1e-6),
    "llama3 rope": gguf_files.Model(llama3_factor=8.0, rope_base=500000.0),
    "qwen3": gguf_files.Model(arch="qwen3", head_size=32, eps=1e-6),
    "qwen3 untied": gguf_files.Model(arch="qwen3", tied=False, rope_base=1e6),
}


def rope_parameters(model: gguf_files.Model) -> dict[str, Any] | None:
    """transformers' own form of what the file has as ``rope_freqs``."""
    if not model.llama3_factor:
        return None
    return {
        "rope_type": "llama3",
        "rope_theta": model.rope_base,
        "factor": model.llama3_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": model.context // 4,
    }


@pytest.mark.parametrize("name", MODELS)
def test_small_models(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(path, MODELS[name])
    wanted = torch_models.logits(
        torch_models.torch_model(path, rope_parameters(MODELS[name])), TOKENS
    )
    module = build(path, llama.Options(chunk=32, scores=True))
    verify_module(module)
    for precise in (False, True):
        got = Interpreted(path, module, precise).scores(TOKENS, 32)
        assert nmse(got, wanted) <= BOUND, f"precise={precise}"


def test_llama3_factors_matter(tmp_path: Path) -> None:
    """The test above would see it if the factors were left out."""
    path, model = tmp_path / "model.gguf", MODELS["llama3 rope"]
    gguf_files.write(path, model)
    wanted = torch_models.logits(torch_models.torch_model(path), TOKENS)
    got = Interpreted(path, build(path, llama.Options(scores=True))).scores(TOKENS, 128)
    assert nmse(got, wanted) > 1e-4


# --- the real model


@pytest.fixture(scope="module")
def interpreted() -> Interpreted:
    path = answers.model_path()
    return Interpreted(path, build(path, OPTIONS))


def _answer(name: str) -> answers.Answer:
    return answers.answers()[[p.name for p in PROMPTS].index(name)]


@pytest.mark.parametrize(
    ("name", "chunk"), [("capital", 128), ("capital", 7), ("code in the middle", 128)]
)
def test_smollm2(interpreted: Interpreted, name: str, chunk: int) -> None:
    answer = _answer(name)
    got = interpreted.scores(answer.tokens, chunk)
    assert nmse(got[answer.rows], answer.logits) <= BOUND
    clear = answer.lead > 1e-3
    np.testing.assert_array_equal(got.argmax(-1)[clear], answer.best[clear])


def test_smollm2_decodes(interpreted: Interpreted) -> None:
    answer = _answer("capital")
    last = answer.prompt_length - 1
    interpreted.scores(answer.tokens[:last], 128)
    assert interpreted.decode(answer.tokens[last], last, 16) == answer.continuation[:16]


@pytest.mark.parametrize("plant", ["signs", "offset", "growing"])
def test_a_rope_error_of_2e_4_fails(interpreted: Interpreted, plant: str) -> None:
    """Sines that are off by 2e-4, as some devices' own are, everywhere or more and more as far as
    position 1,000."""
    answer = _answer("code in the middle")
    good = interpreted.states["rope.sin"]
    signs = np.random.default_rng(0).choice([-1, 1], good.shape)
    error = {
        "signs": 2e-4 * signs,
        "offset": np.full(good.shape, 2e-4),
        "growing": 2e-4 * signs * np.arange(len(good))[:, None] / 1000,
    }[plant]
    try:
        interpreted.states["rope.sin"] = (good + error).astype("f4")
        got = interpreted.scores(answer.tokens, 128)
    finally:
        interpreted.states["rope.sin"] = good
    assert nmse(got[answer.rows], answer.logits) > BOUND


def test_rope_tables_are_good_to_f32(interpreted: Interpreted) -> None:
    """The products of two small tables are within 2e-7 of f64."""
    context = len(interpreted.states["rope.cos"])
    angles = np.arange(context)[:, None] * 100000.0 ** (-np.arange(0, 64, 2) / 64)
    for name, wanted in (("rope.cos", np.cos(angles)), ("rope.sin", np.sin(angles))):
        assert abs(interpreted.states[name] - wanted).max() < 2e-7


# --- what is refused


def _metadata(**changes: Any) -> dict[str, Any]:
    values = {
        "block_count": 1,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-5,
    } | changes
    return {"general.architecture": "llama"} | {f"llama.{k}": v for k, v in values.items()}


_SHAPES = {"token_embd.weight": (320, 64)}


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"general.architecture": "mamba"}, UnsupportedError, "unknown architecture .*mamba"),
        (_metadata(expert_count=8), UnsupportedError, "mixture of experts"),
        (_metadata(**{"rope.scaling.type": "yarn"}), UnsupportedError, "rope scaling .*yarn"),
        (_metadata(block_count=1 << 40), FormatError, "llama.block_count: not a sensible count"),
        (_metadata(**{"attention.value_length": 8}), UnsupportedError, "different sizes"),
        ({"general.architecture": "llama"}, FormatError, "missing key"),
    ],
)
def test_configurations_that_are_refused(
    metadata: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llama.config_from_gguf(metadata, _SHAPES)


def test_missing_and_misshapen_tensors_are_named() -> None:
    config = llama.config_from_gguf(_metadata(), _SHAPES)
    weights = {"token_embd.weight": WeightSource(dtypes.f32, (320, 64))}
    with pytest.raises(FormatError, match=r"blk\.0\.attn_norm\.weight: missing tensor"):
        llama.build(config, weights, {})
    shapes = gguf_files.tensor_shapes(gguf_files.Model(layers=1))
    weights = {n: WeightSource(dtypes.f32, s) for n, s in shapes.items()}
    weights["blk.0.attn_q.weight"] = WeightSource(dtypes.f32, (32, 64))
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: tensor of the wrong shape"):
        llama.build(config, weights, {})

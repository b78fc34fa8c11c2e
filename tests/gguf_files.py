"""Writes GGUF files of random weights, small ones for tests and large ones for measurements of
memory.

``write(path, Model(arch="qwen3", types={"*": "q4_1", "*_norm.weight": "f32"}))``. Weights are
random blocks of each format, drawn as bytes rather than quantised, so that all formats can be made
and a gigabyte takes seconds; matrices are scaled to keep activations near 1. The file carries a
tiny byte-level tokeniser (256 bytes, some merges, three control tokens) and the ChatML template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from fanlight.dtypes import DTYPES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    *("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o n", "r e", "Ġ o", "Ġo f", "a n", "Ġa n"),
    *("Ġan d", "Ġ w", "Ġ s", "o r", "a t", "e n", "l l", "o u", "Ġ c", "Ġ Ġ", "ĠĠ ĠĠ", "Ð ¾"),
    *("Ð °", "Ð µ"),
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MIN_VOCAB = len(SPECIAL) + 256 + len(MERGES)
_PATTERN = 4093  # blocks drawn per tensor, then repeated; a prime, so that rows differ

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Model:
    """Sizes of a model. ``types``: pattern of tensor names → dtype name, the last match counts;
    matrices that none matches are ``q8_0``, vectors are always ``f32``. ``llama3_factor``: scales
    rope as Llama 3.1 does (8 there), stored as llama.cpp stores it, in ``rope_freqs.weight``."""

    arch: str = "llama"
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 0  # hidden / heads
    ffn: int = 128
    vocab: int = 320
    context: int = 256
    types: Mapping[str, str] = field(default_factory=dict)
    tied: bool = True
    rope_base: float = 10000.0
    llama3_factor: float = 0.0
    eps: float = 1e-5
    seed: int = 0

    @property
    def head(self) -> int:
        return self.head_size or self.hidden // self.heads


def write(path: Path, model: Model) -> None:
    """Writes the file; at most one tensor is in memory."""
    writer = gguf.GGUFWriter(path, model.arch)
    _add_config(writer, model)
    _add_tokenizer(writer, model.vocab)
    shapes = tensor_shapes(model)
    for name, shape in shapes.items():
        kind = _type_of(name, shape, model)
        bytes_shape = _bytes_shape(shape, kind)
        writer.add_tensor_info(
            name,
            bytes_shape,
            np.dtype(np.uint8),
            math.prod(bytes_shape),
            raw_dtype=gguf.GGMLQuantizationType[kind.upper()],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(model.seed)
    for name, shape in shapes.items():
        writer.write_tensor_data(_draw(name, shape, model, rng))
    writer.close()


def tensor_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name → shape, outermost dimension first."""
    m, q, kv = model, model.heads * model.head, model.kv_heads * model.head
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (m.vocab, m.hidden)}
    if m.llama3_factor:
        shapes["rope_freqs.weight"] = (m.head // 2,)
    for i in range(m.layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (m.hidden,),
            "attn_q": (q, m.hidden),
            "attn_k": (kv, m.hidden),
            "attn_v": (kv, m.hidden),
            "attn_output": (m.hidden, q),
            "ffn_norm": (m.hidden,),
            "ffn_gate": (m.ffn, m.hidden),
            "ffn_up": (m.ffn, m.hidden),
            "ffn_down": (m.hidden, m.ffn),
        }
        if m.arch == "qwen3":
            layer |= {"attn_q_norm": (m.head,), "attn_k_norm": (m.head,)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (m.hidden,)
    if not m.tied:
        shapes["output.weight"] = (m.vocab, m.hidden)
    return shapes


def _add_config(writer: gguf.GGUFWriter, model: Model) -> None:
    writer.add_name("random")
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head)
    writer.add_value_length(model.head)
    writer.add_rope_dimension_count(model.head)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(model.eps)
    writer.add_vocab_size(model.vocab)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    if vocab < MIN_VOCAB:
        raise ValueError(f"vocab must be at least {MIN_VOCAB}")
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(c) for c in plain] + [chr(0x100 + i) for i in range(256 - len(plain))]
    tokens = [*SPECIAL, *alphabet, *(m.replace(" ", "") for m in MERGES)]
    unused = vocab - len(tokens)
    kinds = gguf.TokenType
    types = [kinds.CONTROL] * len(SPECIAL) + [kinds.NORMAL] * (len(tokens) - len(SPECIAL))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, *(f"[UNUSED_{i}]" for i in range(unused))])
    writer.add_token_types([*types, *[kinds.UNUSED] * unused])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def _type_of(name: str, shape: tuple[int, ...], model: Model) -> str:
    if len(shape) == 1:
        return "f32"
    matches = [kind for pattern, kind in model.types.items() if fnmatchcase(name, pattern)]
    return matches[-1] if matches else "q8_0"


def _bytes_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    dtype = DTYPES[kind]
    if shape[-1] % dtype.block:
        raise ValueError(f"rows of {shape[-1]} are not whole {kind} blocks")
    return (*shape[:-1], dtype.nbytes(shape[-1]))


def _draw(name: str, shape: tuple[int, ...], model: Model, rng: np.random.Generator) -> Array:
    """Bytes of one tensor, uint8 of ``_bytes_shape``."""
    if name == "rope_freqs.weight":
        return llama3_factors(model).view(np.uint8)
    if len(shape) == 1:
        weights = 1 + 0.1 * rng.standard_normal(shape)
        return weights.astype(np.float32).view(np.uint8)
    kind = _type_of(name, shape, model)
    bytes_shape = _bytes_shape(shape, kind)
    total = math.prod(shape) // DTYPES[kind].block
    blocks = random_blocks(kind, min(total, _PATTERN), 1 / math.sqrt(shape[-1]), rng)
    return np.resize(blocks, bytes_shape)


def llama3_factors(model: Model) -> Array:
    """float32 [head / 2]: what each rope frequency is divided by (``rope_scaling`` of type
    "llama3": low_freq_factor 1, high_freq_factor 4, over a quarter of the context)."""
    old = model.context / 4
    wavelengths = 2 * math.pi * model.rope_base ** (np.arange(0, model.head, 2) / model.head)
    smooth = np.clip((old / wavelengths - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - smooth) / model.llama3_factor + smooth)).astype(np.float32)


def random_blocks(kind: str, count: int, deviation: float, rng: np.random.Generator) -> Array:
    """uint8 [count, bytes of a block]: random weights of mean about 0 and about that deviation."""
    dtype = DTYPES[kind]
    if dtype.kind == "float":
        values = (rng.standard_normal((count, 1)) * deviation).astype(np.float32)
        if kind == "bf16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype({"f32": np.float32, "f16": np.float16}[kind]).view(np.uint8)
    raw = rng.integers(0, 256, (count, dtype.bytes), dtype=np.uint8)
    spread = deviation * rng.uniform(0.7, 1.3, (count, 1))

    def half(values: Array) -> Array:
        return values.astype(np.float16).view(np.uint8)

    if kind == "q8_0":
        raw[:, 0:2] = half(spread / 74)  # deviation of -128 … 127
    elif kind == "q4_0":
        raw[:, 0:2] = half(spread / 4.6)  # of 0 … 15
    elif kind == "q4_1":
        raw[:, 0:4] = np.concatenate([half(spread / 4.6), half(spread / 4.6 * -7.5)], axis=1)
    elif kind == "q4_k":
        raw[:, 8:12] = raw[:, 4:8]  # the minima are the scales: d·scale·(q - 7.5)
        raw[:, 12:16] = (raw[:, 12:16] & 15) * 17
        d = spread / 4.6 / 37
        raw[:, 0:4] = np.concatenate([half(d), half(d * 7.5)], axis=1)
    elif kind == "q6_k":
        raw[:, 208:210] = half(spread / 18.5 / 74)
    else:
        raise ValueError(f"no random {kind}")
    return raw

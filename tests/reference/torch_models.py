"""GGUF file → a transformers model in f32, its weights dequantised by the ``gguf`` package.

Independent of everything in ``fanlight``. llama.cpp stores the rows of Llama's q and k so that rope
turns neighbours; transformers turns halves: the rows are put back in order here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

Array = NDArray[Any]
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def metadata(path: Path) -> dict[str, Any]:
    """The file's metadata as the ``gguf`` package reads it."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def weights(path: Path) -> dict[str, Array]:
    """Every tensor, dequantised to f32, outermost dimension first."""
    out = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        out[tensor.name] = np.array(values, "f4").reshape(shape)
    return out


def torch_model(path: Path, rope: dict[str, Any] | None = None) -> Any:
    """LlamaForCausalLM or Qwen3ForCausalLM with the file's weights. ``rope``: transformers'
    ``rope_parameters`` where the file only has their effect (``rope_freqs``)."""
    meta, tensors = metadata(path), weights(path)
    arch = meta["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{arch}.{key}", default)

    heads = get("attention.head_count")
    head_size = get("attention.key_length", get("embedding_length") // heads)
    settings = {
        "vocab_size": len(tensors["token_embd.weight"]),
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_size,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": rope
        or {"rope_type": "default", "rope_theta": float(get("rope.freq_base", 10000.0))},
        "attn_implementation": "eager",
    }
    prefix = {"llama": "Llama", "qwen3": "Qwen3"}[arch]
    config = getattr(transformers, f"{prefix}Config")(**settings)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).to(torch.float32).eval()
    values = {
        _name(name): torch.from_numpy(_ordered(arch, name, value, head_size))
        for name, value in tensors.items()
        if name != "rope_freqs.weight"
    }
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert not unexpected, unexpected
    tied = "output.weight" not in tensors
    assert set(missing) <= ({"lm_head.weight"} if tied else set()), missing
    model.tie_weights()
    return model


def _ordered(arch: str, name: str, value: Array, head_size: int) -> Array:
    if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        pairs = value.reshape(-1, head_size // 2, 2, value.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(value.shape))
    return value


def _name(name: str) -> str:
    """transformers' name of a GGUF tensor."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    return f"{_TOP[parts[0]]}.{parts[1]}"


def logits(model: Any, tokens: list[int]) -> Array:
    """f32 [len(tokens), vocab]."""
    with torch.inference_mode():
        out: Array = model(torch.tensor([tokens])).logits[0].numpy()
    return out

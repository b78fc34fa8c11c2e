"""Tokenisers built by hand from the parts of ``tokenizers``, as the models' own tokenizer.json
files have them: the yardstick for what we read from GGUF. The file is read by the ``gguf``
package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _regex(*expressions: str) -> list[Any]:
    return [Split(Regex(e), "isolated") for e in expressions]


def _bytes(use_regex: bool) -> Any:
    return ByteLevel(add_prefix_space=False, use_regex=use_regex)


# tokenizer.ggml.pre → the pre-tokenizer of the models that it stands for
PRE_TOKENIZERS: dict[str, list[Any]] = {
    "smollm": [Digits(individual_digits=True), _bytes(True)],
    "gpt-2": [_bytes(True)],
    "llama-bpe": [*_regex(_LLAMA3), _bytes(False)],
    "dbrx": [*_regex(_LLAMA3), _bytes(False)],
    "qwen2": [*_regex(_QWEN2), _bytes(False)],
    "gpt-4o": [*_regex(_GPT4O), _bytes(False)],
    "tekken": [*_regex(_TEKKEN), _bytes(False)],
    "deepseek-coder": [
        *_regex("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"),
        Digits(individual_digits=True),
        _bytes(False),
    ],
    "deepseek-v3": [*_regex(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3), _bytes(False)],
    "seed-coder": [*_regex(_SEED), _bytes(False)],
}


@cache
def fields(path: Path) -> dict[str, Any]:
    """All metadata, as the ``gguf`` package reads it."""
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()}


def byte_level(path: Path, pre: str) -> Tokenizer:
    """Byte-level BPE with the vocabulary of the file and the pre-tokenizer of that name."""
    values = fields(path)
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in values["tokenizer.ggml.merges"]]
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=merges,
        ignore_merges=pre in ("llama-bpe", "tekken"),
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Sequence(PRE_TOKENIZERS[pre])
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return tokenizer


def byte_level_decoder() -> Any:
    """Turns what the tokens spell back into bytes, and those into text."""
    return decoders.ByteLevel()

"""GGUF metadata → a tokeniser: a Hugging Face ``tokenizer.json`` for encoding, a vocabulary for
decoding.

In: the keys ``tokenizer.ggml.*``. Models known: "gpt2" (byte-level BPE, cut by a named rule of
:mod:`fanlight.text.pretokenizers`) and "llama" (SentencePiece BPE with byte fallback). Not known
here: "bert", "t5", "rwkv" and others, which raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fanlight.errors import FormatError, InputError, UnsupportedError
from fanlight.text import pretokenizers
from fanlight.text.encoders import Encoder, RestoredEncoder, TokenizerJson, create_encoder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
MAX_PIECE = 256  # characters of a SentencePiece token; training allows 16 unless told

# Tokens that end an answer though the file's ids don't say so. The names are the models' own; the
# list follows llama.cpp's (llama_vocab::impl::load).
_ENDS = frozenset(
    """<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|eom_id|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance>
    <｜end▁of▁sentence｜> </s>""".split()
)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """The tokeniser of a file. Raises FormatError for missing or malformed keys, UnsupportedError
    naming a model or pre-tokeniser that is not known, MissingDependencyError."""
    return GgufTokenizer(metadata, create_encoder(tokenizer_json(metadata)))


def tokenizer_from_notes(notes: Mapping[str, Any], js: Any) -> GgufTokenizer:
    """The tokeniser that made ``notes`` (:meth:`GgufTokenizer.notes`). ``js``: its encoder, as
    :class:`fanlight.text.encoders.RestoredEncoder` wants it."""
    encoder = RestoredEncoder(js)
    metadata = notes["metadata"] | {"tokenizer.ggml.tokens": encoder.tokens}
    return GgufTokenizer(metadata, encoder, dict(notes["added"]))


def tokenizer_json(metadata: Mapping[str, Any]) -> TokenizerJson:
    """The ``tokenizer.json``. Adding BOS and EOS is left to the caller.

    Raises as :func:`tokenizer_from_gguf`."""
    model = _model(metadata)
    tokens = _strings(metadata, "tokens")
    if model == "gpt2":
        rest, bpe, merges = _byte_level(metadata)
    else:
        rest, bpe, merges = _sentencepiece(metadata, tokens)
    added = [
        {
            "id": i,
            "content": tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for i, special in _added(metadata, tokens).items()
        if tokens[i]
    ]
    head = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **rest,
        "post_processor": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            **bpe,
            "vocab": {},
            "merges": [],
        },
    }
    return TokenizerJson(head, tokens, merges)


# --- keys


def _model(metadata: Mapping[str, Any]) -> str:
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise UnsupportedError(
            "unknown tokenizer model",
            where="tokenizer.ggml.model",
            got=repr(model),
            wanted="gpt2 or llama",
        )
    return str(model)


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise FormatError("missing or empty list", where=f"tokenizer.ggml.{key}")
    if not isinstance(value[0], str):
        raise FormatError("not a list of strings", where=f"tokenizer.ggml.{key}")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> Sequence[float] | None:
    """The list of one number per token, or None where the file has none."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if (
        not isinstance(value, Sequence)
        or len(value) != count
        or not isinstance(value[0], int | float)
    ):
        raise FormatError("not one number per token", where=f"tokenizer.ggml.{key}", wanted=count)
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise FormatError("not a boolean", where=f"tokenizer.ggml.{key}", got=value)
    return value


def _id(metadata: Mapping[str, Any], key: str, count: int, default: int | None) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < count:
        raise FormatError("not a token id", where=f"tokenizer.ggml.{key}", got=value, wanted=count)
    return value


def _added(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[int, bool]:
    """Tokens that are found in the text before anything is cut: id → whether it is a control token
    (which decoding skips), or the user's own."""
    types = _numbers(metadata, "token_type", len(tokens))
    if types is None:
        return {}
    found = {i: kind for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    return {i: kind != USER_DEFINED or tokens[i] in _ENDS for i, kind in found.items()}


# --- models


def _byte_level(
    metadata: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], Sequence[str]]:
    name = metadata.get("tokenizer.ggml.pre", "default")
    rule = pretokenizers.find(str(name))
    if _flag(metadata, "add_space_prefix", False):
        raise UnsupportedError(
            "a space before the text is not supported", where="tokenizer.ggml.add_space_prefix"
        )
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": False}
        for e in rule.expressions
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    rest: dict[str, Any] = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
    }
    bpe = {
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": rule.ignore_merges,
    }
    return rest, bpe, _strings(metadata, "merges")


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], Sequence[str]]:
    if _flag(metadata, "remove_extra_whitespaces", False):
        raise UnsupportedError(
            "dropping white space is not supported",
            where="tokenizer.ggml.remove_extra_whitespaces",
        )
    prefix = _flag(metadata, "add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unknown = _id(metadata, "unknown_token_id", len(tokens), 0)
    rest: dict[str, Any] = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
    }
    bpe = {
        "unk_token": tokens[unknown or 0],
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
    }
    return rest, bpe, _merges_from_scores(metadata, tokens)


def _merges_from_scores(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    """SentencePiece joins the neighbours whose union scores best; as BPE that is every cut of every
    normal token into two, best score first (longer left part first among equals, as transformers'
    converter has it)."""
    scores = _numbers(metadata, "scores", len(tokens))
    if scores is None:
        raise FormatError("missing list", where="tokenizer.ggml.scores")
    types = _numbers(metadata, "token_type", len(tokens)) or [NORMAL] * len(tokens)
    vocab = {t: i for i, t in enumerate(tokens) if types[i] == NORMAL and " " not in t}
    merges: list[tuple[float, int, str]] = []
    for token, i in vocab.items():
        if len(token) > MAX_PIECE:
            raise FormatError("token too long", where=f"tokenizer.ggml.tokens[{i}]", got=len(token))
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[i], -cut, f"{left} {right}"))
    merges.sort(key=lambda m: m[:2])
    return [merge for _, _, merge in merges]


# --- decoding


def _byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabulary: printable bytes for
    themselves, the others from U+0100 on (``bytes_to_unicode``, openai/gpt-2 encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(other)}


_ALPHABET = _byte_level_alphabet()
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_SURROGATE = re.compile("[\ud800-\udfff]")


class GgufTokenizer:
    """The :class:`fanlight.text.tokenizer.Tokenizer` of a GGUF file's metadata, encoding by
    ``encoder``. ``added``: the tokens that :func:`_added` finds, if they are known. Raises
    FormatError for malformed keys."""

    def __init__(
        self,
        metadata: Mapping[str, Any],
        encoder: Encoder,
        added: Mapping[int, bool] | None = None,
    ) -> None:
        self.encoder = encoder
        self._metadata = {
            key: value
            for key, value in metadata.items()
            if key.startswith("tokenizer.ggml.") and isinstance(value, str | int | float)
        }
        self._byte_level = _model(metadata) == "gpt2"
        self._tokens = tokens = _strings(metadata, "tokens")
        self._added = _added(metadata, tokens) if added is None else added
        self.vocab_size = count = len(tokens)
        self.strips_space = not self._byte_level and _flag(metadata, "add_space_prefix", True)
        self.bos_id = _id(metadata, "bos_token_id", count, None if self._byte_level else 1)
        self._eos_id = _id(metadata, "eos_token_id", count, None if self._byte_level else 2)
        self.eos_ids = self._find_ends(metadata)
        self.bos_token = "" if self.bos_id is None else tokens[self.bos_id]
        self.eos_token = "" if self._eos_id is None else tokens[self._eos_id]
        pre = str(metadata.get("tokenizer.ggml.pre", "default"))
        add_bos = pretokenizers.find(pre).add_bos if self._byte_level else True
        self._add_bos = _flag(metadata, "add_bos_token", add_bos)
        self._add_eos = _flag(metadata, "add_eos_token", False)

    def notes(self) -> dict[str, Any]:
        """What :func:`tokenizer_from_notes` needs beside the encoder; JSON."""
        return {"metadata": self._metadata, "added": list(self._added.items())}

    def _find_ends(self, metadata: Mapping[str, Any]) -> frozenset[int]:
        ids = {_id(metadata, key, self.vocab_size, None) for key in _END_KEYS} | {self._eos_id}
        texts = {self._tokens[i]: i for i, special in self._added.items() if special}
        ends = texts.keys() & _ENDS
        if {"<|return|>", "<|call|>"} <= ends:
            ends.discard("<|end|>")  # OpenAI's harmony format: ends a message, not the answer
        return frozenset(i for i in ids if i is not None) | {texts[t] for t in ends}

    def encode(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """See :meth:`fanlight.text.tokenizer.Tokenizer.encode`."""
        ids = self.encoder.encode(_SURROGATE.sub("\ufffd", text), parse_special)
        if add_special and self._add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and self._add_eos and self._eos_id is not None:
            ids.append(self._eos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """See :meth:`fanlight.text.tokenizer.Tokenizer.decode`."""
        text = b"".join(self.token_bytes(i, skip_special) for i in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_space else text

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """See :meth:`fanlight.text.tokenizer.Tokenizer.token_bytes`."""
        if not 0 <= token < self.vocab_size:
            raise InputError("no such token", got=token, wanted=f"0 to {self.vocab_size - 1}")
        special = self._added.get(token)
        if special and skip_special:
            return b""
        text = self._tokens[token]
        if special is not None:
            return text.encode()
        if not self._byte_level:
            byte = _BYTE_TOKEN.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
        if all(c in _ALPHABET for c in text):
            return bytes(_ALPHABET[c] for c in text)
        return text.encode()

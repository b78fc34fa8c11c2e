"""Ids from GGUF's tokenisers: the same as ``tokenizers`` built by hand, in CPython and in
JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fanlight.errors import FormatError, InputError, UnsupportedError
from fanlight.formats.gguf import parse
from fanlight.text import pretokenizers
from fanlight.text.gguf_tokenizer import GgufTokenizer, tokenizer_from_gguf
from fanlight.text.tokenizer import StreamDecoder, Tokenizer
from tests.text import references
from tests.text.cases import cases
from tests.text.node import node
from tests.text.strings import corpus

TEXTS = corpus()


@pytest.fixture(scope="session")
def metadata(smollm2_gguf: Path) -> Mapping[str, Any]:
    with smollm2_gguf.open("rb") as file:
        return parse(file.read(1 << 22), file_size=smollm2_gguf.stat().st_size).metadata


@pytest.fixture(scope="session")
def smollm(metadata: Mapping[str, Any]) -> GgufTokenizer:
    return tokenizer_from_gguf(metadata)


def test_is_a_tokenizer(smollm: GgufTokenizer) -> None:
    tokenizer: Tokenizer = smollm
    assert tokenizer.vocab_size == 49152
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {0, 2}
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert not tokenizer.strips_space


@pytest.mark.parametrize("pre", references.PRE_TOKENIZERS)
def test_ids_are_the_librarys(pre: str, metadata: Mapping[str, Any], smollm2_gguf: Path) -> None:
    ours = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": pre})
    theirs = references.byte_level(smollm2_gguf, pre)
    wrong = [t for t in TEXTS if ours.encode(t) != theirs.encode(t, add_special_tokens=False).ids]
    assert wrong == []


@pytest.mark.parametrize("row", pretokenizers.PRE_TOKENIZERS, ids=lambda r: r.names[0])
def test_javascript_gives_the_same_ids(
    row: pretokenizers.PreTokenizer, metadata: Mapping[str, Any]
) -> None:
    request = cases({**metadata, "tokenizer.ggml.pre": row.names[0]}, TEXTS)
    answer = node("encode", **request)
    for kind in ("ids", "plain_ids"):
        rows = zip(TEXTS, answer[kind], request[kind], strict=True)
        wrong = [(text, got, want) for text, got, want in rows if got != want]
        assert wrong == [], f"{len(wrong)} of {len(TEXTS)} differ"


def test_decoding_gives_the_text_back(smollm: GgufTokenizer, smollm2_gguf: Path) -> None:
    theirs = references.byte_level(smollm2_gguf, "smollm")
    theirs.decoder = references.byte_level_decoder()
    for text in TEXTS:
        ids = smollm.encode(text)
        assert smollm.decode(ids, skip_special=False) == text
        assert smollm.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_stream_decoder_equals_decode(smollm: GgufTokenizer) -> None:
    for text in TEXTS:
        ids = smollm.encode(text)
        decoder = StreamDecoder(smollm)
        pieces = [decoder.push([i]) for i in ids]
        rest = decoder.flush()
        assert rest == ""
        assert "".join(pieces) == smollm.decode(ids)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


def test_stream_decoder_ends_inside_a_character(smollm: GgufTokenizer) -> None:
    first = smollm.encode("🥵")[0]
    decoder = StreamDecoder(smollm)
    assert decoder.push([first]) == ""
    assert decoder.flush() == "\ufffd"
    decoder = StreamDecoder(smollm)
    assert decoder.push([first, *smollm.encode("ok")]) == "\ufffdok"


def test_special_tokens_as_text(smollm: GgufTokenizer) -> None:
    assert smollm.encode("<|im_end|>") == [2]
    plain = smollm.encode("<|im_end|>", parse_special=False)
    assert 2 not in plain
    assert smollm.decode(plain) == "<|im_end|>"
    assert smollm.encode("<|im_end|>") == [2]


def test_bos_and_eos(metadata: Mapping[str, Any]) -> None:
    flags = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = tokenizer_from_gguf({**metadata, **flags})
    plain = tokenizer.encode("Hello")
    assert tokenizer.encode("Hello", add_special=True) == [1, *plain, 2]


def test_lone_surrogates_are_replaced(smollm: GgufTokenizer) -> None:
    assert smollm.decode(smollm.encode("a\ud800b")) == "a\ufffdb"


def test_ids_outside_the_vocabulary(smollm: GgufTokenizer) -> None:
    for token in (-1, 49152):
        with pytest.raises(InputError):
            smollm.decode([token])


TINY: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>", "<|return|>", "<|call|>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 3],
    "tokenizer.ggml.merges": ["a b"],
}


def test_harmonys_end_of_message_is_no_end() -> None:
    assert tokenizer_from_gguf(TINY).eos_ids == {4, 5}
    phi = {**TINY, "tokenizer.ggml.token_type": [1, 1, 1, 4, 1, 1]}
    assert tokenizer_from_gguf(phi).eos_ids == {3}


REFUSED: dict[str, tuple[str, Any, type[Exception], str]] = {
    "model": ("model", "t5", UnsupportedError, "'t5'"),
    "no model": ("model", None, UnsupportedError, "None"),
    "pre": ("pre", "klingon", UnsupportedError, "'klingon'"),
    "tokens": ("tokens", [], FormatError, "tokens"),
    "tokens of numbers": ("tokens", [1], FormatError, "tokens"),
    "types": ("token_type", [1], FormatError, "token_type"),
    "merge": ("merges", ["ab"], FormatError, "'ab'"),
    "merge of strangers": ("merges", ["x y"], FormatError, "refuses"),
    "no merges": ("merges", None, FormatError, "merges"),
    "eos": ("eos_token_id", 6, FormatError, "eos_token_id"),
    "bos": ("bos_token_id", "1", FormatError, "bos_token_id"),
    "flag": ("add_bos_token", 1, FormatError, "add_bos_token"),
    "space": ("add_space_prefix", True, UnsupportedError, "add_space_prefix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    key, value, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        tokenizer_from_gguf({**TINY, f"tokenizer.ggml.{key}": value})

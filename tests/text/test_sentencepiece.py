"""SentencePiece tokenisers from GGUF against the algorithm itself, written out: join the
best-scored pair of neighbours, leftmost first, until none is in the vocabulary; what is left over
becomes bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from fanlight.errors import FormatError, UnsupportedError
from fanlight.text.gguf_tokenizer import tokenizer_from_gguf
from fanlight.text.tokenizer import StreamDecoder
from tests.text.cases import cases
from tests.text.node import node
from tests.text.strings import corpus

TEXTS = [
    *corpus(),
    *("<s>", "</s>a", "a<s>b", " <s> ", "<unk>", "\ufffd", "▁a▁", "[own]x [own]", "  leading"),
]
SPECIAL = ["<unk>", "<s>", "</s>"]
OWN = "[own]"


@cache
def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types in the manner of Llama 2, trained on the texts."""
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=[], show_progress=False)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS * 2 + ["the of and ▁▁ ▁▁▁▁ \n\n"] * 50, trainer)
    vocab = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pieces = [t for t, _ in vocab if len(t) > 1]
    # every other single character is left out, so that it falls back to bytes
    letters = [t for t, _ in vocab if (len(t) == 1 and (ord(t) < 128 or ord(t) % 2)) or t == "▁"]
    pieces = [t for t in pieces if set(t) <= set(letters)]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokens = [*SPECIAL, *bytes_, OWN, *pieces, *letters]
    types = [2, 3, 3, *[6] * 256, 4, *[1] * (len(pieces) + len(letters))]
    scores = [0.0] * 260 + [-float(i) for i in range(len(pieces) + len(letters))]
    assert len(tokens) > 1000
    return tokens, scores, types


def metadata(prefix: bool) -> dict[str, Any]:
    tokens, scores, types = vocabulary()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


class Algorithm:
    def __init__(self, prefix: bool) -> None:
        tokens, scores, types = vocabulary()
        self.prefix = prefix
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.scores = {t: scores[i] for i, t in enumerate(tokens) if types[i] == 1}

    def encode(self, text: str) -> list[int]:
        added = "|".join(map(re.escape, [*SPECIAL, OWN]))
        ids: list[int] = []
        for section in re.split(f"({added})", text):
            if section in (*SPECIAL, OWN):
                ids.append(self.ids[section])
            elif section:
                ids += self._section(("▁" if self.prefix else "") + section.replace(" ", "▁"))
        return ids

    def _section(self, text: str) -> list[int]:
        symbols = list(text)
        while True:
            pairs = [(self.scores.get(a + b), -i) for i, (a, b) in enumerate(_pairs(symbols))]
            known = [(score, place) for score, place in pairs if score is not None]
            if not known:
                break
            at = -max(known)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [i for symbol in symbols for i in self._ids(symbol)]

    def _ids(self, symbol: str) -> list[int]:
        if symbol in self.ids:
            return [self.ids[symbol]]
        return [self.ids[f"<0x{b:02X}>"] for b in symbol.encode()]


def _pairs(symbols: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(symbols))


@pytest.mark.parametrize("prefix", [True, False])
def test_ids_are_the_algorithms(prefix: bool) -> None:
    ours, theirs = tokenizer_from_gguf(metadata(prefix)), Algorithm(prefix)
    wrong = [t for t in TEXTS if ours.encode(t) != theirs.encode(t)]
    assert wrong == []


@pytest.mark.parametrize("prefix", [True, False])
def test_javascript_gives_the_same_ids(prefix: bool) -> None:
    request = cases(metadata(prefix), TEXTS)
    answer = node("encode", **request)
    for kind in ("ids", "plain_ids"):
        rows = zip(TEXTS, answer[kind], request[kind], strict=True)
        assert [(text, got, want) for text, got, want in rows if got != want] == []


@pytest.mark.parametrize("prefix", [True, False])
def test_round_trip(prefix: bool) -> None:
    tokenizer = tokenizer_from_gguf(metadata(prefix))
    assert tokenizer.strips_space == prefix
    for text in TEXTS:
        if any(s in text for s in (*SPECIAL, OWN)):
            continue  # the section after it begins with a space of its own
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text.replace("▁", " ")
        decoder = StreamDecoder(tokenizer)
        streamed = "".join([*(decoder.push([i]) for i in ids), decoder.flush()])
        assert streamed == tokenizer.decode(ids)


def test_bos_by_default() -> None:
    tokenizer = tokenizer_from_gguf(metadata(True))
    assert tokenizer.encode("a", add_special=True)[0] == 1
    assert tokenizer.eos_ids == {2}


def test_refuses() -> None:
    long = metadata(True)
    long["tokenizer.ggml.tokens"] = [*long["tokenizer.ggml.tokens"][:-1], "x" * 300]
    with pytest.raises(FormatError, match="too long"):
        tokenizer_from_gguf(long)
    scoreless = metadata(True)
    del scoreless["tokenizer.ggml.scores"]
    with pytest.raises(FormatError, match="scores"):
        tokenizer_from_gguf(scoreless)
    with pytest.raises(UnsupportedError, match="white"):
        tokenizer_from_gguf({**metadata(True), "tokenizer.ggml.remove_extra_whitespaces": True})

"""The tokenizer of the page in a real Chromium: the ids of ``tokenizers`` in CPython."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from fanlight.formats.gguf import parse
from fanlight.text.pretokenizers import PRE_TOKENIZERS
from tests.text.cases import cases
from tests.text.strings import corpus

ENCODE = """async ({ head, tokens, merges, texts }) => {
  const { createTokenizer } = await import('/fanlight/web/text.js');
  const tokenizer = createTokenizer(head);
  for (const piece of tokens) tokenizer.addTokens(piece);
  for (const piece of merges) tokenizer.addMerges(piece);
  const all = (special) => texts.map((text) => [...tokenizer.encode(text, special)]);
  return { ids: all(true), plain_ids: all(false) };
}"""


@pytest.fixture(scope="module")
def metadata(smollm2_gguf: Path) -> Mapping[str, Any]:
    with smollm2_gguf.open("rb") as file:
        return parse(file.read(1 << 22), file_size=smollm2_gguf.stat().st_size).metadata


@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.names[0])
def test_ids_of_1000_strings(page: Page, metadata: Mapping[str, Any], row: Any) -> None:
    texts = corpus()
    request = cases({**metadata, "tokenizer.ggml.pre": row.names[0]}, texts)
    answer = page.evaluate(ENCODE, {k: request[k] for k in ("head", "tokens", "merges", "texts")})
    for kind in ("ids", "plain_ids"):
        rows = zip(texts, answer[kind], request[kind], strict=True)
        wrong = [(text, got, want) for text, got, want in rows if got != want]
        assert wrong == [], f"{len(wrong)} of {len(texts)} differ"

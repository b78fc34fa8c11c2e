"""Cases for tokenisers in JavaScript: the same JSON for Node and for a real browser.

``cases(metadata)`` → ``{"head", "tokens": [piece, …], "merges": [piece, …], "texts": [text, …],
"ids": [[id, …], …]}``: what ``createTokenizer``, ``addTokens`` and ``addMerges`` of
fanlight/web/text.js take, texts, and the ids that ``encode(text, true)`` must give, which are those
of ``tokenizers`` in CPython.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fanlight.text.encoders import create_encoder
from fanlight.text.gguf_tokenizer import tokenizer_json


def cases(metadata: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """See the module's text."""
    source = tokenizer_json(metadata)
    encoder = create_encoder(source)
    return {
        "head": json.dumps(source.head),
        "tokens": [json.dumps(piece) for piece in source.token_pieces()],
        "merges": [json.dumps(piece) for piece in source.merge_pieces()],
        "texts": list(texts),
        "ids": [encoder.encode(text, True) for text in texts],
        "plain_ids": [encoder.encode(text, False) for text in texts],
    }

"""Text → ids by the library at hand: ``tokenizers`` in CPython, ``@huggingface/tokenizers`` in
Pyodide.

In: a Hugging Face ``tokenizer.json`` of model type BPE, its two long lists apart. The JavaScript
side is ``fanlight/web/text.js``, which the worker registers as the module ``fanlight_js``.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

from fanlight.errors import FormatError, MissingDependencyError

_GARBAGE = 64 << 20  # bytes, more than enough: what the pieces leave is collected now
_PIECE = 4096  # strings per piece of JSON, so that few of them live at once


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A ``tokenizer.json``: ``head`` is all of it with ``model.vocab`` and ``model.merges`` empty.
    ``tokens``: by id. ``merges``: "left right", best first."""

    head: dict[str, Any]
    tokens: Sequence[str]
    merges: Sequence[str]

    def token_pieces(self) -> Iterator[list[str]]:
        """All tokens in order, a few thousand at a time."""
        return _pieces(self.tokens)

    def merge_pieces(self) -> Iterator[list[str]]:
        """All merges in order, a few thousand at a time. Raises FormatError for what is not one."""
        for piece in _pieces(self.merges):
            for merge in piece:
                if merge.count(" ") != 1:
                    raise FormatError("not a merge of two parts", where="merges", got=repr(merge))
            yield piece

    def text(self) -> str:
        """The file's text, in ASCII. Raises FormatError as :meth:`merge_pieces`."""
        model = {**self.head["model"]}
        del model["vocab"], model["merges"]
        vocab, start = [], 0
        for piece in self.token_pieces():
            ids = range(start, start + len(piece))
            vocab.append(json.dumps(dict(zip(piece, ids, strict=True)))[1:-1])
            start += len(piece)
        merges = [json.dumps(piece)[1:-1] for piece in self.merge_pieces()]
        rest = {key: value for key, value in self.head.items() if key != "model"}
        return (
            f'{json.dumps(rest)[:-1]}, "model": {json.dumps(model)[:-1]}, '
            f'"vocab": {{{", ".join(vocab)}}}, "merges": [{", ".join(merges)}]}}}}'
        )


def _pieces(items: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), _PIECE):
        yield list(items[start : start + _PIECE])


class Encoder(Protocol):
    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of ``text``, which holds no lone surrogate; nothing is added before or after."""


def create_encoder(source: TokenizerJson) -> Encoder:
    """The encoder of this home. Raises FormatError where the library refuses the tokeniser, and
    MissingDependencyError."""
    return _BrowserEncoder(source) if sys.platform == "emscripten" else _NativeEncoder(source)


class _NativeEncoder:
    def __init__(self, source: TokenizerJson) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependencyError(
                "the package tokenizers is needed", hint='Run: pip install "fanlight[native]"'
            ) from error
        text = source.text()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise FormatError("tokenizers refuses the tokenizer", got=error) from error
        self._lock = threading.Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class _BrowserEncoder:
    def __init__(self, source: TokenizerJson) -> None:
        bridge: Any = importlib.import_module("fanlight_js")
        errors: Any = importlib.import_module("pyodide.ffi")
        try:
            self.js = bridge.createTokenizer(json.dumps(source.head))
            for piece in source.token_pieces():
                self.js.addTokens(json.dumps(piece))
            for piece in source.merge_pieces():
                self.js.addMerges(json.dumps(piece))
            bridge.tellCollector(_GARBAGE)
        except errors.JsException as error:
            raise FormatError("tokenizers.js refuses the tokenizer", got=error) from error

    def encode(self, text: str, parse_special: bool) -> list[int]:
        return _encode(self.js, text, parse_special)


class RestoredEncoder:
    """The encoder that ``text.js`` made of a ``dump``; its tokens never become Python's."""

    def __init__(self, js: Any) -> None:
        self.js, self.tokens = js, _Tokens(js)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """See :class:`Encoder`."""
        return _encode(self.js, text, parse_special)


class _Tokens(Sequence[str]):
    """Texts of tokens by id."""

    def __init__(self, js: Any) -> None:
        self._js, self._count = js, int(js.tokens)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return str(self._js.token(index))


def _encode(js: Any, text: str, parse_special: bool) -> list[int]:
    # an Int32Array, seen as a memoryview
    ids: list[int] = js.encode(text, parse_special).to_py().tolist()
    return ids

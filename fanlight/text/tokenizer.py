"""What a tokeniser is, and streams of tokens → streams of text.

Text → ids is the work of a library (``fanlight.text.encoders``); ids → text is ours, and the same
in both homes: a token stands for bytes, and text is those bytes as UTF-8.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol


class Tokenizer(Protocol):
    """Text ↔ ids. Ids are 0 … ``vocab_size`` - 1."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the model has one."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end an answer: of the text, of the turn, of the message."""

    @property
    def bos_token(self) -> str:
        """Text of ``bos_id``, as chat templates want it; empty if there is none."""

    @property
    def eos_token(self) -> str:
        """Text of the token that the file calls EOS; empty if there is none."""

    @property
    def strips_space(self) -> bool:
        """Whether decoded text drops one leading space, which encoding had added."""

    def encode(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of ``text``. ``add_special``: with BOS and EOS where the model wants them.
        ``parse_special``: text that spells a control token becomes that token; otherwise (for
        text that is not trusted) it stays text. Lone surrogates become U+FFFD."""

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD. Raises InputError for an id
        outside the vocabulary."""

    def token_bytes(self, token: int, skip_special: bool = True) -> bytes:
        """The UTF-8 bytes, perhaps a part of a character, that a token stands for. Control tokens
        give none if ``skip_special``. Raises InputError as :meth:`decode`."""


class StreamDecoder:
    """Ids → text piece by piece. All pieces joined, with :meth:`flush` at the end, equal
    ``tokenizer.decode`` of all ids; a piece never holds a part of a character."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_space

    def push(self, ids: Iterable[int]) -> str:
        """Text that is complete with ``ids``; empty while a character is not."""
        return self._clean(b"".join(self._tokenizer.token_bytes(i, self._skip) for i in ids))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished."""
        return self._clean(b"", final=True)

    def _clean(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

"""The whole path of text in Pyodide (reader, tokeniser, template, decoder), as CPython has it."""

from __future__ import annotations

from pathlib import Path

from fanlight.formats.gguf import parse
from fanlight.text.chat_template import render
from fanlight.text.gguf_tokenizer import tokenizer_from_gguf
from tests.text.node import pyodide
from tests.text.strings import corpus

CODE = """
import json
from pathlib import Path
from fanlight.errors import FanlightError
from fanlight.formats.gguf import parse
from fanlight.text.chat_template import render
from fanlight.text.gguf_tokenizer import tokenizer_from_gguf
from fanlight.text.tokenizer import StreamDecoder

name, texts, chat = json.loads(input)
path = Path("/files", name)
with path.open("rb") as file:
    metadata = parse(file.read(1 << 22), file_size=path.stat().st_size).metadata
tokenizer = tokenizer_from_gguf(metadata)

def error(call):
    try:
        call()
    except FanlightError as error:
        return [error.code, str(error)]

def stream(ids):
    decoder = StreamDecoder(tokenizer)
    return "".join([*(decoder.push([i]) for i in ids), decoder.flush()])

ids = [tokenizer.encode(text) for text in texts]
strange = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a"],
    "tokenizer.ggml.merges": ["nomerge"],
}
json.dumps({
    "ids": ids,
    "plain": tokenizer.encode("<|im_end|>", parse_special=False),
    "surrogate": tokenizer.encode("a\\ud800b"),
    "texts": [stream(i) for i in ids],
    "prompt": render(metadata["tokenizer.chat_template"], chat, bos_token="", eos_token=""),
    "errors": [
        error(lambda: render("{{ raise_exception('not so') }}", chat)),
        error(lambda: render("{% for %}", chat)),
        error(lambda: tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": "klingon"})),
        error(lambda: tokenizer_from_gguf(strange)),
    ],
})
"""
CHAT = [{"role": "user", "content": "Qual è la capitale della Francia? 🇫🇷"}]


def test_text_in_pyodide(smollm2_gguf: Path) -> None:
    path = smollm2_gguf.resolve()  # a link would lead out of what Pyodide sees
    texts = corpus()
    got = pyodide(CODE, [path.name, texts, CHAT], path.parent)
    with path.open("rb") as file:
        metadata = parse(file.read(1 << 22), file_size=path.stat().st_size).metadata
    tokenizer = tokenizer_from_gguf(metadata)
    ids = [tokenizer.encode(text) for text in texts]
    assert got["ids"] == ids
    assert got["texts"] == [tokenizer.decode(i) for i in ids]
    assert got["plain"] == tokenizer.encode("<|im_end|>", parse_special=False)
    assert got["surrogate"] == tokenizer.encode("a\ufffdb")
    template = metadata["tokenizer.chat_template"]
    assert isinstance(template, str)
    assert got["prompt"] == render(template, CHAT)
    codes = [code for code, _ in got["errors"]]
    assert codes == ["TemplateError", "TemplateError", "UnsupportedError", "FormatError"]
    assert "not so" in got["errors"][0][1]
    assert "klingon" in got["errors"][2][1]

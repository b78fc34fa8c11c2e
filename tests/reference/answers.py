"""The reference's answers to ``tests/prompts.py``: computed once, kept in the user's cache folder.

    python -m tests.reference.answers [MODEL.gguf]     computes them: about three minutes

For each prompt: its ids, the greedy continuation of ``NEW`` tokens (stop tokens are ordinary ones),
and, over both together (teacher-forced), each position's likeliest token, its lead over the second,
and the full logits of ``ROWS`` positions. Key: model, prompts, ``FORM``, library versions.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tests.prompts import PROMPTS, Prompt
from tests.reference import torch_models

FORM = 1  # of the file; changes with what _compute does
NEW = 64
ROWS = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """``tokens``: prompt and continuation. ``best``, ``lead``: [tokens], of what follows each.
    ``logits``: f32 [len(rows), vocab] of the positions ``rows``."""

    prompt: Prompt
    prompt_length: int
    tokens: list[int]
    best: NDArray[np.int32]
    lead: NDArray[np.float32]
    rows: list[int]
    logits: NDArray[np.float32]

    @property
    def continuation(self) -> list[int]:
        return self.tokens[self.prompt_length :]


def model_path() -> Path:
    """SmolLM2's GGUF file in the cache folder, fetched if need be."""
    return models.fetch("smollm2")


@functools.cache
def answers(path: Path | None = None) -> list[Answer]:
    """The answers to all prompts, in order; computed and kept where the cache has none."""
    path = path or model_path()
    file = _cache_file(path)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with models._lock(file.with_suffix(".lock")):
            if not file.exists():  # another process may have been first
                _write(file, _compute(path))
    with np.load(file) as data:
        return [_read(data, i, prompt) for i, prompt in enumerate(PROMPTS)]


def _read(data: Any, i: int, prompt: Prompt) -> Answer:
    length, tokens, rows = (data[f"{key}.{i}"].tolist() for key in ("length", "tokens", "rows"))
    values = (data[f"{key}.{i}"] for key in ("best", "lead", "logits"))
    best, lead, logits = values
    return Answer(prompt, length, tokens, best, lead, rows, logits)


def _cache_file(path: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256()
    with path.open("rb") as model:
        while chunk := model.read(1 << 20):
            digest.update(chunk)
    digest.update(Path(torch_models.__file__).read_bytes())
    key = (FORM, NEW, ROWS, PROMPTS, torch.__version__, transformers.__version__)
    digest.update(repr(key).encode())
    return base / "fanlight" / "references" / f"{digest.hexdigest()[:24]}.npz"


def _write(file: Path, values: dict[str, Any]) -> None:
    partial = file.with_suffix(f".{os.getpid()}.part")
    with partial.open("wb") as out:
        np.savez(out, **values)
    partial.replace(file)


def _compute(path: Path) -> dict[str, Any]:
    model = torch_models.torch_model(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    out: dict[str, Any] = {}
    for i, prompt in enumerate(PROMPTS):
        ids = _encode(tokenizer, prompt)
        tokens = ids + _continue(model, ids)
        scores = torch_models.logits(model, tokens)
        top = np.sort(np.partition(scores, -2, axis=-1)[:, -2:], axis=-1)
        rows = sorted({round(r) for r in np.linspace(0, len(tokens) - 1, ROWS)})
        values = {"length": len(ids), "tokens": tokens, "rows": rows, "logits": scores[rows]}
        values |= {"best": scores.argmax(-1).astype("i4"), "lead": top[:, 1] - top[:, 0]}
        out |= {f"{key}.{i}": np.asarray(value) for key, value in values.items()}
        print(f"{prompt.name}: {len(ids)} tokens: {tokenizer.decode(tokens[len(ids) :])!r}")
    return out


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    if prompt.chat:
        messages = [{"role": "user", "content": prompt.text}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    else:
        text = prompt.text
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt.tokens is None or len(ids) >= prompt.tokens, (prompt.name, len(ids))
    return ids[: prompt.tokens]


def _continue(model: Any, ids: list[int]) -> list[int]:
    """``NEW`` greedy tokens after ``ids``, with a KV cache."""
    cache, new, here = None, list[int](), ids
    with torch.inference_mode():
        for _ in range(NEW):
            step = model(torch.tensor([here]), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            here = [int(step.logits[0, -1].argmax())]
            new += here
    return new


if __name__ == "__main__":
    for answer in answers(Path(sys.argv[1]) if len(sys.argv) > 1 else None):
        length = answer.prompt_length
        print(f"{answer.prompt.name}: {length} + {len(answer.tokens) - length} tokens")

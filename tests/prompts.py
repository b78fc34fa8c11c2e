"""The 20 prompts of the generation tests: chat, code, several scripts, 1 to 2,000 tokens.

``chat`` prompts go through the model's template as one user message; the others are token by token
what stands here. ``tokens`` cuts a prompt to so many tokens. The first three are the short ones of
the quick tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    name: str
    text: str
    chat: bool = True
    tokens: int | None = None


_STORY = """\
The lighthouse keeper counted the boats every evening and wrote their number in a ledger.
On the {n}th night of the storm there were {m} boats missing, and the sea was louder than before.
He lit the second lamp, put on his coat, and walked down the {n} wet steps to the harbour.
"""

_CODE = '''def merge(a: list[int], b: list[int]) -> list[int]:
    """Merges two sorted lists."""
    out = []
    i = j = 0
    while i < len(a) and j < len(b):
'''

_SCRIPT = """class Stack{n}:
    def __init__(self, size={m}):
        self.items = [None] * size

    def push(self, item):
        self.items.append(item)

"""


def _repeat(text: str, times: int) -> str:
    return "".join(text.format(n=i + 3, m=i * i % 17 + 2) for i in range(times))


PROMPTS = (
    Prompt("capital", "What is the capital of France?"),
    Prompt("one token", "The", chat=False, tokens=1),
    Prompt("python", _CODE, chat=False),
    Prompt("haiku", "Write a haiku about a slow train in the snow."),
    Prompt("arithmetic", "What is 17 * 23? Explain each step."),
    Prompt("list", "Name five rivers of Europe, one per line, with the countries they cross."),
    Prompt("json", 'Answer in JSON with the keys "name" and "age": Ada is thirty-six years old.'),
    Prompt("javascript", "const sum = (xs) =>", chat=False),
    Prompt("sql", "SELECT name, COUNT(*) FROM orders WHERE", chat=False),
    Prompt("html", '<!doctype html>\n<html lang="en">\n<head>\n<title>', chat=False),
    Prompt("french", "Écris une phrase sur la mer, en été."),
    Prompt("german", "Übersetze ins Englische: Die Straße ist größer als früher."),
    Prompt("russian", "Привет! Как тебя зовут и что ты умеешь?"),
    Prompt("chinese", "请用一句话介绍北京。"),
    Prompt("japanese", "日本の首都はどこですか。", chat=False),
    Prompt("arabic", "ما هي عاصمة مصر؟"),
    Prompt("emoji", "🙂🚀 What do these two mean? \t\n  Mind the   spaces."),
    Prompt("story", _repeat(_STORY, 3), chat=False),
    Prompt("code in the middle", _repeat(_SCRIPT, 30), chat=False, tokens=500),
    Prompt("long", _repeat(_STORY, 60), chat=False, tokens=2000),
)
SHORT = PROMPTS[:3]

"""A thousand strings in many scripts, the same every time: what tokenisers are compared on.

``corpus()`` mixes hand-picked traps with random text of each script. Only characters of Unicode 14
and before are drawn: the libraries' tables differ beyond.
"""

from __future__ import annotations

import unicodedata
from random import Random

SEED = 20240901
COUNT = 1000

TRAPS = [
    *("", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "a", " a", "a ", " a "),
    *("\u00a0", "\u3000", "\u0085", "a\u0085b", "\ufeff", "a\ufeffb", "\u200b", "a\u2028b\u2029c"),
    *("\x00", "a\x00b", "\x7f", "don't", "DON'T", "it's IT'S we'll WE'LL I'd I'D", "’s ’t"),
    *("you're YOU'RE they've I'M", "'ſ 'S ''s s'", "1", "12", "123", "1234", "12345678901"),
    *("3.14", "1,000,000", "²³¹ ½ Ⅳ ④ ٣٤٥ १२३ ๑๒๓", "0x1F 1e-9", "e\u0301", "é", "Å Å Å"),
    *("ﬁ ﬂ", "ǅ ǈ", "İstanbul ıi", "ß ẞ", "a\u0300\u0301\u0302\u0303", "\u0301"),
    *("👩\u200d👩\u200d👧\u200d👦", "👍🏽", "🇫🇷🇩🇪", "❤\ufe0f", "☺\ufe0e", "😀😀😀", "a😀b"),
    *("Hello, world!", "Hello,world!What?", "...", "…", "!!!???", "--- *** ___"),
    *("(a[b]{c}<d>)", "$1 + €2 = £3", "def f(x):\n    return x ** 2\n"),
    *("if (a && b) {\n\t\tc();\n\t}\r\n", "SELECT * FROM t WHERE a='b';"),
    *("https://example.org/a?b=c&d=%20#e", "me@example.org", "C:\\Temp\\x.txt"),
    *('<a href="x">y</a>', "<|im_start|>user\nHi<|im_end|>\n", "<|im_end|>", "<|im_start"),
    *("<|im_end|><|im_end|>", " <|im_start|> ", "<|endoftext|>a<|endoftext|>", "<|IM_END|>"),
    *("<|im_end|", "|im_end|>", "<repo_name>x<file_sep>y", "<s>", "</s>", "<unk>", "<0x41>"),
    *("▁", "▁▁a", "Ġ", "Ċ", "Ġthe", "ĠĠ", "The quick brown fox jumps over the lazy dog."),
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    *("我能吞下玻璃而不伤身体。", "いろはにほへと ちりぬるを", "키스의 고유조건은 입술끼리"),
    *("Ｆｕｌｌ ｗｉｄｔｈ １２３", "𝒜𝓁𝓅𝒽𝒶 𐍈 𠜎"),
    *("a" * 32, "=" * 80, " " * 40 + "x", "\n" * 20, "ab" * 200, "的" * 50),
]

# first and last code point of each block that random text is drawn from
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A)),
    "latin_marks": ((0x61, 0x7A), (0xC0, 0x17F), (0x300, 0x36F)),
    "cyrillic": ((0x410, 0x44F), (0x430, 0x44F), (0x400, 0x4FF)),
    "greek": ((0x3B1, 0x3C9), (0x386, 0x3CE), (0x1F00, 0x1FFE)),
    "arabic": ((0x621, 0x652), (0x660, 0x6D3)),
    "hebrew": ((0x5D0, 0x5EA), (0x5B0, 0x5C7)),
    "devanagari": ((0x904, 0x94D), (0x958, 0x96F)),
    "thai": ((0xE01, 0xE3A), (0xE40, 0xE5B)),
    "chinese": ((0x4E00, 0x5FFF), (0x4E00, 0x9FA5), (0x3001, 0x3002)),
    "japanese": ((0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x5FFF)),
    "korean": ((0xAC00, 0xD7A3), (0x1100, 0x1112)),
    "emoji": (
        (0x1F300, 0x1F64F),
        (0x1F900, 0x1F9FF),
        (0x2600, 0x26FF),
        (0x200D,) * 2,
        (0xFE0F,) * 2,
    ),
    "symbols": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0x2010, 0x20BF)),
    "digits": ((0x30, 0x39), (0x30, 0x39), (0x660, 0x669), (0x2160, 0x2169), (0xB2, 0xB3)),
    "anything": ((0x20, 0x2FFF), (0xA000, 0xD7FF), (0xF900, 0xFFFD), (0x10000, 0x1FAFF)),
}
SPACES = [
    *(
        " ",
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        " \n",
        "   ",
        "\u00a0",
        "",
        ", ",
        ". ",
        "-",
        "'",
    ),
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>"]


def corpus() -> list[str]:
    """``COUNT`` strings."""
    rng = Random(SEED)
    texts = list(TRAPS)
    while len(texts) < COUNT:
        kinds = rng.choices(list(SCRIPTS), k=rng.choice([1, 1, 1, 2, 4]))
        pieces = []
        for _ in range(rng.choice([1, 3, 10, 30])):
            pieces += [_word(rng, rng.choice(kinds)), rng.choice(SPACES)]
            if rng.random() < 0.03:
                pieces.append(rng.choice(SPECIAL))
        texts.append("".join(pieces))
    return texts


def _word(rng: Random, kind: str) -> str:
    length = rng.choice([1, 2, 4, 6, 9])
    return "".join(_character(rng, kind) for _ in range(length))


def _character(rng: Random, kind: str) -> str:
    while True:
        character = chr(rng.randint(*rng.choice(SCRIPTS[kind])))
        if unicodedata.category(character) not in ("Cn", "Cs"):
            return character

"""How byte-level BPE tokenisers cut text before merging: one row per rule, found by GGUF's names.

The names are the values of ``tokenizer.ggml.pre``; which rule each stands for is llama.cpp's choice
(``llm_tokenizer_bpe`` and ``llama_vocab::impl::load`` in src/llama-vocab.cpp), the expressions are
those of the models' own ``tokenizer.json`` files. A rule is a list of expressions: each cuts out
its matches, what lies between them stays a piece, and the next expression cuts the pieces further.

The expressions run on Oniguruma (``tokenizers``) and on JavaScript's RegExp (rewritten by
``@huggingface/tokenizers``), so they keep to what means the same in both: ``\\p{N}`` rather than
the ``Digits`` pre-tokeniser, cases written out rather than ``(?i:)``, no possessive quantifiers, no
``$``. Not known here: falcon, deepseek-llm, bloom, poro, viking, youtu, kimi-k2, superbpe, afmoe
and other rules that llama.cpp computes by hand; SPM-like rules without byte-level text (gemma4).
"""

from __future__ import annotations

from dataclasses import dataclass

from fanlight.errors import UnsupportedError

# (?i:'s|'t|'re|'ve|'m|'ll|'d), ſ included: Oniguruma folds it with s
_ENDINGS = r"'(?:[sSſ]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_CASED.replace('%s', f'(?:{_ENDINGS})?')}|\p{{N}}{{1,3}}|{_CASED_SYMBOLS}|{_SPACES}"
_TEKKEN = rf"{_CASED.replace('%s', '')}|\p{{N}}|{_CASED_SYMBOLS}|{_SPACES}"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_SEED = rf"{_ENDINGS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One rule. ``ignore_merges``: a piece that is a token is that token, whatever the merges say.
    ``add_bos``: whether a text begins with the BOS token where the file does not say."""

    names: tuple[str, ...]
    expressions: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        ("default",),
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    PreTokenizer(
        (
            *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
            *("gigachat", "a.x-4.0", "mellum", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
            "modern-bert",
        ),
        (_GPT2,),
    ),
    PreTokenizer(
        (
            *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
            "mellum2",
        ),
        (r"\p{N}", _GPT2),
    ),
    PreTokenizer(
        (
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
            *("lfm2", "jina-v5-nano"),
        ),
        (_LLAMA3,),
        ignore_merges=True,
        add_bos=True,
    ),
    PreTokenizer(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_LLAMA3,)),
    PreTokenizer(
        (
            *("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"),
            *("solar-open", "grok-2"),
        ),
        (_QWEN2,),
    ),
    PreTokenizer(("qwen35",), (_QWEN35,)),
    PreTokenizer(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_GPT4O,)),
    PreTokenizer(("tekken",), (_TEKKEN,), ignore_merges=True, add_bos=True),
    PreTokenizer(
        ("deepseek-coder",),
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3),
    ),
    PreTokenizer(("seed-coder",), (_SEED,)),
)

_BY_NAME = {name: row for row in PRE_TOKENIZERS for name in row.names}


def find(name: str) -> PreTokenizer:
    """The rule of that name. Raises UnsupportedError naming an unknown one."""
    if name not in _BY_NAME:
        raise UnsupportedError(
            f"unknown pre-tokenizer {name!r}",
            where="tokenizer.ggml.pre",
            hint=f"Known: {', '.join(sorted(_BY_NAME))}.",
        )
    return _BY_NAME[name]

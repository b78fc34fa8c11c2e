"""Chat templates: the same text as transformers gives, in CPython and in JavaScript, and hostile
ones end in time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fanlight.errors import TemplateError
from fanlight.text.chat_template import render
from tests.gguf_files import CHATML
from tests.text import references
from tests.text.node import node

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
TOOLS = """\
{%- macro line(tool, number=1) %}
{{ number }}. {{ tool.function.name }}: {{ tool | tojson }}
{% endmacro -%}
{%- if tools %}
# Tools {{ tools | length }}
    {%- for tool in tools %}
{{ line(tool, loop.index) }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(turns=0, last='') %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.turns = ns.turns + 1 %}
    {%- set ns.last = m.content.split(' ')[-1].strip().upper() ~ '/' ~ ns.turns %}
    {%- if m.thought is defined and m.thought is not none %}<think>{{ m.thought }}</think>{% endif
    %}
{{ m.role | capitalize }}: {{ m.content }}{{ "," if not loop.last else ";" }}
    {%- generation %}[{{ m.role in ['user', 'tool'] }}]{% endgeneration %}
    {%- if ns.turns > 2 %}{% break %}{% endif %}
{%- endfor %}
{{ ns.last }} {{ ns.turns }} {{ (1, 2)[0] + 3 // 2 }} {{ extra | default('none') }}
"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "tools": TOOLS}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "unit": "°C <&>"}},
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Привет 👩‍👩‍👧"},
        {"role": "user", "content": "{{ 1 + 1 }} <|im_end|> {% raw %}"},
    ],
    [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c\td", "thought": "hm\n\n"},
        {"role": "user", "content": ""},
    ],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def _templates(smollm2_gguf: Path) -> dict[str, str]:
    own = references.fields(smollm2_gguf)["tokenizer.chat_template"]
    return {**TEMPLATES, "smollm2": own}


def _cases(smollm2_gguf: Path) -> list[tuple[str, dict[str, Any], str]]:
    """Template, context, what transformers makes of them."""
    cases = []
    for template in _templates(smollm2_gguf).values():
        for chat in CHATS:
            for prompt in (True, False):
                tools = [TOOL] if prompt else None
                texts, _ = render_jinja_template(
                    conversations=[chat],
                    tools=tools,
                    chat_template=template,
                    add_generation_prompt=prompt,
                    **TOKENS,
                )
                context = {"messages": chat, "tools": tools, "add_generation_prompt": prompt}
                cases.append((template, {**context, **TOKENS}, texts[0]))
    return cases


def test_renders_as_transformers_does(smollm2_gguf: Path) -> None:
    for template, context, want in _cases(smollm2_gguf):
        assert render(template, **context) == want


def test_javascript_renders_the_same(smollm2_gguf: Path) -> None:
    cases = _cases(smollm2_gguf)
    answers = node("render", templates=[(t, json.dumps(c)) for t, c, _ in cases])
    for (template, context, want), answer in zip(cases, answers, strict=True):
        assert answer == {"text": want}, (template, context)


BREAKS = (
    "{% for i in range(9) %}{% if i == 2 %}c{% continue %}{% endif %}{{ i }}"
    "{% for j in [1, 2] %}({{ j }}{% break %}){% endfor %}"
    "{% if i == 4 %}x{% if true %}y{% break %}{% endif %}{% endif %};{% endfor %}|"
)
PRINTED = [
    "{{ true }} {{ none }} {{ 1.5 }} {{ false is defined }} {{ 'a' in 'abc' }}",
    "{{ [1, 'a', true, none, [], (1, 'b')] }} {{ {'a': 1, 'b': [true]} }}",
    """{{ ["it's", 'a"b', '\\n', 'é\\\\', "'\\""] }} {{ messages }}""",
    "{{ 'a' ~ true ~ none ~ nothing ~ 1 }} {{ 'a,b'.split(',') }}",
    "{{ 'xxaxx'.strip('x') }} {{ 'x '.strip() }} {{ '--a--'.lstrip('-') }}",
    "[{{ ' \\n a\\n'.strip('\\n') }} {{ 'a\\n '.rstrip('\\n') }} {{ '\\n a'.lstrip('\\n') }}]",
    BREAKS,
    "{% set x = none %}{% macro f() %}m{% endmacro %}{{ f() }}{# c #}{% if false %}{% endif %}",
]


def test_values_print_as_in_python() -> None:
    """The library would print JSON's forms, and strip() white space whatever it is told."""
    chat = [{"role": "user", "content": "x\ny", "n": None}]
    context = json.dumps({"messages": chat})
    answers = node("render", templates=[(t, context) for t in PRINTED])
    for template, answer in zip(PRINTED, answers, strict=True):
        assert answer == {"text": render(template, chat)}, template


def test_dates() -> None:
    template = "{{ strftime_now('%Y-%m-%d') }}"
    want = render(template, [])
    assert node("render", templates=[(template, "{}")])[0]["text"] in (want, render(template, []))


def test_the_callers_messages_stay_as_they_are() -> None:
    chat = [{"role": "user", "content": "x"}]
    with pytest.raises(TemplateError):
        render("{{ messages[0].update({'role': 'y'}) }}", chat)
    assert chat == [{"role": "user", "content": "x"}]


def test_messages_must_be_plain() -> None:
    with pytest.raises(TemplateError, match="plain"):
        render("", [{"content": object()}])


def test_a_template_too_long() -> None:
    with pytest.raises(TemplateError, match="too long"):
        render("x" * (2 << 20), [])


def test_a_refusal_is_said() -> None:
    with pytest.raises(TemplateError, match="roles must alternate"):
        render(MISTRAL, [{"role": "assistant", "content": "x"}])


def test_the_line_of_a_syntax_error() -> None:
    with pytest.raises(TemplateError, match="line 3"):
        render("a\nb\n{% for %}", [])


def _grow(step: str, times: int = 40) -> str:
    return "{% set s = 'aaaaaaaaaaaaaaaa' %}" + step * times + "{{ s }}"


ESCAPES = [
    "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__globals__.datetime }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '{0.__class__}'.format_map({'0': 1}) }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% include 'x' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ lipsum.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ dict.__init__.__globals__.x }}",
]

HOSTILE = [
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    _grow("{% set s = s ~ s %}"),
    _grow("{% set s = s + s %}"),
    _grow("{% set s %}{{ s }}{{ s }}{% endset %}"),
    _grow("{% set s = s | replace('a', 'aaaa') %}"),
    _grow("{% set s = s.replace('a', 'aaaa') %}"),
    "{% set s = [1] %}" + "{% set s = s + s %}" * 60,
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ (10 ** 9) * 'a' }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a' | indent(10 ** 9, true) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a'.zfill(10 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w='1000000000') }}",
    "{{ 'a\t'.expandtabs(10 ** 9) }}",
    "{{ messages | tojson(indent=10 ** 9) }}",
    "{{ [1] | slice(10 ** 9) | list }}",
    "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "{{ lipsum(10 ** 9) }}",
    "{{ range(99999) | map('string') | join('x' * 4000000) }}",
    "{{ ('x' * 4000000).join(range(99999) | map('string') | list) }}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% set x = 7 ** 99999999 %}",
]
SECONDS = 12.0  # the budget is 5 s; two cores may be busy


@pytest.mark.parametrize("template", ESCAPES, ids=range(len(ESCAPES)))
def test_no_escape_from_the_sandbox(template: str) -> None:
    """Ends in an error, or in nothing: jinja2 shows some of what it withholds as undefined."""
    try:
        text = render(template, [{"role": "user", "content": "x"}])
    except TemplateError:
        return
    assert text == ""


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates_end(template: str) -> None:
    start = time.perf_counter()
    with pytest.raises(TemplateError):
        render(template, [{"role": "user", "content": "x"}])
    assert time.perf_counter() - start < SECONDS


def test_hostile_templates_end_in_javascript() -> None:
    context = json.dumps({"messages": [{"role": "user", "content": "x"}]})
    start = time.perf_counter()
    answers = node("render", templates=[(t, context) for t in (*HOSTILE, *ESCAPES)])
    assert time.perf_counter() - start < 5 * SECONDS
    for template, answer in zip(HOSTILE, answers, strict=False):
        assert "error" in answer, template
    for template, answer in zip(ESCAPES, answers[len(HOSTILE) :], strict=True):
        assert answer.get("text", "") == "", template


def test_long_honest_chats_fit() -> None:
    chat = [{"role": "user", "content": "word " * 2000}] * 200  # 2 MB
    text = render(CHATML, chat)
    assert len(text) > 2_000_000
    answer = node("render", templates=[(CHATML, json.dumps({"messages": chat}))])[0]
    assert answer["text"] == text.removesuffix("<|im_start|>assistant\n")

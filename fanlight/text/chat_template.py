"""Messages → the text that a model was trained on, by the Jinja template that its file carries.

A template is a program from a stranger. In CPython it runs in jinja2's sandbox with a budget
(``fanlight.text.template_sandbox``); in Pyodide in ``@huggingface/jinja``, an interpreter without
access to anything, with the same budget (``fanlight/web/text.js``). The dialect is transformers'
(``apply_chat_template``): trim_blocks, lstrip_blocks, break and continue, ``tojson``,
``raise_exception``, ``strftime_now``, ``{% generation %}`` blocks. In the browser the dialect ends
where the library does: it lacks some of Jinja's filters, and raises for those.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fanlight.errors import TemplateError

MAX_TEMPLATE = 1 << 20  # characters


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: object,
) -> str:
    """The prompt's text. ``messages``: dicts with "role" and "content" (and what else the template
    reads); ``tools``: JSON schemas; ``variables``: more that the template reads, by name.

    Raises TemplateError where the template can't be parsed, fails, refuses the messages, or goes
    over its budget; MissingDependencyError."""
    if len(template) > MAX_TEMPLATE:
        raise TemplateError("chat template too long", got=len(template), wanted=MAX_TEMPLATE)
    context = {
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "tools": tools,
        **variables,
    }
    try:
        # a copy, so that the template sees plain values only and can't change the caller's
        text = json.dumps(context, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError("messages are not plain JSON values", got=error) from error
    if sys.platform == "emscripten":
        return _render_browser(template, text)
    from fanlight.text.template_sandbox import render_sandboxed

    return render_sandboxed(template, json.loads(text))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} in a message")


def _render_browser(template: str, context: str) -> str:
    bridge: Any = importlib.import_module("fanlight_js")
    errors: Any = importlib.import_module("pyodide.ffi")
    try:
        return str(bridge.renderTemplate(template, context))
    except errors.JsException as error:
        raise TemplateError("chat template failed", got=error) from error

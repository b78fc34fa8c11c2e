"""Renders a chat template in jinja2's sandbox, within a budget. CPython only.

jinja2's ``ImmutableSandboxedEnvironment`` keeps a template from Python's internals and from
changing its input, but not from running forever or filling the memory. So every loop, call and
filter spends from one :class:`Budget`, and what makes long text out of short is checked before it
runs. What remains: one step may take as long as the library needs for ``MAX_TEXT`` characters, and
parsing is bounded only by the template's length.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import datetime
from typing import Any

from fanlight.errors import MissingDependencyError, TemplateError

try:
    import jinja2
    from jinja2 import ext, filters, nodes, sandbox, utils
except ImportError as error:
    raise MissingDependencyError(
        "the package jinja2 is needed", hint='Run: pip install "fanlight[native]"'
    ) from error

# The same as in fanlight/web/text.js.
MAX_TEXT = 1 << 22  # characters of the result, or of any text on the way
MAX_STEPS = 1 << 22  # a loop's turn, a call or a filter is one; 16 characters of text another
MAX_SECONDS = 5.0
MAX_WIDTH = 1000  # of formatted and centred text
_CHARS_PER_STEP = 16

# lengths that a format could blow up: a width of 4 digits and more, or one given by an argument
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{4,})|\{[^}]*(?:\{|\d{4,})")


def render_sandboxed(template: str, context: dict[str, Any]) -> str:
    """The text. Raises TemplateError."""
    budget = Budget()
    environment = _Environment(budget)
    try:
        tree = environment.parse(template)
        _instrument(tree)
        tree.set_environment(environment)
        pieces = []
        for piece in environment.from_string(tree).generate(context):
            budget.spend_text(piece)
            pieces.append(piece)
    except TemplateError:
        raise
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"line {line}" if line else ""
        raise TemplateError(f"chat template failed: {error}", where=where) from error
    except Exception as error:  # a template may raise anything that Python does
        what = f"chat template failed: {type(error).__name__}: {error}"
        raise TemplateError(what) from error
    text = "".join(pieces)
    budget.check_length(len(text))
    return text


class Budget:
    """Steps and seconds that one rendering may take. All methods raise TemplateError beyond."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._end = time.monotonic() + MAX_SECONDS

    def spend(self, steps: int = 1) -> None:
        before = self._steps
        self._steps -= steps
        if self._steps < 0:
            raise TemplateError("chat template takes too many steps", wanted=MAX_STEPS)
        if self._steps >> 8 != before >> 8 and time.monotonic() > self._end:
            raise TemplateError("chat template takes too long", wanted=f"{MAX_SECONDS} s")

    def spend_text(self, value: object) -> None:
        """Spends for a value that was just made, if it is text or a list."""
        if isinstance(value, str | list | tuple):
            self.check_length(len(value))
            self.spend(1 + len(value) // _CHARS_PER_STEP)

    def check_length(self, length: int) -> None:
        if length > MAX_TEXT:
            raise TemplateError("chat template makes too much text", got=length, wanted=MAX_TEXT)


def _check_format(pattern: object, *values: object) -> None:
    if any(_WIDE.search(str(v)) for v in (pattern, *values) if isinstance(v, str)):
        raise TemplateError("chat template formats text too wide", got=repr(pattern)[:80])


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox with a budget. One per rendering."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
        )
        self._budget = budget
        for name in ("batch", "slice"):  # their number of turns is an argument
            del self.filters[name]
        self.filters |= {
            "tojson": _tojson,
            "center": self._bounded(filters.do_center),
            "indent": self._bounded(filters.do_indent),
            "replace": self._replace,
            "join": self._join,
            "format": self._format,
            "_charged": self._charged,
            "_counted": self._counted,
            "_concat": self._concat,
        }
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _dict,
            "namespace": _Namespace,
        }

    # --- what every node of a kind passes through

    def _charged(self, value: object) -> object:
        self._budget.spend_text(value)
        return value

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        return _Counted(items, self._budget)

    def _concat(self, values: list[Any]) -> str:
        parts = [str(v) for v in values]
        self._budget.check_length(sum(map(len, parts)))
        text = "".join(parts)
        self._budget.spend_text(text)
        return text

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        self._budget.spend()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._budget.check_length(len(left) + len(right))
        elif operator == "*" and isinstance(left, Sized) and isinstance(right, int):
            self._budget.check_length(len(left) * right)
        elif operator == "*" and isinstance(right, Sized) and isinstance(left, int):
            self._budget.check_length(len(right) * left)
        elif operator in "**" and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length()
            if bits > 4096:
                raise TemplateError("chat template computes too large a number")
        value = super().call_binop(context, operator, left, right)
        self._budget.spend_text(value)
        return value

    def call(  # jinja2 names its own parameters so that a template's can't clash with them
        __self,
        __context: jinja2.runtime.Context,  # noqa: PYI063
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        __self._budget.spend()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            __self._check_method(owner, method.__name__, args, kwargs)
        value = super().call(__context, __obj, *args, **kwargs)
        __self._budget.spend_text(value)
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in ("expandtabs", "format_map", "translate"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    # --- what makes long text out of short

    def _check_method(
        self, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        values = (*args, *kwargs.values())
        if name == "replace" and len(args) > 1:
            self._check_replace(owner, str(args[0]), str(args[1]))
        elif name == "join" and args and isinstance(args[0], Sized):
            self._budget.check_length(len(owner) * len(args[0]))
        elif name == "format":
            _check_format(owner, *values)
        if name in ("center", "ljust", "rjust", "zfill", "format"):
            _check_widths(values)

    def _check_replace(self, text: str, old: str, new: str) -> None:
        self._budget.check_length(len(text) + text.count(old) * len(new))

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        self._check_replace(str(text), str(old), str(new))
        return str(text).replace(str(old), str(new), -1 if count is None else count)

    @jinja2.pass_eval_context
    def _join(
        self, ctx: nodes.EvalContext, value: Any, d: str = "", attribute: str | None = None
    ) -> str:
        items = list(value)
        self._budget.check_length(len(items) * len(d))
        return filters.sync_do_join(ctx, items, d, attribute)

    def _format(self, pattern: str, *args: Any, **kwargs: Any) -> str:
        _check_format(pattern)
        return filters.do_format(pattern, *args, **kwargs)

    @staticmethod
    def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(text: Any, *args: Any, **kwargs: Any) -> Any:
            _check_widths((*args, *kwargs.values()))
            return function(text, *args, **kwargs)

        return bounded


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(v, int) and v > MAX_WIDTH for v in values):
        raise TemplateError("chat template makes text too wide", wanted=MAX_WIDTH)


class _Counted:
    """``items``, spending a step for each."""

    def __init__(self, items: Iterable[Any], budget: Budget) -> None:
        self._items = items if isinstance(items, Sized) else list(items)
        self._budget = budget

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.spend()
            yield item


def _instrument(tree: nodes.Template) -> None:
    """Puts the budget into the tree: around what loops run over, what filters and set blocks make,
    and in the place of ``~``."""

    def charged(node: nodes.Node | None, name: str = "_charged") -> nodes.Filter:
        line = node.lineno if node else 0
        return nodes.Filter(node, name, [], [], None, None, lineno=line)

    for loop in list(tree.find_all(nodes.For)):
        loop.iter = charged(loop.iter, "_counted")
    blocks: list[Any] = [*tree.find_all(nodes.AssignBlock), *tree.find_all(nodes.FilterBlock)]
    for block in blocks:
        # a chain of filters over a body begins with a filter of nothing
        block.filter = charged(block.filter) if block.filter else charged(None)
    _rewrite(tree, charged)


def _rewrite(node: nodes.Node, charged: Callable[..., nodes.Filter]) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _rewritten(value, charged))
        elif isinstance(value, list):
            value[:] = [_rewritten(v, charged) if isinstance(v, nodes.Node) else v for v in value]


def _rewritten(node: nodes.Node, charged: Callable[..., nodes.Filter]) -> nodes.Node:
    _rewrite(node, charged)
    if isinstance(node, nodes.Concat):
        return charged(nodes.List(node.nodes, lineno=node.lineno), "_concat")
    if isinstance(node, nodes.Filter) and not node.name.startswith("_") and _has_base(node):
        return charged(node)
    return node


def _has_base(node: nodes.Filter) -> bool:
    """Whether a chain of filters stands on a value, not on a block's body."""
    base: nodes.Node | None = node
    while isinstance(base, nodes.Filter):
        base = base.node
    return base is not None


# --- transformers' additions to Jinja


class _Generation(ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks an answer for training; here it is its
    body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(utils.Namespace):
    """``namespace()`` without underscored names."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace can't hold {name!r}")
        super().__setitem__(name, value)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escapes of HTML, as transformers has it."""
    _check_widths([indent])
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(f"chat template refuses: {message}")


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)

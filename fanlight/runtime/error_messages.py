"""Errors as they cross between Python and JavaScript: ``{code, message, what, where, hint}``.

The twin of ``toMessage`` and ``fromMessage`` in ``web/errors.js``.
"""

from __future__ import annotations

from collections.abc import Mapping

from fanlight import errors
from fanlight.errors import FanlightError

FIELDS = ("code", "message", "what", "where", "hint")


def to_message(error: BaseException) -> dict[str, str]:
    """What stands for ``error``; for one that is not ours, an internal error to be reported."""
    if isinstance(error, FanlightError):
        return {
            "code": error.code,
            "message": str(error),
            "what": error.what,
            "where": error.where,
            "hint": error.hint,
        }
    what = f"internal error: {type(error).__name__}: {error}"
    hint = "Please report it, with what the browser's console says."
    return {
        "code": "FanlightError",
        "message": f"{what}. {hint}",
        "what": what,
        "where": "",
        "hint": hint,
    }


def from_message(message: Mapping[str, str]) -> FanlightError:
    """The error that ``message`` stands for; of an unknown code, the base class."""
    kind = getattr(errors, message["code"], FanlightError)
    if not (isinstance(kind, type) and issubclass(kind, FanlightError)):
        kind = FanlightError
    error = kind(message["what"], where=message["where"], hint=message["hint"])
    error.args = (message["message"],)  # it holds got and wanted, too
    return error

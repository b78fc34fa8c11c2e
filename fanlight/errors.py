"""Every error that Fanlight raises on purpose, on one screen.

A message says what happened, where (file, node, offset), what was found and what was wanted, and
what to do next. Catch ``FanlightError`` for all of them.
"""

from __future__ import annotations


class FanlightError(Exception):
    """Base of all errors below.

    ``what`` is one sentence. ``where`` names the place, ``got``/``wanted`` the values, ``hint`` the
    next step. ``code`` is the class name: it crosses the workers' boundary as a string.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        got: object = None,
        wanted: object = None,
        hint: str = "",
    ) -> None:
        self.what, self.where, self.got, self.wanted, self.hint = what, where, got, wanted, hint
        text = f"{where}: {what}" if where else what
        if got is not None:
            text += f" (got {got}"
            text += f", wanted {wanted})" if wanted is not None else ")"
        elif wanted is not None:
            text += f" (wanted {wanted})"
        if hint:
            text += f". {hint}" if not text.endswith(".") else f" {hint}"
        super().__init__(text)

    @property
    def code(self) -> str:
        """The class's name, as JavaScript sees it."""
        return type(self).__name__


class FormatError(FanlightError):
    """A model file is malformed: wrong magic, absurd counts, offsets outside the file."""


class TruncatedError(FormatError):
    """A file ends before the data that it announces."""


class UnsupportedError(FanlightError):
    """The input is valid, but this version can't run it: architecture, dtype, op, pre-tokeniser."""


class GraphError(FanlightError):
    """A graph breaks a rule of the IR. Names pass, node and rule."""


class PlanError(FanlightError):
    """A plan is malformed or doesn't fit its executor."""


class DeviceError(FanlightError):
    """The device can't be had, was lost, or ran out of memory."""


class StoreError(FanlightError):
    """Model bytes can't be had: not found, network lost, disk full."""


class AbortedError(FanlightError):
    """The caller aborted the work. Nothing is left half-done."""


class TemplateError(FanlightError):
    """A chat template failed to parse or to render."""


class InputError(FanlightError, ValueError):
    """An argument of a public call is out of range or of the wrong type."""


class MissingDependencyError(FanlightError, ImportError):
    """An optional package is needed for this call; the message names the extra to install."""


class SyncUnavailableError(FanlightError, RuntimeError):
    """The sync form can't block here; the message names the form to await."""

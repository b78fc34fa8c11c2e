"""Tensors of ONNX in other files: which file and range, and no path out of the model's folder.

In: the entries ``location``, ``offset``, ``length`` of ``external_data`` (ExternalData.md of ONNX);
other keys, such as ``checksum``, are not read. Out: a :class:`Source`. The files are not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from fanlight.errors import FormatError, UnsupportedError
from fanlight.formats.onnx_model import Source
from fanlight.formats.onnx_types import ElementType

MAX_PATH = 1024  # characters
MAX_OFFSET = 1 << 62

_NUMBER = re.compile(r"[0-9]{1,19}")
# What ends a path or begins another one on some system or in a URL: drive letters, streams and
# schemes have a colon, "?" and "#" end a URL's path
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:?#]")
_DOTS = re.compile(r"(?:[. ]|%2e)*", re.IGNORECASE)  # "..", also as Windows and URLs read it


def external_source(
    entries: Mapping[str, str], dtype: ElementType, shape: tuple[int, ...], where: str
) -> Source | None:
    """Where the tensor's bytes lie, None if it has none. Raises FormatError for unsafe paths, for
    numbers that are none and for lengths that don't fit the shape; UnsupportedError for strings."""
    if dtype.bits == 0:
        raise UnsupportedError("strings in an external file", where=where)
    file = safe_path(entries.get("location", ""), where)
    offset = _number(entries, "offset", 0, where)
    length = dtype.nbytes(math.prod(shape))
    said = _number(entries, "length", length, where)
    if said != length:
        raise FormatError(
            "external data doesn't fit the shape", where=where, got=said, wanted=length
        )
    return Source(file, offset, length, "raw", None) if length else None


def safe_path(location: str, where: str) -> str:
    """``location`` as a path below the model's folder, without "." and empty parts. Raises
    FormatError where it could lead elsewhere on any system, or as part of a URL."""
    parts = [part for part in location.split("/") if part not in ("", ".")]
    if (
        not parts
        or location.startswith("/")
        or len(location) > MAX_PATH
        or _FORBIDDEN.search(location)
        or any(_DOTS.fullmatch(part) for part in parts)
    ):
        raise FormatError(
            "not a path inside the model's folder", where=where, got=repr(location[:100])
        )
    return "/".join(parts)


def _number(entries: Mapping[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, str(default))
    if not _NUMBER.fullmatch(text) or int(text) > MAX_OFFSET:
        raise FormatError(
            f"external {key} is not a number of bytes", where=where, got=repr(text[:40])
        )
    return int(text)

"""Files of numpy arrays (.npy), read and written without numpy.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import struct
from pathlib import Path

from fanlight.errors import FormatError, StoreError, UnsupportedError
from fanlight.inference.tensor import NAMES, Tensor

_MAGIC = b"\x93NUMPY"
_BITS = (8, 16, 32, 64)
#: numpy's codes of element types, without the order of bytes
_CODES = {
    "f4": "float32",
    "f2": "float16",
    "f8": "float64",
    "b1": "bool",
    **{f"{kind[0]}{bits // 8}": f"{kind}{bits}" for kind in ("int", "uint") for bits in _BITS},
}


def read(path: Path) -> Tensor:
    """The array in a file. Raises StoreError, FormatError, UnsupportedError."""
    where = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"can't open the file: {error.strerror}", where=where) from error
    if data[:6] != _MAGIC or len(data) < 12:
        raise FormatError("not a .npy file", where=where, got=data[:6])
    wide = data[6] > 1
    begin = 12 if wide else 10
    (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
    try:
        header = ast.literal_eval(data[begin : begin + length].decode())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        order, code = descr[0], descr[1:]
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError) as error:
        raise FormatError("a malformed .npy header", where=where) from error
    if code not in _CODES or order == ">" or (fortran and len(shape) > 1):
        what = "arrays of big-endian, Fortran-ordered or other elements are not read"
        hint = "Save numpy.ascontiguousarray(x.astype(…))."
        raise UnsupportedError(what, where=where, got=descr, hint=hint)
    return Tensor(data[begin + length :], _CODES[code], shape)


def write(path: Path, tensor: Tensor) -> None:
    """Writes ``tensor``; elements that numpy has no type for as integers of their size, those of
    less than a byte a byte each. Raises StoreError."""
    codes = {name: code for code, name in _CODES.items()}
    data, code = bytes(tensor.data), codes.get(tensor.dtype)
    if code is None and tensor.dtype == "bfloat16":
        code = "u2"
    elif code is None and NAMES[tensor.dtype].startswith("f8"):
        code = "u1"
    elif code is None:
        small = Tensor(_flat(tensor.tolist()), "int8" if tensor.dtype[0] == "i" else "uint8")
        data, code = bytes(small.data), "i1" if tensor.dtype[0] == "i" else "u1"
    descr = ("|" if code[1] == "1" else "<") + code
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tensor.shape!r}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data)
    except OSError as error:
        raise StoreError(f"can't write: {error.strerror}", where=str(path)) from error


def _flat(values: object) -> list[int]:
    if isinstance(values, list):
        return [v for inner in values for v in _flat(inner)]
    assert isinstance(values, int)
    return [values]

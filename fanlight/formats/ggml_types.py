"""The tensor types of GGML by number: what each is called, and which of them we read.

Numbers and names are those of ``enum ggml_type`` (ggml.h of llama.cpp), the removed ones included,
so that an error can name what a file holds. Reading one more is a row in ``fanlight.dtypes`` of the
same name in lower case, and a row in :mod:`fanlight.formats.dequant`.
"""

from __future__ import annotations

from fanlight.dtypes import DTYPES, DType

_NAMES = """
    0 F32  1 F16  2 Q4_0  3 Q4_1  4 Q4_2  5 Q4_3  6 Q5_0  7 Q5_1  8 Q8_0  9 Q8_1
    10 Q2_K  11 Q3_K  12 Q4_K  13 Q5_K  14 Q6_K  15 Q8_K
    16 IQ2_XXS  17 IQ2_XS  18 IQ3_XXS  19 IQ1_S  20 IQ4_NL  21 IQ3_S  22 IQ2_S  23 IQ4_XS
    24 I8  25 I16  26 I32  27 I64  28 F64  29 IQ1_M  30 BF16
    31 Q4_0_4_4  32 Q4_0_4_8  33 Q4_0_8_8  34 TQ1_0  35 TQ2_0
    36 IQ4_NL_4_4  37 IQ4_NL_4_8  38 IQ4_NL_8_8  39 MXFP4  40 NVFP4  41 Q1_0
""".split()

TYPE_NAMES: dict[int, str] = {
    int(number): name for number, name in zip(_NAMES[::2], _NAMES[1::2], strict=True)
}


def type_name(number: int) -> str:
    """``Q5_K`` for 13; ``type 99`` for a number that GGML does not have."""
    return TYPE_NAMES.get(number, f"type {number}")


def find_dtype(number: int) -> DType | None:
    """Our dtype of a GGML type, or None where we don't read it."""
    return DTYPES.get(TYPE_NAMES.get(number, "").lower())

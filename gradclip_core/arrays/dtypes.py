"""Which dtypes can be clipped, and the sentence for those that cannot."""

from __future__ import annotations

from gradclip_core.arrays.docked import Refused
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.protocol import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType

# By the name that every framework uses. True: complex, the DType being that of its two parts.
SUPPORTED: dict[str, tuple[DType, bool]] = {
    "bfloat16": (BFLOAT16, False),
    "complex128": (FLOAT64, True),
    "complex32": (FLOAT16, True),
    "complex64": (FLOAT32, True),
    "float16": (FLOAT16, False),
    "float32": (FLOAT32, False),
    "float64": (FLOAT64, False),
}


def refuse_dtype(name: str) -> Refused:
    """The refusal for a dtype that is not in the table."""
    if name.startswith("float8"):
        return Refused(
            UnsupportedArrayError,
            f"dtype {name} is not served: a float8 gradient means nothing without its scale",
            "Convert to float32 with its scale applied, and clip that",
        )
    return Refused(
        UnsupportedArrayError,
        f"dtype {name} is no gradient's dtype",
        f"Convert to one of {', '.join(sorted(SUPPORTED))}",
    )

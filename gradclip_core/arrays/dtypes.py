"""Which dtypes can be clipped, and the sentence for those that cannot."""

from __future__ import annotations

from typing import Any

from gradclip_core.arrays.docked import Refused
from gradclip_core.errors import UnsupportedArrayError
from gradclip_core.protocol import BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT16, FLOAT32, FLOAT64, DType

# By the name that every framework uses. True: complex, the DType being that of its two parts.
SUPPORTED: dict[str, tuple[DType, bool]] = {
    "bfloat16": (BFLOAT16, False),
    "complex128": (FLOAT64, True),
    "complex32": (FLOAT16, True),
    "complex64": (FLOAT32, True),
    "float16": (FLOAT16, False),
    "float32": (FLOAT32, False),
    "float64": (FLOAT64, False),
    "float8_e4m3fn": (FLOAT8_E4M3FN, False),
    "float8_e5m2": (FLOAT8_E5M2, False),
}


def numpy_dtype(dtype: DType, is_complex: bool = False) -> Any:
    """NumPy's dtype of a storage type; those that it has not itself are ``ml_dtypes``'s."""
    if dtype.coded:
        try:
            import ml_dtypes  # frameworks with arrays of these types bring it along
        except ImportError as error:
            cure = "pip install ml_dtypes, or pass PyTorch tensors"
            raise UnsupportedArrayError(f"a new NumPy array of {dtype}", "ml_dtypes is not installed", cure) from error
        return getattr(ml_dtypes, dtype.name)
    return next(name for name, entry in SUPPORTED.items() if entry == (dtype, is_complex))


def refuse_dtype(name: str) -> Refused:
    """The refusal for a dtype that is not in the table."""
    if name.startswith("float8"):
        return Refused(
            UnsupportedArrayError,
            f"dtype {name} is not served: of the types of 8 bits float8_e4m3fn and float8_e5m2 are",
            "Convert to float32, its scale applied, and clip that",
        )
    if name == "void":
        return Refused(
            UnsupportedArrayError,
            "it holds no numbers; JAX's float0, of parameters that are integers, is so",
            "Leave it out, or put None in its place",
        )
    # Whoever has integers has no scale for float8.
    cures = sorted(name for name, (dtype, _) in SUPPORTED.items() if dtype.itemsize > 1)
    return Refused(
        UnsupportedArrayError, f"dtype {name} is no gradient's dtype", f"Convert to one of {', '.join(cures)}"
    )

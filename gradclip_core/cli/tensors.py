"""What a file of gradients holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Tensors:
    """Named arrays, writable and in this machine's byte order, and the file's own notes."""

    arrays: dict[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)

    def gradients(self) -> dict[str, Array]:
        """The arrays of real and complex numbers; step counters, masks and texts are no gradients."""
        return {name: x for name, x in self.arrays.items() if _is_gradient(x.dtype)}


def _is_gradient(dtype: np.dtype[Any]) -> bool:
    # NumPy gives the types of ml_dtypes any kind: bfloat16 is 'V', float8_e5m2 is 'f'.
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))

"""Every kernel by its name, and the layouts of what each is launched with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradclip_backends.gpu.layout import PASS, RECORD, ROWS_IN_MEMORY, RULE, STRIDED
from gradclip_backends.numba_cuda import again, apply, decide, measure, strides
from gradclip_backends.numba_cuda.structs import WORDS, numba_type

_INTEGER, _NUMBER = np.dtype("i8"), np.dtype("f8")


@dataclass(frozen=True)
class Kernel:
    """One of them."""

    function: Any
    """What ``cuda.jit`` made."""
    layouts: tuple[np.dtype[Any], ...]

    def types(self) -> tuple[Any, ...]:
        """The arguments' types, as Numba finds them."""
        return tuple(numba_type(layout) for layout in self.layouts)


_PASS, _AGAIN, _DECISION = (ROWS_IN_MEMORY, PASS), (ROWS_IN_MEMORY, PASS, _NUMBER), (ROWS_IN_MEMORY, RULE)
_APPLY = (ROWS_IN_MEMORY, _INTEGER, RECORD, _INTEGER, _INTEGER, _INTEGER)

KERNELS = {
    "apply_table": Kernel(apply.apply, _APPLY),
    "ask_for_carries_table": Kernel(decide.ask_for_carries, _DECISION),
    "carries_table": Kernel(again.carries, _AGAIN),
    "decide_general_table": Kernel(decide.decide_general, _DECISION),
    "decide_norms_table": Kernel(decide.decide_norms, _DECISION),
    "decide_value_table": Kernel(decide.decide_value, _DECISION),
    "gather": Kernel(strides.gather, (STRIDED,)),
    "measure_magnitudes_table": Kernel(measure.measure_magnitudes, _PASS),
    "measure_squares_table": Kernel(measure.measure_squares, _PASS),
    "powers_table": Kernel(again.powers, _AGAIN),
    "rescale_table": Kernel(again.rescale, _AGAIN),
    "scatter": Kernel(strides.scatter, (STRIDED, RECORD, _INTEGER, _INTEGER)),
    "store_words": Kernel(strides.store_words, (WORDS, _INTEGER, _INTEGER)),
}

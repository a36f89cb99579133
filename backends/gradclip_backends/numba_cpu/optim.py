"""The optimizers' updates: pointers kept from step to step, a kernel call per pair of dtypes, blocks shared
among threads. See ``gradclip_core.updates``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradclip_backends.numba_cpu import optim_kernels, pool
from gradclip_backends.numba_cpu.elements import TAGS
from gradclip_backends.numba_cpu.kernels import BLOCK
from gradclip_core.protocol import DTYPES, FLOAT64, ZERO, Actions, Buffer, DType, FloatArray, IntArray
from gradclip_core.updates import Bound, compute_type

_CODES = {name: code for code, name in enumerate(DTYPES)}
_BY_CODE = list(DTYPES.values())


class NumbaBound:
    """See ``Bound``."""

    def __init__(self, kind: str, params: Sequence[Buffer], state: Sequence[Sequence[Buffer]]) -> None:
        self.kind = optim_kernels.NAMES.index(kind)
        self.owners = (params, state)
        self.params = _pointers(params)
        self.state = np.array([_pointers(buffers) for buffers in state], np.uint64).reshape(len(state), len(params))
        self.lengths = np.array([buffer.length for buffer in params], np.int64)
        self.blocks = (self.lengths + BLOCK - 1) // BLOCK
        self.codes = _codes(params)

    def step(self, index: IntArray, grads: Sequence[Buffer], actions: Actions, numbers: FloatArray) -> None:
        """See ``Bound.step``."""
        pointers = _pointers(grads)
        pairs = self.codes[index] * len(DTYPES) + _codes(grads)
        with np.errstate(all="ignore"):  # for the kernels as plain Python
            for pair in np.unique(pairs).tolist():
                dtype, stored = (_BY_CODE[code] for code in divmod(pair, len(DTYPES)))
                self._run(np.flatnonzero(pairs == pair), index, dtype, stored, pointers, actions, numbers)

    def _run(
        self,
        pick: IntArray,
        index: IntArray,
        dtype: DType,
        stored: DType,
        pointers: npt.NDArray[np.uint64],
        actions: Actions,
        numbers: FloatArray,
    ) -> None:
        """The arrays of one pair of dtypes. ``pick`` are their places in ``index``."""
        arrays, wide = index[pick], compute_type(dtype)
        lengths, first = self.lengths[arrays], np.zeros(pick.size + 1, np.int64)
        np.cumsum(self.blocks[arrays], out=first[1:])
        blocks = int(first[-1])
        if stored is FLOAT64:
            factors, fines = actions.factor[pick], np.ones(pick.size)
        else:
            factors, fines = actions.coarse[pick], actions.fine[pick]  # type: ignore[assignment]
        params, state, grads = self.params[arrays], self.state[:, arrays], pointers[pick]
        zeroed, zeros = actions.op[pick] == ZERO, np.zeros(BLOCK, stored.view)
        columns = np.ascontiguousarray(numbers[:, pick].T, wide.view)
        tag, unit, grad_tag = TAGS[dtype], TAGS[wide], TAGS[stored]
        no_gradient = np.uint64(zeros.ctypes.data)

        def work(start: int, stop: int) -> None:
            optim_kernels.update_range(
                self.kind, tag, dtype.itemsize, unit, wide.itemsize, grad_tag, stored.itemsize, params, state, grads,
                lengths, first, zeroed, no_gradient, factors, fines, columns, start, stop,
            )  # fmt: skip

        moved = stored.itemsize + 2 * dtype.itemsize + 2 * len(state) * wide.itemsize
        if blocks:
            # The pass before this one has measured the gradients, from the front: their end is still in cache.
            pool.run(work, blocks, int(lengths.sum()) * moved, backwards=True)


class NumbaUpdates:
    """See ``Updates``."""

    def bind(self, kind: str, params: Sequence[Buffer], state: Sequence[Sequence[Buffer]]) -> Bound:
        """See ``Updates.bind``."""
        return NumbaBound(kind, params, state)


def _pointers(buffers: Sequence[Buffer]) -> npt.NDArray[np.uint64]:
    return np.array([buffer.pointer for buffer in buffers], np.uint64)


def _codes(buffers: Sequence[Buffer]) -> IntArray:
    codes: list[Any] = [_CODES[buffer.dtype.name] for buffer in buffers]
    return np.array(codes, np.int64)


UPDATES = NumbaUpdates()

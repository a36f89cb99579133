"""TensorFlow's operations by the array API's names: those of them that a rule needs.

``tf.experimental.numpy`` is no such namespace: it has no ``astype``, and promotes types in a way of its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradclip_backends.array_api.languages import Language, Pair

_WITHOUT_KERNELS = ("float8_e4m3fn", "float8_e5m2")
"""TensorFlow stores and converts them, and has no other operation on them."""


class _Namespace:
    """See ``Language.xp``."""

    def __init__(self, tensorflow: Any) -> None:
        tf = self._tf = tensorflow
        self.float64, self.int32 = tf.float64, tf.int32
        self.abs, self.sqrt, self.reshape, self.stack = tf.abs, tf.sqrt, tf.reshape, tf.stack
        self.isinf, self.isnan = tf.math.is_inf, tf.math.is_nan
        self.ones_like, self.permute_dims, self.maximum = tf.ones_like, tf.transpose, tf.maximum

    def sum(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        return self._tf.reduce_sum(x, axis, keepdims)

    def min(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        return self._tf.reduce_min(x, axis, keepdims)

    def max(self, x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
        found = self._tf.reduce_max(x, axis, keepdims)
        if x.shape.is_fully_defined():
            return found
        # Of magnitudes. There may turn out to be none, and the largest of none is -inf to TensorFlow.
        return self._tf.where(found < 0, self._tf.zeros_like(found), found)

    def any(self, x: Any) -> Any:
        return self._tf.reduce_any(x)

    def isfinite(self, x: Any) -> Any:
        if x.dtype.is_complex:
            return self.isfinite(self._tf.math.real(x)) & self.isfinite(self._tf.math.imag(x))
        return self._tf.math.is_finite(self._tf.cast(x, self._tf.float32) if x.dtype.name in _WITHOUT_KERNELS else x)

    def concat(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return self._tf.concat(list(arrays), axis)

    def take(self, x: Any, index: Any, axis: int) -> Any:
        return self._tf.gather(x, index, axis=axis)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        kind = a.dtype
        if kind.name not in _WITHOUT_KERNELS:
            return self._tf.where(condition, a, b)
        return self._tf.cast(self._tf.where(condition, *(self._tf.cast(x, self._tf.float32) for x in (a, b))), kind)

    def zeros_like(self, x: Any) -> Any:
        if x.dtype.name not in _WITHOUT_KERNELS:
            return self._tf.zeros_like(x)
        return self._tf.cast(self._tf.zeros_like(self._tf.cast(x, self._tf.float32)), x.dtype)


class TensorFlow(Language):
    """TensorFlow: eager on its devices, and inside ``tf.function``, with XLA or without."""

    def __init__(self) -> None:
        self.tf: Any = sys.modules["tensorflow"]
        super().__init__(_Namespace(self.tf))

    def number(self, value: Any, like: Any) -> Any:
        """See ``Language.number``."""
        return self.tf.constant(np.asarray(value, self.wide_name))

    def cast(self, x: Any, dtype: Any) -> Any:
        """See ``Language.cast``."""
        return self.tf.cast(x, dtype)

    def index(self, values: Any, like: Any) -> Any:
        """See ``Language.index``."""
        return self.tf.constant(np.asarray(values, np.int64))

    def still(self, x: Any) -> Any:
        """See ``Language.still``."""
        return self.tf.stop_gradient(x)

    def parts(self, x: Any) -> Pair:
        """See ``Language.parts``."""
        return self.tf.math.real(x), self.tf.math.imag(x)

    def joined(self, real: Any, imaginary: Any, like: Any) -> Any:
        """See ``Language.joined``."""
        return self.tf.complex(real, imaginary)

    def size(self, x: Any) -> Any:
        """See ``Language.size``: a tensor where nobody knows it yet."""
        return math.prod(x.shape) if x.shape.is_fully_defined() else self.cast(self.tf.size(x), self.wide)

"""What a call reports where its numbers are arrays: inside a compiler, or of a lazy framework."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from gradclip_core.errors import InvalidArgumentError
from gradclip_core.info import ClipInfo, Facts


@dataclass(frozen=True, eq=False)
class TracedInfo:
    """``ClipInfo``, with 0-d arrays of the gradients' framework in place of numbers.

    All norms are those of the *unscaled* gradients, float64 where the framework has it in the call, float32 otherwise.
    It may be returned from ``jax.jit``, ``tf.function`` and ``torch.compile``; their callers get concrete arrays.
    What of it is not used, a compiler does not compute.

    Attributes
    ----------
    norm, clipped_norm, scale, clipped, skipped, infs, nans, nonfinite, overflow : as in ``ClipInfo``, as arrays.
    norms, scales : path of each array -> 0-d array.
    counts : path of each array -> (how many of its elements are infinite, how many are NaN). Of all arrays.
    backend : who did it.
    passed_over, underflow, certificate : empty, None, None: what they are about is for arrays in memory.
    """

    norm: Any
    clipped_norm: Any
    scale: Any
    clipped: Any
    skipped: Any
    infs: Any
    nans: Any
    overflow: Any
    array_norms: Any
    """An entry for each array, as have the next three."""
    array_scales: Any
    array_infs: Any
    array_nans: Any
    paths: tuple[str, ...]
    index: tuple[int, ...]
    """For each path, its array."""
    backend: str

    passed_over: ClassVar[dict[str, list[str]]] = {}
    underflow: ClassVar[None] = None
    certificate: ClassVar[None] = None

    @property
    def nonfinite(self) -> Any:
        """How many elements were infinite or NaN."""
        return self.infs + self.nans

    @property
    def culprits(self) -> list[str]:
        """Paths of the arrays with non-finite elements. Only where the values are there."""
        return [path for path, (infs, nans) in self.counts.items() if bool(infs + nans > 0)]

    def to_host(self) -> ClipInfo:
        """The same numbers as a ``ClipInfo``, for a log. Only where the values are there, and of one call."""
        if shape := tuple(getattr(self.norm, "shape", ())):
            raise InvalidArgumentError(
                "info.to_host()",
                f"it holds a report for each of {' x '.join(map(str, shape))} calls, as vmap and scan stack them",
                "Take one, in JAX with jax.tree.map(lambda x: x[i], info)",
            )
        facts = Facts(
            float(self.norm),
            float(self.clipped_norm),
            float(self.scale),
            bool(self.clipped),
            bool(self.skipped),
            int(self.infs),
            int(self.nans),
            overflow=int(self.overflow),
        )
        counts = {path: (int(infs), int(nans)) for path, (infs, nans) in self.counts.items()}
        norms, scales = ({k: float(v) for k, v in values.items()} for values in (self.norms, self.scales))
        details = norms, scales, {path: found for path, found in counts.items() if any(found)}
        return ClipInfo(lambda: facts, lambda: details, self.backend, {}, known=True)

    @property
    def norms(self) -> Mapping[str, Any]:
        """Path of each array -> its norm before."""
        return self._by_path(self.array_norms)

    @property
    def scales(self) -> Mapping[str, Any]:
        """Path of each array -> the factor put on it (the smallest of its units')."""
        return self._by_path(self.array_scales)

    @property
    def counts(self) -> Mapping[str, tuple[Any, Any]]:
        """Path of each array -> how many elements were infinite, and how many NaN."""
        infs, nans = self._by_path(self.array_infs), self._by_path(self.array_nans)
        return {path: (infs[path], nans[path]) for path in infs}

    def _by_path(self, values: Any) -> dict[str, Any]:
        return {path: values[i] for path, i in zip(self.paths, self.index, strict=True)}

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("norm", "clipped", "skipped", "backend"))
        return f"TracedInfo({said})"

    # TensorFlow's protocol for dataclasses that a tf.function may return.
    def __tf_flatten__(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(self, name) for name in _STATIC), tuple(getattr(self, name) for name in _ARRAYS)

    @classmethod
    def __tf_unflatten__(cls, metadata: tuple[Any, ...], components: tuple[Any, ...]) -> TracedInfo:
        static, arrays = zip(_STATIC, metadata, strict=True), zip(_ARRAYS, components, strict=True)
        return cls(**dict(static), **dict(arrays))


_STATIC = ("paths", "index", "backend")
_ARRAYS = tuple(field.name for field in fields(TracedInfo) if field.name not in _STATIC)
_known_to_jax: list[bool] = []


def tell_frameworks() -> None:
    """Let JAX know what an info is made of, so that a function which is traced may return one."""
    jax = sys.modules.get("jax")
    if jax is not None and not _known_to_jax:
        _known_to_jax.append(True)
        jax.tree_util.register_dataclass(TracedInfo, data_fields=list(_ARRAYS), meta_fields=list(_STATIC))
        # Of arrays that are there, inside a function that is traced, the report is known: it has no leaves.
        jax.tree_util.register_pytree_node(ClipInfo, lambda info: ((), info), lambda info, _: info)

"""The door: every public function, its signature, its documentation, its validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from gradclip_core import validate
from gradclip_core.arrays.dock import unload
from gradclip_core.info import ClipInfo
from gradclip_core.norms import scope_norms
from gradclip_core.passes import choose, measure, readable
from gradclip_core.pipeline import run, run_in_place, run_new
from gradclip_core.planned import Plan
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.rules import ArrayNorm, GlobalNorm, GroupNorm, Rule, Value, checked_rule
from gradclip_core.stages import refuse_complex
from gradclip_core.tracing import in_graph
from gradclip_core.validate import Common, How

Groups = Mapping[Any, Sequence[str]] | Callable[[str], Any]


def global_norm(grads: Any, ord: float = 2, *, backend: str | None = None) -> float:
    """The norm of all arrays together, as if they were one long vector.

    ``‖g‖_p = (Σ |g_i|^p)^(1/p)``; ``ord=inf`` is the largest magnitude.

    Parameters
    ----------
    grads : any container of arrays, any shapes and floating or complex dtypes. Only read.
    ord : 1 ≤ p ≤ inf. For 1, 2 and inf the result is the same to the bit on every backend; for
        any other p it is within 1e-12 relative. Complex arrays: 2 only.
    backend : a name from the registry; None: chosen by where the memory is.

    Returns
    -------
    float
        In float64 whatever the dtypes: a finite gradient never has an infinite norm, nor a zero
        one unless it is zero (a norm beyond float64's range is returned as its largest value).
        Empty containers and arrays count as 0. NaN if any element is, else inf if any is.

    Raises ``GradClipError`` for arguments, containers or memory that cannot be measured.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> gc.global_norm({"w": np.array([3.0, 4.0], np.float32), "b": np.array([-12.0])})
    13.0
    """
    if in_graph():
        from gradclip_core.arrays.torch_compile import norm

        return norm(grads, ord, backend, _global_norm)  # type: ignore[no-any-return]
    return _global_norm(grads, ord, backend)


@ieee_arithmetic
def _global_norm(grads: Any, ord: float, backend: str | None) -> float:
    order = validate.order(ord)
    cargo = unload(grads, "global_norm", clips=False, parts=True)
    refuse_complex(cargo, "global_norm", GlobalNorm(1.0, order))
    chosen, _ = choose(validate.How(backend=backend).backend, cargo.arrays)
    if not cargo.in_memory:
        from gradclip_core.operations_run import norm_by_operations

        return norm_by_operations(chosen, cargo, order)  # type: ignore[no-any-return]  # of traced arrays, an array
    if cargo.holds:
        from gradclip_core import held

        chosen = held.fitting(cargo, chosen, "global_norm")
        held.compare(cargo, chosen, "global_norm", (), order)
    buffers = cargo.manifest or [readable(chosen, docked) for docked in cargo.arrays]
    measured = measure(chosen, buffers, order)
    return float(scope_norms(measured, np.zeros(len(cargo.arrays), np.int64), 1).value()[0])


def clip(grads: Any, rule: Rule, *, out: Any = None, **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Clip by any rule, into new arrays of the same frameworks, in a container of the same type.

    Parameters
    ----------
    grads : a bare array, or any nesting of dict, list, tuple, namedtuple, dataclass and None; an
        iterator is read once, and its result is a list. Only read. PyTorch's sparse COO tensors count as what
        they store, coalesced. Its DTensors (FSDP2) are clipped whole: every process of their mesh makes the same call.
    rule : ``GlobalNorm``, ``GroupNorm``, ``ArrayNorm``, ``UnitNorm``, ``Value``, ``Project`` or ``Chain``.
    out : where to write, instead of new arrays: a container with an array of the same path and shape for
        each gradient, of any floating dtype, sharing no memory with them. Float32 masters of float16
        gradients are unscaled, clipped and converted in one pass, computed in float64 and rounded
        once; what a narrower dtype cannot hold becomes its largest finite value. Left as it is where
        ``"skip"`` skips. Host memory only.
    loss_scale : the gradients hold ``loss_scale · g``; thresholds and norms are those of ``g``,
        and so are the results, in their own dtype: what float16 cannot hold becomes 0 there.
        A number, or a 0-d array on the gradients' device, which stays there.
    nonfinite : what to do about infinities and NaNs. ``"raise"``: raise, touch nothing.
        ``"skip"``: leave all as it is, ``info.skipped``. ``"zero"``: set all to 0,
        ``info.skipped``. ``"sanitize"``: NaN to 0, ±inf to ± the largest finite value, then
        clip. ``"propagate"``: IEEE arithmetic, as PyTorch does.
    backend : a name from the registry, which then serves or raises; None: chosen by where the
        memory is.
    underflow : what to do about elements that are not zero and that the factor would make zero, as
        float16 does below 2^-25. ``"ignore"``. ``"count"``: ``info.underflow``, for up to two more
        read passes. ``"raise"``: raise, touch nothing. Host memory only.
    array_scales : ``{path: s}``, s a power of two: that array holds ``s · loss_scale · g``, as float8 gradients
        with a scale of their own do, and is left holding ``s`` times its result; ``out`` gets the result itself.
        For norm rules, in host memory.
    mesh_axes : inside ``jax.shard_map`` the names of the mesh axes over which the gradients are sharded: norms are
        those of all shards. Without them a shard is clipped by its own norm.

    Returns
    -------
    (clipped, info)
        ``clipped`` shares no memory with ``grads``, but for immutable arrays that are left as they are: those come
        back themselves. An array that occurs twice there is one array here too, and counts once; of immutable ones
        each counts, since equal gradients are one object there. With ``out`` it is that. On a device the work is
        queued on the producer's current stream, and the host waits only under ``nonfinite="raise"``, and when ``info``
        is read.
        Inside ``jax.jit``, ``tf.function``, ``torch.compile`` and the like ``info`` is a ``TracedInfo``.

    Raises
    ------
    NonFiniteGradientError
        under ``nonfinite="raise"``, also for finite elements that a ``loss_scale`` < 1 would make infinite.
    GradientUnderflowError
        under ``underflow="raise"``.
    GradClipError
        for everything else that cannot be done; nothing has been written then.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> gc.clip([np.array([3.0, 4.0])], gc.GlobalNorm(1.0))[0][0].round(6)
    array([0.6, 0.8])
    """
    return run_new(grads, checked_rule("clip", rule), how, "clip", out)


def clip_(grads: Any, rule: Rule, **how: Unpack[Common]) -> ClipInfo:
    """Clip by any rule, in place. See ``clip`` for the parameters.

    The arrays must be writable; each framework is told of a write (PyTorch's version counters, on a
    device always). Where nothing is to be clipped or unscaled, no memory is written.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> g = np.array([0.3, 0.4])
    >>> gc.clip_(g, gc.Chain(gc.Value(1.0), gc.GlobalNorm(1.0))).clipped
    False
    """
    return run_in_place(grads, checked_rule("clip_", rule), how, "clip_")


def plan(grads: Any, rule: Rule, **how: Unpack[Common]) -> Plan:
    """Measure and decide; write nothing. See ``clip`` for the parameters.

    Returns
    -------
    Plan
        ``plan.scale`` for an optimizer that multiplies as it reads, ``plan.info``,
        ``plan.apply(grads)``, ``plan.apply_(grads)``.

    Notes
    -----
    A by-value rule that clips, and a ``Chain``, need scratch memory as large as the gradients to
    know the norms that come of them; it is freed before this returns.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> gc.plan([np.array([3.0, 4.0]) * 1024], gc.GlobalNorm(10.0), loss_scale=1024).scale
    0.0009765625
    """
    return Plan(run(grads, checked_rule("plan", rule), How.of(how), "plan", "nothing"))


def clip_by_global_norm(grads: Any, max_norm: float, *, ord: float = 2, **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Shrink all gradients together so that their norm is at most ``max_norm``.

    ``g ← g · min(1, max_norm / ‖g‖)``, the projection on the ball of radius ``max_norm``.

    Parameters
    ----------
    grads, **how : see ``clip``.
    max_norm : the bound, finite and ≥ 0, in units of the unscaled gradient.
    ord : of the norm, 1 ≤ p ≤ inf. Complex arrays: 2 only.

    Returns
    -------
    (clipped, info)
        Where the computed norm is at or under the threshold, ``clipped`` equals ``grads`` bit for
        bit. Above it, every element is multiplied by the same factor, rounded so that
        ``‖clipped‖ ≤ max_norm`` holds in exact arithmetic for float32 and float64, and
        ``max_norm · (1 + u)`` for 16-bit types, u their unit roundoff. No epsilon.

    Raises
    ------
    NonFiniteGradientError, GradClipError
        See ``clip``.

    Notes
    -----
    Accumulated in float64 in a fixed order: the same bits on every backend, with every number of
    threads, in every run. docs/numerics.md derives the bounds.

    References
    ----------
    Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks",
    https://arxiv.org/abs/1211.5063, algorithm 1.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> clipped, info = gc.clip_by_global_norm({"w": np.array([3.0, 4.0, 0.0, 0.0, -12.0])}, 10.0)
    >>> clipped["w"].round(3)
    array([ 2.308,  3.077,  0.   ,  0.   , -9.231])
    >>> info.norm, info.clipped
    (13.0, True)
    """
    return run_new(grads, GlobalNorm(max_norm, ord), how, "clip_by_global_norm")


def clip_by_global_norm_(grads: Any, max_norm: float, *, ord: float = 2, **how: Unpack[Common]) -> ClipInfo:
    """``clip_by_global_norm``, in place; the gradients may mix frameworks and dtypes.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> g = [np.array([3.0, 4.0], np.float32)]
    >>> info = gc.clip_by_global_norm_(g, max_norm=1.0)
    >>> info.norm, bool(np.linalg.norm(g[0]) <= 1)
    (5.0, True)
    """
    return run_in_place(grads, GlobalNorm(max_norm, ord), how, "clip_by_global_norm_")


def clip_by_group_norm(
    grads: Any, max_norm: float | Mapping[Any, float | None], *, groups: Groups, ord: float = 2, **how: Unpack[Common]
) -> tuple[Any, ClipInfo]:
    """Shrink each group of arrays so that its norm is at most its ``max_norm``.

    Parameters
    ----------
    grads, **how : see ``clip``.
    max_norm : one bound for all groups, or ``{group: bound}``; None leaves a group alone.
    groups : ``{group: [path, ...]}``, naming every path once, or a function from a path to its
        group. A path is ``"encoder.layers.0.weight"``: keys, field names and list indices from
        the outside in (a None keeps its index; of equal paths the second is ``"a.b#2"``).
    ord : of the norms, 1 ≤ p ≤ inf.

    Raises
    ------
    InvalidArgumentError
        for a path that is unknown, in two groups or in none, or a group without a bound.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> grads = {"body": np.array([3.0, 4.0]), "head": np.array([0.5])}
    >>> clipped, info = gc.clip_by_group_norm(grads, {"a": 1.0, "b": 1.0}, groups={"a": ["body"], "b": ["head"]})
    >>> clipped["head"]
    array([0.5])
    """
    return run_new(grads, GroupNorm(max_norm, groups, ord), how, "clip_by_group_norm")


def clip_by_group_norm_(
    grads: Any, max_norm: float | Mapping[Any, float | None], *, groups: Groups, ord: float = 2, **how: Unpack[Common]
) -> ClipInfo:
    """``clip_by_group_norm``, in place."""
    return run_in_place(grads, GroupNorm(max_norm, groups, ord), how, "clip_by_group_norm_")


def clip_by_norm(grads: Any, max_norm: float, *, ord: float = 2, **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Shrink each array on its own so that its norm is at most ``max_norm`` (per-parameter clipping).

    ``g_i ← g_i · min(1, max_norm / ‖g_i‖)`` for each array i: the direction of each array is
    kept, that of the whole gradient is not. See ``clip_by_global_norm`` for the parameters.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> clipped, info = gc.clip_by_norm([np.array([3.0, 4.0]), np.array([0.5])], 1.0)
    >>> clipped[0].round(6), clipped[1]
    (array([0.6, 0.8]), array([0.5]))
    """
    return run_new(grads, ArrayNorm(max_norm, ord), how, "clip_by_norm")


def clip_by_norm_(grads: Any, max_norm: float, *, ord: float = 2, **how: Unpack[Common]) -> ClipInfo:
    """``clip_by_norm``, in place."""
    return run_in_place(grads, ArrayNorm(max_norm, ord), how, "clip_by_norm_")


def clip_by_value(grads: Any, limit: float | tuple[float, float], **how: Unpack[Common]) -> tuple[Any, ClipInfo]:
    """Clamp every element to ``[low, high]``: the Euclidean projection on a box.

    ``g_i ← min(max(g_i, low), high)``

    Parameters
    ----------
    grads, **how : see ``clip``. Complex arrays have no order, and are an error.
    limit : v ≥ 0 for ``[-v, v]``, or ``(low, high)``, one of which may be infinite; rounded to
        nearest in each array's own dtype, as ``numpy.clip`` does.

    Returns
    -------
    (clipped, info)
        Norms in ``info`` are 2-norms. NaN stays NaN under ``nonfinite="propagate"``.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> clipped, info = gc.clip_by_value(np.array([0.5, -7.0, 2.0]), 1.0)
    >>> clipped
    array([ 0.5, -1. ,  1. ])
    """
    return run_new(grads, Value(limit), how, "clip_by_value")


def clip_by_value_(grads: Any, limit: float | tuple[float, float], **how: Unpack[Common]) -> ClipInfo:
    """``clip_by_value``, in place. Arrays without an element beyond the limit are not written."""
    return run_in_place(grads, Value(limit), how, "clip_by_value_")

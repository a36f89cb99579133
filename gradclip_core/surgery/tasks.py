"""PCGrad: of two tasks' gradients that conflict, each loses what goes against the other.

All dots that the algorithm asks for are sums over the T×T dots of the tasks' gradients, so these
are taken once, the rest is arithmetic on T numbers a task, and one pass writes the combination.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from gradclip_core.arrays.dock import Cargo, unload
from gradclip_core.arrays.layout import flatten_in, lying
from gradclip_core.errors import BackendError, InvalidArgumentError, UnsupportedArrayError, show
from gradclip_core.forms import Form, Passes, Reading, passes_of
from gradclip_core.members import match
from gradclip_core.norms import LEAST, MOST, Measured
from gradclip_core.passes import choose, measure
from gradclip_core.pipeline import finish
from gradclip_core.precision.environment import ieee_arithmetic
from gradclip_core.precision.nonfinite import refuse
from gradclip_core.protocol import Backend, Buffer, FloatArray
from gradclip_core.reference import tree_sum
from gradclip_core.reference_forms import load
from gradclip_core.rules import Site
from gradclip_core.sets.normals import owned
from gradclip_core.validate import Common, How


@dataclass(frozen=True, slots=True)
class SurgeryReport:
    """What ``pcgrad`` saw and did."""

    conflicts: tuple[tuple[int, int], ...]
    """The pairs (i, j), i < j, of tasks whose gradients have a negative dot."""
    projections: tuple[tuple[int, int], ...]
    """(i, j), in order: what was left of task i's gradient lost its part along task j's."""
    coefficients: tuple[float, ...]
    """The result is ``Σ coefficients[j] · g_j``: all 1 where nothing conflicts."""
    cosines: tuple[tuple[float, ...], ...]
    """The cosines between the tasks' gradients; 0 for a gradient that is zero."""
    nonfinite: int
    """How many elements were infinite or NaN, in all tasks."""
    culprits: tuple[str, ...]
    """The paths of the arrays that they are in, such as ``"1.w"``: that of task 1 at "w"."""
    skipped: bool
    """Whether non-finite values made ``"skip"`` or ``"zero"`` give up this step."""
    backend: str
    """Who did it."""


@ieee_arithmetic
def pcgrad(task_grads: Sequence[Any], seed: int, **how: Unpack[Common]) -> tuple[Any, SurgeryReport]:
    """The sum of several tasks' gradients, each projected off those that it conflicts with (PCGrad).

    For each task i: ``p ← g_i``; for each other task j in random order, where ``<p, g_j> < 0``:
    ``p ← p - (<p, g_j>/‖g_j‖²)·g_j``. The result is ``Σ_i p_i``. It depends on the orders, and is
    no projection on an intersection.

    Parameters
    ----------
    task_grads : a list with a container of gradients for each task, all of one structure (matched
        by path and shape), of the shared parameters alone. Real arrays in host memory. Only read.
    seed : an int >= 0. The order for task i is ``rng.permutation([j for j in range(T) if j != i])``,
        tasks 0, 1, ... in turn, with ``rng = numpy.random.Generator(numpy.random.PCG64(seed))``: the
        same for the same seed and the same NumPy (which may change its permutations in a release).
    **how : see ``gradclip_core.clip``. ``loss_scale`` is that of all tasks. ``nonfinite="skip"`` returns
        the plain sum and ``"zero"`` zeros, each with ``report.skipped``; ``"sanitize"`` is done to
        each task; ``"propagate"``: a dot that is NaN is no conflict, and the sum is IEEE's.

    Returns
    -------
    (combined, report)
        New arrays like those of the first task, in its dtypes, sharing memory with none. Computed
        in float64 and rounded once; where nothing conflicts this is the plain sum, added in the
        tasks' order. The same bits on every backend.

    Raises
    ------
    InvalidArgumentError
        for tasks that are no list, or of different structure, and a seed that is no int >= 0.
    NonFiniteGradientError
        under ``nonfinite="raise"``, the default, naming task and path.
    GradClipError
        See ``gradclip_core.clip``.

    Notes
    -----
    T(T+1)/2 passes over two gradients each, and one over all of them. A zero gradient conflicts with none.

    References
    ----------
    Yu, Kumar, Gupta, Levine, Hausman, Finn 2020, "Gradient Surgery for Multi-Task Learning",
    https://arxiv.org/abs/2001.06782, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gradclip_core import surgery
    >>> combined, report = surgery.pcgrad([np.array([1.0, 0.0]), np.array([-1.0, 1.0])], seed=0)
    >>> combined.round(6).tolist(), report.conflicts
    ([0.5, 1.5], ((0, 1),))
    """
    keywords = How.of(how).known_on_host()
    tasks, generator = _tasks(task_grads), _generator(seed)
    cargos = [unload(task, f"pcgrad, task_grads[{k}]") for k, task in enumerate(tasks)]
    backend, _ = choose(keywords.backend, [docked for cargo in cargos for docked in cargo.arrays])
    _refuse_unfit(cargos, backend)
    passes = passes_of(backend)
    buffers = _beside_the_first(cargos)
    sanitize = keywords.nonfinite == "sanitize"
    measured = [measure(backend, task, 2.0, sanitize=sanitize) for task in buffers]
    nonfinite, culprits = _nonfinite(cargos[0], measured, keywords.nonfinite)
    gives_up = bool(culprits) and keywords.nonfinite in ("skip", "zero")
    vectors = [_vector(*task, keywords) for task in zip(buffers, measured, strict=True)]
    count = len(vectors)
    gram = np.zeros((count, count)) if gives_up else _gram(passes, vectors)  # zeros: no conflicts
    made, projections = project_conflicting(gram, generator)
    top = max(vector.exponent for vector in vectors)
    units = np.ldexp(1.0, np.array([vector.exponent - top for vector in vectors]))
    weights = units @ made  # of the vectors in their own units
    if gives_up and keywords.nonfinite == "zero":
        weights = np.zeros(count)
    combined = _write(passes, cargos[0], buffers[0], vectors, weights, top)
    report = SurgeryReport(
        conflicts=tuple((i, j) for i in range(count) for j in range(i + 1, count) if gram[i, j] < 0),
        projections=projections,
        coefficients=tuple((weights / units).tolist()),
        cosines=tuple(map(tuple, _cosines(gram).tolist())),
        nonfinite=nonfinite,
        culprits=culprits,
        skipped=gives_up,
        backend=backend.name,
    )
    return combined, report


def project_conflicting(
    gram: FloatArray, generator: np.random.Generator
) -> tuple[FloatArray, tuple[tuple[int, int], ...]]:
    """Algorithm 1 on coefficients: row i of the result holds what p_i is made of."""
    count = gram.shape[0]
    made, projections = np.eye(count), []
    for i in range(count):
        for j in generator.permutation([j for j in range(count) if j != i]).tolist():
            used = made[i] != 0  # what is not used may be NaN
            dot = float(made[i, used] @ gram[used, j])
            if dot < 0:
                made[i, j] -= dot / gram[j, j]
                projections.append((i, j))
    return made, tuple(projections)


@dataclass(frozen=True, slots=True)
class _Vector:
    """One task's gradient: ``u · 2^-exponent`` is what ``reading`` makes of the buffers."""

    buffers: list[Buffer]
    reading: Reading
    exponent: int


def _tasks(task_grads: Any) -> list[Any]:
    listed = isinstance(task_grads, (list, tuple, Iterator)) and not hasattr(task_grads, "_fields")
    tasks = list(task_grads) if listed else []
    if not tasks:
        seen = "there is no task" if listed else f"a {type(task_grads).__name__} is no list of gradients"
        cure = "Pass a list with one container of gradients for each task"
        raise InvalidArgumentError(f"pcgrad, task_grads={show(task_grads)}", seen, cure)
    return tasks


def _generator(seed: Any) -> np.random.Generator:
    cure = "Pass an int >= 0, another one for each step, such as the step's number"
    try:
        number = -1 if isinstance(seed, (bool, np.bool_)) else operator.index(seed)
    except TypeError as error:
        raise InvalidArgumentError(f"pcgrad, seed={show(seed)}", f"it is no int ({error})", cure) from error
    if number < 0:
        raise InvalidArgumentError(f"pcgrad, seed={show(seed)}", "it is no int >= 0", cure)
    return np.random.Generator(np.random.PCG64(number))


def _refuse_unfit(cargos: Sequence[Cargo], backend: Backend) -> None:
    for k, cargo in enumerate(cargos):
        if cargo.device != "cpu" or not hasattr(backend, "projections"):
            where = f"on {cargo.device}" if cargo.device != "cpu" else f"served by {backend.name}"
            seen = "gradient surgery is done in host memory, by numba_cpu and numpy"
            raise BackendError(f"pcgrad, arrays {where}", seen, "Pass arrays in host memory")
        for i, docked in enumerate(cargo.arrays):
            if docked.is_complex:
                seen = "it is complex, and which dot of complex gradients would be a conflict is not defined"
                cure = "Pass its real and imaginary parts"
                raise UnsupportedArrayError(f"pcgrad, array '{k}.{cargo.first_path(i)}'", seen, cure)


def _beside_the_first(cargos: Sequence[Cargo]) -> list[list[Buffer]]:
    """The buffers of each task, in the order of the first one's arrays and of their elements."""
    first = cargos[0]
    site = Site(first)
    orders = [lying(docked, None) for docked in first.arrays]
    found = []
    for k, cargo in enumerate(cargos):
        index = match(cargo, site, f"pcgrad, task_grads[{k}]")
        _refuse_lost(first, cargo, index, k)
        arrays = (cargo.arrays[i] for i in index)
        found.append([flatten_in(docked, None, order).buffer for docked, order in zip(arrays, orders, strict=True)])
    return found


def _refuse_lost(first: Cargo, cargo: Cargo, index: Sequence[int], task: int) -> None:
    """Raise where a later task has a gradient that has no place in the first one's container."""
    places = dict(zip(first.tree.paths, first.index, strict=True))
    for path, array in zip(cargo.tree.paths, cargo.index, strict=True):
        if path not in places:
            seen = "task_grads[0] has no array at that path"
        elif index[places[path]] != array:
            seen = f"task_grads[0] has one array there and at '{first.first_path(places[path])}', and here are two"
        else:
            continue
        cure = "Pass all tasks in containers of the same structure: the gradients of the shared parameters"
        raise InvalidArgumentError(f"pcgrad, task_grads[{task}], gradient '{path}'", seen, cure)


def _nonfinite(first: Cargo, measured: Sequence[Measured], policy: str) -> tuple[int, tuple[str, ...]]:
    """How many elements are not finite, and where. Raises under "raise"."""
    paths = [f"{k}.{name}" for k in range(len(measured)) for name in first.first_paths()]
    infs, nans = (np.concatenate([getattr(task.found, kind) for task in measured]) for kind in ("infs", "nans"))
    bad = infs + nans
    if bad.any() and policy == "raise":
        raise refuse("pcgrad", paths, infs, nans)
    return int(bad.sum()), tuple(path for path, here in zip(paths, bad, strict=True) if here)


def _vector(buffers: list[Buffer], measured: Measured, how: How) -> _Vector:
    """A task's gradient, so that its squares neither overflow nor vanish; as it is in memory where it can be."""
    stored = float(np.max(measured.found.largest, initial=0.0))
    inverse = how.inverse_scale
    sanitize = how.nonfinite == "sanitize" and bool(measured.nonfinite.any())
    if not sanitize and (stored == 0 or (LEAST <= stored <= MOST and LEAST <= stored * inverse <= MOST)):
        return _Vector(buffers, Reading(inverse), 0)
    exponent = math.frexp(stored * inverse)[1]
    reading = Reading(inverse, exponent, sanitize)
    return _Vector([owned(_values(buffer, reading)) for buffer in buffers], Reading(), exponent)


def _values(buffer: Buffer, reading: Reading) -> FloatArray:
    return load(buffer.as_numpy(), buffer.dtype, reading)


def _gram(passes: Passes, vectors: Sequence[_Vector]) -> FloatArray:
    """The dots of all pairs, each vector in its own units."""
    gram = np.zeros((len(vectors), len(vectors)))
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors[: i + 1]):
            form = Form.of("same", len(one.buffers), companions=other.buffers)
            (parts,) = passes.map(one.buffers, None, one.reading, form, ["wy"], rounded=False)
            gram[i, j] = gram[j, i] = tree_sum(parts) * other.reading.inverse
    return gram


def _cosines(gram: FloatArray) -> FloatArray:
    lengths = np.sqrt(np.diag(gram))
    size = np.outer(lengths, lengths)
    return np.where(size == 0, 0.0, gram / np.where(size == 0, 1.0, size))


def _write(
    passes: Passes, first: Cargo, like: list[Buffer], vectors: Sequence[_Vector], weights: FloatArray, exponent: int
) -> Any:
    """``Σ weight·vector·2^exponent`` in new arrays like the first task's, one after the other."""
    targets = [docked.door.new_like(docked) for docked in first.arrays]
    for i, (docked, target) in enumerate(zip(first.arrays, targets, strict=True)):
        y = np.zeros((1, like[i].length))
        if weights.any():
            y = weights[0] * _values(vectors[0].buffers[i], vectors[0].reading)
        for vector, weight in zip(vectors[1:], weights[1:], strict=True):
            if weight:
                y += weight * _values(vector.buffers[i], vector.reading)
        sink = flatten_in(target, None, lying(docked, None))
        passes.map([like[i]], [sink.buffer], Reading(exponent=exponent), Form.of("given", 1, values=[y]), ["max_y"])
        sink.unpack(target)
    return finish(first, targets)

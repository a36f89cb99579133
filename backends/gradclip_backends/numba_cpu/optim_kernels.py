"""The optimizers' kernels: a block of at most 4096 elements at a time, by the addresses of all that it takes.

One loop reads gradient, parameter and state and writes the latter two. The compiler checks at run
time that these do not overlap, and then vectorises; four pointers are few enough for it to do so.
The formulas, and the order of roundings, are those of ``gradclip_core.updates``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradclip_backends.numba_cpu.elements import narrow, narrow_once, view, widen
from gradclip_backends.numba_cpu.jit import jit
from gradclip_backends.numba_cpu.kernels import BLOCK, find_segment

SGD, MOMENTUM, NESTEROV, ADAM, LION = range(5)
NAMES = ("sgd", "momentum", "nesterov", "adam", "lion")


@jit
def gradient(x: Any, factor: Any, fine: Any, l2: Any, p: Any, unit: Any) -> Any:
    """The stored element, scaled and brought to the type of computation, with the penalty's gradient."""
    g = narrow_once(widen(x) * factor * fine, unit)
    return g + l2 * p if l2 != 0 else g


@jit
def sgd_block(x: Any, p: Any, n: Any, factor: Any, fine: Any, numbers: Any, tag: Any, unit: Any) -> Any:
    """Gradient descent."""
    l2, lr = numbers[0], numbers[1]
    for i in range(n):
        q = widen(p[i])
        p[i] = narrow(q - lr * gradient(x[i], factor, fine, l2, q, unit), tag)


@jit
def momentum_block(x: Any, p: Any, b: Any, n: Any, factor: Any, fine: Any, numbers: Any, tag: Any, unit: Any) -> Any:
    """Gradient descent with momentum."""
    l2, keep, take, lr = numbers[0], numbers[1], numbers[2], numbers[4]
    for i in range(n):
        q = widen(p[i])
        step = keep * b[i] + take * gradient(x[i], factor, fine, l2, q, unit)
        b[i] = step
        p[i] = narrow(q - lr * step, tag)


@jit
def nesterov_block(x: Any, p: Any, b: Any, n: Any, factor: Any, fine: Any, numbers: Any, tag: Any, unit: Any) -> Any:
    """Gradient descent with Nesterov's momentum."""
    l2, keep, take, ahead, lr = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for i in range(n):
        q = widen(p[i])
        g = gradient(x[i], factor, fine, l2, q, unit)
        step = keep * b[i] + take * g
        b[i] = step
        p[i] = narrow(q - lr * (g + ahead * step), tag)


@jit
def adam_block(
    x: Any, p: Any, m: Any, v: Any, n: Any, factor: Any, fine: Any, numbers: Any, tag: Any, unit: Any
) -> Any:
    """Adam and AdamW."""
    l2, take1, keep2, take2 = numbers[0], numbers[1], numbers[2], numbers[3]
    root, eps, decay, lr = numbers[4], numbers[5], numbers[6], numbers[7]
    for i in range(n):
        q = widen(p[i])
        g = gradient(x[i], factor, fine, l2, q, unit)
        mean = m[i] + take1 * (g - m[i])
        square = keep2 * v[i] + (take2 * g) * g
        m[i] = mean
        v[i] = square
        p[i] = narrow(decay * q - (lr * mean) / (np.sqrt(square) / root + eps), tag)


@jit
def lion_block(x: Any, p: Any, m: Any, n: Any, factor: Any, fine: Any, numbers: Any, tag: Any, unit: Any) -> Any:
    """Lion: the sign of an average."""
    keep1, take1, keep2, take2 = numbers[0], numbers[1], numbers[2], numbers[3]
    decay, lr = numbers[4], numbers[5]
    for i in range(n):
        q = widen(p[i])
        g = narrow_once(widen(x[i]) * factor * fine, unit)
        u = keep1 * m[i] + take1 * g
        m[i] = keep2 * m[i] + take2 * g
        p[i] = narrow(decay * q - (lr if u > 0 else (-lr if u < 0 else u)), tag)


@jit
def update_range(
    kind: Any,
    tag: Any,
    itemsize: Any,
    unit: Any,
    unit_itemsize: Any,
    grad_tag: Any,
    grad_itemsize: Any,
    params: Any,
    state: Any,
    grads: Any,
    lengths: Any,
    first: Any,
    zeroed: Any,
    zeros: Any,
    factors: Any,
    fines: Any,
    numbers: Any,
    start: Any,
    stop: Any,
) -> Any:
    """Update a range of blocks. ``zeros`` is the address of a block of them: the gradients that are ``zeroed``."""
    s = find_segment(first, start)
    for block in range(start, stop):
        while first[s + 1] <= block:
            s += 1
        done = (block - first[s]) * BLOCK
        n = min(BLOCK, lengths[s] - done)
        p = view(params[s] + np.uint64(done * itemsize), n, tag)
        x = view(zeros if zeroed[s] else grads[s] + np.uint64(done * grad_itemsize), n, grad_tag)
        offset = np.uint64(done * unit_itemsize)
        if kind == SGD:
            sgd_block(x, p, n, factors[s], fines[s], numbers[s], tag, unit)
            continue
        a = view(state[0, s] + offset, n, unit)
        if kind == MOMENTUM:
            momentum_block(x, p, a, n, factors[s], fines[s], numbers[s], tag, unit)
        elif kind == NESTEROV:
            nesterov_block(x, p, a, n, factors[s], fines[s], numbers[s], tag, unit)
        elif kind == LION:
            lion_block(x, p, a, n, factors[s], fines[s], numbers[s], tag, unit)
        else:
            v = view(state[1, s] + offset, n, unit)
            adam_block(x, p, a, v, n, factors[s], fines[s], numbers[s], tag, unit)

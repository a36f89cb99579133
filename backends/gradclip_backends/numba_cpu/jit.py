"""How this room compiles: one place for every option."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.extending

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile lazily per dtype, without the GIL, without fastmath: every rounding is specified.

    The compiled code is kept on disk; where no folder can be written it is compiled anew in each
    process. With NUMBA_DISABLE_JIT=1 the same kernels run as plain Python. Not ``parallel=True``,
    whose threading layers abort the process when two Python threads enter, or after a fork.
    """
    return _compile(function, nogil=True)


def holding_the_gil(function: Function) -> Function:
    """``jit`` for what looks into Python's objects."""
    return _compile(function, nogil=False)


def _compile(function: Function, *, nogil: bool) -> Function:
    options: dict[str, Any] = {"nogil": nogil, "error_model": "numpy", "fastmath": False}
    try:
        compiled: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        compiled = numba.njit(cache=False, **options)(function)
    _fresh_with_the_room(compiled)
    return compiled


def _fresh_with_the_room(compiled: Any) -> None:
    """What is on disk is as old as the youngest file here.

    Numba looks at the function's own file alone, and would go on with machine code in which a function of
    another file is what it was before an update.
    """
    file: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _room())


@functools.cache
def _room() -> tuple[tuple[str, float, int], ...]:
    files = Path(__file__).parent.glob("*.py")  # none where the package is a zip file
    return tuple(sorted((path.name, path.stat().st_mtime, path.stat().st_size) for path in files))


def bare(function: Function) -> Function:
    """The same function without annotations, which what an overload returns must not have."""
    function.__annotations__ = {}
    return function


def intrinsic(function: Callable[..., Any]) -> Any:
    """``numba.extending.intrinsic``, which cannot read annotations."""
    return numba.extending.intrinsic(bare(function))


def overload(replaced: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """``numba.extending.overload``, which cannot read annotations."""

    def decorate(function: Callable[..., Any]) -> Any:
        return numba.extending.overload(replaced)(bare(function))

    return decorate

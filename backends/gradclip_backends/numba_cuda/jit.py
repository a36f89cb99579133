"""How this room compiles: kernels, functions of the device, and single instructions, each also as plain Python.

With NUMBA_ENABLE_CUDASIM=1 Numba runs kernels as Python, a thread of Python for each of the device. What Numba
has no name for (an address, a rounding, a 16-byte load) is emitted here as LLVM, and its Python twin runs there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import cuda

from gradclip_backends.gpu.layout import THREADS

Function = TypeVar("Function", bound=Callable[..., Any])

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()


def device(function: Function) -> Function:
    """A function of the device, always inlined: what is passed around here are tuples, which should be registers."""
    if SIMULATED:
        return function
    compiled: Function = cuda.jit(device=True, forceinline=True, fastmath=False)(function)
    return compiled


def hardware(function: Function) -> Function:
    """A function of the device that names ``cuda``: the simulator has to lend it one."""
    if not SIMULATED:
        return device(function)
    wrapped: Function = cuda.jit(device=True)(function)
    return wrapped


def kernel(blocks: int) -> Callable[[Function], Any]:
    """A kernel, compiled at its first use. ``blocks``: how many a multiprocessor is to hold at a time."""

    def decorate(function: Function) -> Any:
        if SIMULATED:
            return cuda.jit(function)
        # Not `lto`: nvJitLink would optimise once more, after the PTX that the tests have seen.
        made = cuda.jit(launch_bounds=(THREADS, blocks), fastmath=False, lto=False)(function)
        made.blocks = blocks
        return made

    return decorate


def primitive(signature: str, emit: Callable[..., Any]) -> Callable[[Function], Function]:
    """A function that is what ``emit(builder, *values)`` emits; as Python it is the function itself.

    ``signature`` is "result(argument, ...)" in Numba's types. Arguments are converted to theirs.
    """

    def decorate(twin: Function) -> Function:
        if SIMULATED:
            return twin
        from numba.cuda import types
        from numba.cuda.extending import intrinsic

        typed = eval(signature, {**vars(types), "pair": types.UniTuple(types.int64, 16)})

        def definition(typing_context: Any, *_: Any) -> Any:
            def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                value = emit(builder, *values)
                return context.get_dummy_value() if value is None else value

            return typed, generate

        # Numba reads names and number of the arguments off the signature, and cannot read annotations.
        names = ["typing_context", *inspect.signature(twin).parameters]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        definition.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        definition.__annotations__ = {}
        definition.__name__ = twin.__name__
        made: Function = intrinsic(definition)
        return made

    return decorate


def calling(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Emits a call of an LLVM intrinsic, or of a function of libdevice."""

    def emit(builder: Any, *values: Any) -> Any:
        found = builder.module.globals.get(name)
        if found is None:
            found = ir.Function(builder.module, ir.FunctionType(result, arguments), name)
        return builder.call(found, values)

    return emit


def assembling(text: str, constraints: str, result: Any, *arguments: Any, effect: bool = False) -> Callable[..., Any]:
    """Emits an instruction of PTX. ``effect``: it is not to be moved, dropped or doubled."""

    def emit(builder: Any, *values: Any) -> Any:
        code = ir.InlineAsm(ir.FunctionType(result, arguments), text, constraints, side_effect=effect)
        return builder.call(code, values)

    return emit

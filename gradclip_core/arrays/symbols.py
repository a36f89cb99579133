"""Traced arrays, and what stands beside them: constants of the program that is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradclip_core.arrays.docked import Docked
from gradclip_core.errors import UnsupportedArrayError

if TYPE_CHECKING:
    from gradclip_core.arrays.dock import Cargo


def of_one_program(cargo: Cargo, asked: str, number: Docked | None = None) -> Cargo:
    """The same cargo where all is in memory. Otherwise arrays in memory are handed to the traced ones' framework.

    ``number``: a traced bound or loss scale, which makes their program that of the gradients.
    """
    traced = next((docked for docked in cargo.arrays if docked.symbolic), number)
    if traced is None:  # arrays that have values on a device: nothing is moved there in silence
        return cargo
    take: Callable[[Any], Docked] | None = getattr(traced.door, "constant", None)
    arrays = list(cargo.arrays)
    for i, docked in enumerate(arrays):
        if docked.device == traced.device:
            continue
        numpy = type(docked.array).__module__ == "numpy"
        if take is None or not (numpy or docked.door is traced.door):
            kinds = [type(array.array).__module__.partition(".")[0] for array in (docked, traced)]
            raise UnsupportedArrayError(
                f"{asked}, array '{cargo.first_path(i)}'",
                f"it is {kinds[0]}'s, on {docked.device}, and others are {kinds[1]}'s, on {traced.device}: "
                "where no values are there, a call works on arrays of one framework",
                "Make a call for each, or convert one of them",
            )
        arrays[i] = take(docked.array)
    return replace(cargo, arrays=arrays)

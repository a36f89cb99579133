"""The door for Keras variables: each comes in as the array that it holds, by that array's own door."""

from __future__ import annotations

from typing import Any

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.errors import UnsupportedArrayError


class KerasDoor:
    """``Door.dock`` alone: what it docks is the other door's, which is asked for all that follows."""

    def dock(self, x: Any) -> Docked:
        """What ``x.value`` is: a ``tf.Variable``, a JAX array, a PyTorch parameter or a NumPy array."""
        from gradclip_core.arrays.frameworks import door_of

        value = x.value
        door = door_of(value)
        if door is None:
            kind = f"{type(value).__module__}.{type(value).__name__}"
            seen = f"it is a Keras variable, and holds a {kind}, which is no array"
            raise Refused(UnsupportedArrayError, seen, "Pass the variable's value as an array")
        docked = door.dock(value)
        if docked.read_only:
            docked.read_only = "it is a Keras variable, which its own assign writes: v.assign(x)"
        return docked


DOOR = KerasDoor()

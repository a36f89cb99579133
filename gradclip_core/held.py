"""What may be done with arrays of which the docked memory is but a part: sparse ones, and shards.

A rule sees what is stored, or here. Where that is not enough to say what becomes of the whole, it is refused in a
sentence, before anything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from gradclip_core.arrays.dock import Cargo
from gradclip_core.errors import InvalidArgumentError, UnsupportedArrayError, show
from gradclip_core.project import Project
from gradclip_core.protocol import Backend
from gradclip_core.rules import Rule, Value
from gradclip_core.sets.l1 import L1Ball
from gradclip_core.sets.l1capl2 import L1capL2
from gradclip_core.sets.lp import LpBall
from gradclip_core.sharded import Shared, Together, lines_of
from gradclip_core.stages import Stage
from gradclip_core.unitwise import UnitNorm

# Their norms are sums over elements, to which zeros add nothing, and their projections leave zeros where they are.
_OF_STORED = (L1Ball, LpBall, L1capL2)


def fitting(cargo: Cargo, backend: Backend, asked: str, rule: Rule | None = None, into: object = None) -> Backend:
    """The backend for these arrays, or the sentence that says why the rule cannot be applied to one of them.

    ``into``: the caller's own arrays for the result, which could not be sparse or shards.
    """
    for i, docked in enumerate(cargo.arrays):
        if docked.holder is None:
            continue
        where = f"{asked}, array '{cargo.first_path(i)}'"
        if not docked.memory and not docked.immutable:  # those put what was made around it
            seen = f"it is {docked.holder.kind} and on {docked.device}, where nothing but plain arrays is served"
            raise UnsupportedArrayError(where, seen, "Pass it dense and whole, or in host memory")
        if into is not None:
            raise InvalidArgumentError(
                f"{where}, with out=",
                f"it is {docked.holder.kind}, and what out= holds is plain memory",
                "Leave out= away: new arrays are like the gradients; or clip in place",
            )
        for part in () if rule is None else rule.stages:
            if docked.holder.kind == "sparse":
                _refuse_sparse(where, part, docked.holder.refusal().cure)
            else:
                _refuse_sharded(where, part)
    shares = _shares(cargo)
    lines = lines_of(shares)
    return cast(Backend, Together(backend, lines)) if lines else backend


def compare(cargo: Cargo, backend: Backend, asked: str, stages: Sequence[Stage], *more: object) -> None:
    """Raise, on every process, unless all of them were called alike: a process that went another way would hang."""
    if not isinstance(backend, Together):
        return
    looks = zip(cargo.first_paths(), cargo.looks, _shares(cargo), strict=True)
    said = [(path, look, None if shared is None else shared.look) for path, look, shared in looks]
    limits = [
        stage.limit if isinstance(stage.rule, Value) else None if stage.scopes is None else stage.scopes.limits.tolist()
        for stage in stages
    ]
    policies = [(stage.rule.order, stage.inverse, stage.nonfinite, stage.shifts.tolist()) for stage in stages]
    backend.compare(asked, repr((asked, said, limits, policies, more)))


def _shares(cargo: Cargo) -> list[Shared | None]:
    return [None if docked.holder is None else docked.holder.shared for docked in cargo.arrays]


def _refuse_sparse(where: str, part: Rule, cure: str) -> None:
    if isinstance(part, Value) and isinstance(part.limit, tuple) and not part.limit[0] <= 0 <= part.limit[1]:
        seen = f"it is sparse, and its zeros, which are not stored, would become {min(part.limit, key=abs):g}"
        raise InvalidArgumentError(where, seen, f"Pass limits with low <= 0 <= high. {cure}")
    if isinstance(part, UnitNorm):
        raise UnsupportedArrayError(where, "it is sparse, and a unit's elements need not be stored together", cure)
    if isinstance(part, Project) and not isinstance(part.onto, _OF_STORED):
        seen = f"it is sparse, and a projection on {show(part.onto)} needs the elements that are not stored too"
        names = ", ".join(kind.__name__ for kind in _OF_STORED)
        raise UnsupportedArrayError(where, seen, f"{cure}; or project on L2Ball, LinfBall, Box, {names}")


def _refuse_sharded(where: str, part: Rule) -> None:
    cure = "Clip by a norm of whole arrays or by value"
    if isinstance(part, UnitNorm):
        seen = "it is sharded, and a unit's elements may be on several processes"
        raise UnsupportedArrayError(where, seen, f"{cure}, or pass x.full_tensor()")
    if isinstance(part, Project):
        seen = f"it is sharded, and a projection on {show(part.onto)} is computed where all elements are"
        raise UnsupportedArrayError(where, seen, f"{cure} (L2Ball, LinfBall, Box), or pass x.full_tensor()")

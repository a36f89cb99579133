"""For the checks of sharded gradients: what every process of ``sharded_process.py`` needs to make and compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

CHECKS: dict[str, Callable[[Any], None]] = {}
"""By name: what is run with the mesh of all processes."""
# Both norms are within 2^-46 of the true one (docs/numerics.md), so within 2^-45 of each other.
APART = 2.0**-45
# Their float32 factors are then neighbours at most, 2^-23 apart, and each product is rounded once, by 2^-24.
ELEMENTS_APART = 2.0**-22 * 1.001


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    CHECKS[function.__name__] = function
    return function


def whole(integers: bool = True, dtype: Any = torch.float32) -> list[Any]:
    """Shapes that no number of processes divides, down to one element; integers add up exactly in any order."""
    torch.manual_seed(7)
    shapes = [(7, 5), (1, 3), (6,), (33, 65)]
    made = [torch.randint(-9, 9, s) if integers else torch.randn(s, dtype=torch.float64) for s in shapes]
    return [x.to(dtype) for x in made]


def shard(grads: list[Any], mesh: Any, *placements: Any) -> list[Any]:
    return [distribute_tensor(g, mesh, list(placements) or [Shard(0)]) for g in grads]


def full(grads: list[Any]) -> list[Any]:
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in grads]


def facts(info: Any) -> list[Any]:
    certificate = info.certificate
    return [
        info.norm, info.clipped_norm, info.scale, info.clipped, info.skipped, info.infs, info.nans,
        dict(info.norms), dict(info.scales), dict(info.counts), info.overflow, info.underflow, repr(certificate),
    ]  # fmt: skip


def same_everywhere(value: Any) -> None:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, repr(value))
    assert set(found) == {repr(value)}, found


def raises(error: type[Exception], *parts: str) -> Any:
    """All processes raise, and the sentence says each of the parts."""

    class Caught:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: Any, value: Any, where: Any) -> bool:
            seen = f"{kind.__name__}: {value}" if kind else "nothing was raised"
            same_everywhere(kind is not None and issubclass(kind, error))
            assert issubclass(kind or type(None), error), seen
            assert all(part in str(value) for part in parts), seen
            return True

    return Caught()

"""What is wrong with the memory of tensors that are being traced, for which a compiler's code cannot ask.

A tensor that is there twice, by two names, is one array to an eager call. A compiler may make two copies of it, and
an operator that writes to both would count and scale it twice. The compiler's own fake tensors know it: they share a
storage. So a function that has fake tensors and no values answers, an operator's "fake implementation", and what it
answers is the *shape* of a result that has no elements, as the one thing that traced code can branch on. Nobody uses
the result, so the operator is not in the graph that runs.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

torch: Any = sys.modules["torch"]

# What the shape says: at its index, why the call goes eagerly.
REASONS = (
    "",
    "two tensors may share memory",
    "elements of a tensor may share memory",
    "a tensor is lazily negated or conjugated",
    "a tensor is not strided",
)


def _look(written: Sequence[Any], read: Sequence[Any]) -> int:
    tensors = [*written, *read]
    if any(x.layout is not torch.strided for x in tensors):
        return 4
    if any(x.is_neg() or x.is_conj() for x in tensors):
        return 3
    if any(_overlaps_itself(x) for x in written):
        return 2
    shared = defaultdict(list)
    for i, x in enumerate(tensors):
        shared[x.untyped_storage()._cdata].append((x, i < len(written)))
    return int(any(len(group) > 1 and _may_clash(group) for group in shared.values()))


def _may_clash(group: list[tuple[Any, bool]]) -> bool:
    """Whether tensors of one storage may hold the same elements, or be written through copies of that storage."""
    # Views of one tensor stay together when a compiler copies it; x.detach() is no view, and goes its own way.
    roots = {id(x._base if x._is_view() else x) for x, _ in group}
    if len(roots) > 1 and any(is_written for _, is_written in group):
        return True
    spans = sorted(_span(x) for x, _ in group if x.numel())
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _span(x: Any) -> tuple[int, int]:
    reach = sum(stride * (n - 1) for stride, n in zip(x.stride(), x.shape, strict=True))
    start = x.storage_offset() * x.element_size()
    return start, start + (reach + 1) * x.element_size()


def _overlaps_itself(x: Any) -> bool:
    if x.is_contiguous() or not x.numel():
        return False
    reach = 1
    for stride, n in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False


def _answer(written: Sequence[Any], read: Sequence[Any]) -> Any:
    return torch.empty((0, _look(written, read)), device="cpu")


def _nothing(written: Sequence[Any], read: Sequence[Any]) -> Any:
    return torch.empty((0, 0), device="cpu")


_library = torch.library.Library("gradclip", "FRAGMENT")
_library.define("look(Tensor[] written, Tensor[] read) -> Tensor")
_library.impl("look", _nothing, "CompositeExplicitAutograd")
for _key in ("Negative", "Conjugate"):
    # Or their tensors would come here resolved.
    _library.impl("look", torch.library.fallthrough_kernel, _key)
torch.library.register_fake("gradclip::look", _answer, lib=_library)

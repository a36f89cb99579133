"""PyTorch's sparse COO tensors, as ``nn.Embedding(sparse=True)`` makes gradients: what they store is docked.

The gradient is the coalesced tensor, in which no index occurs twice. A tensor that is coalesced is read and written
where it is. Of another one a coalesced copy is docked, and what was written there takes the tensor's place, so that
a step that writes nothing leaves it as it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from gradclip_core.arrays.docked import Docked, Door, Refused
from gradclip_core.errors import UnsafeMemoryError, UnsupportedArrayError

torch: Any = sys.modules["torch"]


@dataclass(frozen=True, slots=True)
class Sparse:
    """See ``Holder``. ``stored`` is coalesced, and its values are what is docked."""

    stored: Any
    original: Any
    """The user's tensor; None for new memory."""
    key: tuple[object, ...] = ()
    lies: Docked | None = None
    kind: str = "sparse"
    shared: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Holder.shape``."""
        return tuple(self.stored.shape)

    def refusal(self) -> Refused:
        """See ``Holder.refusal``."""
        return Refused(
            UnsupportedArrayError,
            "its layout is sparse_coo, not strided",
            "Put it in its place dense: p.grad = p.grad.to_dense()",
        )

    def renewed(self) -> Sparse:
        """See ``Holder.renewed``."""
        return replace(self, original=None, lies=None)

    def around(self, values: Any) -> Any:
        """See ``Holder.around``: with copies of the indices, so that it shares nothing with the gradient."""
        indices = self.stored._indices().clone()
        return torch.sparse_coo_tensor(indices, values, self.shape, is_coalesced=True, check_invariants=False)

    def after_write(self, values: Any) -> None:
        """See ``Holder.after_write``."""
        if self.original is None:
            return
        with torch.no_grad():
            if self.stored is not self.original:
                self.original.copy_(self.stored)  # indices and values, and that it is coalesced
            elif not self.original.is_inference():
                torch.autograd.graph.increment_version([self.original])


def dock_sparse(door: Door, x: Any) -> Docked:
    """The values of a COO tensor, as ``door`` docks a tensor of them."""
    if not x.is_coalesced() and x.is_inference() and not torch.is_inference_mode_enabled():
        seen = "it is an inference tensor and not coalesced, and outside of inference mode PyTorch does not coalesce it"
        raise Refused(UnsafeMemoryError, seen, "Coalesce it under torch.inference_mode(), or clip it there")
    try:
        with torch.no_grad():
            stored = x if x.is_coalesced() else x.coalesce()
    except RuntimeError as error:  # among them NotImplementedError
        seen = f"it is sparse and not coalesced, and PyTorch cannot coalesce it ({str(error).splitlines()[0][:80]})"
        raise Refused(UnsupportedArrayError, seen, "Put it in its place in a dtype that PyTorch can add up") from error
    values, indices = stored._values(), stored._indices()
    docked = door.dock(values)
    key: tuple[object, ...] = (id(x),)
    if stored is x and values.numel():
        memory = ((part.data_ptr(), tuple(part.shape), part.stride(), part.dtype) for part in (values, indices))
        key = (*memory, tuple(x.shape))
    lies = None if stored is x else door.dock(x._values())
    docked.holder = Sparse(stored, x, key, lies)
    return docked

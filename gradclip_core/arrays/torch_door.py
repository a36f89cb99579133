"""The door for PyTorch tensors. Imported only when a tensor arrives, and torch with it already.

Tensors come in by their own attributes, ten times faster than by DLPack, and past its traps:
DLPack hands out NULL for a DTensor and loses the sign of a lazily negated tensor.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

from gradclip_core.arrays.docked import Docked, Refused
from gradclip_core.arrays.dtypes import SUPPORTED, refuse_dtype
from gradclip_core.errors import UnsafeMemoryError, UnsupportedArrayError, no_memory_for
from gradclip_core.protocol import DType

torch: Any = sys.modules["torch"]
_forward_ad: Any = sys.modules["torch.autograd.forward_ad"]

_requires_grad = operator.attrgetter("requires_grad")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
# A tensor of these dtypes is known to the table of dtypes under another name, or under none.
_DTYPES: dict[Any, Any] = {getattr(torch, name): entry for name, entry in SUPPORTED.items() if hasattr(torch, name)}


class TorchDoor:
    """See ``Door``."""

    def dock(self, x: Any) -> Docked:
        """A CPU or CUDA tensor or Parameter; every hazard that its memory can hold is refused."""
        if type(x) not in _PLAIN:
            x = _plain(x)
        if x.layout is not torch.strided or x.is_nested:
            raise _refuse_layout(x)
        entry = _DTYPES.get(x.dtype)
        if entry is None:
            raise refuse_dtype(str(x.dtype).removeprefix("torch."))
        if _forward_ad._current_level >= 0 and _forward_ad.unpack_dual(x).tangent is not None:
            raise Refused(
                UnsupportedArrayError,
                "it is a forward-mode dual tensor, whose tangent would stay unclipped",
                "Clip outside the dual level, on torch.autograd.forward_ad.unpack_dual(x).primal",
            )
        storage, is_complex = entry
        itemsize = x.element_size()
        docked = Docked(
            x,
            self,
            0,
            tuple(x.shape),
            tuple(stride * itemsize for stride in x.stride()),
            storage,
            is_complex,
            contiguous=x.is_contiguous(),
        )
        if x.is_cuda:
            docked.device = str(x.device)
            docked.stream = _stream(x.device.index)
        elif not x.is_cpu:
            docked.device = str(x.device)
            return docked
        if x.is_neg() or (is_complex and x.is_conj()):
            raise Refused(
                UnsafeMemoryError,
                "its memory holds the values before a lazy negation or conjugation",
                "Put plain memory in its place first: p.grad = p.grad.resolve_neg().resolve_conj()",
            )
        docked.pointer = _pointer(x)
        return docked

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """``torch.empty_like``: dense strides are kept. Plain, detached, in the caller's grad mode."""
        try:
            kind = None if dtype is None else getattr(torch, dtype.name)
            return self.dock(torch.empty_like(docked.array, dtype=kind, requires_grad=False))
        except torch.cuda.OutOfMemoryError as error:
            raise no_memory_for(docked.device, docked.shape, error) from error

    def finish(self, new: Docked, like: Docked) -> Any:
        """The tensor itself."""
        return new.array

    def after_write(self, written: Sequence[Any]) -> None:
        """Bump the version counters, so that a backward that had saved a tensor says so."""
        changed = [x for x in written if not x.is_inference()]
        if changed:
            torch.autograd.graph.increment_version(changed)

    def plain(self, leaves: Sequence[Any]) -> bool:
        """Tensors, no subclass of them, that autograd does not know and that hold the values themselves."""
        return (
            type(leaves[0]) is torch.Tensor
            and _forward_ad._current_level < 0
            and not any(map(_requires_grad, leaves))
            and not any(map(torch.Tensor.is_neg, leaves))
        )

    def empty_like(self, x: Any) -> Any:
        """``torch.empty_like``."""
        return torch.empty_like(x)


def _stream(device: int) -> int:
    """PyTorch's current stream of a device: its own operations go there too. 1 is the default stream."""
    return int(torch.cuda.current_stream(device).cuda_stream) or 1


def _pointer(x: Any) -> int:
    try:
        pointer = int(x.data_ptr())
    except RuntimeError as error:
        raise Refused(
            UnsafeMemoryError,
            "it has no memory of its own: a tensor inside vmap, grad or another functorch transform",
            "Clip outside the transform, on the tensors that it returns",
        ) from error
    if pointer == 0 and x.numel():
        raise Refused(
            UnsafeMemoryError,
            "its data pointer is NULL: its storage was freed (as FSDP does), or it never had one",
            "Gather or materialise it first",
        )
    return pointer


def _plain(x: Any) -> Any:
    """The plain tensor behind a subclass that adds nothing to its memory's meaning."""
    names = {kind.__name__ for kind in type(x).__mro__}
    if "DTensor" in names:
        raise Refused(
            UnsupportedArrayError,
            "it is a DTensor: this process holds a shard of it, whose norm is not the gradient's",
            "Clip with torch's own clip_grad_norm_, or reduce the norms of x.to_local() over the mesh",
        )
    if "FakeTensor" in names or "FunctionalTensor" in names:
        raise Refused(
            UnsupportedArrayError,
            f"it is a {type(x).__name__}, which has a shape but no values",
            "Clip outside tracing: decorate the function that clips with @torch.compiler.disable",
        )
    if type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and (
        type(x).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    ):
        raise Refused(
            UnsupportedArrayError,
            f"it is a {type(x).__name__}, a tensor subclass that decides for itself what its memory means",
            "Pass the plain tensor that it wraps",
        )
    return x.as_subclass(torch.Tensor)


def _refuse_layout(x: Any) -> Refused:
    layout = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
    cures = {
        "sparse_coo": "Put it in its place coalesced, p.grad = p.grad.coalesce(), and pass p.grad.values()",
        "nested": "Pass x.values(), or its parts",
        "_mkldnn": "Put it in its place dense: p.grad = p.grad.to_dense()",
    }
    return Refused(
        UnsupportedArrayError,
        f"its layout is {layout}, not strided",
        cures.get(layout, "Pass x.values(), or put it in its place dense: p.grad = p.grad.to_dense()"),
    )


DOOR = TorchDoor()

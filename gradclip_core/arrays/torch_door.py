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

_functorch: Any = torch._C._functorch
_transforms: Any = _functorch.peek_interpreter_stack
"""The transforms of ``torch.func`` that are running; None: none is."""
_requires_grad = operator.attrgetter("requires_grad")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
# A tensor of these dtypes is known to the table of dtypes under another name, or under none.
_DTYPES: dict[Any, Any] = {getattr(torch, name): entry for name, entry in SUPPORTED.items() if hasattr(torch, name)}


class TorchDoor:
    """See ``Door``."""

    name = "torch"

    def dock(self, x: Any) -> Docked:
        """A CPU or CUDA tensor or Parameter; every hazard that its memory can hold is refused."""
        if type(x) not in _PLAIN:
            if (distributed := sys.modules.get("torch.distributed.tensor")) and isinstance(x, distributed.DTensor):
                from gradclip_core.arrays.torch_sharded import dock_shard

                return dock_shard(self, x)
            x = _plain(x)
        if x.layout is not torch.strided or x.is_nested:
            return self._of_other_layout(x)
        entry = _DTYPES.get(x.dtype)
        if entry is None:
            raise refuse_dtype(str(x.dtype).removeprefix("torch."))
        if _transforms() is not None:  # of a plain tensor too, what is made there is the transform's
            return self._symbol(x, entry)
        if _forward_ad._current_level >= 0:
            _refuse_dual(x)
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
            docked.device, docked.memory = str(x.device), False
            return docked
        if x.is_neg() or (is_complex and x.is_conj()):
            raise Refused(
                UnsafeMemoryError,
                "its memory holds the values before a lazy negation or conjugation",
                "Put plain memory in its place first: p.grad = p.grad.resolve_neg().resolve_conj()",
            )
        docked.pointer = _pointer(x)
        return docked

    def _of_other_layout(self, x: Any) -> Docked:
        if x.is_nested or x.layout is not torch.sparse_coo:
            raise _refuse_layout(x)
        if x.dtype not in _DTYPES:
            raise refuse_dtype(str(x.dtype).removeprefix("torch."))
        if _forward_ad._current_level >= 0:
            _refuse_dual(x)
        from gradclip_core.arrays.torch_sparse import dock_sparse

        return dock_sparse(self, x)

    def _symbol(self, x: Any, entry: tuple[DType, bool]) -> Docked:
        """A tensor inside ``vmap``, ``grad`` or another transform: values go through PyTorch's operations alone."""
        why = "it is inside a torch.func transform, and stands for values that are not its memory"
        return Docked(
            x, self, 0, tuple(x.shape), (), *entry, device="symbolic:torch", read_only=why, memory=False
        )  # fmt: skip

    def traced(self, x: Any) -> bool:
        """Whether it is inside a transform of ``torch.func``."""
        return _transforms() is not None and bool(_functorch.is_functorch_wrapped_tensor(x))

    def constant(self, x: Any) -> Docked:
        """A plain tensor, or an array of NumPy, beside such tensors."""
        plain = torch.as_tensor(x)
        return self._symbol(plain, _DTYPES[plain.dtype])

    def assign(self, x: Any, y: Any) -> None:
        """Write into a tensor on a device that PyTorch alone can reach. It counts the write itself."""
        with torch.no_grad():
            x.copy_(y)

    def new_like(self, docked: Docked, dtype: DType | None = None) -> Docked:
        """``torch.empty_like``: dense strides are kept. Plain, detached, in the caller's grad mode."""
        try:
            kind = None if dtype is None else getattr(torch, dtype.name)
            made = self.dock(torch.empty_like(docked.array, dtype=kind, requires_grad=False))
        except torch.cuda.OutOfMemoryError as error:
            raise no_memory_for(docked.device, docked.shape, error) from error
        if docked.holder is not None:
            made.holder = docked.holder.renewed()
        return made

    def finish(self, new: Docked, like: Docked) -> Any:
        """The tensor itself, or the one that it is a part of."""
        return new.array if new.holder is None else new.holder.around(new.array)

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
            and _transforms() is None
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
            f"it has no memory of its own ({str(error).partition(chr(10))[0]})",
            "Pass a tensor that holds values",
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
    if type(x).__module__ == "torch.distributed._functional_collectives" and hasattr(x, "wait"):
        return x.wait()  # what a collective makes, which may still be on its way
    names = {kind.__name__ for kind in type(x).__mro__}
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


def _refuse_dual(x: Any) -> None:
    if _forward_ad.unpack_dual(x).tangent is not None:
        raise Refused(
            UnsupportedArrayError,
            "it is a forward-mode dual tensor, whose tangent would stay unclipped",
            "Clip outside the dual level, on torch.autograd.forward_ad.unpack_dual(x).primal",
        )


def _refuse_layout(x: Any) -> Refused:
    layout = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
    cures = {
        "nested": "Pass x.values(), or its parts",
        "_mkldnn": "Put it in its place dense: p.grad = p.grad.to_dense()",
    }
    return Refused(
        UnsupportedArrayError,
        f"its layout is {layout}, not strided",
        cures.get(layout, "Pass x.values(), or put it in its place dense: p.grad = p.grad.to_dense()"),
    )


DOOR = TorchDoor()

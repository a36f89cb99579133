"""What tests of refusals share: the check itself, gradients that would be written, and foreign arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import gradclip_core as gc
from tests.gpu.cupy.compare import contents, on_device, some
from tests.refusals import check_sentence


@contextmanager
def refuses(grads: Any, error: type[gc.GradClipError], asked: str, seen: str, cure: str) -> Iterator[None]:
    """The class and the three parts; and the gradients, if any can be read, are as they were."""
    before = contents(grads) if grads is not None else None
    with pytest.raises(gc.GradClipError) as caught:
        yield
    check_sentence(caught.value, error, asked, seen, cure)
    assert "\n" not in caught.value.seen
    assert grads is None or contents(grads) == before


def large() -> Any:
    """Gradients that every valid call here would write."""
    return on_device(some(scale=9.0))


class Elsewhere:
    """An array that says it is on a CUDA device, by DLPack."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.x.data.device_id

    def __dlpack__(self, **kwargs: Any) -> Any:
        from tests.gpu.standin import dlpack

        return dlpack.export(self.x, self.x.data.ptr, self.x.shape, self.x.strides, self.x.dtype, self.x.data.device_id)

"""What is tried with PyTorch's tensors, on a device or over the stand-in.

``Place`` is how a tensor gets to the device and back; the stand-in lets a CPU tensor pretend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import gradclip_core as gc
from gradclip_core.rules import Rule

Array = npt.NDArray[Any]
RULES: dict[str, Rule] = {
    "global": gc.GlobalNorm(1.0),
    "nothing over": gc.GlobalNorm(1e6),
    "each array": gc.ArrayNorm(0.5),
    "value": gc.Value(0.25),
}


@dataclass(frozen=True)
class Place:
    """``put`` gives a tensor on the device with the values of one on the host; ``get`` the other way."""

    torch: Any
    put: Callable[[Any], Any]
    get: Callable[[Any], Any]


def tensors(torch: Any, seed: int = 0, scale: float = 3.0) -> list[Any]:
    """Ordinary gradients of every dtype, on the host."""
    made = torch.Generator().manual_seed(seed)
    shapes = {(97, 55): torch.float32, (300,): torch.float16, (4096, 2): torch.bfloat16, (77,): torch.float64, (): None}
    return [
        (torch.randn(shape, generator=made) * scale).to(torch.float32 if dtype is None else dtype)
        for shape, dtype in shapes.items()
    ]


def stored(place: Place, values: list[Any]) -> list[bytes]:
    """Their bits."""
    words = {1: place.torch.uint8, 2: place.torch.int16, 4: place.torch.int32, 8: place.torch.int64}
    host = [place.get(x).contiguous() for x in values]
    return [x.reshape(-1).view(words[x.element_size()]).numpy().tobytes() for x in host]


def rules(place: Place, backend: str | None) -> None:
    """In place and into new tensors, held to the reference on the host; PyTorch is told of the writes."""
    for rule in RULES.values():
        host = tensors(place.torch)
        expected, info = gc.clip(host, rule, backend="numpy", nonfinite="skip")
        bits = stored(Place(place.torch, place.put, lambda x: x), expected)
        grads = [place.put(x) for x in host]
        made, new_info = gc.clip(grads, rule, nonfinite="skip", backend=backend)
        assert stored(place, made) == bits
        versions = [x._version for x in grads]
        in_place = gc.clip_(grads, rule, nonfinite="skip", backend=backend)
        assert stored(place, grads) == bits
        assert all(x._version > before for x, before in zip(grads, versions, strict=True))
        for found in (new_info, in_place):
            assert (found.norm, found.clipped_norm, found.scale) == (info.norm, info.clipped_norm, info.scale)
            assert found.clipped == info.clipped


def queued_work(place: Place) -> None:
    """On a side stream, between PyTorch's own operations: neither waits for the host."""
    torch = place.torch
    host = tensors(torch)[0]
    expected, _ = gc.clip([host * 2], gc.GlobalNorm(1.0), backend="numpy")
    grad = place.put(host)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy = torch.zeros(1 << 24, device=grad.device)
        for _ in range(50):
            busy.add_(1)
        grad.mul_(2)
        gc.clip_by_global_norm_([grad], 1.0, nonfinite="skip")
        after = grad.clone()
        grad.zero_()
    stream.synchronize()
    assert np.array_equal(place.get(after).numpy(), expected[0].numpy())


def no_synchronisation(place: Place) -> None:
    """PyTorch's own watch over synchronisations sees none, and the device is still busy when the host is back."""
    torch = place.torch
    grads = [place.put(x) for x in tensors(torch)]
    gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(200_000_000)
        gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
        assert not torch.cuda.current_stream().query(), "the host has waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def graph(place: Place) -> None:
    """``torch.cuda.graph``: captured after a warm-up on the side stream that it captures, replayed over new values."""
    torch = place.torch
    grads = [place.put(x) for x in tensors(torch)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    stream.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        info = gc.clip_by_global_norm_(grads, 1.0, nonfinite="skip")
    for seed, scale in ((1, 5.0), (2, 1e-6)):
        host = tensors(torch, seed, scale)
        for grad, x in zip(grads, host, strict=True):
            grad.copy_(x)
        captured.replay()
        torch.cuda.synchronize()
        expected, expected_info = gc.clip(host, gc.GlobalNorm(1.0), backend="numpy")
        assert stored(place, grads) == stored(Place(torch, place.put, lambda x: x), expected)
    assert info.norm == expected_info.norm


def subnormal_bfloat16(place: Place) -> None:
    """A bfloat16 below its normal numbers is a subnormal float32, which ``-ftz=true`` would take for zero."""
    torch = place.torch
    host = (torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 2.0**-127).to(torch.bfloat16)
    expected, info = gc.clip([host], gc.GlobalNorm(2.0**-122), backend="numpy")
    grads = [place.put(host)]
    found = gc.clip_by_global_norm_(grads, 2.0**-122, nonfinite="skip")
    assert found.norm == info.norm > 0
    assert found.clipped
    assert stored(place, grads) == stored(Place(torch, place.put, lambda x: x), expected)

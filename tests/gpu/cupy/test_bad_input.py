"""Arrays, loss scales and weights that cannot be: three parts of a sentence, and no byte of the gradients changes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from tests.gpu.cupy.compare import contents, cp, on_device, some, told
from tests.gpu.cupy.refusing import Elsewhere, large, refuses
from tests.gpu.standin import Machine
from tests.gpu.standin.torch_cuda import cuda_tensors
from tests.refusals import check_sentence

# ---- where the memory is -----------------------------------------------------------------------------


def test_two_devices_in_a_call(standin: Machine) -> None:
    grads = large()
    with cp().cuda.Device(1):
        grads["far"] = on_device(np.ones(9, np.float32))
    with refuses(
        grads, gc.BackendError, "arrays on cuda:0, cuda:1", "one call works on one device", "Move them to one"
    ):
        gc.clip_by_global_norm_(grads, 1.0)
    seen = "a call works on one device, and these arrays are on cuda:0, cuda:1"
    with refuses(grads, gc.BackendError, "backend='cupy_raw'", seen, "Leave backend=None"):
        gc.clip_by_global_norm_(grads, 1.0, backend="cupy_raw")


def test_host_and_device_in_a_call(standin: Machine) -> None:
    grads = {**large(), "near": np.full(5, 9.0)}
    with refuses(grads, gc.BackendError, "arrays on cpu, cuda:0", "one call works on one device", "Move them to one"):
        gc.clip_by_norm_(grads, 1.0)


@pytest.mark.parametrize("name", ["numpy", "numba_cpu"])
def test_a_backend_for_the_host_by_name(standin: Machine, name: str) -> None:
    if name == "numba_cpu":
        pytest.importorskip("numba")
    grads = large()
    with refuses(grads, gc.BackendError, f"backend={name!r}", "cuda:0", "Leave backend=None to have one chosen"):
        gc.clip_by_global_norm_(grads, 1.0, backend=name)


def test_this_backend_for_the_hosts_memory(standin: Machine) -> None:
    grads = some(scale=9.0)
    seen = "it reads the memory of CUDA devices, and these arrays are on cpu"
    with refuses(grads, gc.BackendError, "backend='cupy_raw'", seen, "Leave backend=None"):
        gc.clip_by_global_norm_(grads, 1.0, backend="cupy_raw")


def test_memory_that_was_freed(standin: Machine) -> None:
    torch: Any = pytest.importorskip("torch")
    x, y = torch.ones(5) * 9, torch.ones(4) * 9
    with cuda_tensors(standin, x, y) as fake:
        x.untyped_storage().resize_(0)  # as FSDP does
        fake._empty[id(x)] = 0, x
        seen = "its data pointer is NULL: its storage was freed (as FSDP does), or it never had one"
        with pytest.raises(gc.GradClipError) as caught:
            gc.clip_by_global_norm_([y, x], 1.0)
        check_sentence(caught.value, gc.UnsafeMemoryError, "array '1'", seen, "Gather or materialise it first")
        assert y.tolist() == [9] * 4
    gone = cp().ndarray((3,), np.float32, cp().asarray(np.zeros(0, np.float32)).data)
    grads = large()
    with refuses(grads, gc.UnsafeMemoryError, "array '1'", "has a NULL pointer: its memory was freed", "Make it anew"):
        gc.clip_by_global_norm_([grads["w"], gone], 1.0)


def test_memory_that_is_no_devices_any_more(standin: Machine) -> None:
    """An address that CUDA does not know: a kernel that touched it would end every later call of the process."""
    x = cp().asarray(np.full(5000, 9, np.float32))
    freed = Elsewhere(x)
    standin.disown(standin.inside(x.data.ptr, 4))
    grads = large()
    with pytest.raises(gc.GradClipError, match="cuda:0"):
        gc.plan([grads["w"], freed], gc.GlobalNorm(1.0))


def test_a_stream_of_another_device(standin: Machine) -> None:
    grads = large()
    with cp().cuda.Device(1):
        foreign = cp().cuda.Stream(non_blocking=True)
    seen, cure = "cudaErrorInvalidResourceHandle", "The stream is not one of cuda:0"
    with foreign, refuses(None, gc.BackendError, "cupy_raw, ", seen, cure):
        gc.clip_by_global_norm_(grads, 1.0)
    assert contents(grads) == contents(some(scale=9.0))


# ---- what the arrays are -----------------------------------------------------------------------------


def test_views_of_one_memory(standin: Machine) -> None:
    x = large()["w"]
    seen = "they share memory without being the same array"
    for grads in ([x, x[:50]], {"a": x[:60], "b": x[50:]}, [x, x.T]):
        with refuses([x], gc.UnsafeMemoryError, "arrays '", seen, "Pass the array that holds both, or copies"):
            gc.clip_by_global_norm_(grads, 1.0)
    gc.clip_by_global_norm_([x[::2], x[1::2]], 1.0)
    sliding = cp().ndarray((40, 9), np.float32, x.data, (4, 4))
    with refuses(
        [x], gc.UnsafeMemoryError, "array '0'", "several of its elements are the same memory", "Use clip_by_norm"
    ):
        gc.clip_by_norm_([sliding], 1e-3)
    assert gc.clip_by_norm([sliding], 1e-3)[1].clipped


def test_a_subclass(standin: Machine) -> None:
    class Masked(cp().ndarray):  # type: ignore[misc]
        pass

    x = large()["b"]
    masked = Masked(x.shape, x.dtype, x.data)
    with refuses(
        [x], gc.UnsupportedArrayError, "array '0'", "a Masked, a subclass of cupy.ndarray", "Pass cupy.asarray"
    ):
        gc.clip_by_global_norm_([masked], 1.0)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.uint8, ml_dtypes.float8_e4m3, ml_dtypes.float8_e5m2fnuz])
def test_dtypes_that_are_none_of_ours(standin: Machine, dtype: Any) -> None:
    grads = large()
    other = cp().ndarray((8,), dtype, cp().asarray(np.zeros(64, np.uint8)).data)
    with refuses(grads, gc.UnsupportedArrayError, "array '1'", np.dtype(dtype).name, ""):
        gc.clip_by_global_norm_([grads["w"], other], 1.0)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_float8_is_for_host_memory(standin: Machine, dtype: Any) -> None:
    """As gradients, and beside them."""
    grads, name = large(), np.dtype(dtype).name
    other = cp().ndarray((8,), dtype, cp().asarray(np.zeros(64, np.uint8)).data)
    with refuses(grads, gc.BackendError, "arrays on cuda:0", f"cupy_raw: it has no {name}", ""):
        gc.clip_by_global_norm_([grads["w"], other], 1.0)
    scale = cp().ndarray((), dtype, cp().asarray(np.ones(64, np.uint8)).data)
    with refuses(grads, gc.BackendError, "a GPU backend", f"it has no {name}", "Convert the array to float32"):
        gc.clip_by_global_norm_(grads, 1.0, loss_scale=scale)


# ---- loss scales and weights -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_loss_scale_that_only_the_device_can_see_to_be_none(standin: Machine, value: float, dtype: Any) -> None:
    """No gradient is written, whatever the rule and the policy; whoever reads the info is told."""
    grads, scale = large(), cp().asarray(np.full((), value, dtype))
    before = contents(grads)
    for rule in (gc.GlobalNorm(1.0), gc.Value(0.1), gc.Chain(gc.ArrayNorm(1.0), gc.GlobalNorm(0.5))):
        for policy in ("skip", "zero", "sanitize", "propagate"):
            info = gc.clip_(grads, rule, loss_scale=scale, nonfinite=policy)
            assert contents(grads) == before
            with pytest.raises(gc.GradClipError) as caught:
                info.norm  # noqa: B018
            seen, cure = "which is no finite number > 0", "No gradient was touched"
            check_sentence(caught.value, gc.InvalidArgumentError, "clip_, loss_scale", seen, cure)
            assert f"is {float(value)!r}," in caught.value.seen
        with refuses(grads, gc.InvalidArgumentError, "clip_, loss_scale", "which is no finite number > 0", "Pass the"):
            gc.clip_(grads, rule, loss_scale=scale)


def test_loss_scales_of_a_wrong_kind(standin: Machine) -> None:
    grads, cure = large(), "Pass a 0-d array of a floating dtype on the gradients' device, or a Python float"
    with cp().cuda.Device(1):
        far = cp().asarray(np.float32(2))
    cases = {
        "it is on cuda:1, and the gradients are on cuda:0": far,
        "it is an array of shape (2,)": cp().asarray(np.ones(2, np.float32)),
        "it is an array of shape (1,)": cp().asarray(np.ones(1, np.float32)),
        "it is complex": cp().asarray(np.complex64(1)),
        "its memory is not aligned to its dtype": cp().ndarray(
            (), np.float32, cp().asarray(np.zeros(16, np.uint8)).data + 2
        ),
    }
    for seen, scale in cases.items():
        error = gc.UnsafeMemoryError if "aligned" in seen else gc.InvalidArgumentError
        with refuses(grads, error, "loss_scale", seen.strip(), cure):
            gc.clip_by_global_norm_(grads, 1.0, loss_scale=scale)
    with refuses(grads, gc.UnsupportedArrayError, "loss_scale=", "int32", ""):
        gc.clip_by_global_norm_(grads, 1.0, loss_scale=cp().asarray(np.int32(2)))


def test_a_loss_scale_on_the_device_with_gradients_on_the_host(standin: Machine) -> None:
    host = some(scale=9.0)
    expected, info = gc.clip_by_global_norm(host, 1.0, loss_scale=64.0)
    made, ours = gc.clip_by_global_norm(host, 1.0, loss_scale=cp().asarray(np.float32(64)))
    assert (contents(made), told(ours)) == (contents(expected), told(info))


@pytest.mark.parametrize("where", ["device", "host", "another device"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(standin: Machine, value: float, where: str) -> None:
    weights = some(1)
    weights["w"][60, 3] = value
    grads = large()
    before = contents(grads)
    with cp().cuda.Device(1 if where == "another device" else 0):
        params = weights if where == "host" else on_device(weights)
    asked, seen, cure = "adaptive_clip, params 'w'", "it holds infinities or NaNs, so it gives no threshold", "Restore"
    for axis in ("all_but_first", None):
        with pytest.raises(gc.GradClipError) as caught:
            # What the device sees is told when the info is read.
            gc.adaptive_clip_(grads, params, axis=axis, nonfinite="zero").norm  # noqa: B018
        check_sentence(caught.value, gc.InvalidArgumentError, asked, seen, cure)
        assert contents(grads) == before
        with refuses(grads, gc.InvalidArgumentError, asked, seen, cure):
            gc.adaptive_clip_(grads, params, axis=axis)


@pytest.mark.parametrize("where", ["host", "another device"])
@pytest.mark.parametrize("axis", ["all_but_first", "all_but_last", None])
def test_weights_elsewhere(standin: Machine, where: str, axis: Any) -> None:
    host, weights = some(scale=9.0), some(1)
    expected, info = gc.adaptive_clip(host, weights, axis=axis, backend="numpy")
    with cp().cuda.Device(1 if where == "another device" else 0):
        params = weights if where == "host" else on_device(weights)
    made, ours = gc.adaptive_clip(on_device(host), params, axis=axis, nonfinite="skip")
    assert contents(made) == contents(expected)
    assert told(ours) == told(info)

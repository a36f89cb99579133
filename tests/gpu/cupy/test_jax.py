"""JAX's arrays on a device: they come in by DLPack, are never written, and new ones are JAX's own."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gradclip_core as gc
from tests.gpu.cupy.compare import contents, cp, told
from tests.gpu.standin import Machine
from tests.gpu.standin.jax_cuda import JaxCudaArray
from tests.refusals import check_sentence


def host() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((60, 80)).astype(np.float32),
        "b": rng.standard_normal(300).astype(np.float16),
        "h": rng.standard_normal(77).astype(ml_dtypes.bfloat16),
        "d": rng.standard_normal(()),
        "c": (rng.standard_normal(9) + 1j).astype(np.complex64),
    }


RULES = {
    "global": gc.GlobalNorm(1.0),
    "nothing over": gc.GlobalNorm(1e9),
    "array": gc.ArrayNorm(0.5),
    "chain": gc.Chain(gc.ArrayNorm(0.5), gc.GlobalNorm(0.5)),
}


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_new_arrays_of_the_same_kind(late: Machine, rule: str, device: int) -> None:
    """Late: nothing has been computed when the call is made, and nothing when it returns."""
    expected, info = gc.clip(host(), RULES[rule], backend="numpy")
    grads = {name: JaxCudaArray(x, device) for name, x in host().items()}
    late.log.clear()
    made, ours = gc.clip(grads, RULES[rule], nonfinite="skip")
    assert late.log.counts()["sync"] == 0
    assert {type(x) for x in made.values()} == {JaxCudaArray}
    assert {x.__dlpack_device__() for x in made.values()} == {(2, device)}
    assert [(x.shape, x.dtype) for x in made.values()] == [(x.shape, x.dtype) for x in host().values()]
    assert contents({name: np.asarray(x) for name, x in made.items()}) == contents(expected)
    assert contents({name: np.asarray(x) for name, x in grads.items()}) == contents(host())
    assert told(ours) == told(info)


def test_in_place_is_refused(standin: Machine) -> None:
    x = JaxCudaArray(np.full(9, 3, np.float32))
    with pytest.raises(gc.GradClipError) as caught:
        gc.clip_by_global_norm_({"x": x}, 1.0)
    check_sentence(
        caught.value,
        gc.ReadOnlyError,
        "clip_by_global_norm_, array 'x'",
        "immutable arrays (JAX",
        "Use clip_by_global_norm, which returns new arrays",
    )
    assert np.asarray(x).tolist() == [3] * 9
    plan = gc.plan([x], gc.GlobalNorm(1.0))
    with pytest.raises(gc.ReadOnlyError, match=r"Use plan\.apply, which returns new arrays"):
        plan.apply_([x])
    assert (
        np.asarray(plan.apply([x])[0]).tobytes() == gc.clip_by_global_norm(np.full(9, 3, np.float32), 1.0)[0].tobytes()
    )


def test_norms_and_weights(late: Machine) -> None:
    grads = {name: JaxCudaArray(x) for name, x in host().items()}
    assert gc.global_norm(grads) == gc.global_norm(host())
    weights = {name: JaxCudaArray(x) for name, x in host().items()}
    expected, info = gc.adaptive_clip(host(), host(), 0.01, axis="all_but_last", backend="numpy")
    made, ours = gc.adaptive_clip(grads, weights, 0.01, axis="all_but_last", nonfinite="skip")
    assert contents({name: np.asarray(x) for name, x in made.items()}) == contents(expected)
    assert told(ours) == told(info)


def test_beside_cupys_arrays(late: Machine) -> None:
    stream = cp().cuda.Stream(non_blocking=True)
    x = host()
    expected, info = gc.clip_by_global_norm([x["w"], x["b"]], 1.0, backend="numpy")
    with stream:
        made, ours = gc.clip_by_global_norm([cp().asarray(x["w"]), JaxCudaArray(x["b"])], 1.0, nonfinite="skip")
        assert contents([made[0].get(), np.asarray(made[1])]) == contents(expected)
    assert told(ours) == told(info)


def test_jax_on_the_cpu_is_as_before(standin: Machine) -> None:
    jnp: Any = pytest.importorskip("jax.numpy")
    x = host()["w"]
    expected, info = gc.clip_by_global_norm([x], 1.0, backend="numpy")
    made, ours = gc.clip_by_global_norm([jnp.asarray(x)], 1.0)
    assert np.asarray(made[0]).tobytes() == expected[0].tobytes()
    assert told(ours) == told(info)
    assert ours.backend != "cupy_raw"
    assert not standin.log.of("launch")

"""One call for each step: unscale, check, clip, update. And each mistake that it makes impossible."""

from __future__ import annotations

import copy
import gc as garbage
import math
import pickle
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from tests.refusals import says

RULE = gc.GlobalNorm(1.0)


def scaled(values: list[float], scale: float, dtype: Any = np.float32) -> list[Any]:
    return [(np.array(values) * scale).astype(dtype)]


def test_one_call_is_unscale_check_clip_and_update() -> None:
    scaler = gc.LossScaler(1024.0, growth_interval=1)
    clipper = gc.Clipper(RULE, scaler)
    scaler.scale(1.0)
    grads = scaled([3.0, 4.0], 1024.0)
    info = clipper.step_(grads)
    assert (info.norm, info.clipped, info.skipped, info.nonfinite) == (5.0, True, False, 0)
    expected = gc.clip(scaled([3.0, 4.0], 1024.0), RULE, loss_scale=1024.0)[0]
    assert grads[0].tobytes() == expected[0].tobytes()
    assert scaler.get_scale() == 2048.0


def test_for_immutable_arrays_the_same_into_new_ones() -> None:
    jax = pytest.importorskip("jax")
    scaler = gc.LossScaler(1024.0)
    clipper = gc.Clipper(RULE, scaler)
    scaler.take_scale()
    grads = {"w": jax.numpy.array([3.0, 4.0]) * 1024}
    clipped, info = clipper(grads)
    assert info.norm == 5.0
    assert isinstance(clipped["w"], jax.Array)
    assert float(jax.numpy.linalg.norm(clipped["w"])) == pytest.approx(1.0)
    with says(gc.GradClipError, "unscaled twice", "after loss_scaler.scale(loss)"):
        clipper(grads)


def test_nothing_is_written_where_nothing_is_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With S = 1 and a norm within the bound, one read pass and no write pass."""
    calls = count_passes(monkeypatch)
    clipper = gc.Clipper(RULE, gc.LossScaler.static(1.0))
    clipper.loss_scaler.scale(1.0)
    grads = [np.array([0.3, 0.4])]
    grads[0].flags.writeable = True
    clipper.step_(grads)
    assert calls == {"measure": 1, "apply": 0}


def test_one_read_pass_and_one_write_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_passes(monkeypatch)
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0))
    for value in (1.0, 3.0, math.inf):
        clipper.loss_scaler.scale(1.0)
        clipper.step_([np.array([value], np.float32)]).skipped  # noqa: B018
    assert calls == {"measure": 3, "apply": 2}


def count_passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    from gradclip_core import protocol, registry

    calls = {"measure": 0, "apply": 0}
    backend, _ = registry.select(None, protocol.Request(frozenset({"cpu"}), frozenset()))
    for name in calls:
        real = getattr(type(backend), name)

        def counting(*args: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            calls[name] += 1
            return real(*args, **more)

        monkeypatch.setattr(type(backend), name, counting)
    return calls


# ---- the mistakes -----------------------------------------------------------------------------------


def test_clipping_before_unscaling_cannot_be_written() -> None:
    """The threshold is that of the unscaled gradient, whatever the scale."""
    for scale in (1.0, 2.0**16, 2.0**-10):
        clipper = gc.Clipper(RULE, gc.LossScaler(scale))
        clipper.loss_scaler.scale(1.0)
        grads = scaled([0.3, 0.4], scale)
        assert not clipper.step_(grads).clipped
        assert grads[0] == pytest.approx([0.3, 0.4])


def test_unscaling_twice() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0))
    clipper.loss_scaler.scale(1.0)
    grads = scaled([0.3, 0.4], 4.0)
    clipper.step_(grads)
    before = grads[0].tobytes()
    with says(gc.GradClipError, "unscaled twice", "to clip once more, call clip_"):
        clipper.step_(grads)
    assert grads[0].tobytes() == before


def test_unscaling_before_any_loss_was_scaled() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0))
    grads = scaled([0.3, 0.4], 1.0)
    with says(gc.GradClipError, "never were scaled", "loss_scaler.scale(loss)"):
        clipper.step_(grads)


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_forgetting_to_skip(policy: str) -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0), nonfinite=policy)
    clipper.loss_scaler.scale(1.0)
    clipper.step_([np.array([np.inf, 1.0, np.nan])])
    clipper.loss_scaler.scale(1.0)
    grads = [np.ones(2)]
    with says(
        gc.GradClipError,
        "2 non-finite elements, and nobody has read info.skipped",
        "if not info.skipped: optimizer.step()",
    ):
        clipper.step_(grads)
    assert (grads[0] == 1).all()
    assert clipper.step_(grads).norm == math.sqrt(2) / 2  # said once


def test_looking_at_the_info_without_acting_on_it_is_not_enough() -> None:
    clipper = gc.Clipper(RULE, nonfinite="skip")
    info = clipper.step_([np.array([np.inf])])
    repr(info), gc.explain(info), info.norm, info == info
    assert clipper.statistics.skipped == 1
    with says(gc.GradClipError, "nobody has read info.skipped", "step_(then=optimizer.step)"):
        clipper.step_([np.array([1.0])])


def test_then_is_called_unless_skipped() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0))
    stepped = []
    for value in (1.0, np.inf, 2.0):
        clipper.loss_scaler.scale(1.0)
        clipper.step_([np.array([value])], then=lambda value=value: stepped.append(value))  # type: ignore[misc]
    assert stepped == [1.0, 2.0]


def test_the_wrong_scale_after_an_update() -> None:
    scaler = gc.LossScaler(4.0)
    first, second = (gc.Clipper(RULE, scaler, update=False) for _ in range(2))
    scaler.scale(1.0)
    assert first.step_([np.array([np.inf])]).skipped
    scaler.update()  # too early: the second's gradients are still those of 4.0
    grads = scaled([0.3, 0.4], 4.0)
    with says(gc.GradClipError, "scaled by 4, and the scale has become 2", "Update the scale last"):
        second.step_(grads)


def test_dividing_by_the_scale_again_cannot_be_written() -> None:
    """What step_ leaves is unscaled; there is no argument to unscale it by once more."""
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0))
    with pytest.raises(TypeError):
        clipper.step_([], loss_scale=4.0)  # type: ignore[call-arg]
    with says(gc.InvalidArgumentError, "LossScaler", "Clipper"):
        gc.clip_([np.ones(2)], RULE, loss_scale=clipper.loss_scaler)


def test_a_nan_does_not_get_into_the_running_statistics() -> None:
    clipper = gc.Clipper(RULE, nonfinite="propagate")
    for value in (3.0, np.nan, np.inf, 1.0):
        clipper.step_([np.array([value])])
    found = clipper.statistics
    assert (found.steps, found.finite, found.mean_norm, found.largest_norm, found.nonfinite) == (4, 2, 2.0, 3.0, 2)
    clipper = gc.Clipper(RULE, gc.LossScaler())
    for value in (np.inf, np.nan, 0.5):
        clipper.loss_scaler.scale(1.0)
        assert clipper.step_([np.array([value * clipper.loss_scaler.get_scale()])]).skipped == (value != 0.5)
    found = clipper.statistics
    assert (found.skipped, found.skipped_in_a_row, found.mean_norm, found.clipped) == (2, 0, 0.5, 0)


# ---- several optimizers, accumulation, policies --------------------------------------------------------


def test_a_scaler_of_two_is_updated_by_neither() -> None:
    scaler = gc.LossScaler(4.0)
    first = gc.Clipper(RULE, scaler)
    with says(gc.InvalidArgumentError, "another Clipper unscales by this scaler", "update=False to each"):
        gc.Clipper(RULE, scaler, update=False)
    with says(gc.InvalidArgumentError, "another Clipper unscales by this scaler", "update=False to each"):
        gc.Clipper(RULE, scaler)
    del first
    garbage.collect()
    gc.Clipper(RULE, scaler)  # the first is gone


def test_two_optimizers_under_one_scaler() -> None:
    """As torch does it: who overflows is skipped alone, and the scale falls for both."""
    scaler = gc.LossScaler(4.0, growth_interval=2)
    body, head = (gc.Clipper(RULE, scaler, update=False) for _ in range(2))
    seen: list[list[float]] = []
    for values in ((1.0, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, 1.0), (1.0, 1.0)):
        scaler.scale([1.0, 2.0])
        seen.append([c.step_([np.array([v])]).skipped for c, v in zip((body, head), values, strict=True)])
        scaler.update()
        seen[-1].append(scaler.get_scale())
    assert seen == [[0, 0, 4.0], [1, 0, 2.0], [0, 1, 1.0], [0, 0, 1.0], [0, 0, 2.0]]


def test_forgetting_to_update() -> None:
    scaler = gc.LossScaler(4.0)
    clipper = gc.Clipper(RULE, scaler, update=False)
    scaler.scale(1.0)
    clipper.step_([np.ones(2)])
    scaler.scale(1.0)
    with says(gc.GradClipError, "was not updated", "loss_scaler.update()"):
        clipper.step_([np.ones(2)])


def test_accumulation() -> None:
    """Micro-batches add up at one scale; one step_ for all of them."""
    scaler = gc.LossScaler(1024.0)
    clipper = gc.Clipper(RULE, scaler)
    total = np.zeros(2, np.float32)
    for part in ([0.1, 0.0], [0.0, 0.2], [0.2, 0.2]):
        scaler.scale(1.0)
        total += np.array(part, np.float32) * np.float32(1024)
    info = clipper.step_([total])
    assert info.norm == pytest.approx(0.5)
    assert total == pytest.approx([0.3, 0.4])


def test_a_skipped_step_leaves_what_was_accumulated_and_zero_clears_it() -> None:
    for policy, left in (("skip", [np.inf, 8.0]), ("zero", [0.0, 0.0])):
        clipper = gc.Clipper(RULE, gc.LossScaler(8.0), nonfinite=policy)
        clipper.loss_scaler.scale(1.0)
        grads = [np.array([np.inf, 8.0])]
        assert clipper.step_(grads).skipped
        assert grads[0].tolist() == left
        assert clipper.loss_scaler.get_scale() == 4.0


def test_sanitize_takes_the_step_and_lowers_the_scale() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(8.0), nonfinite="sanitize")
    clipper.loss_scaler.scale(1.0)
    grads = [np.array([np.nan, 16.0])]
    info = clipper.step_(grads)
    assert (info.skipped, info.norm, info.nonfinite) == (False, 2.0, 1)
    assert np.linalg.norm(grads[0]) <= 1
    assert clipper.loss_scaler.get_scale() == 4.0


def test_raise_names_the_culprits_and_leaves_the_scale() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(8.0), nonfinite="raise")
    clipper.loss_scaler.scale(1.0)
    with says(gc.NonFiniteGradientError, "'w' (1 inf, 0 NaN)", "nonfinite="):
        clipper.step_({"w": np.array([np.inf])})
    assert clipper.loss_scaler.get_scale() == 8.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gc.Clipper(RULE, 1024.0), ("loss_scaler=1024.0", "LossScaler.static(S)")),
        (lambda: gc.Clipper(RULE, gc.LossScaler(), nonfinite="propagate"), ("propagate", "Pass one of skip")),
        (lambda: gc.Clipper(RULE, nonfinite="never"), ("never", "Pass one of raise")),
        (
            lambda: gc.Clipper("norm"),  # type: ignore[arg-type]
            ("'norm'", "rule"),
        ),
        (lambda: gc.Clipper(RULE, params=[]), ("no parameter in it", "Pass an optimizer")),
        (lambda: gc.Clipper(RULE, params=[np.ones(2)]), ("has no .grad", "Pass an optimizer")),
        (lambda: gc.Clipper(RULE, params=7), ("holds no parameters", "Pass an optimizer")),
        (lambda: gc.Clipper(RULE).step_(), ("no gradients to clip", "params=")),
        (lambda: gc.Clipper(RULE).load_state_dict({}), ("not the state of a Clipper", "state_dict()")),
    ],
)
def test_what_makes_no_clipper(make: Any, words: tuple[str, ...]) -> None:
    with says(gc.InvalidArgumentError, *words):
        make()


def test_an_error_of_the_gradients_is_not_counted_as_a_step() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(4.0))
    clipper.loss_scaler.scale(1.0)
    with pytest.raises(gc.UnsupportedArrayError):
        clipper.step_(["text"])
    assert clipper.step_([np.ones(4)]).norm == 0.5
    assert clipper.statistics.steps == 1


def test_state_resumes_scale_and_statistics() -> None:
    first = gc.Clipper(RULE, gc.LossScaler(8.0))
    for value in (8.0, np.inf, 4.0):
        first.loss_scaler.scale(1.0)
        first.step_([np.array([value])]).skipped  # noqa: B018
    second = gc.Clipper(RULE, gc.LossScaler())
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert second.loss_scaler.get_scale() == 4.0
    assert second.statistics == first.statistics
    with says(gc.InvalidArgumentError, "not the state", "made alike"):
        gc.Clipper(RULE).load_state_dict(first.state_dict())


def test_a_copy_goes_its_own_way() -> None:
    first = gc.Clipper(RULE, gc.LossScaler(8.0))
    second = copy.deepcopy(first)
    second.loss_scaler.scale(1.0)
    assert second.step_([np.array([np.inf])]).skipped
    assert (first.loss_scaler.get_scale(), second.loss_scaler.get_scale()) == (8.0, 4.0)
    assert first.statistics.steps == 0


def test_no_gradients_at_all() -> None:
    clipper = gc.Clipper(RULE, gc.LossScaler(8.0))
    clipper.loss_scaler.scale(1.0)
    assert clipper.step_({"w": None}).norm == 0.0


def test_any_rule() -> None:
    from gradclip_core import sets

    for rule in (gc.Value(1.0), gc.ArrayNorm(1.0), gc.Project(sets.L1Ball(1.0)), gc.Chain(gc.Value(2.0), RULE)):
        clipper = gc.Clipper(rule, gc.LossScaler(8.0))
        clipper.loss_scaler.scale(1.0)
        grads, like = scaled([3.0, -4.0], 8.0), scaled([3.0, -4.0], 8.0)
        clipper.step_(grads)
        assert grads[0].tobytes() == gc.clip(like, rule, loss_scale=8.0)[0][0].tobytes()

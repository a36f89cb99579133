"""Sparse COO gradients: what they store is clipped as the dense gradient's elements are, in place and as new arrays."""

from __future__ import annotations

import math
from typing import Any

import pytest

import gradclip_core as gc
from gradclip_core import sets
from tests.refusals import check_sentence

torch = pytest.importorskip("torch")

DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
RULES = [
    gc.GlobalNorm(1.0),
    gc.GlobalNorm(2.0, ord=1),
    gc.GlobalNorm(1.0, ord=3),
    gc.ArrayNorm(0.5, ord=math.inf),
    gc.GlobalNorm(0.0),
    gc.GroupNorm({"a": 1.0, "b": None}, lambda path: "a" if path == "0" else "b"),
    gc.Value(0.5),
    gc.Value((-math.inf, 0.25)),
    gc.Value((0.0, 0.0)),
    gc.Chain(gc.Value(2.0), gc.GlobalNorm(1.0)),
    gc.Project(sets.L2Ball(1.0)),
    gc.Project(sets.LinfBall(1.0)),
    gc.Project(sets.Box(-1.0, 0.0)),
    gc.Project(sets.L1Ball(1.0)),
    gc.Project(sets.LpBall(1.0, p=3.0)),
    gc.Project(sets.L1capL2(2.0, 1.0)),
]


def coo(indices: list[list[int]], values: Any, shape: tuple[int, ...], coalesced: bool | None = None) -> Any:
    return torch.sparse_coo_tensor(
        torch.tensor(indices, dtype=torch.int64).reshape(len(indices), -1),
        torch.as_tensor(values),
        shape,
        is_coalesced=coalesced,
        check_invariants=coalesced is not True,
    )


def repeated(dtype: Any = None) -> Any:
    """Not coalesced; dense it is [5, 0, -12, 0.25]."""
    return coo([[0, 2, 0, 3]], torch.tensor([3.0, -12.0, 2.0, 0.25], dtype=dtype), (4,))


def hybrid(dtype: Any = None) -> Any:
    """Rows of a (5, 3) weight, as an embedding's gradient has them, one of them twice."""
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.0, -12.0, 1.0], [1.0, 1.0, 1.0]], dtype=dtype)
    return coo([[4, 1, 4]], rows, (5, 3))


def dense_info(info: Any) -> tuple[Any, ...]:
    return info.norm, info.norms, info.scales, info.clipped, info.skipped, info.infs, info.nans, info.clipped_norm


@pytest.mark.shows("torch", "sparse", "exact")
@pytest.mark.parametrize("coalesced", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule_gives_the_bits_of_the_dense_gradient(rule: Any, coalesced: bool) -> None:
    """All sums here are of numbers whose squares float64 adds exactly, so that zeros between them change nothing."""
    grads = [repeated(), torch.tensor([0.5, -8.0]), hybrid()]
    grads = [g.coalesce() if coalesced and g.is_sparse else g for g in grads]
    stored = [g.clone() for g in grads]
    dense = [g.to_dense() for g in grads]
    expected, wanted = gc.clip(dense, rule)
    clipped, info = gc.clip(grads, rule)
    general = rule.order not in (1, 2, math.inf)
    if not general and not isinstance(rule, gc.Project):
        assert dense_info(info) == dense_info(wanted)
        assert all(torch.equal(c.to_dense(), e) for c, e in zip(clipped, expected, strict=True))
    else:
        # Searches end anywhere within 2^-40 of the root; then two roundings to float32 of 2^-24 each.
        assert info.norm == pytest.approx(wanted.norm, rel=1e-12)
        for c, e in zip(clipped, expected, strict=True):
            assert torch.allclose(c.to_dense(), e, rtol=2.0**-22, atol=0)
    assert [c.is_coalesced() for c in (clipped[0], clipped[2])] == [True, True]
    for g, before in zip(grads, stored, strict=True):
        assert g.is_sparse == before.is_sparse
        if g.is_sparse:
            assert (g.is_coalesced(), g._nnz()) == (before.is_coalesced(), before._nnz())
            assert torch.equal(g._values(), before._values())
    again = gc.clip_(grads, rule)
    assert dense_info(again) == dense_info(info)
    assert all(torch.equal(g.to_dense(), c.to_dense()) for g, c in zip(grads, clipped, strict=True))
    assert gc.global_norm(grads) == pytest.approx(gc.global_norm([c.to_dense() for c in clipped]), rel=2.0**-45)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [repeated, hybrid])
def test_every_dtype(make: Any, dtype: str) -> None:
    x = make(getattr(torch, dtype))
    expected, wanted = gc.clip_by_norm(x.to_dense(), 1.0)
    clipped, info = gc.clip_by_norm(x, 1.0)
    assert (info.norm, info.scale) == (wanted.norm, wanted.scale)
    assert torch.equal(clipped.to_dense(), expected)
    assert (clipped.dtype, clipped.shape) == (x.dtype, x.shape)
    gc.clip_by_norm_(x, 1.0)
    assert torch.equal(x.to_dense(), expected)
    assert x.is_coalesced()


def test_new_tensors_share_no_memory() -> None:
    x = hybrid().coalesce()
    clipped, _ = gc.clip_by_global_norm([x], 1e9)
    assert torch.equal(clipped[0].to_dense(), x.to_dense())
    clipped[0]._values().zero_()
    clipped[0]._indices().zero_()
    assert torch.equal(x.to_dense(), hybrid().to_dense())


def test_a_step_that_clips_nothing_writes_nothing() -> None:
    x, y = repeated(), hybrid().coalesce()
    values, places = x._values(), x._values().data_ptr()
    info = gc.clip_by_global_norm_([x, y], 1e9)
    assert not info.clipped
    assert (x._version, y._version) == (0, 0)
    assert not x.is_coalesced()
    assert x._values().data_ptr() == places
    assert torch.equal(values, torch.tensor([3.0, -12.0, 2.0, 0.25]))


def test_a_write_moves_the_version_counter() -> None:
    x, y = repeated(), hybrid().coalesce()
    memory = y._values().data_ptr()
    gc.clip_by_norm_([x, y], 1.0)
    assert x._version > 0
    assert y._version > 0
    assert y._values().data_ptr() == memory  # written where it is
    left = repeated()
    gc.clip_by_norm_([left, repeated()], 13.0)  # its norm is 13.002
    assert left._version > 0
    one = coo([[0]], [0.5], (4,), coalesced=False)
    gc.clip_by_norm_([one, repeated()], 1.0)
    assert one._version == 0  # another array was written, this one not
    assert not one.is_coalesced()


@pytest.mark.parametrize(
    "x",
    [
        coo([[], []], torch.zeros(0), (3, 4)),
        coo([[]], torch.zeros(0, 3), (4, 3)),
        coo([[0, 1]], torch.zeros(2, 0), (4, 0)),
        coo([[]], torch.zeros(0), (0,)),
    ],
    ids=["nothing", "no-rows", "empty-rows", "no-shape"],
)
def test_nothing_stored(x: Any) -> None:
    clipped, info = gc.clip_by_global_norm([x, torch.tensor([3.0, 4.0])], 1.0)
    assert info.norms == {"0": 0.0, "1": 5.0}
    assert torch.equal(clipped[0].to_dense(), x.to_dense())
    assert gc.clip_by_global_norm_([x, x], 1.0).norm == 0.0
    assert gc.clip_by_value_([x], 1.0).norm == 0.0


def test_0_d() -> None:
    x = torch.sparse_coo_tensor(
        torch.zeros(0, 2, dtype=torch.int64), torch.tensor([1.0, 2.0]), (), check_invariants=True
    )
    clipped, info = gc.clip_by_norm(x, 1.5)
    assert info.norm == 3.0
    assert gc.clip_by_norm_(x, 1.5).norm == 3.0
    assert x.to_dense() == clipped.to_dense() <= 1.5
    assert x.shape == clipped.shape == ()


def test_the_same_tensor_twice_counts_once() -> None:
    for x in (repeated(), repeated().coalesce()):
        norm = gc.global_norm(x)
        (a, b), info = gc.clip_by_global_norm([x, x], 1.0)
        assert a is b
        assert info.norm == norm
        assert gc.clip_by_global_norm_({"embed": x, "head": x}, 1.0).norms == {"embed": norm, "head": norm}
        assert torch.equal(x.to_dense(), a.to_dense())
    x = repeated().coalesce()
    assert gc.global_norm([x, x.detach()]) == gc.global_norm(x)


def test_values_that_two_tensors_share() -> None:
    values = torch.tensor([3.0, 4.0])
    x, y = coo([[0, 1]], values, (4,), coalesced=True), coo([[1, 2]], values, (4,), coalesced=True)
    with pytest.raises(gc.UnsafeMemoryError, match="they share memory"):
        gc.clip_by_norm_([x, y], 1.0)
    # Two embeddings whose outputs are added get one and the same values; not coalesced, each is copied.
    one, two = (torch.nn.Embedding(5, 2, sparse=True) for _ in range(2))
    (one(torch.tensor([1, 1, 3])) + two(torch.tensor([0, 2, 2]))).sum().backward()
    pair = [one.weight.grad, two.weight.grad]
    expected, wanted = gc.clip_by_norm([g.to_dense() for g in pair], 1.0)
    assert gc.clip_by_norm_(pair, 1.0).norms == wanted.norms
    assert all(torch.equal(g.to_dense(), e) for g, e in zip(pair, expected, strict=True))


def test_values_that_another_array_would_write() -> None:
    x = repeated()
    with pytest.raises(gc.UnsafeMemoryError) as caught:
        gc.clip_by_norm_([x, x._values()], 1.0)
    check_sentence(caught.value, gc.UnsafeMemoryError, "array '0'", "it is not coalesced, and shares", "coalesce()")
    assert x._version == 0
    assert gc.clip_by_norm([x, x._values()], 1.0)[1].clipped


def test_policies() -> None:
    bad = coo([[0, 2, 0]], [1.0, math.inf, math.nan], (4,))
    with pytest.raises(gc.NonFiniteGradientError, match=r"'1' \(1 inf, 1 NaN\)"):
        gc.clip_by_global_norm_([torch.ones(2), bad], 1.0)
    info = gc.clip_by_global_norm_([bad], 1.0, nonfinite="skip")
    assert (info.skipped, bad._version, bad.is_coalesced()) == (True, 0, False)
    cured = bad.clone()
    assert gc.clip_by_value_(cured, 1.0, nonfinite="sanitize").nonfinite == 2
    assert cured.to_dense().tolist() == [0.0, 0.0, 1.0, 0.0]
    gc.clip_by_global_norm_([bad], 1.0, nonfinite="zero")
    assert bad.to_dense().tolist() == [0.0] * 4
    lost = coo([[0, 0]], [math.inf, -math.inf], (2,))  # each is an infinity, and their sum is NaN
    assert gc.plan(lost, gc.GlobalNorm(1.0), nonfinite="skip").info.nans == 1


def test_a_loss_scale_unscales_what_is_stored() -> None:
    x = repeated()
    info = gc.clip_by_global_norm_({"w": x}, 100.0, loss_scale=4.0)
    assert x.to_dense().tolist() == [1.25, 0.0, -3.0, 0.0625]
    assert (info.scale, info.clipped) == (0.25, False)
    halves, _ = gc.to_half(repeated(), "bfloat16", gc.GlobalNorm(100.0))
    assert halves.dtype is torch.bfloat16
    assert torch.equal(halves.to_dense(), repeated().to_dense().bfloat16())
    tiny = coo([[0, 1]], torch.tensor([6e-8, 1.0], dtype=torch.float16), (3,))
    assert gc.clip(tiny, gc.GlobalNorm(0.1), underflow="count")[1].underflow == 1


def test_plans() -> None:
    x = repeated()
    plan = gc.plan([x], gc.GlobalNorm(1.0))
    assert (x._version, x.is_coalesced()) == (0, False)
    (made,) = plan.apply([x])
    assert plan.apply_([x]).norm == gc.global_norm(repeated())
    assert x.is_coalesced()
    assert torch.equal(made.to_dense(), x.to_dense())
    with pytest.raises(gc.GradClipError, match=r"is float32 of shape \(4,\); planned was '0', float32, sparse"):
        plan.apply_([x.to_dense()])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # PyTorch's own Adagrad asks
@pytest.mark.parametrize("optimizer", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("tokens", [[1, 1, 3], [2]])
def test_optimizers_go_on(optimizer: Any, tokens: list[int]) -> None:
    """Three steps: those of a loop that makes its gradients dense, clips them, and makes them sparse again."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Embedding(5, 2, sparse=True) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    steppers = [optimizer(model.parameters(), lr=0.5) for model in (ours, theirs)]
    for _ in range(3):
        for model, stepper in zip((ours, theirs), steppers, strict=True):
            stepper.zero_grad()
            (model(torch.tensor(tokens)) ** 2).sum().mul(30).backward()
        gc.clip_by_global_norm_([p.grad for p in ours.parameters()], 1.0)
        dense = theirs.weight.grad.to_dense()
        gc.clip_by_global_norm_([dense], 1.0)
        theirs.weight.grad = dense.sparse_mask(theirs.weight.grad.coalesce())
        for stepper in steppers:
            stepper.step()
        assert torch.equal(ours.weight, theirs.weight)


def test_torch_itself_clips_no_sparse_gradient() -> None:
    """So there is nothing to compare with but its norm of the dense one. The day it does, this test says so."""
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    for clip in (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_):
        with pytest.raises(NotImplementedError):
            clip(embedding.parameters(), 1.0)
    norm = torch.linalg.vector_norm(embedding.weight.grad.to_dense().double())
    assert gc.global_norm([embedding.weight.grad]) == norm == math.sqrt(10.0)


def test_a_loss_scale_and_an_embedding() -> None:
    model = torch.nn.Embedding(5, 2, sparse=True)
    clipper = gc.Clipper(gc.GlobalNorm(1.0), gc.LossScaler(2.0**10), params=model)
    for factor, skipped in ((30.0, False), (math.inf, True), (1e-3, False)):
        clipper.loss_scaler.scale((model(torch.tensor([1, 1, 3])) * factor).sum()).backward()
        info = clipper.step_()
        assert (info.skipped, info.clipped) == (skipped, factor == 30.0)
        if not skipped:
            assert gc.global_norm([model.weight.grad]) <= 1.0
        model.zero_grad()


Refusal = tuple[Any, type[gc.GradClipError], str, str]
REFUSED: dict[str, Refusal] = {
    "low": (gc.Value((0.5, 1.0)), gc.InvalidArgumentError, "zeros, which are not stored, would become 0.5", "low <= 0"),
    "high": (gc.Value((-2.0, -1.0)), gc.InvalidArgumentError, "would become -1", "to_dense()"),
    "box": (gc.Project(sets.Box(1.0, 2.0)), gc.InvalidArgumentError, "would become 1", "low <= 0"),
    "simplex": (gc.Project(sets.Simplex(1.0)), gc.UnsupportedArrayError, "projection on Simplex", "L1Ball"),
    "spectral": (gc.Project(sets.SpectralBall(1.0)), gc.UnsupportedArrayError, "not stored too", "to_dense()"),
    "groups": (gc.Project(sets.L1L2Ball(1.0, axis=1)), gc.UnsupportedArrayError, "L1L2Ball", "to_dense()"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rules_that_zeros_would_not_survive(case: str) -> None:
    rule, error, seen, cure = REFUSED[case]
    x = hybrid()
    for clip in (gc.clip, gc.clip_, gc.plan):
        with pytest.raises(error) as caught:
            clip({"w": x}, rule)
        check_sentence(caught.value, error, "array 'w'", seen, cure)
    assert x._version == 0


def test_what_needs_all_elements_is_refused() -> None:
    x = repeated()
    with pytest.raises(gc.UnsupportedArrayError, match=r"it is sparse, and a unit's elements"):
        gc.adaptive_clip_([hybrid()], [torch.ones(5, 3)], axis=1)
    with pytest.raises(gc.UnsupportedArrayError, match=r"layout is sparse_coo.*to_dense"):
        gc.adaptive_clip_([torch.ones(4)], [x], axis=None)
    with pytest.raises(gc.InvalidArgumentError, match=r"it is sparse, and what out= holds"):
        gc.clip([x], gc.GlobalNorm(1.0), out=[torch.empty(4)])
    with pytest.raises(gc.UnsupportedArrayError, match=r"layout is sparse_coo"):
        gc.clip([torch.ones(4)], gc.GlobalNorm(1.0), out=[x])
    with pytest.raises(gc.UnsupportedArrayError, match=r"int64 is no gradient's dtype"):
        gc.clip_by_norm(coo([[0]], torch.tensor([3]), (2,)), 1.0)
    assert x._version == 0


def test_inference_tensors() -> None:
    with torch.inference_mode():
        x, y = repeated(), repeated().coalesce()
        z = repeated()
        assert gc.clip_by_norm_([z], 1.0).clipped
        assert z.is_coalesced()
    with pytest.raises(gc.UnsafeMemoryError, match=r"inference tensor and not coalesced.*inference_mode\(\)"):
        gc.clip_by_norm_([x], 1.0)
    assert gc.clip_by_norm_([y], 1.0).clipped
    assert torch.equal(y.to_dense(), z.to_dense())

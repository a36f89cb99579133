"""A real model on real text: a character-level transformer on Python's own documentation."""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

import gradclip_core as gc

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.jit
WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 256, 4, 3, 64, 4
STEPS, RATE, MAX_NORM = 16, 0.05, 0.5


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """So that both twins sum in the same order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@cache
def text() -> tuple[Any, int]:
    """The documentation of the language as codes of its ASCII characters, and how many there are."""
    characters = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    codes = torch.tensor(list(characters[:200_000].encode("ascii", "replace")), dtype=torch.long)
    return codes, 128


def batch(step: int) -> tuple[Any, Any]:
    codes, _ = text()
    starts = torch.randint(len(codes) - CONTEXT - 1, (BATCH,), generator=torch.Generator().manual_seed(step))
    windows = torch.stack([codes[start : start + CONTEXT + 1] for start in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def transformer() -> Any:
    """Pre-norm blocks, learned positions, and an output head tied to the embedding."""
    torch.manual_seed(7)
    nn = torch.nn
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(text()[1], WIDTH),
            "positions": nn.Embedding(CONTEXT, WIDTH),
            "blocks": nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False),
            "head": nn.Linear(WIDTH, text()[1], bias=False),
        }
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    model["head"].weight = model["embed"].weight
    return model


def loss_of(model: Any, step: int) -> Any:
    inputs, targets = batch(step)
    hidden = model["embed"](inputs) + model["positions"](torch.arange(CONTEXT))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT)
    hidden = model["blocks"](hidden, mask=mask, is_causal=True)
    return torch.nn.functional.cross_entropy(model["head"](hidden).flatten(0, 1), targets.flatten())


@cache
def real_gradients() -> dict[str, Any]:
    model = transformer()
    loss_of(model, 0).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def copies(dtype: Any = None) -> dict[str, Any]:
    return {name: grad.to(dtype or grad.dtype, copy=True) for name, grad in real_gradients().items()}


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a)


def test_the_model_is_a_real_one() -> None:
    grads = real_gradients()
    assert sum(grad.numel() for grad in grads.values()) > 2_000_000
    assert "head.weight" not in grads  # tied: named once
    assert gc.global_norm(grads) > MAX_NORM


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("rule", [gc.GlobalNorm(MAX_NORM), gc.ArrayNorm(0.1), gc.Value(1e-3)], ids=repr)
def test_every_backend_gives_the_bits_of_the_reference(dtype: str, rule: Any) -> None:
    ours, reference = (copies(getattr(torch, dtype)) for _ in range(2))
    info, wanted = gc.clip_(ours, rule), gc.clip_(reference, rule, backend="numpy")
    assert info.clipped
    assert same_bits(ours, reference)
    assert not same_bits(ours, copies(getattr(torch, dtype)))
    assert (info.norm, info.clipped_norm, info.scale) == (wanted.norm, wanted.clipped_norm, wanted.scale)
    assert info.norms == wanted.norms


def test_it_agrees_with_torch_run_in_float64() -> None:
    ours = copies()
    exact = [torch.nn.Parameter(grad.double()) for grad in ours.values()]
    for parameter, grad in zip(exact, ours.values(), strict=True):
        parameter.grad = grad.double()
    total = torch.nn.utils.clip_grad_norm_(exact, MAX_NORM, error_if_nonfinite=True)

    info = gc.clip_by_global_norm_(ours, MAX_NORM)
    assert info.norm == pytest.approx(total.item(), rel=1e-13)
    # torch's epsilon makes it (norm + 1e-6); the shave and the rounding are 2 ulp of float32.
    relative = 1e-6 / info.norm + 2.0**-22
    for grad, parameter in zip(ours.values(), exact, strict=True):
        torch.testing.assert_close(grad.double(), parameter.grad, rtol=relative, atol=2.0**-149)
    after = math.sqrt(sum(float((grad.double() ** 2).sum()) for grad in ours.values()))
    assert MAX_NORM * (1 - 2.0**-21) < after <= MAX_NORM
    assert info.clipped_norm == pytest.approx(after, rel=2.0**-22)


def test_unscaling_is_part_of_the_clip() -> None:
    """Scaled backward, one call: the bits of the unscaled gradients clipped."""
    model = transformer()
    (loss_of(model, 0) * 1024).backward()
    scaled = {name: p.grad for name, p in model.named_parameters()}
    expected = copies()
    assert gc.global_norm(scaled) == 1024 * gc.global_norm(expected)
    info = gc.clip_by_global_norm_(scaled, MAX_NORM, loss_scale=1024)
    assert info.norm == gc.clip_by_global_norm_(expected, MAX_NORM).norm
    assert same_bits(scaled, expected)


def train(clip: Callable[[Any], float], steps: int = STEPS) -> tuple[list[float], list[float]]:
    model = transformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        norms.append(clip(model))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def test_twins_clipped_by_gradclip_and_by_torch_learn_alike() -> None:
    def by_gradclip(model: Any) -> float:
        return gc.clip_by_global_norm_((p.grad for p in model.parameters()), MAX_NORM).norm

    def by_torch(model: Any) -> float:
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))

    def by_nobody(model: Any) -> float:
        return gc.global_norm(p.grad for p in model.parameters())

    losses, norms = train(by_gradclip)
    twin_losses, twin_norms = train(by_torch)
    assert losses == pytest.approx(twin_losses, rel=2e-6)
    assert norms == pytest.approx(twin_norms, rel=5e-5)
    assert losses[-1] < losses[0] - 1  # it learns
    assert sum(norm > MAX_NORM for norm in norms) >= STEPS // 2  # and clipping had a part in it
    unclipped, _ = train(by_nobody, steps=4)
    assert unclipped[0] == losses[0]  # before the first step they are the same model
    assert unclipped[1:] != pytest.approx(losses[1:4], rel=1e-3)

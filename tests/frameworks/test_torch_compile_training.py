"""Training in which the update is compiled, the clip in it: losses and norms are the eager one's, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gradclip_core as gc

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
Update = Callable[[Any, Any], Any]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def train(update: Update, steps: int = 8, optimizer: Any = None) -> list[tuple[float, float]]:
    """Losses, and the norms that the update returns."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    made = None if optimizer is None else optimizer(model.parameters())
    x = torch.randn(32, 6)
    target = 3 * x.sum(1, keepdim=True)
    seen = []
    for _ in range(steps):
        model.zero_grad()
        loss = ((model(x) - target) ** 2).mean()
        loss.backward()
        seen.append((loss.item(), float(update(model, made))))
    return seen


def by_hand(model: Any, optimizer: Any) -> Any:
    """Steps of a power of two: a compiler that fuses product and sum rounds as one that does not."""
    info = gc.clip_by_global_norm_((p.grad for p in model.parameters()), 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=0.125)
    return info.norm


def by_optimizer(model: Any, optimizer: Any) -> Any:
    info = gc.clip_by_norm_({name: p.grad for name, p in model.named_parameters()}, 0.5)
    optimizer.step()
    return info.norm


def adaptive(model: Any, optimizer: Any) -> Any:
    parameters = list(model.parameters())
    info = gc.adaptive_clip_([p.grad for p in parameters], parameters, 0.125, axis="all_but_first")
    with torch.no_grad():
        for p in parameters:
            p.sub_(p.grad, alpha=0.125)
    return info.norm


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("update", [by_hand, adaptive])
def test_an_update_that_is_one_graph(update: Update, backend: str) -> None:
    assert train(torch.compile(update, backend=backend, fullgraph=True)) == train(update)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_optimizer_of_torch() -> None:
    """``Optimizer.step`` breaks the graph itself, around its body. The clip adds no break to these."""

    def sgd(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    found = train(torch.compile(by_optimizer, backend="aot_eager"), optimizer=sgd)
    assert found == train(by_optimizer, optimizer=sgd)
    breaks = " ".join(torch._dynamo.utils.counters["graph_break"])
    assert "gradclip" not in breaks
    assert "eagerly" not in breaks

"""Clipping inside ``torch.compile``, with no graph break: the bits, the report and the errors of an eager call."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gradclip_core as gc
from gradclip_core import sets

torch = pytest.importorskip("torch")
pytest.importorskip("torch._dynamo")

# Inductor's own.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((3, 4), (5,), (2, 2, 2), ())
Pair = collections.namedtuple("Pair", "a b")


@dataclasses.dataclass
class Record:
    first: Any
    rest: Any


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def whole(function: Callable[..., Any], backend: str = "aot_eager", **how: Any) -> Callable[..., Any]:
    """The function as one graph: a graph break would be an error."""
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, fullgraph=True, **how)
    return compiled


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def gradients(dtype: Any = torch.float32, seed: int = 0) -> list[Any]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source).to(dtype) for shape in SHAPES]


def bits(tensors: Any) -> list[bytes]:
    return [bytes(x.detach().contiguous().view(-1).view(torch.uint8).numpy()) for x in tensors]


def check(function: Callable[..., Any], *more: Callable[[], Any], backend: str = "aot_eager", **how: Any) -> Any:
    """``function(gradients, ...)`` leaves and reports the same in a graph. Returns the graph's info."""
    wanted, got = gradients(**how), gradients(**how)
    eager, traced = function(wanted, *[make() for make in more]), whole(function, backend)(got, *[m() for m in more])
    assert bits(got) == bits(wanted)
    new, info, report = ([], traced, eager) if not isinstance(traced, tuple) else (*traced, eager[1])
    if new:
        assert bits(torch.utils._pytree.tree_leaves(new)) == bits(torch.utils._pytree.tree_leaves(eager[0]))
    for name in ("norm", "clipped_norm", "scale", "clipped", "skipped", "infs", "nans", "nonfinite", "overflow"):
        value, expected = getattr(info, name).item(), getattr(report, name)
        assert value == expected or (math.isnan(value) and math.isnan(expected)), name
        assert type(value) is type(expected)
    for found, expected in ((info.norms, report.norms), (info.scales, report.scales)):
        assert repr({path: value.item() for path, value in found.items()}) == repr(expected)  # NaN is NaN
    counts = {path: (infs.item(), nans.item()) for path, (infs, nans) in info.counts.items()}
    assert {path: pair for path, pair in counts.items() if pair != (0, 0)} == report.counts
    assert info.backend == report.backend
    return info


def near(like: Any = None) -> list[Any]:
    return [x.abs() / 16 + 1 for x in gradients(seed=1)]


def matrices() -> Any:
    return gc.Project(sets.SpectralBall(1.0))


CALLS: dict[str, Callable[[Any], Any]] = {
    "global": lambda g: gc.clip_by_global_norm_(g, 1.0),
    "global new": lambda g: gc.clip_by_global_norm(g, 1.0),
    "nothing to clip": lambda g: gc.clip_by_global_norm_(g, 1e6),
    "order 1": lambda g: gc.clip_by_global_norm_(g, 1, ord=1),
    "order inf": lambda g: gc.clip_by_global_norm(g, 0.5, ord=math.inf),
    "array": lambda g: gc.clip_by_norm_(g, 0.5),
    "array new": lambda g: gc.clip_by_norm(g, 0.5),
    "value": lambda g: gc.clip_by_value_(g, 0.25),
    "value new": lambda g: gc.clip_by_value(g, (-math.inf, 0.25)),
    "groups": lambda g: gc.clip_by_group_norm_(g, {"a": 1.0, 2: None}, groups={"a": ["0", "2"], 2: ["1", "3"]}),
    "groups new": lambda g: gc.clip_by_group_norm(g, 0.5, groups=lambda path: int(path) % 2),
    "chain": lambda g: gc.clip_(g, gc.Chain(gc.Value(0.5), gc.GlobalNorm(0.75))),
    "rule": lambda g: gc.clip(g, gc.ArrayNorm(0.5)),
    "project": lambda g: gc.clip_by_projection_(g, sets.L1Ball(1.0), "array"),
    "project new": lambda g: gc.clip_by_projection(g, sets.Intersection(sets.L1Ball(3.0), sets.LinfBall(0.5))),
    "scaled": lambda g: gc.clip_by_global_norm_(g, 1.0, loss_scale=8.0),
    "arrays scaled": lambda g: gc.clip_by_global_norm_(g, 1.0, array_scales={"1": 4.0}),
    "numpy": lambda g: gc.clip_by_norm_(g, 0.5, backend="numpy"),
}


@pytest.mark.shows("torch", "under its compiler", "exact")
@pytest.mark.parametrize("call", CALLS)
def test_every_function(call: str) -> None:
    check(CALLS[call])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("call", ["global", "array new"])
def test_every_dtype(dtype: str, call: str) -> None:
    check(CALLS[call], dtype=getattr(torch, dtype))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_other_compilers(backend: str) -> None:
    check(CALLS["global"], backend=backend)
    check(CALLS["array new"], backend=backend)


RULES: dict[str, Callable[[], Any]] = {
    "GlobalNorm": lambda: gc.GlobalNorm(0.5, 3),
    "ArrayNorm": lambda: gc.ArrayNorm(0.5),
    "GroupNorm": lambda: gc.GroupNorm({"x": 0.5, "y": None}, lambda path: "x" if path < "2" else "y"),
    "Value": lambda: gc.Value((-0.5, 0.25)),
    "UnitNorm": lambda: gc.UnitNorm([torch.nn.Parameter(x) for x in near()], 0.125, axis="all_but_first"),
    "Chain": lambda: gc.Chain(gc.Value(1.0), gc.ArrayNorm(0.5)),
    "Project": lambda: gc.Project(sets.L2Ball(0.5), "group", {"a": ["0"], "b": ["1", "2", "3"]}),
    "Box": lambda: gc.Project(sets.Box(-math.inf, 0.125)),
    "Ellipsoid": lambda: gc.Project(sets.Ellipsoid(near(), 0.5)),
    "HalfSpace": lambda: gc.Project(sets.HalfSpace(near(), -0.5)),
    "Hyperplane": lambda: gc.Project(sets.Hyperplane(near(), 0.5)),
    "Intersection": lambda: gc.Project(sets.Intersection(sets.L1Ball(2.0), sets.LinfBall(0.5), tolerance=1e-8)),
    "L1Ball": lambda: gc.Project(sets.L1Ball(2.0)),
    "L1InfBall": lambda: gc.Project(sets.L1InfBall(2.0, axis=0)),
    "L1L2Ball": lambda: gc.Project(sets.L1L2Ball(2.0, axis=lambda path, shape: len(shape) - 1 if shape else None)),
    "L1capL2": lambda: gc.Project(sets.L1capL2(2.0, 0.75)),
    "L2Ball": lambda: gc.Project(sets.L2Ball(0.5)),
    "LinfBall": lambda: gc.Project(sets.LinfBall(0.25)),
    "LpBall": lambda: gc.Project(sets.LpBall(1.0, 3.0)),
    "RadialEllipsoid": lambda: gc.Project(sets.RadialEllipsoid(near(), 0.5)),
    "Simplex": lambda: gc.Project(sets.Simplex(2.0)),
}
OF_MATRICES = {"SpectralBall": sets.SpectralBall(0.5), "NuclearBall": sets.NuclearBall(0.5)}


@pytest.mark.parametrize("name", RULES)
def test_rules_made_outside(name: str) -> None:
    check(lambda g, rule: gc.clip_(g, rule), RULES[name])


@pytest.mark.parametrize("name", OF_MATRICES)
def test_sets_of_matrices(name: str) -> None:
    check(lambda g: gc.clip_by_projection_(g[:1], OF_MATRICES[name]))


def test_every_rule_and_set_of_the_library_can_be_written_down() -> None:
    from gradclip_core.arrays.torch_rules import FIELDS

    for kind, holds in FIELDS.items():
        assert list(holds) == [field.name for field in dataclasses.fields(kind)], kind
    assert {kind.__name__ for kind in FIELDS} | {"Chain", "Intersection"} == {*RULES, *OF_MATRICES}
    made = {getattr(sets, name) for name in sets.__all__} - {sets.Set, sets.Certificate, sets.Intersection}
    assert made == {kind for kind in FIELDS if issubclass(kind, sets.Set)}


def test_weights_of_adaptive_clipping_are_read_when_the_graph_runs() -> None:
    def step(g: Any, weights: Any) -> Any:
        return gc.adaptive_clip_(g, (w for w in weights), 0.125, axis="all_but_first")

    compiled = whole(step)
    for seed in range(2):
        weights = [torch.nn.Parameter(x) for x in gradients(seed=seed + 5)]
        wanted, got = gradients(), gradients()
        assert compiled(got, weights).norm.item() == step(wanted, weights).norm
        assert bits(got) == bits(wanted)
    assert graphs() == 1


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda g: g[0],
    "tuple": tuple,
    "dict": lambda g: {"w": g[0], "b": [g[1], None, (g[2],)], 7: g[3]},
    "colliding names": lambda g: {1: g[0], "1": g[1]},
    "ordered": lambda g: collections.OrderedDict(a=g[0], b=g[1]),
    "deque": collections.deque,
    "namedtuple": lambda g: Pair(g[0], Pair(g[1], None)),
    "dataclass": lambda g: Record(g[0], [g[1], g[2]]),
    "generator": lambda g: (x for x in g),
    "views": lambda g: {"a": g[0], "b": g[1]}.values(),
    "nothing": lambda g: [None],
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name: str) -> None:
    make = CONTAINERS[name]
    check(lambda g: gc.clip_by_norm_(make(g), 0.5))
    clipped, info = whole(lambda g: gc.clip_by_norm(make(g), 0.5))(gradients())
    wanted, report = gc.clip_by_norm(make(gradients()), 0.5)
    assert type(clipped) is type(wanted)
    assert str(clipped) == str(wanted)
    assert list(info.norms) == list(report.norms)


def test_the_norm() -> None:
    for order in (2, 1, math.inf, 3.5):
        found = whole(lambda g, p=order: gc.global_norm({"w": g[:2], "b": g[2:]}, p))(gradients())
        assert found.item() == gc.global_norm(gradients(), order)
    assert whole(lambda g: gc.global_norm(g) + 1)([]).item() == 1


def test_into_arrays_of_the_callers_and_into_halves() -> None:
    def into(g: Any, out: Any) -> Any:
        return gc.clip(g, gc.GlobalNorm(0.5), out=out)

    out, wanted = ([torch.zeros(shape, dtype=torch.float64) for shape in SHAPES] for _ in range(2))
    found, info = whole(into)(gradients(), out)
    assert all(map(lambda a, b: a is b, found, out))
    assert info.norm.item() == into(gradients(), wanted)[1].norm
    assert bits(out) == bits(wanted)
    check(lambda g: gc.to_half(g, torch.bfloat16, gc.GlobalNorm(0.5)))


@pytest.mark.parametrize("policy", ["skip", "zero", "sanitize", "propagate"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_policies(policy: str, bad: float) -> None:
    def step(g: Any) -> Any:
        g[1][2] = bad
        return gc.clip_by_global_norm_(g, 0.5, nonfinite=policy)

    assert check(step).nonfinite.item() == 1


@pytest.mark.parametrize("call", ["global", "array new"])
def test_a_graph_raises_and_has_written_nothing(call: str) -> None:
    grads = gradients()
    grads[1][2] = math.nan
    before = bits(grads)
    with pytest.raises(gc.NonFiniteGradientError, match="No gradient was touched"):
        whole(CALLS[call])(grads)
    assert bits(grads) == before


# ---------------------------------------------------------------------------------- one graph for many


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_other_numbers_need_no_other_graph(backend: str) -> None:
    def step(g: Any, bound: float, scale: Any, rule: Any) -> Any:
        gc.clip_(g, rule)
        gc.clip_(g, gc.Chain(gc.Value(bound), gc.ArrayNorm(bound)))
        return gc.clip_by_global_norm_(g, bound, loss_scale=scale)

    compiled = whole(step, backend)
    for number in range(6):
        more = (1 / (3 + number), 2.0**number, gc.GlobalNorm(3 - number / 8))
        wanted, got = gradients(), gradients()
        assert compiled(got, *more).norm.item() == step(wanted, *more).norm
        assert bits(got) == bits(wanted)
    assert graphs() == 2  # the first takes numbers for constants


def test_a_loss_scale_in_a_tensor() -> None:
    compiled = whole(lambda g, scale: gc.clip_by_global_norm_(g, 0.5, loss_scale=scale).norm)
    for scale in (1.0, 1024.0, 4.0):
        wanted, got = gradients(), gradients()
        assert compiled(got, torch.tensor(scale)).item() == gc.clip_by_global_norm_(wanted, 0.5, loss_scale=scale).norm
        assert bits(got) == bits(wanted)
    assert graphs() == 1


def test_shapes_that_are_symbols() -> None:
    compiled = whole(lambda g: gc.clip_by_global_norm(g, 0.5), dynamic=True)
    for n in (3, 7, 9):
        grads = [torch.full((n, 4), 2.0), torch.ones(n)]
        clipped, info = compiled(grads)
        wanted, report = gc.clip_by_global_norm(grads, 0.5)
        assert (bits(clipped), info.norm.item()) == (bits(wanted), report.norm)
    assert graphs() == 1


def test_a_graph_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradclip_core.arrays import torch_rules

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    wanted = gradients()
    norm = CALLS["groups new"](wanted)[1].norm
    for hits in (0, 1):
        torch._dynamo.reset()
        torch_rules.parsed.cache_clear()
        info = whole(CALLS["groups new"], "inductor")(gradients())[1]
        assert (info.norm.item(), torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"]) == (norm, hits)


ELSEWHERE = """
import torch, gradclip_core.arrays.torch_operator
grads, told = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])], {told!r}
torch.ops.gradclip.clip_(grads, [torch.tensor(x, dtype=torch.float64) for x in {numbers}], told)
print([x.tolist() for x in grads])
"""


def test_what_a_graph_says_of_its_rule_means_the_same_in_another_process() -> None:
    told: list[str] = []

    def keep(graph: Any, inputs: Any) -> Any:
        told.extend(node.args[2] for node in graph.graph.nodes if node.target is torch.ops.gradclip.clip_.default)
        return graph

    grads = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])]
    rule = gc.Chain(gc.Value((-9.0, 5.0)), gc.GroupNorm({"a": 1.0, "b": 2.0}, lambda path: "ab"[int(path)]))
    torch.compile(lambda g: gc.clip_(g, rule), backend=keep, fullgraph=True)(grads)
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    code = ELSEWHERE.format(told=told[0], numbers=[-9.0, 5.0, 1.0, 2.0])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[x.tolist() for x in grads]}\n"

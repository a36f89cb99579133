"""``gradclip demo``, small; and that its network's gradients are what they should be."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gradclip_core.cli import rnn
from gradclip_core.cli.training import Run, Settings, train, verdict
from tests.cli.helpers import refused, run

SMALL = ("--steps", 12, "--hidden", 16, "--length", 24)


def test_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo.png"
    result = run("demo", *SMALL, "--out", out)
    assert result.code == 0, result.err
    assert result.err == ""
    for words in ("final loss", "steps clipped", "largest gradient norm", "what happened", f"Wrote {out}"):
        assert words in result.out
    assert "\x1b" not in result.out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["demo.png"]


def test_a_run_that_breaks_is_told_without_a_warning(tmp_path: Path) -> None:
    result = run("demo", *SMALL, "--rate", 1e39, "--out", tmp_path / "demo.svg")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "not a number at step" in result.out
    assert "</svg>" in (tmp_path / "demo.svg").read_text()


def test_output_is_checked_before_the_training(tmp_path: Path) -> None:
    assert "no known picture" in refused(run("demo", "--out", tmp_path / "demo.gif"))
    assert "there is no directory" in refused(run("demo", "--out", tmp_path / "x" / "demo.png"))
    assert "flip the sign" in run("demo", *SMALL, "--max-norm", -1, "--out", tmp_path / "demo.png").err
    assert os.listdir(tmp_path) == []


def test_clipping_learns() -> None:
    corpus = rnn.corpus()
    settings = Settings(steps=60, hidden=32, length=32)
    run = train(settings, corpus, True, lambda _: None)
    assert len(run.losses) == len(run.norms) == 60
    assert run.losses[0] == pytest.approx(corpus.uniform, abs=0.3)  # it starts knowing nothing
    assert run.final < 0.95 * corpus.entropy
    assert 0 < run.clipped < 60


def test_the_same_seed_gives_the_same_run() -> None:
    corpus, settings = rnn.corpus(), Settings(steps=3, hidden=8, length=8)
    first, second = (train(settings, corpus, True, lambda _: None) for _ in range(2))
    assert (first.losses, first.norms) == (second.losses, second.norms)


def test_corpus() -> None:
    corpus = rnn.corpus()
    assert corpus.data.size > 100_000
    assert 2 < corpus.entropy < corpus.uniform == math.log(len(corpus.symbols))
    inputs, targets = corpus.batch(np.random.default_rng(0), 3, 10)
    assert inputs.shape == targets.shape == (10, 3)
    assert np.array_equal(inputs[1:], targets[:-1])


def test_corpus_without_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    corpus = rnn.corpus()
    assert corpus.source == "the sources of Python's library"
    assert corpus.data.size > 100_000


@pytest.mark.parametrize("name", ["embedding", "recurrent", "bias", "output", "output_bias"])
def test_gradients_against_differences(name: str) -> None:
    random = np.random.default_rng(0)
    params = {key: x.astype(np.float64) for key, x in rnn.init(random, 5, 4).items()}  # float32 is too coarse
    inputs, targets = random.integers(0, 5, (2, 7, 3))
    _, grads = rnn.loss_and_gradients(params, inputs, targets)  # type: ignore[arg-type]
    x, step = params[name].reshape(-1), 1e-6
    for i in range(x.size):
        kept = x[i]
        losses = []
        for value in (kept + step, kept - step):
            x[i] = value
            losses.append(rnn.loss_and_gradients(params, inputs, targets)[0])  # type: ignore[arg-type]
        x[i] = kept
        assert grads[name].reshape(-1)[i] == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([4.0, 3.0, 2.0], "learned"),
        ([4.0, 3.4, 3.3], "no better than character frequencies"),
        ([4.0, 50.0, 40.0], "diverged at step 2, no better than character frequencies"),
        ([4.0, 5.0, math.nan], "diverged at step 3, not a number at step 3"),
        ([4.0, 20.0, math.inf], "diverged at step 2, not a number at step 3"),
    ],
)
def test_verdict(losses: list[float], words: str) -> None:
    run = Run(clips=False, uniform=4.4, losses=losses, norms=[1.0] * len(losses))
    assert verdict(run, entropy=3.2) == words

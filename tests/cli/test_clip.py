"""``gradclip clip``: what it writes and what it says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradclip_core as gc
from gradclip_core.cli import safetensors_file
from tests.cli.helpers import BFLOAT16, FLOATS, Arrays, gradients, load, refused, run, same, save

FORMATS = (".npz", ".safetensors")


def expected(arrays: Arrays, rule: gc.GlobalNorm | gc.ArrayNorm | gc.Value, **how: Any) -> Arrays:
    floats = {name: x for name, x in arrays.items() if x.dtype.kind == "f" or x.dtype == BFLOAT16}
    return {**arrays, **gc.clip(floats, rule, **how)[0]}


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_global_norm(tmp_path: Path, source: str, target: str) -> None:
    grads, out = save(tmp_path / f"in{source}", gradients()), tmp_path / f"out{target}"
    result = run("clip", grads, "-o", out, "--max-norm", 0.5)
    assert result.code == 0, result.err
    assert same(load(out), expected(gradients(), gc.GlobalNorm(0.5)))
    assert "layer.weight" in result.out
    assert "2 arrays of other dtypes passed through unchanged" in result.out
    assert f"Wrote {out}" in result.out
    assert "\x1b" not in result.out + result.err
    assert result.out.isascii()  # no frames where it is not a terminal
    assert sorted(os.listdir(tmp_path)) == sorted({grads.name, out.name})


# NumPy's format has no bfloat16: test_bfloat16_in_npz.
STORABLE = [(dtype, suffix) for dtype in FLOATS for suffix in FORMATS if (dtype, suffix) != (BFLOAT16, ".npz")]


@pytest.mark.parametrize(("dtype", "suffix"), STORABLE, ids=str)
def test_every_dtype(tmp_path: Path, dtype: np.dtype[np.generic], suffix: str) -> None:
    arrays = {"a": np.linspace(-3, 3, 24).reshape(2, 3, 4).astype(dtype), "b": np.array(2.0, dtype)}
    grads, out = save(tmp_path / f"in{suffix}", arrays), tmp_path / f"out{suffix}"
    result = run("clip", grads, "-o", out, "--max-norm", 1, "--loss-scale", 2)
    assert result.code == 0, result.err
    assert same(load(out), expected(arrays, gc.GlobalNorm(1.0), loss_scale=2.0))
    assert dtype.name in result.out


def test_under_the_threshold_every_bit_is_kept(tmp_path: Path) -> None:
    grads, out = save(tmp_path / "in.safetensors", gradients()), tmp_path / "out.safetensors"
    result = run("clip", grads, "-o", out, "--max-norm", 1e9)
    assert "not clipped" in result.out
    assert same(load(out), gradients())


def test_other_rules(tmp_path: Path) -> None:
    grads, out = save(tmp_path / "in.npz", gradients()), tmp_path / "out.npz"
    assert run("clip", grads, "-o", out, "--max-norm", 0.5, "--per-array", "--ord", "inf").code == 0
    assert same(load(out), expected(gradients(), gc.ArrayNorm(0.5, np.inf)))
    result = run("clip", grads, "-o", out, "--value", 0.25)
    assert same(load(out), expected(gradients(), gc.Value(0.25)))
    assert "norm after" in result.out


def test_in_place_and_through_a_link(tmp_path: Path) -> None:
    grads, link = save(tmp_path / "g.npz", gradients()), tmp_path / "link.npz"
    link.symlink_to(grads)
    assert run("clip", grads, "-o", link, "--max-norm", 0.5).code == 0
    assert link.is_symlink()
    assert same(load(grads), expected(gradients(), gc.GlobalNorm(0.5)))


def test_metadata_stays(tmp_path: Path) -> None:
    grads = save(tmp_path / "in.safetensors", gradients(), {"format": "pt", "ключ": "значение"})
    out = tmp_path / "out.safetensors"
    assert run("clip", grads, "-o", out, "--max-norm", 0.5).code == 0
    from safetensors import safe_open

    with safe_open(out, framework="np") as file:
        assert file.metadata() == {"format": "pt", "ключ": "значение"}
    result = run("clip", grads, "-o", tmp_path / "out.npz", "--max-norm", 0.5)
    assert "metadata was left behind" in result.out


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    out, other = tmp_path / "out.npz", tmp_path / "other"
    other.touch()
    run("clip", save(tmp_path / "in.npz", gradients()), "-o", out, "--max-norm", 1)
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_strange_names_and_dtypes(tmp_path: Path) -> None:
    arrays = {"": np.ones(2), "a/b\n[red]x": np.ones(3), ":smile:": np.array([3.0], ">f4"), "text": np.array(["x"])}
    arrays["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    arrays["file"] = np.ones(1)
    import zipfile

    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, x)
    result = run("clip", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--max-norm", 1e9)
    assert result.code == 0, result.err
    assert r"a/b\n[red]x" in result.out
    assert ":smile:" in result.out
    found = load(tmp_path / "out.npz")
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[name], x) for name, x in arrays.items())
    assert "no dtype str" in refused(run("clip", tmp_path / "in.npz", "-o", tmp_path / "o.safetensors", "--value", 1))


def test_no_gradients_at_all(tmp_path: Path) -> None:
    grads = save(tmp_path / "in.npz", {"steps": np.arange(3)})
    result = run("clip", grads, "-o", tmp_path / "out.npz", "--max-norm", 1)
    assert result.code == 0
    assert "No gradients" in result.out
    assert same(load(tmp_path / "out.npz"), {"steps": np.arange(3)})


class TestNonFinite:
    @pytest.fixture
    def grads(self, tmp_path: Path) -> Path:
        return save(tmp_path / "in.npz", {"good": np.ones(3, np.float32), "bad": np.array([np.nan, np.inf, 1.0])})

    def test_raise(self, grads: Path) -> None:
        line = refused(run("clip", grads, "-o", grads.with_name("out.npz"), "--max-norm", 1))
        assert "'bad' (1 inf, 1 NaN)" in line
        assert os.listdir(grads.parent) == ["in.npz"]

    @pytest.mark.parametrize(
        ("policy", "words"),
        [
            ("skip", "Skipped: 2 arrays left unchanged"),
            ("zero", "Skipped: 2 arrays set to zero"),
            ("sanitize", "norm"),
            ("propagate", "norm nan"),
        ],
    )
    def test_others(self, grads: Path, policy: str, words: str) -> None:
        out = grads.with_name("out.npz")
        result = run("clip", grads, "-o", out, "--max-norm", 1, "--nonfinite", policy)
        assert result.code == 0, result.err
        assert words in result.out
        assert "2 non-finite elements in 'bad'" in result.out
        assert same(load(out), gc.clip(load(grads), gc.GlobalNorm(1.0), nonfinite=policy)[0])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "either --max-norm or --value"),
        (("--max-norm", 1, "--value", 1), 2, "either --max-norm or --value"),
        (("--value", 1, "--per-array"), 2, "belong to --max-norm"),
        (("--value", 1, "--ord", 1), 2, "belong to --max-norm"),
        (("--max-norm", "x"), 2, "Invalid value for '--max-norm'"),
        (("--max-norm", 1, "--nonfinite", "ignore"), 2, "ignore"),
        (("--max-norm", -1), 1, "flip the sign"),
        (("--max-norm", "nan"), 1, "NaN"),
        (("--max-norm", 1, "--ord", 0.5), 1, "triangle"),
        (("--max-norm", 1, "--loss-scale", 0), 1, "loss_scale"),
        (("--max-norm", 1, "--backend", "cuda9"), 1, "there is no such backend"),
    ],
)
def test_wrong_options(tmp_path: Path, options: tuple[object, ...], code: int, words: str) -> None:
    grads = save(tmp_path / "in.npz", gradients())
    result = run("clip", grads, "-o", tmp_path / "out.npz", *options)
    assert result.code == code
    assert words in result.err
    assert os.listdir(tmp_path) == ["in.npz"]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("out.pt", "the suffix '.pt' is of no known format"),
        ("out", "it has no suffix"),
        ("nowhere/out.npz", "there is no directory"),
        ("dir.npz", "it is a directory"),
    ],
)
def test_output_is_checked_before_any_work(tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "dir.npz").mkdir()
    # The input does not even exist: the output is looked at first.
    assert words in refused(run("clip", tmp_path / "in.npz", "-o", tmp_path / out, "--max-norm", 1))


def test_bfloat16_in_npz(tmp_path: Path) -> None:
    bf16 = {"w": np.ones(3, BFLOAT16)}
    written, read = save(tmp_path / "in.safetensors", bf16), save(tmp_path / "in.npz", bf16)
    out = tmp_path / "out.npz"
    assert "'w', whose dtype is bfloat16. Write to .safetensors" in refused(
        run("clip", written, "-o", out, "--max-norm", 1)
    )
    assert "bfloat16 gradients in a .safetensors" in refused(run("clip", read, "-o", out, "--max-norm", 1))
    assert not out.exists()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8(tmp_path: Path, name: str) -> None:
    import ml_dtypes

    kind = getattr(ml_dtypes, name)
    grads, out = save(tmp_path / "in.safetensors", {"w": np.array([3, 4], kind)}), tmp_path / "out.safetensors"
    run("clip", grads, "-o", out, "--max-norm", 2.5)
    # The format's own NumPy interface does not know these types.
    assert same(safetensors_file.read(out).arrays, {"w": np.array([1.5, 2], kind)})


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double here")
def test_dtypes_that_cannot_be_clipped(tmp_path: Path) -> None:
    grads = save(tmp_path / "in.npz", {"w": np.ones(3, np.longdouble)})
    line = refused(run("clip", grads, "-o", tmp_path / "out.npz", "--max-norm", 1))
    assert np.dtype(np.longdouble).name in line

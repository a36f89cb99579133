"""``gradclip clip``: clip the gradients in a file."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

import gradclip_core as gc
from gradclip_core.cli import files
from gradclip_core.cli.console import say, table
from gradclip_core.cli.tensors import Tensors
from gradclip_core.rules import Rule


class Policy(enum.StrEnum):
    """What to do about infinities and NaNs."""

    RAISE = "raise"
    SKIP = "skip"
    ZERO = "zero"
    SANITIZE = "sanitize"
    PROPAGATE = "propagate"


def command(
    grads: Annotated[Path, typer.Argument(metavar="GRADS", help="The gradients, .safetensors or .npz.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Where to write, .safetensors or .npz; may be GRADS."),
    ],
    max_norm: Annotated[float | None, typer.Option(help="Bound on the norm of all gradients together.")] = None,
    value: Annotated[float | None, typer.Option(help="Clamp every element to -VALUE .. VALUE instead.")] = None,
    per_array: Annotated[bool, typer.Option("--per-array", help="Bound each array's norm on its own.")] = False,
    ord: Annotated[
        float | None, typer.Option(help="Order of the norm: 1, 2, inf, any p >= 1 (2 if not given).")
    ] = None,
    loss_scale: Annotated[float, typer.Option(help="The gradients hold this times g.")] = 1.0,
    nonfinite: Annotated[Policy, typer.Option(help="What to do about infinities and NaNs.")] = Policy.RAISE,
    backend: Annotated[str | None, typer.Option(help="A name from `gradclip info`.")] = None,
) -> None:
    """Clip the gradients in a .safetensors or .npz file.

    The output replaces what was there, whole or not at all. Arrays of other dtypes, and
    the metadata of a .safetensors file, are passed through.
    """
    rule = _rule(max_norm, value, per_array, ord)
    files.check_output(out)
    tensors = files.read(grads)
    files.check_storable(out, tensors)
    gradients = tensors.gradients()
    info = gc.clip_(gradients, rule, loss_scale=loss_scale, nonfinite=nonfinite.value, backend=backend)
    files.write(out, tensors)
    _report(tensors, info, rule, out)


def _rule(max_norm: float | None, value: float | None, per_array: bool, ord: float | None) -> Rule:
    if (max_norm is None) == (value is None):
        raise typer.BadParameter("pass either --max-norm or --value, and only one of them")
    if value is not None:
        if per_array or ord is not None:
            raise typer.BadParameter("--per-array and --ord belong to --max-norm; clamping has no norm")
        return gc.Value(value)
    assert max_norm is not None
    order = 2.0 if ord is None else ord
    return gc.ArrayNorm(max_norm, order) if per_array else gc.GlobalNorm(max_norm, order)


def _report(tensors: Tensors, info: gc.ClipInfo, rule: Rule, out: Path) -> None:
    gradients = tensors.gradients()
    by_value = isinstance(rule, gc.Value)
    last = [gc.global_norm([x]) for x in gradients.values()] if by_value else list(info.scales.values())
    rows = [
        (name, x.dtype.name, str(x.shape), f"{norm:.6g}", f"{number:.6g}")
        for (name, x), norm, number in zip(gradients.items(), info.norms.values(), last, strict=True)
    ]
    if rows:
        columns = ("path", "dtype", "shape", "norm", "norm after" if by_value else "factor")
        table("", columns, ("norm", *columns[4:]), rows)
    if info.nonfinite:
        shown = ", ".join(f"'{path}'" for path in info.culprits[:8]) + (", ..." if len(info.culprits) > 8 else "")
        say(f"{info.nonfinite} non-finite element{'s' * (info.nonfinite != 1)} in {shown}", "yellow")
    if passed := len(tensors.arrays) - len(gradients):
        say(f"{passed} {'array' if passed == 1 else 'arrays'} of other dtypes passed through unchanged")
    if tensors.metadata and out.suffix.lower() == ".npz":
        say("The metadata was left behind: .npz has no place for it", "yellow")
    say(_summary(info, len(gradients)), "bold")
    say(f"Wrote {out}")


def _summary(info: gc.ClipInfo, count: int) -> str:
    many = f"{count} {'array' if count == 1 else 'arrays'}"
    if not count:
        return "No gradients: the file holds no array of floating dtype"
    if info.skipped:
        zeroed = info.clipped_norm == 0
        done = "set to zero" if zeroed else "left unchanged, not even unscaled"
        return f"Skipped: {many} {done}, because of the non-finite elements"
    done = f"norm {info.norm:.6g} -> {info.clipped_norm:.6g}" if info.clipped else f"norm {info.norm:.6g}, not clipped"
    return f"{many}, {done}, by {info.backend}"

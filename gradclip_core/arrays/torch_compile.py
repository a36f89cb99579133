"""A clip inside ``torch.compile``: what the compiler reads in place of the pipeline.

It sees no value here, and no kernel: containers are opened, the rule is written down as text, and one operator
(``torch_operator.py``) stands for the clip in the graph. When the graph runs, the operator calls the ordinary
pipeline, so the bits, the checks and the errors are those of an eager call. What cannot be written down goes
eagerly, at a graph break that says why.
"""

from __future__ import annotations

import sys
from typing import Any

from gradclip_core.arrays.torch_operator import FACTS
from gradclip_core.arrays.torch_parcel import Parcel, each, structure
from gradclip_core.arrays.torch_rules import Leaves, backend_name, describe, describe_how, outline, text
from gradclip_core.protocol import DType
from gradclip_core.rules import Rule
from gradclip_core.traced_info import TracedInfo
from gradclip_core.tracing import leave_graph
from gradclip_core.validate import Common

torch: Any = sys.modules["torch"]


def clip_in_place(grads: Any, rule: Rule, how: Common, asked: str, eagerly: Any) -> Any:
    """What ``pipeline.run_in_place`` is in a graph. ``eagerly`` is what it is elsewhere."""
    parcel = Parcel(in_place=True)
    grads = each(grads, parcel.gradient)
    count = len(parcel.tensors)
    told = Told(parcel, grads, rule, how, 0, separate=False)
    if parcel.unfit:
        leave_graph(f"{asked} goes eagerly: {parcel.unfit}.")
        return eagerly(grads, rule, how, asked)
    spec = text((asked, told.where, None, told.rule, told.how, None))
    numbers = torch.ops.gradclip.clip_.default(parcel.tensors[:count], parcel.tensors[count:], spec)
    return told.info(numbers)


def clip_new(grads: Any, rule: Rule, how: Common, asked: str, out: Any, dtype: DType | None, eagerly: Any) -> Any:
    """What ``pipeline.run_new`` is in a graph. ``eagerly`` is what it is elsewhere."""
    parcel = Parcel(in_place=False)
    targets = structure(each(out, parcel.companion), parcel)
    written = len(parcel.tensors)
    grads = each(grads, parcel.gradient)
    count = len(parcel.tensors)
    told = Told(parcel, grads, rule, how, written, separate=True)
    if parcel.unfit:
        leave_graph(f"{asked} goes eagerly: {parcel.unfit}.")
        return eagerly(grads, rule, how, asked, out, dtype)
    spec = text((asked, told.where, targets, told.rule, told.how, None if dtype is None else dtype.name))
    if out is not None:
        numbers = torch.ops.gradclip.clip_.default(parcel.tensors[:written], parcel.tensors[written:], spec)
        return out, told.info(numbers)
    made = torch.ops.gradclip.clip.default(parcel.tensors[:count], parcel.tensors[count:], spec)
    return each(grads, lambda x: made[parcel.numbers[x]]), told.info(made[count])


def norm(grads: Any, ord: float, backend: str | None, eagerly: Any) -> Any:
    """What ``global_norm`` is in a graph, where it is a 0-d tensor in float64. ``eagerly`` is what it is elsewhere."""
    parcel = Parcel(in_place=False)
    grads = each(grads, parcel.companion)
    if torch.is_grad_enabled() and any(x.requires_grad for x in parcel.numbers):
        parcel.refuse("an array requires a gradient, which would not go through the norm (call it under no_grad)")
    count = len(parcel.tensors)
    where = structure(grads, parcel)
    order = 2 if ord == 2 else parcel.number(ord)
    parcel.check(0)
    if parcel.unfit:
        leave_graph(f"global_norm goes eagerly: {parcel.unfit}.")
        return eagerly(grads, ord, backend)
    if not count:
        return torch.zeros((), dtype=torch.float64, device="cpu")
    return torch.ops.gradclip.norm.default(
        parcel.tensors[:count], parcel.tensors[count:], text((where, order, backend))
    )


class Told:
    """A call as it is written down: structure, rule and keywords; and what its report will be about."""

    def __init__(self, parcel: Parcel, grads: Any, rule: Rule, how: Common, start: int, *, separate: bool) -> None:
        self.where = structure(grads, parcel)
        if parcel.unfit:
            return
        self.paths, self.index, first, empty = outline(self.where, start)
        grads = parcel.tensors[start:]
        if len(first) != len(grads):
            parcel.refuse("a gradient is in out too")
        self.rule = describe(rule, parcel, Leaves(first, grads, empty))
        parcel.check(start if separate else len(grads))
        self.how = describe_how(how, parcel)
        kinds = list({x.dtype: None for x in grads})
        self.backend = backend_name(how.get("backend"), str(grads[0].device) if grads else "cpu", kinds)
        self.count = len(first)

    def info(self, numbers: Any) -> TracedInfo:
        """The report, cut out of the operator's numbers. What nobody uses of it, the compiler takes out again."""
        facts = {name: numbers[i] for i, name in enumerate(FACTS)}
        norms, scales, infs, nans = numbers[len(FACTS) :].view(4, self.count)
        return TracedInfo(
            norm=facts["norm"],
            clipped_norm=facts["clipped_norm"],
            scale=facts["scale"],
            clipped=facts["clipped"] != 0,
            skipped=facts["skipped"] != 0,
            infs=facts["infs"].long(),
            nans=facts["nans"].long(),
            overflow=facts["overflow"].long(),
            array_norms=norms,
            array_scales=scales,
            array_infs=infs.long(),
            array_nans=nans.long(),
            paths=self.paths,
            index=self.index,
            backend=self.backend,
        )

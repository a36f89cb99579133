"""``explain``: what a call did, in one sentence."""

from __future__ import annotations

import math

from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.info import ClipInfo
from gradclip_core.traced_info import TracedInfo

_TELLING = 0.5
"""An array is named where it holds more than this share of the norm."""


def explain(info: ClipInfo | TracedInfo) -> str:
    """What was measured and done, in one sentence for a log or a person.

    Parameters
    ----------
    info : what any function of this library reported. On a device this waits for it.

    Returns
    -------
    str
        The norm before, over how many arrays, and the array that holds most of it, where one does: its
        norm's share of the whole norm (of norms, not of their squares). The norm after,
        if clipped. Which elements were infinite or NaN, how many finite ones unscaling would make infinite, and
        whether the step was skipped.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> _, info = gc.clip_by_global_norm({"body": np.array([3.0, 4.0]), "head": np.array([0.5])}, 1.0)
    >>> gc.explain(info)
    "norm 5.02 over 2 arrays, of which 'body' 100%; clipped to 1"
    """
    if isinstance(info, TracedInfo):
        info = info.to_host()
    if not isinstance(info, ClipInfo):
        raise InvalidArgumentError(
            f"explain({show(info)})",
            f"a {type(info).__name__} is no report",
            "Pass the ClipInfo that a call returned, or plan.info",
        )
    parts = [f"norm {info.norm:.3g} over {_plural(len(info.norms), 'array')}"]
    if (telling := _telling(info)) is not None:
        parts[0] += f", of which {telling}"
    facts = []
    if info.clipped and not info.peek_skipped():
        facts.append(f"clipped to {info.clipped_norm:.3g}" if not math.isnan(info.clipped_norm) else "NaN went through")
    trouble = [_trouble(path, infs, nans) for path, (infs, nans) in info.counts.items()]
    shown = ", ".join(trouble[:3])
    if len(trouble) > 3:
        shown += f", and some of {_plural(len(trouble) - 3, 'more array')}"
    facts += [shown] if shown else []
    if info.overflow:
        facts.append(f"{_plural(info.overflow, 'finite element')} {_was(info.overflow)} too large once unscaled")
    if info.peek_skipped():
        facts = facts or ["the bound, the loss scale or a weight was no number of its kind"]
        facts[-1] += ", so the step was skipped" + (" and its gradients set to 0" if info.scale == 0 else "")
    if info.underflow:
        facts.append(f"{_plural(info.underflow, 'element')} became 0")
    return "; ".join(parts + facts)


def _telling(info: ClipInfo) -> str | None:
    if len(info.norms) < 2 or not 0 < info.norm < math.inf:
        return None
    path, norm = max(info.norms.items(), key=lambda item: item[1])
    share = norm / info.norm
    return f"'{path}' {100 * share:.0f}%" if share > _TELLING else None


def _trouble(path: str, infs: int, nans: int) -> str:
    if infs and nans:
        return f"{_plural(infs, 'element')} of '{path}' {_was(infs)} infinite and {nans} NaN"
    count, word = (infs, "infinite") if infs else (nans, "NaN")
    return f"{_plural(count, 'element')} of '{path}' {_was(count)} {word}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

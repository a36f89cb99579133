"""``explain``: what a call did, in one sentence."""

from __future__ import annotations

import math

from gradclip_core.errors import InvalidArgumentError, show
from gradclip_core.info import ClipInfo

_TELLING = 0.5
"""An array is named where it holds more than this share of the norm."""


def explain(info: ClipInfo) -> str:
    """What was measured and done, in one sentence for a log or a person.

    Parameters
    ----------
    info : what any function of this library reported. On a device this waits for it.

    Returns
    -------
    str
        The norm before, over how many arrays, and the array that holds most of it, where one does: its
        norm's share of the whole norm (of norms, not of their squares). The norm after,
        if clipped. Which elements were infinite or NaN, and whether the step was skipped.

    Examples
    --------
    >>> import numpy as np, gradclip_core as gc
    >>> _, info = gc.clip_by_global_norm({"body": np.array([3.0, 4.0]), "head": np.array([0.5])}, 1.0)
    >>> gc.explain(info)
    "norm 5.02 over 2 arrays, of which 'body' 100%; clipped to 1"
    """
    if not isinstance(info, ClipInfo):
        raise InvalidArgumentError(
            f"explain({show(info)})", f"a {type(info).__name__} is no report", "Pass the ClipInfo that a call returned"
        )
    parts = [f"norm {info.norm:.3g} over {_plural(len(info.norms), 'array')}"]
    if (telling := _telling(info)) is not None:
        parts[0] += f", of which {telling}"
    facts = []
    if info.clipped and not info.peek_skipped():
        facts.append(f"clipped to {info.clipped_norm:.3g}")
    trouble = [_trouble(path, infs, nans) for path, (infs, nans) in info.counts.items()]
    if trouble:
        shown = ", ".join(trouble[:3]) + (f" and those of {len(trouble) - 3} more arrays" if len(trouble) > 3 else "")
        facts.append(shown + (" and the step was skipped" if info.peek_skipped() else ""))
    return "; ".join(parts + facts)


def _telling(info: ClipInfo) -> str | None:
    if len(info.norms) < 2 or not 0 < info.norm < math.inf:
        return None
    path, norm = max(info.norms.items(), key=lambda item: item[1])
    share = norm / info.norm
    return f"'{path}' {100 * share:.0f}%" if share > _TELLING else None


def _trouble(path: str, infs: int, nans: int) -> str:
    kinds = [f"{n} {what}" for n, what in ((infs, "infinite"), (nans, "NaN")) if n]
    if len(kinds) == 2:
        return f"{_plural(infs + nans, 'element')} of '{path}' were {' and '.join(kinds)}"
    count, word = (infs, "infinite") if infs else (nans, "NaN")
    return f"{_plural(count, 'element')} of '{path}' {'was' if count == 1 else 'were'} {word}"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

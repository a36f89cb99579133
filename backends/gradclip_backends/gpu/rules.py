"""From a case, as the core puts it, to the struct that the decision's kernels read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradclip_backends.gpu.layout import DTYPE_CODES, EACH, GROUP, GROUPS, ONE, POLICY_CODES, RECORD, RULE, VALUE
from gradclip_backends.gpu.memory import Workspace
from gradclip_backends.gpu.tables import Struct
from gradclip_core.device import Case
from gradclip_core.errors import BackendError
from gradclip_core.protocol import FLOAT64, Buffer, Scopes

MOST_MEMBERS = 4096 * 4096
"""Arrays in one scope: two levels of the tree are summed without storing anything."""


def rule_of(
    workspace: Workspace,
    case: Case,
    buffers: list[Buffer],
    record: int,
    scale: Struct,
    *,
    previous: int = 0,
    weights: int = 0,
) -> Struct:
    """The rule, its tables put in the workspace."""
    rule = np.zeros(1, RULE)
    segments = sum(buffer.rows for buffer in buffers)
    rule["record"] = np.array([(record, segments)], RECORD)
    rule["scale"] = scale
    rule["order"] = case.ord
    rule["previous"] = previous
    rule["policy"] = POLICY_CODES[case.nonfinite]
    rule["buffers"] = len(buffers)
    if case.bounds is not None:
        rule["kind"] = VALUE
        rule["symmetric"] = case.symmetric
        for dtype, code in DTYPE_CODES.items():
            rule["low"][0, code], rule["high"][0, code] = case.bounds[dtype.name]
        return rule
    if case.weights is not None:
        rule["kind"], rule["scopes"] = EACH, segments
        rule["weights"], rule["clipping"], rule["eps"] = weights, case.weights.clipping, case.weights.eps
        return rule
    assert case.scopes is not None
    scopes = case.scopes
    if scopes.limits.size == segments and np.array_equal(scopes.ids, np.arange(segments)):
        rule["kind"], rule["scopes"] = EACH, segments
        if segments and (scopes.limits == scopes.limits[0]).all():
            rule["one"]["limit"] = scopes.limits[0]
        else:
            rule["limits"] = workspace.table("limits", scopes.limits)
    elif scopes.limits.size == 1:
        lengths = [buffer.length * buffer.rows for buffer in buffers]
        narrow = any(buffer.dtype is not FLOAT64 and buffer.length for buffer in buffers)
        _check_members(segments)
        rule["kind"], rule["scopes"] = ONE, 1
        rule["one"] = np.array([(scopes.limits[0], float(sum(lengths)), 0, segments, narrow, 0)], GROUP)
    else:
        _put_groups(workspace, rule, scopes, buffers)
    return rule


def _put_groups(workspace: Workspace, rule: Struct, scopes: Scopes, buffers: list[Buffer]) -> None:
    """The members of several scopes stand in tables, group by group."""
    rows = [buffer.rows for buffer in buffers]
    sizes = np.repeat(np.array([float(buffer.length) for buffer in buffers]), rows)
    narrow = np.repeat(np.array([buffer.dtype is not FLOAT64 and buffer.length > 0 for buffer in buffers]), rows)
    groups = np.zeros(scopes.limits.size, GROUP)
    groups["limit"] = scopes.limits
    np.add.at(groups["size"], scopes.ids, sizes)
    np.maximum.at(groups["narrow"], scopes.ids, narrow.astype(np.uint32))
    counts = np.bincount(scopes.ids, minlength=scopes.limits.size)
    _check_members(int(counts.max(initial=0)))
    groups["count"] = counts
    groups["start"][1:] = np.cumsum(counts)[:-1]
    rule["scopes"] = scopes.limits.size
    rule["kind"] = GROUPS
    rule["groups"] = workspace.table("groups", groups)
    members: npt.NDArray[np.uint32] = np.argsort(scopes.ids, kind="stable").astype(np.uint32)
    rule["members"] = workspace.table("members", members)


def _check_members(count: int) -> None:
    if count > MOST_MEMBERS:
        seen = f"{count} arrays are one scope, and {MOST_MEMBERS} are the most here"
        raise BackendError("a GPU backend", seen, "Clip fewer arrays in a call")

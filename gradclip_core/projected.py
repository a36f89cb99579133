"""A ``Project`` stage: what each scope's set decides, and the pass that writes it.

All scopes are decided before the first is written, so that an error leaves every gradient alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradclip_core.arrays.dock import Cargo
from gradclip_core.arrays.docked import Docked
from gradclip_core.arrays.layout import Flat, flatten_in, lies_in, lying
from gradclip_core.forms import Passes, Reading, passes_of
from gradclip_core.members import Members
from gradclip_core.norms import Measured, scope_norms
from gradclip_core.passes import Axes, Flats, report_writes, write_in_place, write_new
from gradclip_core.plan import Decision, actions_of
from gradclip_core.project import Move, Project
from gradclip_core.protocol import LEAVE, SCALE, Actions, Backend, FloatArray, IntArray, Measurements
from gradclip_core.report import Decided, array_ids
from gradclip_core.rules import Site
from gradclip_core.sets.base import INSIDE, Certificate, View, exponent_for
from gradclip_core.stages import Stage

_SQUARES = 2.0**-900
"""What a sum of squares has to be so that those that underflowed do not count."""


def decide(
    backend: Backend,
    cargo: Cargo,
    stage: Stage,
    current: Sequence[Docked],
    flats: Sequence[Flat],
    measured: Measured,
) -> tuple[Decided, list[Move]]:
    """The decision of every scope. Non-finite values have been dealt with, but for "propagate"."""
    rule = stage.rule
    assert isinstance(rule, Project)
    passes = passes_of(backend)
    site = Site(cargo)
    scopes, ids = rule.scope_of_arrays(site), array_ids(stage.rows)
    factor = np.full(ids.size, stage.inverse)
    moves: list[Move] = []
    # Without an array there is still the scope of all of them, which may not be in the set.
    for scope in range(max(int(scopes.max(initial=-1)) + 1, int(rule.scope == "global"))):
        members = np.flatnonzero(scopes == scope).tolist()
        picked = np.flatnonzero(scopes[ids] == scope)
        if measured.nonfinite[picked].any() and not stage.sanitize:
            factor[picked] = math.nan  # no point is nearest to a point that is nowhere
            continue
        arrays = Members(site, current, stage.axes, members)
        view = rule.onto.prepared(_view(passes, stage, flats, arrays, _part(measured, picked)))
        form = rule.onto.decide(view)
        if form is not None:
            moves.append(Move(members, arrays.orders, view.reading, form, view))
    moved = np.isin(ids, [i for move in moves for i in move.members])
    op = np.where(moved | (factor == 1), LEAVE, SCALE)
    if stage.sanitize:
        op = np.where(~moved & (measured.nonfinite > 0), SCALE, op)
    actions = actions_of(op.astype(np.uint8), factor, sanitize=stage.sanitize)
    clipped = bool(moves) or bool(np.isnan(factor).any())
    norm = float(scope_norms(measured, np.zeros_like(ids), 1).value(stage.inverse)[0])
    one = None if clipped or measured.nonfinite.any() else stage.inverse
    decision = Decision(actions, clipped, norm, one)
    # NaN is nearest to nothing: nothing can be certified then.
    certificate = None if np.isnan(factor).any() else INSIDE
    return Decided(stage, measured, decision, False, certificate), moves


def write_moves(
    backend: Backend,
    moves: Sequence[Move],
    arrays: Sequence[Docked],
    targets: Sequence[Docked],
    flats: Flats,
    axes: Axes,
    actions: Actions,
) -> list[FloatArray]:
    """Write what was decided; in place where ``targets`` is ``arrays``. Returns the moments of each move."""
    passes = passes_of(backend)
    if targets is arrays:
        write_in_place(backend, arrays, flats, actions)
    else:
        _write_rest(backend, moves, arrays, targets, flats, axes, actions)
    found = []
    for move in moves:
        # In the order of the decision: companions and given values lie so.
        sources = sinks = sources_of(move, arrays, flats, axes)
        if targets is not arrays:
            places = zip(sources, move.members, move.orders, strict=True)
            sinks = [_sink(source, targets[i], axes[i], order) for source, i, order in places]
        buffers, out = ([flat.buffer for flat in of] for of in (sources, sinks))
        found.append(passes.map(buffers, out, move.reading, move.form, wanted(move)))
        for i, sink in zip(move.members, sinks, strict=True):
            sink.unpack(targets[i])
        if targets is arrays:
            report_writes([arrays[i] for i in move.members])
    return found


def sources_of(move: Move, arrays: Sequence[Docked], flats: Sequence[Flat], axes: Axes) -> list[Flat]:
    """A move's arrays in the order of its decision; what was packed so before is not packed again."""
    return [
        flats[i] if lying(arrays[i], axes[i]) == order else flatten_in(arrays[i], axes[i], order)
        for i, order in zip(move.members, move.orders, strict=True)
    ]


def _sink(source: Flat, target: Docked, axes: tuple[int, ...] | None, order: tuple[int, ...]) -> Flat:
    """Where a new array's elements go: its own memory, if they lie there in the order of the source, or a copy."""
    packed = source.packed is not None and not lies_in(target, axes, order)
    return source if packed else flatten_in(target, axes, order)


def _write_rest(
    backend: Backend,
    moves: Sequence[Move],
    arrays: Sequence[Docked],
    targets: Sequence[Docked],
    flats: Flats,
    axes: Axes,
    actions: Actions,
) -> None:
    """New arrays for those that no move writes."""
    moved = {i for move in moves for i in move.members}
    rest = [i for i in range(len(arrays)) if i not in moved]
    if rest:
        ids = np.repeat(np.arange(len(flats)), [flat.buffer.rows for flat in flats])
        picked = np.isin(ids, rest)
        part = actions_of(actions.op[picked], actions.factor[picked], sanitize=actions.sanitize)
        olds, news = [arrays[i] for i in rest], [targets[i] for i in rest]
        write_new(backend, olds, news, Flats([flats[i] for i in rest]), [axes[i] for i in rest], part)


def foresee(backend: Backend, moves: Sequence[Move], flats: Sequence[Flat]) -> list[FloatArray]:
    """The moments of what would be written: a read pass."""
    passes = passes_of(backend)
    return [
        passes.map([flats[i].buffer for i in move.members], None, move.reading, move.form, wanted(move))
        for move in moves
    ]


def wanted(move: Move) -> list[str]:
    """The moments that the certificate and the norm afterwards are made of."""
    if move.view is None:
        return []
    onto = move.view.onto
    return list(dict.fromkeys([*onto.moments, onto.order_moment]))


def conclude(here: Decided, moves: Sequence[Move], found: Sequence[FloatArray]) -> Decided:
    """The decision, with the certificate and the norm of what was written; None where only measuring that can tell."""
    if not moves:
        return here
    stage, ids = here.stage, array_ids(here.stage.rows)
    order = stage.rule.order
    certificate: Certificate = here.certificate or INSIDE
    known = True
    sums, largest, units = _unscaled(here.measured, stage.inverse)
    exponents = here.measured.exponents.copy()
    for move, moments in zip(moves, found, strict=True):
        assert move.view is not None
        named = dict(zip(wanted(move), moments, strict=True))
        certificate = certificate.joined(move.view.onto.certify(move.view, move.form, named))
        picked = np.isin(ids, move.members)
        # In the units in which the gradient is a number the squares of the result may be none.
        known = known and (order != 2 or float(np.sum(named["y2"])) >= _SQUARES)
        sums[picked] = named[move.view.onto.order_moment]
        if order == math.inf:
            largest[picked] = np.ldexp(named["max_y"], move.reading.exponent)
        exponents[picked] = move.reading.exponent
        if order not in (1, 2, math.inf):
            # A unit of 2^1024 is no float64; a power of two can be taken out of the sums instead.
            unit = min(move.reading.exponent, 1023)
            sums[picked] *= 2.0 ** (order * (move.reading.exponent - unit))
            units[picked], exponents[picked] = 2.0**unit, 0
    zeros = np.zeros_like(here.measured.found.infs)
    after = Measured(Measurements(sums, largest, zeros, zeros, zeros, np.zeros(sums.size)), order, exponents, units)
    norm = float(scope_norms(after, np.zeros_like(ids), 1).value()[0]) if known else None
    if np.isnan(here.decision.actions.factor).any():
        norm = math.nan
    decision = replace(here.decision, clipped_norm=norm)
    return replace(here, decision=decision, certificate=here.certificate and certificate)


def _unscaled(measured: Measured, inverse: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sums, largest magnitudes and units of the unscaled gradient."""
    found = measured.found
    if measured.ord in (1, 2):
        return found.sums * inverse**measured.ord, found.largest * inverse, measured.units.copy()
    return found.sums.copy(), found.largest * inverse, measured.units * inverse


def _part(measured: Measured, picked: IntArray) -> Measured:
    """The measurements of some segments."""
    found = measured.found
    sums, largest, carries = (part[picked] for part in (found.sums, found.largest, found.carries))
    infs, nans, outside = (part[picked] for part in (found.infs, found.nans, found.outside))
    return replace(
        measured,
        found=Measurements(sums, largest, infs, nans, outside, carries),
        exponents=measured.exponents[picked],
        units=measured.units[picked],
    )


def _view(passes: Passes, stage: Stage, flats: Sequence[Flat], arrays: Members, measured: Measured) -> View:
    rule = stage.rule
    assert isinstance(rule, Project)
    largest = float(np.max(measured.found.largest, initial=0.0)) * stage.inverse
    exponent = exponent_for(rule.onto, largest)
    norms = scope_norms(measured, np.zeros(measured.found.sums.size, np.int64), 1)
    norm = float(np.ldexp(norms.root * stage.inverse, norms.exponent - exponent)[0])
    return View(
        rule.onto,
        passes,
        [flats[i].buffer for i in arrays.members],
        Reading(stage.inverse, exponent, stage.sanitize),
        arrays,
        norm,
        math.ldexp(largest, -exponent),
    )

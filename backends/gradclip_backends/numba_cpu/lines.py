"""A cache line at a time: 64 bytes are loaded, widened, and added to their lanes; the largest is kept.

Memory is read once, and where each page is, is asked long before: all arithmetic hides behind the memory.
Written as LLVM vectors, because the compiler makes none of this of a loop over elements. A processor with
narrower vectors gets two or four instructions for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from gradclip_backends.numba_cpu.elements import code_tag, larger_code, view, widen
from gradclip_backends.numba_cpu.folds import LANES, LINE
from gradclip_backends.numba_cpu.jit import bare, intrinsic, jit, overload
from gradclip_backends.numba_cpu.small_floats import F16C, FMA

TOGETHER = 4
"""Rows of 16-bit elements that go together, a line of each after the other, so that their lanes are loaded and stored
once for the four, and each line is asked for before it is used. Wider elements go row after row: their arithmetic is
less, and the processor asks for what comes next by itself, sooner than an instruction can."""
PAGE = 4096
AHEAD = PAGE
PAGES_AHEAD = 16
"""Bytes and pages between what is asked for and what is used. Where a page is, is looked up in four tables, and in a
virtual machine's host again; PyTorch's memory is in pages of 4 KB. Asking for a line of each early saves 10 to 15 %."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_DOUBLES = ir.VectorType(_F64, 8)
_ELEMENTS = {types.float32: _F32, types.float64: _F64, types.int16: _I16}
if F16C:
    _ELEMENTS[types.uint16] = ir.HalfType()


def _all(kind: ir.Type, n: int, value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, n), [value] * n)


def _eight(b: Any, start: Any, kind: Any) -> Any:
    return b.inttoptr(start, ir.VectorType(kind, 8).as_pointer())


def _eights(b: Any, start: Any, tag: Any, upper: Any) -> list[Any]:
    """A line's elements in float64, eight at a time; of bfloat16 the even ones of sixteen, and then the odd ones.

    Loaded anew each time: taking a register apart costs more than the cache.
    """
    size, paired = tag.bitwidth // 8, tag == types.int16
    starts = [b.add(start, _I64(byte)) for byte in range(0, LINE, 32 if paired else 8 * size)]
    if tag == types.float64:
        return [b.load(_eight(b, at, _F64), align=size) for at in starts]
    if not paired:
        return [b.fpext(b.load(_eight(b, at, _ELEMENTS[tag]), align=size), _DOUBLES) for at in starts]
    halves = []
    for at in starts:  # two in 32 bits: each is a float32 when the other one's bits are zeros
        both = b.load(_eight(b, at, _I32), align=size)
        halves += [b.shl(both, _all(_I32, 8, 16)), b.and_(both, upper)]
    return [b.fpext(b.bitcast(half, ir.VectorType(_F32, 8)), _DOUBLES) for half in halves]


def _upper_halves(b: Any, address: Any) -> Any:
    """0xFFFF0000, eight times. No address has its highest bit set, which the compiler does not know: it would make
    word by word what is one instruction.
    """
    bits = b.or_(_I32(-65536), b.trunc(b.lshr(address, _I64(63)), _I32))
    return _splat(b, bits)


def _together(tag: Any) -> int:
    return TOGETHER if tag.bitwidth == 16 else 1


def _walk(b: Any, tag: Any, address: Any, rows: Any, lines: Any, codes: Any, lanes: list[Any], add: Any) -> None:
    """Add the first ``lines`` lines of up to four rows.

    ``add(v, sums)`` has the sums of eight lanes of each of ``lanes``, eight elements later.
    """
    code, size = ir.IntType(tag.bitwidth), tag.bitwidth // 8
    n, all_bits = LINE // size, ir.VectorType(code, LINE // size)

    def variable(value: Any) -> Any:  # in a register: through memory it would be a chain of stores and loads
        return cgutils.alloca_once_value(b, value)

    upper = _upper_halves(b, address)
    line = b.inttoptr(codes, all_bits.as_pointer())
    largest = variable(b.load(line, align=LINE))
    together = _together(tag)
    for page in range(0, together * LANES * size, PAGE):
        _ask(b, b.add(address, _I64(PAGES_AHEAD * PAGE + page)))
    with cgutils.for_range(b, lines) as columns:
        offset = b.mul(columns.index, _I64(n * 8))
        places = [[_eight(b, b.add(b.add(to, offset), _I64(k * 8)), _F64) for to in lanes] for k in range(0, n, 8)]
        sums = [[variable(b.load(place, align=LINE)) for place in each] for each in places]
        column = b.add(address, b.mul(columns.index, _I64(LINE)))
        with cgutils.for_range(b, rows) as row:
            start = b.add(column, b.mul(row.index, _I64(LANES * size)))
            bits = b.load(b.inttoptr(start, all_bits.as_pointer()), align=size)
            magnitude = b.and_(bits, _all(code, n, (1 << (tag.bitwidth - 1)) - 1))
            most = b.load(largest)
            b.store(b.select(b.icmp_signed(">", magnitude, most), magnitude, most), largest)
            for each, v in zip(sums, _eights(b, start, tag, upper), strict=True):
                for kept, value in zip(each, add(v, [b.load(kept) for kept in each]), strict=True):
                    b.store(value, kept)
        if together > 1:
            ahead = b.add(b.add(address, _I64(AHEAD)), b.mul(columns.index, _I64(together * LINE)))
            for k in range(together):
                _ask(b, b.add(ahead, _I64(k * LINE)))
        for at, each in zip(places, sums, strict=True):
            for place, kept in zip(at, each, strict=True):
                b.store(b.load(kept), place, align=LINE)
    b.store(b.load(largest), line, align=LINE)


@intrinsic
def _in_order(context: Any, lanes: Any) -> Any:
    """Lanes that ``_eights`` took bfloat16's even and odd elements apart for, in the order of memory."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        for k in range(0, LANES, 16):
            at = [_eight(b, b.add(args[0], _I64(8 * (k + half))), _F64) for half in (0, 8)]
            even, odd = (b.load(place, align=LINE) for place in at)
            for half, place in enumerate(at):
                order = [4 * half + i // 2 + 8 * (i % 2) for i in range(8)]
                b.store(b.shuffle_vector(even, odd, ir.Constant(ir.VectorType(_I32, 8), order)), place, align=LINE)
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def _add(context: Any, address: Any, rows: Any, lines: Any, codes: Any, lanes: Any, what: Any, tag: Any) -> Any:
    """Add the first ``lines`` lines of up to four rows; all memory by its address. ``what``: see ``add_block``."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        address, rows, lines, codes, lanes, given, _ = args
        into = [lanes]
        if isinstance(what, types.BaseTuple):
            into.append(b.extract_value(given, 0))
            low, high = (_splat(b, b.extract_value(given, i)) for i in (1, 2))

        def add(v: Any, sums: list[Any]) -> list[Any]:
            if isinstance(what, types.NoneType):
                return [_square(b, v, tag, sums[0])]
            if not isinstance(what, types.BaseTuple):
                return [b.fadd(sums[0], _of_eight(b, "fabs", v))]
            w = b.select(b.fcmp_ordered("<", v, low), low, v)
            w = b.select(b.fcmp_ordered(">", w, high), high, w)
            return [_square(b, v, tag, sums[0]), _square(b, w, tag, sums[1])]

        _walk(b, tag, address, rows, lines, codes, into, add)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64, types.uint64, types.uint64, what, tag), generate


def _splat(b: Any, value: Any) -> Any:
    none = ir.Constant(ir.VectorType(value.type, 8), ir.Undefined)
    return b.shuffle_vector(b.insert_element(none, value, _I32(0)), none, _all(_I32, 8, 0))


def _square(b: Any, v: Any, tag: Any, total: Any) -> Any:
    """``v·v + total``, fused where the product is exact, as of all but float64: the same bits."""
    if not FMA or tag == types.float64:
        return b.fadd(total, b.fmul(v, v))
    return _of_eight(b, "fma", v, v, total)


def _of_eight(b: Any, name: str, *args: Any) -> Any:
    """An LLVM intrinsic of vectors, which llvmlite declares for numbers alone."""
    name = f"llvm.{name}.v8f64"
    known = b.module.globals.get(name)
    return b.call(known or ir.Function(b.module, ir.FunctionType(_DOUBLES, [_DOUBLES] * len(args)), name), args)


def _ask(b: Any, address: Any) -> None:
    """Ask for the line at an address, which may be nobody's: asking never faults."""
    byte = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    ask = b.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    b.call(ask, [b.inttoptr(address, byte), _I32(0), _I32(3), _I32(1)])


@intrinsic
def ask(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _ask(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@jit
def term(x: Any, absolute: Any) -> Any:
    """x² or abs(x), in float64. ``absolute`` is None or True: a kernel is compiled for the one that is asked for."""
    v = np.float64(widen(x))
    if absolute is None:
        return v * v
    return abs(v)


def add_block(address: Any, n: Any, lanes: Any, codes: Any, what: Any, tag: Any) -> Any:
    """Add the ``n`` elements at ``address`` to ``lanes``, which are zeros; the largest codes are kept.

    ``what``: None, x²; True, abs(x); ``(after, low, high)``, x² and, to the lanes at the address ``after``, zeros
    too, the squares of the elements clamped to [low, high].
    """
    some: Any = add_some_clamped if isinstance(what, tuple) else add_some
    for start in range(0, n, LANES):
        here, count = address + np.uint64(start * tag.itemsize), min(LANES, n - start)
        some(view(here, count, tag), view(here, count, code_tag(tag)), count, 0, lanes, codes, what)


@overload(add_block)
def _add_block(address: Any, n: Any, lanes: Any, codes: Any, what: Any, tag: Any) -> Any:
    size, paired, clamps = tag.bitwidth // 8, tag == types.int16, isinstance(what, types.BaseTuple)
    zero = {8: np.int8(0), 16: np.int16(0), 32: np.int32(0), 64: np.int64(0)}[tag.bitwidth]
    some: Any = add_some_clamped if clamps else add_some
    if tag in _ELEMENTS:
        line, together = LINE // size, _together(tag)
        group = together * LANES

        def by_lines(address: Any, n: Any, lanes: Any, codes: Any, what: Any, tag: Any) -> Any:
            into, kept = np.uint64(lanes.ctypes.data), np.uint64(codes.ctypes.data)
            done = n // group * group
            for start in range(0, done, group):  # the numbers are constants here, and the rows' loop is unrolled
                _add(address + np.uint64(start * size), together, LANES // line, kept, into, what, tag)
            rows, lines = (n - done) // LANES, LANES // line
            for _ in range(2):  # whole rows, and whole lines
                if rows > 0 and lines > 0:
                    _add(address + np.uint64(done * size), rows, lines, kept, into, what, tag)
                    done += rows * lines * line
                rows, lines = 1, (n - done) // line
            if paired:
                _in_order(into)
                if clamps:
                    _in_order(what[0])
            left = n - done
            if left:
                rest = address + np.uint64(done * size)
                some(view(rest, left, tag), view(rest, left, zero), left, done % LANES, lanes, codes, what)

        return bare(by_lines)

    def by_elements(address: Any, n: Any, lanes: Any, codes: Any, what: Any, tag: Any) -> Any:
        for start in range(0, n, LANES):
            here, count = address + np.uint64(start * size), min(LANES, n - start)
            some(view(here, count, tag), view(here, count, zero), count, 0, lanes, codes, what)

    return bare(by_elements)


@jit
def add_some(x: Any, bits: Any, n: Any, at: Any, lanes: Any, codes: Any, absolute: Any) -> Any:
    """x² or abs(x) of up to 256 elements, one by one, added to ``lanes`` from ``at`` on; the largest code is kept."""
    largest = codes[0]
    for k in range(n):
        lanes[at + k] += term(x[k], absolute)
    for k in range(n):
        largest = larger_code(largest, bits[k])
    codes[0] = largest


@jit
def add_some_clamped(x: Any, bits: Any, n: Any, at: Any, lanes: Any, codes: Any, what: Any) -> Any:
    """``add_some`` of squares, and the squares of the clamped elements."""
    add_some(x, bits, n, at, lanes, codes, None)
    address, low, high = what
    after = view(address, LANES, np.float64(0))
    for k in range(n):
        v = np.float64(widen(x[k]))
        v = low if v < low else v
        v = high if v > high else v
        after[at + k] += v * v

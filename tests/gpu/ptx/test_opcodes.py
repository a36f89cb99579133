"""Single instructions on random bits, held to Python's integers and NumPy's floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gpu.ptx.launching import apply_opcode, bits_of
from tests.gpu.ptx.types import TYPES, Array

COUNT = 512
Expected = Callable[..., int]


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def shift_signed(value: int, by: int) -> int:
    return value >> min(by, 64)


def quotient(a: int, b: int) -> int:
    if not b:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def field(bits: int, is_signed: bool) -> Expected:
    def extract(a: int, start: int, length: int) -> int:
        """The PTX manual's own loop."""
        start, length = start & 255, length & 255
        last = min(start + length - 1, bits - 1)
        sign = 0 if not is_signed or length == 0 else (a >> last) & 1
        return sum(((a >> (start + k)) & 1 if k < length and start + k < bits else sign) << k for k in range(bits))

    return extract


def insert(bits: int) -> Expected:
    def apply(a: int, b: int, start: int, length: int) -> int:
        start, length = start & 255, length & 255
        for k in range(length):
            if start + k < bits:
                b = (b & ~(1 << (start + k))) | (((a >> k) & 1) << (start + k))
        return b

    return apply


def permute(a: int, b: int, selector: int) -> int:
    data = (a | b << 32).to_bytes(8, "little")
    out = []
    for k in range(4):
        choice = selector >> (4 * k) & 15
        byte = data[choice & 7]
        out.append((255 if byte >> 7 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def funnel(left: bool, wrap: bool) -> Expected:
    def apply(low: int, high: int, count: int) -> int:
        count = count & 31 if wrap else min(count, 32)
        both = low | high << 32
        return both << count >> 32 if left else both >> count

    return apply


def found(bits: int, is_signed: bool) -> Expected:
    def apply(a: int) -> int:
        a = ~a if is_signed and a < 0 else a
        return a.bit_length() - 1

    return apply


def logic(table: int) -> Expected:
    def apply(a: int, b: int, c: int) -> int:
        return sum(((table >> (4 * (a >> k & 1) + 2 * (b >> k & 1) + (c >> k & 1))) & 1) << k for k in range(32))

    return apply


CASES: list[tuple[str, str, list[str], Expected, str]] = []
for _bits in (32, 64):
    _u, _s, _b = f"u{_bits}", f"s{_bits}", f"b{_bits}"
    CASES += [
        (f"add.{_s}", _s, [_s, _s], lambda a, b: a + b, ""),
        (f"sub.{_u}", _u, [_u, _u], lambda a, b: a - b, ""),
        (f"mul.lo.{_s}", _s, [_s, _s], lambda a, b: a * b, ""),
        (f"mul.hi.{_s}", _s, [_s, _s], lambda a, b, n=_bits: a * b >> n, ""),
        (f"mul.hi.{_u}", _u, [_u, _u], lambda a, b, n=_bits: a * b >> n, ""),
        (f"mad.lo.{_u}", _u, [_u, _u, _u], lambda a, b, c: a * b + c, ""),
        (f"mad.hi.{_s}", _s, [_s, _s, _s], lambda a, b, c, n=_bits: (a * b >> n) + c, ""),
        (f"div.{_s}", _s, [_s, _s], quotient, ""),
        (f"div.{_u}", _u, [_u, _u], quotient, ""),
        (f"rem.{_s}", _s, [_s, _s], lambda a, b: a - quotient(a, b) * b if b else a, ""),
        (f"rem.{_u}", _u, [_u, _u], lambda a, b: a - quotient(a, b) * b if b else a, ""),
        (f"min.{_s}", _s, [_s, _s], min, ""),
        (f"max.{_u}", _u, [_u, _u], max, ""),
        (f"abs.{_s}", _s, [_s], abs, ""),
        (f"neg.{_s}", _s, [_s], lambda a: -a, ""),
        (f"and.{_b}", _b, [_b, _b], lambda a, b: a & b, ""),
        (f"xor.{_b}", _b, [_b, _b], lambda a, b: a ^ b, ""),
        (f"not.{_b}", _b, [_b], lambda a: ~a, ""),
        (f"shl.{_b}", _b, [_b, "u32"], lambda a, n: a << min(n, 64), ""),
        (f"shr.{_u}", _u, [_u, "u32"], shift_signed, ""),
        (f"shr.{_s}", _s, [_s, "u32"], shift_signed, ""),
        (f"popc.{_b}", "u32", [_b], lambda a: a.bit_count(), ""),
        (f"clz.{_b}", "u32", [_b], lambda a, n=_bits: n - a.bit_length(), ""),
        (f"brev.{_b}", _b, [_b], lambda a, n=_bits: int(f"{a:0{n}b}"[::-1], 2), ""),
        (f"bfind.{_u}", "u32", [_u], found(_bits, False), ""),
        (f"bfind.{_s}", "u32", [_s], found(_bits, True), ""),
        (f"bfe.{_u}", _u, [_u, "u32", "u32"], field(_bits, False), ""),
        (f"bfe.{_s}", _s, [_s, "u32", "u32"], field(_bits, True), ""),
        (f"bfi.{_b}", _b, [_b, _b, "u32", "u32"], insert(_bits), ""),
    ]
CASES += [
    ("mul.wide.s32", "s64", ["s32", "s32"], lambda a, b: a * b, ""),
    ("mul.wide.u16", "u32", ["u16", "u16"], lambda a, b: a * b, ""),
    ("mad.wide.u32", "u64", ["u32", "u32", "u64"], lambda a, b, c: a * b + c, ""),
    ("sad.s32", "u32", ["s32", "s32", "u32"], lambda a, b, c: abs(a - b) + c, ""),
    ("prmt.b32", "b32", ["b32", "b32", "b32"], permute, ""),
    ("shf.l.wrap.b32", "b32", ["b32", "b32", "u32"], funnel(True, True), ""),
    ("shf.r.clamp.b32", "b32", ["b32", "b32", "u32"], funnel(False, False), ""),
    ("lop3.b32", "b32", ["b32", "b32", "b32"], logic(0x96), ", 0x96"),
    ("lop3.b32", "b32", ["b32", "b32", "b32"], logic(0xE2), ", 0xE2"),
    ("add.sat.s32", "s32", ["s32", "s32"], lambda a, b: max(-(2**31), min(2**31 - 1, a + b)), ""),
    ("cvt.u32.u64", "u32", ["u64"], lambda a: a, ""),
    ("cvt.s64.s32", "s64", ["s32"], lambda a: a, ""),
    ("cvt.s32.s16", "s32", ["s16"], lambda a: a, ""),
    ("cvt.u64.u8", "u64", ["u8"], lambda a: a, ""),
    ("cvt.sat.u8.s32", "u32", ["s32"], lambda a: max(0, min(255, a)), ""),
    ("cvt.sat.s16.u32", "u32", ["u32"], lambda a: min(32767, a), ""),
]


@pytest.mark.parametrize(("opcode", "result", "sources", "expected", "more"), CASES, ids=[case[0] for case in CASES])
def test_integers(opcode: str, result: str, sources: list[str], expected: Expected, more: str) -> None:
    rng = np.random.default_rng([*opcode.encode()])
    arrays = {}
    for k, name in enumerate(sources):
        type = TYPES[name]
        array = bits_of(rng, type.width, COUNT)
        if k >= 1 and name == "u32" and (opcode.startswith(("sh", "bf"))):
            array[::2] = rng.integers(0, 66, COUNT // 2)  # counts that matter
        arrays[f"{name}.{k}"] = array
    got = apply_opcode(opcode, result, arrays, more)
    bits = TYPES[result].bits
    for k in range(COUNT):
        values = [
            signed(int(array[k]), TYPES[name].bits) if TYPES[name].kind == "s" else int(array[k])
            for name, array in zip(sources, arrays.values(), strict=True)
        ]
        assert int(got[k]) == expected(*values) & ((1 << bits) - 1), values


def floats(name: str, seed: int = 0) -> Array:
    """Random bits and, half of them, numbers of one magnitude."""
    type = TYPES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    array = bits_of(rng, type.width, COUNT).view(type.dtype)
    array[::2] = rng.standard_normal(COUNT // 2) * 3
    return array


TO_INTEGER = [
    (to, source, mode)
    for to in ("s32", "u32", "s64", "u64", "s16")
    for source in ("f32", "f64")
    for mode in ("rni", "rzi", "rmi", "rpi")
]
ROUND: dict[str, Callable[[float], int]] = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize(("to", "source", "mode"), TO_INTEGER)
def test_floats_to_integers(to: str, source: str, mode: str) -> None:
    type = TYPES[to]
    array = floats(source)
    wide = {"s16": "s32"}.get(to, to)
    got = apply_opcode(f"cvt.{mode}.{to}.{source}", wide, {source: array.view(f"u{array.itemsize}")})
    info = np.iinfo(type.dtype)
    for value, result in zip(array.tolist(), got.tolist(), strict=True):
        if math.isnan(value):
            top = source == "f64" or type.width == 8
            expected = int(info.min if type.kind == "s" else 1 << (type.bits - 1)) if top else 0
        elif math.isinf(value):
            expected = int(info.max if value > 0 else info.min)
        else:
            expected = max(int(info.min), min(int(info.max), ROUND[mode](value)))
        assert result == expected & ((1 << TYPES[wide].bits) - 1), value


def test_integers_to_floats() -> None:
    for source, to in (("u64", "f64"), ("s64", "f64"), ("s32", "f32"), ("u64", "f32"), ("u32", "f16")):
        array = bits_of(np.random.default_rng(1), TYPES[source].width, COUNT)
        got = apply_opcode(f"cvt.rn.{to}.{source}", to, {source: array}).view(TYPES[to].dtype)
        with np.errstate(over="ignore"):
            expected = array.view(TYPES[source].dtype).astype(TYPES[to].dtype)
        assert got.tolist() == expected.tolist()
    array = bits_of(np.random.default_rng(2), 8, COUNT)
    down, up = (apply_opcode(f"cvt.{mode}.f64.u64", "f64", {"u64": array}).view(np.float64) for mode in ("rz", "rp"))
    for value, low, high in zip(array.tolist(), down.tolist(), up.tolist(), strict=True):
        assert int(low) <= value <= int(high)
        assert high in (low, math.nextafter(low, math.inf))


@pytest.mark.parametrize(
    ("to", "source"), [("f32", "f64"), ("f16", "f32"), ("f16", "f64"), ("f32", "f16"), ("f64", "f32"), ("f64", "f16")]
)
def test_floats_to_floats_are_numpys(to: str, source: str) -> None:
    array = floats(source)
    if source == "f64":
        array[::4] *= 2.0 ** np.random.default_rng(0).integers(-152, 128, COUNT // 4)  # float32's subnormals among them
    mode = ".rn" if TYPES[to].width < TYPES[source].width else ""
    got = apply_opcode(f"cvt{mode}.{to}.{source}", to, {source: array.view(f"u{array.itemsize}")})
    with np.errstate(all="ignore"):
        expected = array.astype(TYPES[to].dtype)
    number = ~np.isnan(expected)
    assert (got[number] == expected[number].view(got.dtype)).all()
    assert np.isnan(got.view(expected.dtype)[~number]).all()


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = floats("f32")
    got = apply_opcode("cvt.rn.bf16.f32", "b16", {"f32": array.view(np.uint32)})
    with np.errstate(all="ignore"):
        expected = array.astype(ml_dtypes.bfloat16).view(np.uint16)
    number = ~np.isnan(array)
    assert (got[number] == expected[number]).all()
    assert (got[~number] == 0x7FFF).all()
    back = apply_opcode("cvt.f32.bf16", "f32", {"b16": got})
    assert (back[number] == got[number].astype(np.uint32) << 16).all()


@pytest.mark.parametrize("name", ["f32", "f64"])
@pytest.mark.parametrize("what", ["min", "max", "min.NaN", "max.NaN"])
def test_extremes(what: str, name: str) -> None:
    a, b = floats(name, 1), floats(name, 2)
    b[::16] = a[::16]
    a[::32], b[::32] = 0.0, -0.0
    bits = f"u{a.itemsize}"
    got = apply_opcode(f"{what}.{name}", name, {f"{name}.1": a.view(bits), f"{name}.2": b.view(bits)}).view(a.dtype)
    function: Any = {"min": np.fmin, "max": np.fmax, "min.NaN": np.minimum, "max.NaN": np.maximum}[what]
    expected = function(a, b)
    nan = np.isnan(expected)
    assert (np.isnan(got) == nan).all()
    assert (got[~nan] == expected[~nan]).all()
    assert (np.signbit(got[::32]) == what.startswith("min")).all()


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("name", [*COMPARISONS, *(f"{name}u" for name in COMPARISONS), "num", "nan"])
def test_comparisons(name: str) -> None:
    a, b = floats("f32", 1), floats("f32", 2)
    b[::8] = a[::8]
    a[1::16] = np.nan
    got = apply_opcode(f"set.{name}.u32.f32", "u32", {"f32.1": a.view(np.uint32), "f32.2": b.view(np.uint32)})
    for x, y, result in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        unordered = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            expected = unordered == (name == "nan")
        elif unordered:
            expected = name.endswith("u") and name != "u"
        else:
            expected = bool(eval(f"x {COMPARISONS[name.removesuffix('u') or name]} y"))
        assert result == (0xFFFFFFFF if expected else 0), (x, y)


def test_flushing_is_where_the_opcode_says_so() -> None:
    tiny, one = np.full(256, 1e-39, np.float32), np.ones(256, np.float32)
    sources = {"f32.1": tiny.view(np.uint32), "f32.2": one.view(np.uint32)}
    assert (apply_opcode("mul.rn.f32", "f32", sources).view(np.float32) == np.float32(1e-39)).all()
    assert (apply_opcode("mul.rn.ftz.f32", "f32", sources) == 0).all()
    half = {"f32.1": np.full(256, 2e-38, np.float32).view(np.uint32), "f32.2": (one / 4).view(np.uint32)}
    assert (apply_opcode("mul.rn.f32", "f32", half) != 0).all()
    assert (apply_opcode("mul.rn.ftz.f32", "f32", half) == 0).all()
    negative = apply_opcode("neg.ftz.f32", "f32", {"f32": tiny.view(np.uint32)})
    assert (negative == 0x80000000).all()
    assert (apply_opcode("cvt.ftz.f64.f32", "f64", {"f32": tiny.view(np.uint32)}) == 0).all()
    flushed = apply_opcode("cvt.rn.ftz.f32.f64", "f32", {"f64": np.full(256, -1e-39).view(np.uint64)})
    assert (flushed == 0x80000000).all()


def test_packed_halves() -> None:
    a, b = floats("f16", 1)[:512].copy(), floats("f16", 2)[:512].copy()
    doubled = {"b32.1": np.tile(a, 2).view(np.uint32), "b32.2": np.tile(b, 2).view(np.uint32)}
    got = apply_opcode("add.f16x2", "b32", doubled).view(np.float16)
    with np.errstate(all="ignore"):
        expected = np.tile(a, 2) + np.tile(b, 2)
    number = ~np.isnan(expected)
    assert (got[number] == expected[number]).all()
    assert np.isnan(got[~number]).all()


def test_unknown_instructions_are_named() -> None:
    with pytest.raises(NotImplementedError, match=r"frobnicate\.b32 %d, %s0;?"):
        apply_opcode("frobnicate.b32", "b32", {"b32": np.zeros(256, np.uint32)})

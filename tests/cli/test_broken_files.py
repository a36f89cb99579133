"""``gradclip clip`` on files that are broken, hostile, or not there: one line, and nothing written."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradclip_core as gc
from gradclip_core.cli import files
from tests.cli.helpers import BFLOAT16, gradients, load, refused, run, same, save

FUZZ = settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
HOW = ("--max-norm", 0.5, "--nonfinite", "propagate")


def attempt(content: bytes, suffix: str) -> str:
    """Clip a file of this content: right, or refused in one line. Returns the line, "" if it was right."""
    with tempfile.TemporaryDirectory() as directory:
        grads, out = Path(directory, f"in{suffix}"), Path(directory, f"out{suffix}")
        grads.write_bytes(content)
        result = run("clip", grads, "-o", out, *HOW)
        if result.code:
            assert os.listdir(directory) == [grads.name]
            return refused(result)
        assert sorted(os.listdir(directory)) == sorted([grads.name, out.name])
        arrays = load(grads)  # what we read, the format's own library reads too
        floats = {name: x for name, x in arrays.items() if x.dtype.kind in "fc" or x.dtype == BFLOAT16}
        with np.errstate(all="ignore"):
            clipped = gc.clip(floats, gc.GlobalNorm(0.5), nonfinite="propagate")[0]
        assert same(load(out), {**arrays, **clipped})
        return ""


def _content(suffix: str, compressed: bool = False) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"x{suffix}")
        if compressed:
            np.savez_compressed(path, **gradients())  # type: ignore[arg-type]
        else:
            save(path, gradients())
        return path.read_bytes()


WHOLE = [
    (".npz", _content(".npz")),
    (".npz", _content(".npz", compressed=True)),
    (".safetensors", _content(".safetensors")),
]


@pytest.mark.parametrize(("suffix", "content"), WHOLE, ids=["npz", "npz-compressed", "safetensors"])
class TestFuzz:
    def test_whole(self, suffix: str, content: bytes) -> None:
        assert attempt(content, suffix) == ""

    @FUZZ
    @given(data=st.data())
    def test_truncated(self, suffix: str, content: bytes, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 16))
        assert attempt(content[:length], suffix)

    @FUZZ
    @given(data=st.data())
    def test_flipped_bits(self, suffix: str, content: bytes, data: st.DataObject) -> None:
        places = st.integers(0, len(content) - 1) | st.integers(0, 400)
        changed = bytearray(content)
        for place in data.draw(st.lists(places, min_size=1, max_size=4)):
            changed[place] ^= 1 << data.draw(st.integers(0, 7))
        attempt(bytes(changed), suffix)

    @FUZZ
    @given(data=st.data())
    def test_overwritten(self, suffix: str, content: bytes, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 400))
        patch = data.draw(st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"9" * 9]))
        attempt(content[:start] + patch + content[start + len(patch) :], suffix)

    @FUZZ
    @given(data=st.data())
    def test_random_tail(self, suffix: str, content: bytes, data: st.DataObject) -> None:
        attempt(content[: data.draw(st.integers(0, 60))] + data.draw(st.binary(max_size=200)), suffix)


NUMBERS: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, 4, 8, -1, 2**31, 2**63 - 1, 2**64, 10**30, 1.5, "4", None, [], True]
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "BOOL", "I8", "F8_E4M3", "F4", "X", 3, None]),
        "shape": st.lists(NUMBERS, max_size=4) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
    }
)


@FUZZ
@given(
    st.dictionaries(st.sampled_from(["a", "b", "", "\n", "__metadata__", "\ud800"]), ENTRY | NUMBERS, max_size=3),
    st.binary(max_size=16),
    st.integers(-9, 9),
)
def test_hostile_safetensors_headers(header: dict[str, Any], data: bytes, error: int) -> None:
    text = json.dumps(header).encode()
    attempt(struct.pack("<Q", max(0, len(text) + error)) + text + data, ".safetensors")


@FUZZ
@given(
    st.sampled_from(["'<f4'", "'|O'", "'|V2'", "'<f9'", "[('a', '<f4')]", "'<f4', 3", "'<m8[s]'", "7", "'\\d'"]),
    st.lists(NUMBERS, max_size=3).map(lambda shape: repr(tuple(shape))) | st.just("(" * 200 + ")" * 200),
    st.binary(max_size=16),
)
def test_hostile_npy_headers(descr: str, shape: str, data: bytes) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
    attempt(_zip([("a.npy", npy)]), ".npz")


def _zip(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            with archive.open(zipfile.ZipInfo(name), "w") as member:
                member.write(content)
    return file.getvalue()


def _npy(x: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(x))
    return file.getvalue()


def _safetensors(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + data


def _absurd_shape() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1099511627776)}\n"
    return _zip([("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)])


def _bomb() -> bytes:
    """Says that it unpacks to 2**62 bytes."""
    content = bytearray(_zip([("a.npy", _npy(np.ones(3)))]))
    place = content.index(b"PK\x01\x02")
    extra = struct.pack("<HHQ", 1, 8, 2**62)
    content[place + 24 : place + 28] = b"\xff" * 4
    content[place + 30 : place + 32] = struct.pack("<H", len(extra))
    content[place + 46 + 5 : place + 46 + 5] = extra
    end = content.index(b"PK\x05\x06")
    (size,) = struct.unpack_from("<I", content, end + 12)
    struct.pack_into("<I", content, end + 12, size + len(extra))
    return bytes(content)


def _pickled() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HOSTILE = {
    "empty": (".npz", b"", "it is empty"),
    "empty-safetensors": (".safetensors", b"", "it is empty"),
    "no-zip": (".npz", b"not a zip at all", "not a zip"),
    "npy": (".npz", _npy(np.ones(3)), "not a zip"),
    "safetensors-in-npz": (".npz", WHOLE[2][1], "not a zip"),
    "npz-in-safetensors": (".safetensors", WHOLE[0][1], "it is broken, or no .safetensors file"),
    "pickle": (".npz", _zip([("a.npy", _pickled())]), "pickled Python objects"),
    "not-an-array": (".npz", _zip([("README", b"hello")]), "'README', which is no .npy file"),
    "twice": (".npz", _zip([("a.npy", _npy([1.0])), ("b.npy", _npy([2.0]))]).replace(b"b.npy", b"a.npy"), "'a' occurs"),
    "absurd-shape": (".npz", _absurd_shape(), "of shape (1099511627776, 1099511627776), and has 0 bytes"),
    "too-short": (".npz", _zip([("a.npy", _npy(np.ones(9))[:-1])]), "and has 71 bytes"),
    "too-long": (".npz", _zip([("a.npy", _npy(np.ones(9)) + b"x")]), "and has 73 bytes"),
    "bomb": (".npz", _bomb(), "it would unpack to 4294967296.0 GiB"),
    "duplicates": (".safetensors", _safetensors(f'{{"a":{ONE},"a":{ONE}}}', b"1234"), "twice"),
    "beyond-the-end": (".safetensors", _safetensors(f'{{"a":{ONE}}}', b"123"), "broken"),
    "huge-header": (".safetensors", struct.pack("<Q", 2**63) + b"{}", "broken"),
    "deep-header": (".safetensors", _safetensors("[" * 100_000), "broken"),
    "no-utf-8": (".safetensors", struct.pack("<Q", 4) + b"{\xff\xff}", "broken"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str) -> None:
    suffix, content, words = HOSTILE[case]
    line = attempt(content, suffix)
    assert words in line
    assert len(line) < 700


def test_a_header_of_odd_length_is_no_error() -> None:
    """Its tensors are not aligned in the file."""
    text = '{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}'
    assert attempt(_safetensors(text + " " * (3 - len(text) % 2), np.array([3.0, 4.0]).tobytes()), ".safetensors") == ""


def test_files_that_are_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    (tmp_path / "dir.npz").mkdir()
    assert "there is no such file" in refused(run("clip", tmp_path / "no.npz", "-o", out, *HOW))
    assert "it is a directory" in refused(run("clip", tmp_path / "dir.npz", "-o", out, *HOW))
    assert "the suffix '.pt'" in refused(run("clip", tmp_path / "x.pt", "-o", out, *HOW))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        assert "no regular file" in refused(run("clip", tmp_path / "pipe.npz", "-o", out, *HOW))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, because root may read everything."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    grads = save(tmp_path / "in.npz", gradients())
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    assert "it cannot be read (Permission denied)" in refused(run("clip", grads, "-o", tmp_path / "out.npz", *HOW))


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. Nothing was written"),
    (MemoryError(), "memory"),
    (KeyboardInterrupt(), ""),
]


@pytest.fixture(params=["write", "fsync", "replace"])
def stage(request: pytest.FixtureRequest) -> str:
    """Where writing fails."""
    return str(request.param)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(("error", "words"), FAILURES, ids=["disk", "memory", "interrupt"])
def test_a_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException, words: str, stage: str
) -> None:
    grads = save(tmp_path / f"g{suffix}", gradients())
    before = grads.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise error

    if stage == "write":
        writer = files.FORMATS[suffix]

        def half(file: io.BufferedIOBase, _: object) -> None:
            file.write(b"half")
            fail()

        monkeypatch.setattr(writer, "write", half)
    else:
        monkeypatch.setattr(os, stage, fail)
    result = run("clip", grads, "-o", grads, *HOW)
    monkeypatch.undo()
    assert result.code != 0
    assert words in result.err
    assert "Traceback" not in result.err
    assert os.listdir(tmp_path) == [grads.name]
    assert grads.read_bytes() == before

"""Writing a file so that it is either the old one or the whole new one, and nothing is left over."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gradclip_core.errors import GradClipError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends without an error.

    It lies in the same directory, because a rename is atomic only within one file system.
    """
    target = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".gradclip-", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise _refuse(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _usual_permissions(temporary)
        os.replace(temporary, target)
    except BaseException as error:  # KeyboardInterrupt leaves nothing behind either
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _refuse(path, error) from error
        raise
    _sync_directory(target.parent)


def check_target(path: Path) -> None:
    """Refuse, before any work is done, what could not be written in the end."""
    if path.is_dir():
        raise GradClipError(f"write {path}", "it is a directory", "Name a file")
    parent = Path(os.path.realpath(path)).parent
    if not parent.is_dir():
        raise GradClipError(f"write {path}", f"there is no directory {parent}", "Create it, or name another place")
    if not os.access(parent, os.W_OK):
        raise GradClipError(f"write {path}", f"{parent} may not be written", "Name another place")


def _refuse(path: Path, error: OSError) -> GradClipError:
    return GradClipError(f"write {path}", f"{error.strerror or error}", "Nothing was written. Name another place")


def _usual_permissions(path: str) -> None:
    """What ``open`` would have given; a temporary file is its owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def _sync_directory(directory: Path) -> None:
    """The rename is on the disk when the directory is. Not every system lets one ask."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Files of gradients: which format, and the sentence for a file that is broken."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from gradclip_core.cli import npz_file, safetensors_file
from gradclip_core.cli.atomic import check_target, replacing
from gradclip_core.cli.tensors import Tensors
from gradclip_core.errors import GradClipError

FORMATS: dict[str, ModuleType] = {".npz": npz_file, ".safetensors": safetensors_file}


def format_of(path: Path) -> ModuleType:
    """The format that the suffix names."""
    if found := FORMATS.get(path.suffix.lower()):
        return found
    seen = f"the suffix '{path.suffix}' is of no known format" if path.suffix else "it has no suffix"
    raise GradClipError(str(path), seen, f"Name a file that ends in {' or '.join(FORMATS)}")


def check_output(path: Path) -> None:
    """Refuse an output of no known format, or at a place where nothing can be written."""
    format_of(path)
    check_target(path)


def read(path: Path) -> Tensors:
    """All of a file. Whatever is wrong with it becomes one ``GradClipError``."""
    reader = format_of(path)
    asked = f"read {path}"
    try:
        if path.is_dir():
            raise GradClipError(asked, "it is a directory", "Name a file")
        if not path.exists():
            raise GradClipError(asked, "there is no such file", "Check the path")
        if not path.is_file():
            raise GradClipError(asked, "it is no regular file", "Copy what it holds into a file")
        if path.stat().st_size == 0:
            raise GradClipError(asked, "it is empty", "Write it again")
        tensors: Tensors = reader.read(path)
    except (GradClipError, ModuleNotFoundError):
        raise
    except OSError as error:
        raise GradClipError(asked, f"it cannot be read ({error.strerror or error})", "Check the file") from error
    except MemoryError as error:
        raise GradClipError(asked, "it does not fit into this machine's memory", "Clip it in parts") from error
    except Exception as error:  # a broken file fails in any way it likes
        seen = f"it is broken, or no {path.suffix.lower()} file ({type(error).__name__}: {error})"
        raise GradClipError(asked, seen, "Write it again") from error
    return tensors


def check_storable(path: Path, tensors: Tensors) -> None:
    """Refuse tensors that the output's format cannot hold."""
    format_of(path).check(tensors, f"write {path}")


def write(path: Path, tensors: Tensors) -> None:
    """Replace ``path``, whole or not at all."""
    writer = format_of(path)
    with replacing(path) as file:
        writer.write(file, tensors)

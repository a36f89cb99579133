"""What tests of this folder need that a machine may lack."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.gpu.cpu.flavours import has_runtimes

# The headers know Linux alone: its threads, its way of finding thread-local memory.
_HAS_GXX = sys.platform == "linux" and shutil.which("g++") is not None

needs_gxx = pytest.mark.skipif(not _HAS_GXX, reason="needs Linux and g++")


def needs_sanitizer(flavour: str) -> pytest.MarkDecorator:
    """Needs g++ and the runtimes of a flavour."""
    missing = not (_HAS_GXX and has_runtimes(flavour))
    return pytest.mark.skipif(missing, reason=f"needs Linux and g++ with the runtime for {flavour}")

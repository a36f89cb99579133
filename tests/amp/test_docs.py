"""The page on mixed precision."""

from __future__ import annotations

import pytest

from tests import pages


def test_the_examples() -> None:
    for module in ("torch", "ml_dtypes", "jax"):
        pytest.importorskip(module)
    pages.run_examples("mixed-precision.md", least=21)


def test_links_lead_somewhere() -> None:
    pages.check_links("mixed-precision.md")

"""The page on mixed precision: its examples run, in order, and its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "mixed-precision.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    pytest.importorskip("jax")
    assert len(EXAMPLES) >= 6
    example = doctest.DocTestParser().get_doctest("\n".join(EXAMPLES), {}, "examples", "mixed-precision.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    runner.run(example)
    assert runner.tries > 20
    assert runner.failures == 0


def test_links_lead_somewhere() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (DOCS / link).exists(), link

"""The page on optimizers: its examples run, in order, and its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from gradclip_core import optim

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "optimizers.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples() -> None:
    pytest.importorskip("torch")
    assert len(EXAMPLES) >= 4
    example = doctest.DocTestParser().get_doctest("\n".join(EXAMPLES), {}, "examples", "optimizers.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    runner.run(example)
    assert runner.tries > 20
    assert runner.failures == 0


def test_links_lead_somewhere() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (DOCS / link).exists(), link


def test_every_optimizer_is_on_the_page() -> None:
    for name in ("SGD", "Adam", "AdamW", "Lion"):
        assert name in optim.__all__
        assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE), name

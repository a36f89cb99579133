"""The README's examples run, each by itself, and its links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    code = EXAMPLES[number]
    if "import torch" in code:
        pytest.importorskip("torch")
    example = doctest.DocTestParser().get_doctest(code, {}, f"README example {number}", "README.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0


def test_the_readme_has_an_example_of_each_use() -> None:
    assert len(EXAMPLES) >= 4
    assert any("import torch" in code for code in EXAMPLES)
    assert any("plan.scale" in code for code in EXAMPLES)


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_readme_sets_up_with_two_commands() -> None:
    assert len(re.findall(r"^python3 -m venv", README, re.MULTILINE)) == 2

"""Pages of docs/: their examples run, in order, and their links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def page(name: str) -> str:
    """A page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def run_examples(name: str, *, least: int) -> None:
    """Run a page's examples as one session; ``least``: so many lines are to be tried, or the page has lost some."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page(name), re.DOTALL))
    example = doctest.DocTestParser().get_doctest(code, {}, "examples", name, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    runner.run(example)
    assert runner.tries >= least
    assert runner.failures == 0


def check_links(name: str) -> None:
    """Links to files are links to files that are there, and those into a page to a heading that it has."""
    prose = re.sub(r"```.*?```", "", page(name), flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose):
        there = DOCS / link if link else DOCS / name
        assert there.exists(), link
        if anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ (.*)", there.read_text(encoding="utf-8"), re.MULTILINE)
            known = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in known, f"{link}#{anchor}"

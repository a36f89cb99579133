"""The page on projections: its examples run, and each set is on it with a picture that can be drawn."""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gradclip_core import sets

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "projections.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = [name for name in sets.__all__ if name != "Set" and issubclass(getattr(sets, name), sets.Set)]
PICTURED = {path.stem for path in (DOCS / "projections").glob("*.png")}


@pytest.fixture
def draw() -> Iterator[ModuleType]:
    """The script, which is in no package."""
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("draw_projections", DOCS / "projections" / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_projections"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["draw_projections"]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    example = doctest.DocTestParser().get_doctest(EXAMPLES[number], {}, f"example {number}", "projections.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_ONLY_FIRST_FAILURE)
    runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_each_set_has_a_row_a_section_and_a_picture(name: str) -> None:
    assert re.search(rf"^\| \[`{name}\(", PAGE, re.MULTILINE), "no row in 'Which one'"
    assert re.search(rf"^### (.* and )?{name}( and .*)?$", PAGE, re.MULTILINE), "no section"
    assert f"](projections/{name}.png)" in PAGE
    assert name in PICTURED


def test_the_page_names_no_set_that_is_not_there() -> None:
    named = set(re.findall(r"^\| \[`(\w+)\(", PAGE, re.MULTILINE))
    assert named == set(NAMES)
    assert set(NAMES) == PICTURED


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGE)
    assert len(links) > len(NAMES)
    for link in links:
        file, _, anchor = link.partition("#")
        assert (DOCS / file).exists(), link
        assert file or anchor in anchors, link


def test_pictures_are_small() -> None:
    for name in PICTURED:
        assert (DOCS / "projections" / f"{name}.png").stat().st_size < 120_000, name


def test_the_script_has_a_picture_of_each_set(draw: ModuleType) -> None:
    assert set(draw.PICTURES) == set(NAMES)


def test_the_script_draws(draw: ModuleType, tmp_path: Path) -> None:
    path = draw.draw("L1Ball", tmp_path)
    assert path == tmp_path / "L1Ball.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_the_script_colours_what_became_of_a_point(draw: ModuleType) -> None:
    panel = draw.Panel("", sets.L1Ball(1.0))
    inside, moved, vanished = ([2.0**-3, 0.5], [1.0, 1.5], [0.25, 2.0])
    colours = [panel.land(draw.np.array(point))[1] for point in (inside, moved, vanished)]
    assert len(set(colours)) == 3
    assert panel.land(draw.np.array(vanished))[0].tolist() == pytest.approx([0.0, 1.0])

"""The table in docs/frameworks.md is what shown.json says, and CI holds shown.json to what the lanes have shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradclip_core.arrays.frameworks import FRAMEWORKS
from tests import pages
from tests.frameworks import table


def test_the_page_s_examples_and_links() -> None:
    pages.run_examples("frameworks.md", least=4)
    pages.check_links("frameworks.md")


def test_the_page_has_the_table_of_the_file() -> None:
    assert table.on_page() == table.drawn(table.read([table.SHOWN]))


def test_every_framework_of_the_dock_is_in_it() -> None:
    known = {framework.module.partition(".")[0] for framework in FRAMEWORKS}
    assert known <= {row[0] for row in table.read([table.SHOWN])}


def test_what_a_lane_has_not_shown_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table.read([table.SHOWN])
    report, less = tmp_path / "all.json", tmp_path / "less.json"
    report.write_text(json.dumps([[*row[:3], "another version"] for row in rows]))
    less.write_text(json.dumps(rows[1:]))
    assert table.main(["--check", str(report)]) == 0
    assert table.main(["--check", str(less)]) == 1
    assert f"was not shown: {', '.join(rows[0][:3])}" in capsys.readouterr().err

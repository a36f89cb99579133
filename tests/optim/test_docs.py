"""The page on optimizers."""

from __future__ import annotations

import re

import pytest

from gradclip_core import optim
from tests import pages


def test_the_examples() -> None:
    pytest.importorskip("torch")
    pages.run_examples("optimizers.md", least=21)


def test_links_lead_somewhere() -> None:
    pages.check_links("optimizers.md")


def test_every_optimizer_is_on_the_page() -> None:
    for name in ("SGD", "Adam", "AdamW", "Lion"):
        assert name in optim.__all__
        assert re.search(rf"^\| `{name}` \|", pages.page("optimizers.md"), re.MULTILINE), name

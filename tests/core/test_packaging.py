"""What is installed: the packages listed are the folders there are, and nothing generic."""

from __future__ import annotations

import configparser
from pathlib import Path

import gradclip_core
from gradclip_core import registry

ROOT = Path(__file__).resolve().parents[2]


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def folders() -> set[str]:
    found = set()
    for source, package in ((ROOT, "gradclip_core"), (ROOT / "backends", "gradclip_backends")):
        for init in (source / package).rglob("__init__.py"):
            found.add(".".join(init.parent.relative_to(source).parts))
    return found


def test_the_packages_listed_are_the_folders() -> None:
    assert set(setup()["options"]["packages"].split()) == folders()


def test_every_backend_of_the_registry_has_a_folder_or_a_file() -> None:
    for address, cure in registry.BACKENDS.values():
        module = address.partition(":")[0].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / "backends" / module / "__init__.py").exists()
        assert cure.startswith("pip install")


def test_the_registry_is_sorted_and_preferences_are_in_it() -> None:
    names = list(registry.BACKENDS)
    assert names == sorted(names)
    assert {name for order in registry.PREFERENCE.values() for name in order} <= set(names)


def test_every_folder_of_code_is_typed_and_licensed() -> None:
    assert (ROOT / "gradclip_core" / "py.typed").exists()
    assert (ROOT / "backends" / "gradclip_backends" / "py.typed").exists()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {gradclip_core.__version__}" in (ROOT / "CHANGELOG.md").read_text()

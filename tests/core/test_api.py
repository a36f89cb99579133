"""The public names and signatures, as text: a change of the API is a change of ``api.txt``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import gradclip_core
from gradclip_core import optim, sets, surgery, testing

SNAPSHOT = Path(__file__).with_name("api.txt")


def describe(module: object, name: str) -> list[str]:
    thing = getattr(module, name)
    if inspect.isclass(thing):
        bases = ", ".join(base.__name__ for base in thing.__bases__)
        lines = [f"class {name}({bases})"]
        if not issubclass(thing, Exception):
            if dataclasses.is_dataclass(thing):
                names = (field.name for field in dataclasses.fields(thing))
                lines.append(f"    fields: {', '.join(name for name in names if not name.startswith('_'))}")
            lines += [
                f"    {member}" + (str(inspect.signature(value)) if inspect.isfunction(value) else "")
                for member, value in sorted(vars(thing).items())
                if not member.startswith("_") and not member.endswith("__")
            ]
        return lines
    return [f"{name}{inspect.signature(thing)}"]


def snapshot() -> str:
    lines = []
    for module in (gradclip_core, optim, sets, surgery, testing):
        lines.append(f"# {module.__name__}")
        for name in sorted(module.__all__):
            lines += describe(module, name)
    return "\n".join(lines) + "\n"


def test_the_api_is_what_the_snapshot_says() -> None:
    """On purpose? ``python -m tests.core.test_api`` from the root writes it anew."""
    assert snapshot() == SNAPSHOT.read_text()


def test_everything_public_is_documented() -> None:
    for module in (gradclip_core, optim, sets, surgery, testing):
        for name in module.__all__:
            assert len(inspect.getdoc(getattr(module, name)) or "") > 20, name


def test_every_function_takes_the_common_arguments_in_both_forms() -> None:
    for name in gradclip_core.__all__:
        if name.startswith(("clip", "adaptive")) and not name.endswith("_"):
            new = inspect.signature(getattr(gradclip_core, name))
            if name == "clip":  # in place there is nowhere else to write to
                assert new.parameters["out"].default is None
                new = new.replace(parameters=[p for p in new.parameters.values() if p.name != "out"])
            in_place = inspect.signature(getattr(gradclip_core, name + "_"))
            assert new.parameters == in_place.parameters, name


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())


def test_the_sets_that_are_imported_when_asked_for_are_the_public_ones() -> None:
    assert sorted(sets._WHERE) == sorted(sets.__all__)
    assert set(sets.__all__) <= set(dir(sets))
    for name in sets.__all__:
        assert getattr(sets, name).__name__ == name
    assert not hasattr(sets, "L3Ball")

"""What every refusal owes: the class, a sentence in three parts, and gradients that no byte of has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradclip_core as gc

Array = npt.NDArray[Any]


def grads() -> dict[str, Array]:
    """Something that every valid call here would write."""
    return {"w": np.full((2, 3), 30.0, np.float32), "b": np.array([40.0])}


def check_sentence(raised: gc.GradClipError, error: type[gc.GradClipError], asked: str, seen: str, cure: str) -> None:
    """The class itself, what each of the three parts says, and that the message is the three together."""
    assert type(raised) is error
    assert asked in raised.asked
    assert seen in raised.seen
    assert cure in raised.cure
    assert str(raised) == f"{raised.asked}: {raised.seen}. {raised.cure}"


@contextmanager
def refuses(
    asked: str, seen: str, cure: str, error: type[gc.GradClipError] = gc.InvalidArgumentError
) -> Iterator[dict[str, Array]]:
    """The class, each of the three parts, and that no byte of the gradients changes."""
    given = grads()
    before = {name: array.tobytes() for name, array in given.items()}
    with pytest.raises(error) as caught:
        yield given
    check_sentence(caught.value, error, asked, seen, cure)
    assert caught.value.cure
    assert "\n" not in caught.value.seen
    assert {name: array.tobytes() for name, array in given.items()} == before


@contextmanager
def says(error: type[gc.GradClipError], *words: str) -> Iterator[None]:
    """The class, and words of the sentence, where no gradients are at hand."""
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)

"""The reference behind the protocol, for testing the suite itself: it must pass every check.

A liar is a loopback with one thing wrong; the suite must tell. To write a backend's own liars,
derive from ``Loopback`` and override a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradclip_core.protocol import Actions, Buffer, Measurements, Request, What
from gradclip_core.reference import BACKEND as REFERENCE


class Loopback:
    """The reference under another name: passes every check."""

    name = "loopback"

    def not_supported_reasons(self, request: Request) -> list[str]:
        """The reference's."""
        return REFERENCE.not_supported_reasons(request)

    def measure(self, buffers: Sequence[Buffer], what: What) -> Measurements:
        """The reference's."""
        return REFERENCE.measure(buffers, what)

    def apply(self, buffers: Sequence[Buffer], out: Sequence[Buffer], actions: Actions) -> None:
        """The reference's."""
        REFERENCE.apply(buffers, out, actions)

"""How much of what is slow is run: a part of it each time, all of it where ``GRADCLIP_EVERYTHING`` is set."""

from __future__ import annotations

import os

EVERYTHING = bool(os.environ.get("GRADCLIP_EVERYTHING"))

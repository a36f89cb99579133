"""Whether a compiler reads this code and nobody runs it.

``torch.compile`` follows Python with symbols in place of tensors and numbers. Whatever would look at a value asks here
first, and leaves it to the operator that stands for the call in the compiler's graph (``arrays/torch_compile.py``).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from typing import Any

# Torch itself is no global here: Dynamo compiles by itself what reads such a global, and ``in_graph`` would then say
# "yes" to who traces nothing.
_loaded: dict[str, Any] = {}


def dynamo_is_loaded() -> bool:
    """Whether the compiler of PyTorch is loaded; ``_loaded`` has its module then.

    To that compiler this is a constant: it calls the function and does not read it. Reading ``sys.modules``, it would
    go through all of it, and fail where another thread imports something meanwhile.
    """
    if "torch._dynamo" not in sys.modules:
        return False
    _loaded["torch"] = sys.modules["torch"]
    return _loaded["torch"] is not None  # None: whoever forbids its import


dynamo_is_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what assume_constant_result leaves


def in_graph() -> bool:
    """Whether ``torch.compile`` is tracing. It answers for itself: to it, this is a constant."""
    return dynamo_is_loaded() and _loaded["torch"].compiler.is_dynamo_compiling() is True


def leave_graph(why: str) -> None:
    """End the graph here: what follows runs eagerly. With ``fullgraph=True`` an error that says why."""
    _loaded["torch"]._dynamo.graph_break(msg=why)


def kept_eager(function: Any, why: str) -> Any:
    """The function, and all that it calls, out of the sight of Dynamo, which has to be loaded."""
    return _loaded["torch"]._dynamo.disable(function, reason=why)


def kept_whole(things: Iterable[object]) -> None:
    """Tell TensorFlow's AutoGraph to call these functions and classes as they are.

    It would rewrite them, and all that they call, statement by statement: twenty seconds, and warnings of what it
    cannot rewrite. TensorFlow's operations need none of it, and the attribute is what marks its own rewritten code.
    """
    for thing in things:
        for part in (thing, *vars(thing).values()) if isinstance(thing, type) else (thing,):
            if inspect.isfunction(part) or part is thing:
                part.autograph_info__ = None  # type: ignore[attr-defined]

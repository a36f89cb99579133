"""A rule in all the ways there are to apply it, on a device without kernels, against the reference on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradclip_core as gc
from gradclip_core.rules import Rule
from tests.gpu.cupy.compare import contents, copied, told
from tests.property.strategies import mapped

Array = Any
PASSED_OVER = {
    "cupy_raw": ["it cannot be imported (ImportError: cupy_raw is not here). Try: pip install 'gradclip-core[cuda13]'"],
    "numba_cuda": ["it cannot be imported (ImportError: numba_cuda is not here). Try: pip install 'numba-cuda[cu13]'"],
}


class Ways:
    """``upload`` makes an array on the device of one on the host, with its strides; ``fetch`` is the way back."""

    def __init__(self, upload: Callable[[Array], Any], fetch: Callable[[Any], Array]) -> None:
        self.upload = upload
        self.fetch = fetch

    def up(self, host: Any) -> Any:
        """A container of arrays on the device; an array that it holds twice is one there too."""
        known: dict[int, Any] = {}

        def moved(x: Array) -> Any:
            if id(x) not in known:
                known[id(x)] = self.upload(x)
            return known[id(x)]

        return mapped(host, moved)

    def down(self, grads: Any) -> Any:
        """A dict or list of arrays, as NumPy's."""
        if isinstance(grads, dict):
            return {key: self.fetch(x) for key, x in grads.items()}
        return [self.fetch(x) for x in grads]

    def check(self, host: Any, rule: Rule, device_rule: Rule | None = None, **how: Any) -> gc.ClipInfo:
        """Every way gives the reference's bits and its info. ``device_rule``: the rule with weights on the device."""
        before, ours = contents(host), device_rule or rule
        expected, info = gc.clip(host, rule, backend="numpy", **how)
        grads = self.up(host)
        made, new_info = gc.clip(grads, ours, **how)
        assert contents(self.down(grads)) == before, "the originals of a call that makes new arrays are written"
        assert contents(self.down(made)) == contents(expected)
        assert told(new_info) == told(info)
        assert (new_info.backend, new_info.passed_over) == ("array_api", PASSED_OVER)
        plan = gc.plan(grads, ours, **how)
        assert contents(self.down(grads)) == before, "a plan writes"
        assert contents(self.down(plan.apply(grads))) == contents(expected)
        assert told(plan.info) == told(info)
        in_place = gc.clip_(grads, ours, **how)
        assert contents(self.down(grads)) == contents(expected)
        assert told(in_place) == told(gc.clip_(copied(host), rule, backend="numpy", **how))
        again = self.up(host)
        assert told(plan.apply_(again)) == told(info)
        assert contents(self.down(again)) == contents(expected)
        return info


def layouts(*, negative: bool) -> dict[str, Array]:
    """Every layout but the plain one. PyTorch has no negative strides."""
    rng = np.random.default_rng(7)

    def base(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    found = {
        "every second": base(60, 70)[:, ::2],
        "transposed": base(33, 130).T,
        "permuted": base(6, 7, 8, 9).transpose(2, 0, 3, 1),
        "fortran": np.asfortranarray(base(50, 20)),
        "column": base(99, 4)[:, 1:2],
        "one column": base(1, 40).T,
        "double": base(64, 64).astype(np.float64)[::3, 1:],
        "offset": base(701)[1:],
        "complex": (base(30, 20) + 1j * base(30, 20)).T[::2],
        "complex, dense": (base(30, 20) + 1j * base(30, 20)).T,
    }
    if negative:
        found |= {"backwards": base(5000)[::-1], "both ways": base(40, 30)[::-2, ::3]}
    return found

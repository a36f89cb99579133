"""A few calls that take every kernel through what it does, small enough for compute-sanitizer.

``compute-sanitizer --tool racecheck python -m tests.gpu.device.sanitized``
"""

from __future__ import annotations

from tests.gpu.device import with_cupy


def main() -> None:
    """Every rule and dtype once; more arrays than go by value; packed arrays; a float64 that is scaled."""
    for dtype in with_cupy.DTYPES:
        for rule in with_cupy.RULES:
            with_cupy.rules(dtype, rule)
    with_cupy.units()
    with_cupy.many_arrays()
    with_cupy.strided_arrays()
    with_cupy.subnormals()
    with_cupy.deterministic(1)
    print("clean")


if __name__ == "__main__":
    main()

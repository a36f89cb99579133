"""The public conformance suite: holds any backend to the reference, bit for bit.

from gradclip_core import testing
for check in testing.checks(backend):
    check.run()          # raises testing.ConformanceError, with what differed

Operations on arrays without memory (traced, lazy) are of the class ``approximate``: held to the reference within
bounds, by ``testing.approximate_checks(backend.operations, arrays)``.
"""

from gradclip_core.testing.approximate import Arrays, NumpyArrays, approximate_checks
from gradclip_core.testing.conformance import Check, ConformanceError, checks
from gradclip_core.testing.loopback import DeviceLoopback, Loopback
from gradclip_core.testing.memory import HostMemory, Memory

__all__ = [
    "Arrays",
    "Check",
    "ConformanceError",
    "DeviceLoopback",
    "HostMemory",
    "Loopback",
    "Memory",
    "NumpyArrays",
    "approximate_checks",
    "checks",
]

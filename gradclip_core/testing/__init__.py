"""The public conformance suite: holds any backend to the reference, bit for bit.

from gradclip_core import testing
for check in testing.checks(backend):
    check.run()          # raises testing.ConformanceError, with what differed
"""

from gradclip_core.testing.conformance import Check, ConformanceError, checks
from gradclip_core.testing.loopback import DeviceLoopback, Loopback
from gradclip_core.testing.memory import HostMemory, Memory

__all__ = ["Check", "ConformanceError", "DeviceLoopback", "HostMemory", "Loopback", "Memory", "checks"]

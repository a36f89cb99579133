"""An array of more than 2^31 elements: no index, offset or count may have 32 bits."""

from __future__ import annotations

import numpy as np

from gradclip_core.protocol import FLOAT16, Buffer, What
from tests.gpu.standin import Machine

LENGTH = 2**31 + 5000
FAR = {7: 3.0, 2**31 - 1: 4.0, 2**31: 12.0, LENGTH - 1: 84.0}
"""3² + 4² + 12² + 84² = 85²"""


def test_past_two_to_the_31st(standin: Machine) -> None:
    """Zeros cost no memory until they are written, and almost all of these never are."""
    from gradclip_backends.cupy_raw import BACKEND

    x = np.zeros(LENGTH, np.float16)
    for place, value in FAR.items():
        x[place] = value
    standin.adopt(x.ctypes.data, x.nbytes, 0, x)
    buffer = Buffer(x.ctypes.data, LENGTH, FLOAT16, device="cuda:0", owner=x, stream=1)
    found = BACKEND.measure([buffer], What(2.0))
    assert (found.sums[0], found.largest[0], found.infs[0], found.nans[0]) == (85.0**2, 84.0, 0, 0)

"""The backend that has no kernels: it works through the arrays' own framework, and the host decides.

``frameworks.py`` knows what is special to PyTorch and CuPy, ``rows.py`` finds the arrays,
``floats.py`` converts and rounds, ``sums.py`` keeps the order of additions.
"""

from gradclip_backends.array_api.backend import ArrayApiBackend

BACKEND = ArrayApiBackend()

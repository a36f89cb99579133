"""Write protection: the proof that a call writes nothing, not even the bytes that are there."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable

_PROT_READ = 1


def dies_when_protected(pointer: int, size: int, call: Callable[[], None]) -> bool | None:
    """Whether ``call`` writes to the pages that lie wholly within ``pointer .. pointer + size``.

    It runs in a forked child in which those pages are read-only, so that a write ends the child
    by a signal. None where that cannot be done: no fork, or no whole page.

    Raises
    ------
    RuntimeError
        if the child fails in any other way.
    """
    page = mmap.PAGESIZE
    start, stop = -(-pointer // page) * page, (pointer + size) // page * page
    if not hasattr(os, "fork") or stop <= start:
        return None
    call()  # once before, so that the child compiles nothing
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python and JAX warn of forks. The child only calls a backend, which has to be safe after one.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        status = 3
        try:
            for number in (signal.SIGSEGV, signal.SIGBUS):
                signal.signal(number, signal.SIG_DFL)  # no crash report: the crash is the answer
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _PROT_READ) == 0:
                call()
                status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGSEGV, signal.SIGBUS):
        return True
    if os.waitstatus_to_exitcode(status) == 0:
        return False
    raise RuntimeError(f"the protected call failed without writing (status {status})")

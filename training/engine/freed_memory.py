"""Memory of a training process on CPU: reuse the memory that one step frees in the next one."""

import ctypes
import sys


# glibc's mallopt parameters (malloc.h).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system; returns whether that succeeded.

    A training step frees all its activations, and the next one allocates them again. If the memory were returned,
    every page would be cleared and mapped again, which can take as long as the arithmetic. Does nothing outside Linux
    with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in settings.items())

"""Memory of a training process on CPU: keep what a step frees for the next one."""

import ctypes
import sys


# glibc's mallopt parameters (malloc.h).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the system; returns whether it listened.

    A training step frees all its activations and allocates them again: given back, every page has to be cleared and
    mapped anew, which can cost as much as the arithmetic. Does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in settings.items())

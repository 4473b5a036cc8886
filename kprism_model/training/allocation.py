# SPDX-License-Identifier: Apache-2.0
"""How freed memory is kept for the next training step on a CPU."""

from __future__ import annotations

import ctypes

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEPT = (1 << 31) - 1  # bytes that may lie free at the end of the heap before some are given back
_AHEAD = 64 << 20  # bytes that are asked for beside what is needed


def keep_freed_memory() -> bool:
    """Make the C library keep what is freed, for the rest of the process; false where it is not glibc.

    By default it gives large tensors back to the system at once, and each step pays for the same pages anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _AHEAD))
    return all(mallopt(name, value) == 1 for name, value in wanted)

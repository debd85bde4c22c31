"""How this process asks the system for memory."""

import ctypes
import sys

_CACHE_BYTES = 2**24
_KEPT_BYTES = 2**26


def keep_one_heap() -> None:
    """Save memory, and the time of asking for it, on Linux, where glibc's heaps grow and hardly shrink.

    The thread of the backward pass would get a heap of its own. Caches, the blocks above the second limit, go back to
    the system when they are freed; glibc raises that limit by itself until even they stay in the heap. Once it is
    given, any free end of the heap above 128 kB goes back too, only to be asked for again, page by page, in the same
    step of tuning: the third limit keeps the temporaries of a step.
    """
    if sys.platform == "linux":
        arena_max, mmap_threshold, trim_threshold = -8, -3, -1  # M_ARENA_MAX and so on of malloc.h
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(arena_max, 1)
            set_option(mmap_threshold, _CACHE_BYTES)
            set_option(trim_threshold, _KEPT_BYTES)

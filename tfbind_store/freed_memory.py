"""What the C library does with memory that is freed: keep it for what is asked for next, or give it to the system.

glibc gives large pieces back at once and what lies free at the end of its heap soon. A training step frees and asks for
the same hundreds of megabytes again, and the system clears every page before it hands it out: a quarter of the CPU
time of an `adapter`'s training. Other C libraries (musl, macOS) have no such switch and are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from functools import cache

MIB = 2**20
# glibc's malloc.h: what mallopt calls them
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * MIB, _MMAP_THRESHOLD: 1024 * MIB}
"""While memory is kept, in bytes: free memory at the heap's end that is given back, what is asked for beyond what is
needed, and the size from which a piece has pages of its own."""
USUAL = {_TRIM_THRESHOLD: 64 * MIB, _TOP_PAD: MIB // 8, _MMAP_THRESHOLD: 32 * MIB}
"""What a process that frees large pieces gets to by itself, which is as far as glibc moves its own thresholds."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory in this process for a while, for up to 2 GiB; afterwards it is given back.

    The switch is the process's: of two that overlap, the first to end ends it for both.
    """
    _set(KEPT)
    try:
        yield
    finally:
        _set(USUAL)
        give_back()


def give_back() -> None:
    """Give the system the memory that is free inside this process.

    Temporaries of a few megabytes stay with the process when they are freed, in holes between what lives on.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _set(sizes: dict[int, int]) -> None:
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    for name, size in sizes.items():
        if not mallopt(name, size):  # before glibc 2.35 pieces above 32 MiB always have pages of their own
            mallopt(name, 32 * MIB)


@cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return one of glibc's own functions; None where another C library is."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return None
    function: Callable[..., int] = getattr(library, name)
    return function

"""A thread that has the system bring mapped pages from the disk before somebody reads them.

Asking is slow itself: a disk takes few requests at a time, so ``madvise(WILLNEED)`` comes back when most of what it was
asked for has arrived. Who copies rows would wait for rows that it reads much later; so a thread asks, one for all
arrays of a process, in the order in which it was told. `ctypes` lets other threads run meanwhile, Python's own
``madvise`` does not.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import queue
import threading
from collections.abc import Callable
from functools import cache

from tfbind_store.arrays.spaces import Space

_WILL_NEED: int | None = getattr(mmap, "MADV_WILLNEED", None)


class Fetcher:
    """Asks for pages in a thread of its own, which begins with the first call and ends with the process."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[Space, int, int]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.n_asked = 0
        """Requests that the system has answered."""

    def fetch(self, space: Space, begin: int, n_bytes: int) -> None:
        """Have some bytes of a space fetched, sooner or later; where the system takes no advice, nothing happens.

        Parameters
        ----------
        begin
            Counted from the first byte of the space.
        """
        if _WILL_NEED is None:
            return
        self._wanted.put((space, begin, n_bytes))
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._ask, name="tfbind-fetch", daemon=True)
                    self._thread.start()

    def _ask(self) -> None:
        assert _WILL_NEED is not None
        while True:
            space, begin, n_bytes = self._wanted.get()  # held here, so its addresses are nobody else's meanwhile
            first = begin - begin % mmap.PAGESIZE
            # advice: a refusal, such as of pages that were unmapped since, costs a later reader time and nothing else
            _system("madvise")(space.address + first, begin + n_bytes - first, _WILL_NEED)
            self.n_asked += 1
            del space


@cache
def fetcher() -> Fetcher:
    """Return the fetcher of this process."""
    return Fetcher()


# a child that is forked has the parent's objects and none of its threads
os.register_at_fork(after_in_child=fetcher.cache_clear)


def is_in_memory(space: Space, byte: int) -> bool:
    """Return whether the page of a mapped byte is in memory; True too where the system does not tell.

    Linux tells it of files that the caller owns or may write.
    """
    found = ctypes.c_ubyte(1)
    failed = _system("mincore")(space.address + byte - byte % mmap.PAGESIZE, 1, ctypes.byref(found))
    return bool(failed) or bool(found.value & 1)


@cache
def _system(name: str) -> Callable[..., int]:
    """Return one of the system's calls on memory: an address, a length, one argument more."""
    call = getattr(ctypes.CDLL(None), name)
    call.restype = ctypes.c_int
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int if name == "madvise" else ctypes.c_void_p]
    found: Callable[..., int] = call
    return found

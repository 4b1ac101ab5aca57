"""One stretch of addresses for all shards of an array, so that any bins of it are one indexed copy.

Shards lie in it one after the other, a fixed distance apart, each mapped from its file when it is first needed. Where
no shard is mapped yet there is nothing: reading there ends the process, it does not give zeros; ``mappings`` sees to it
that nobody does. A *vector* is the last axis of an array: one bin, one residue.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np
from jaxtyping import Int64, Shaped

from tfbind_store.arrays.layouts import ArrayLayout

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if os.uname().sysname == "Linux" else 0)
_SHORT_RUN = 8
_FIXED = 0x10
"""The value of MAP_FIXED in Linux and macOS; Python's mmap cannot choose an address."""


class Space:
    """Addresses for some consecutive shards of an array.

    Taking addresses takes no memory: 150 GB for the embeddings of a genome cost nothing until they are read.

    Parameters
    ----------
    layout
        Of the array.
    first_shard, n_shards
        Which shards.

    Raises
    ------
    OSError
        If the system does not give that many addresses.
    """

    def __init__(self, layout: ArrayLayout, first_shard: int, n_shards: int) -> None:
        self.first_shard, self.n_shards = int(first_shard), int(n_shards)  # of numpy too: the system takes none
        self._pitch_bytes = pitch(layout) * vector_bytes(layout)
        self.pages = mmap.mmap(
            -1, n_shards * self._pitch_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, prot=0
        )
        self.flat: Shaped[np.ndarray, "vectors dim"] = np.frombuffer(self.pages, dtype=layout.dtype).reshape(
            -1, layout.shape[-1]
        )
        """Every vector of every shard, read-only; between shards there may be vectors that do not exist."""
        self.address = int(self.flat.__array_interface__["data"][0])
        """Of the first byte."""
        self.is_ready = np.zeros(n_shards, dtype=bool)
        """Which shards are mapped and have no window left to be checked."""

    def begin(self, shard_id: int) -> int:
        """Return the first byte of a shard."""
        return (int(shard_id) - self.first_shard) * self._pitch_bytes

    def put(self, shard_id: int, descriptor: int, n_bytes: int) -> None:
        """Map the first bytes of an open file where a shard belongs.

        The mapping is private: a tensor made from a view and written to by mistake changes neither the file nor another
        process, and does not crash.

        Raises
        ------
        OSError
            If the system refuses.
        """
        begin = self.begin(shard_id)
        address = self.address + begin
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _FIXED | _NORESERVE
        if _system_mmap()(address, n_bytes, protection, flags, descriptor, 0) != address:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if hasattr(mmap, "MADV_RANDOM"):
            self.pages.madvise(mmap.MADV_RANDOM, begin, n_bytes)


def vector_bytes(layout: ArrayLayout) -> int:
    """Return the bytes of one vector."""
    return layout.shape[-1] * layout.dtype.itemsize


def pitch(layout: ArrayLayout) -> int:
    """Return the distance from shard to shard in vectors: a whole number of them, and of the system's pages."""
    size = vector_bytes(layout)
    step = math.lcm(size, mmap.ALLOCATIONGRANULARITY)
    return -(-layout.windows_per_shard * layout.window_bytes // step) * step // size


class Runs(Protocol):
    """Runs of bins of an array that were checked, to be read some at a time."""

    def read(
        self, part: slice = slice(None), out: Shaped[np.ndarray, "g n dim"] | None = None
    ) -> Shaped[np.ndarray, "g n dim"]:
        """Return some of the runs, in `out` if given."""
        ...


class Located:
    """Where runs of bins lie in memory, all of them checked; what is left to do is to copy.

    Parameters
    ----------
    flats
        The vectors of each space.
    places
        Of each vector of each run, in its space.
    which
        Which space each vector lies in; None where there is only one.
    """

    def __init__(
        self,
        flats: list[Shaped[np.ndarray, "vectors dim"]],
        places: Int64[np.ndarray, "k n"],
        which: Int64[np.ndarray, "k n"] | None,
    ) -> None:
        self._flats, self._places, self._which = flats, places, which
        self._numbers = flats[0].reshape(-1)
        self._first_numbers: Int64[np.ndarray, " k"] | None = None
        if which is None and places.shape[-1] <= _SHORT_RUN:
            self._first_numbers = places[:, 0] * flats[0].shape[-1]

    def read(
        self, part: slice = slice(None), out: Shaped[np.ndarray, "g n dim"] | None = None
    ) -> Shaped[np.ndarray, "g n dim"]:
        """Copy some of the runs, into `out` if given."""
        places = self._places[part]
        if self._which is None:
            if self._first_numbers is not None:  # all runs' first misses at once, not one by one: a tenth less time
                self._numbers.take(self._first_numbers[part], mode="clip")
            # every place is in range; numpy would copy twice into `out` to be sure of it
            taken: Shaped[np.ndarray, "g n dim"] = self._flats[0].take(places, axis=0, out=out, mode="clip")
            return taken
        if out is None:
            out = np.empty((*places.shape, self._flats[0].shape[-1]), dtype=self._flats[0].dtype)
        for number, flat in enumerate(self._flats):
            mine = self._which[part] == number
            out[mine] = flat[places[mine]]
        return out


@cache
def _system_mmap() -> Callable[..., int | None]:
    """Return the system's own mmap."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    found: Callable[..., int | None] = call
    return found

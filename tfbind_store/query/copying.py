"""Copy the embeddings of a leg's rows into batches, and tell the system ahead where they lie on the disk."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float16, Int64

from tfbind_store.arrays.spaces import Runs

PROBE_EVERY = 16
"""Calls of an announcer of which one is left out."""


class Reading:
    """Copies the embeddings of batches of a leg, from one array or from either of two by the strand of each row.

    Parameters
    ----------
    first
        Row of the leg that they begin with.
    runs
        Where the rows lie: all of them, or those of either strand.
    strand
        Whether a row is of the second array; None where there is one.
    """

    def __init__(self, first: int, runs: list[Runs], strand: Bool[np.ndarray, " r"] | None) -> None:
        self._first, self._runs, self._strand = first, runs, strand
        if strand is not None:
            self._n_reverse = [0, *np.cumsum(strand).tolist()]

    def __call__(self, rows: slice, out: Float16[np.ndarray, "b n d"]) -> Float16[np.ndarray, "b n d"]:
        """Return the embeddings of some rows of the leg, in `out`."""
        begin, end = rows.start - self._first, rows.stop - self._first
        if self._strand is None:
            return self._runs[0].read(slice(begin, end), out)
        is_reverse = self._strand[begin:end]
        first, last = self._n_reverse[begin], self._n_reverse[end]
        out[~is_reverse] = self._runs[0].read(slice(begin - first, end - last))
        out[is_reverse] = self._runs[1].read(slice(first, last))
        return out


class Announcer:
    """Announces rows ahead as long as reading meets pages that lie on the disk.

    Announcing pages that are in memory already is lost time. So nothing is announced until a fault is met, and then now
    and again a batch is left unannounced, to see whether faults are still met.

    Parameters
    ----------
    announce
        Tells the system which rows are read soon, given by their places in the split.
    """

    def __init__(self, announce: Callable[[Int64[np.ndarray, " b"]], None]) -> None:
        self._announce = announce
        self._is_cold, self._was_announced, self._number = False, False, 0
        self._faults = _major_faults()

    def __call__(self, batches: Sequence[Int64[np.ndarray, " b"]]) -> None:
        """Announce the rows of some batches, or not; what was read since the last call shows whether it is worth it."""
        faults = _major_faults()
        if not self._was_announced and self._number:
            self._is_cold = faults > self._faults
        self._faults, self._number = faults, self._number + 1
        self._was_announced = bool(batches) and self._is_cold and self._number % PROBE_EVERY != 0
        if self._was_announced:
            self._announce(np.concatenate(batches))


def _major_faults() -> int:
    """Return how often this thread has waited for a page from the disk."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_majflt

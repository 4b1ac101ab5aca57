"""Copy the embeddings of a leg's rows into batches, and tell the system ahead where they lie on the disk."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float16, Int64

from tfbind_store.arrays.spaces import Runs


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
    """Announces the batches of an epoch ahead, once one of them is on the disk.

    Announcing pages that are in memory already is lost time, so nothing is announced until it is known of a page that
    it lies on the disk; from then on all that the epoch still has, each batch once.

    Parameters
    ----------
    announce
        Tells the system which rows are read soon, given by their places in the split.
    batches
        Of the epoch, in order.
    n_ahead
        How many batches before it is read a batch is announced.
    is_cold
        Whether the epoch's first rows are known to lie on the disk. Where that is not known, reading will meet it.
    """

    def __init__(
        self,
        announce: Callable[[Int64[np.ndarray, " b"]], None],
        batches: Sequence[Int64[np.ndarray, " b"]],
        n_ahead: int,
        *,
        is_cold: bool,
    ) -> None:
        self._announce, self._batches, self._n_ahead = announce, batches, n_ahead
        self._n_told, self._is_cold, self._faults = 0, is_cold, _major_faults()

    def before(self, number: int) -> None:
        """Announce what is due before batch `number` is read."""
        self._is_cold = self._is_cold or _major_faults() > self._faults
        soon = self._batches[max(self._n_told, number) : number + self._n_ahead]
        if self._is_cold and soon:
            self._announce(np.concatenate(soon))
            self._n_told = number + self._n_ahead


def _major_faults() -> int:
    """Return how often this thread has waited for a page from the disk."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_majflt

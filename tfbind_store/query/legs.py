"""A leg of an epoch: some batches whose columns are looked up together.

Looking up a column costs a few microseconds however few rows are asked for, and a batch needs about thirty such steps:
as much as copying its embeddings. A leg does them once for all its batches, which are then slices of what was found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8, Int64, Integer, Shaped

from tfbind_store.query.labels import as_labels

_MOST_BUFFERS = 8
_ROWS_PER_LEG = 1 << 15
_CELLS_PER_LEG = 1 << 20
"""Cells of the table of (batch, factor) pairs."""


def row_table(
    *,
    row: Int64[np.ndarray, " r"],
    first_bin: Int64[np.ndarray, " r"],
    factor: Int64[np.ndarray, " r"],
    context: Int64[np.ndarray, " r"],
    codes: Int8[np.ndarray, "r n"],
    weight: Float32[np.ndarray, " r"],
) -> Shaped[np.ndarray, " r"]:
    """Return what a loader knows of the rows of a split as one structured array: one miss a row, not six.

    Parameters
    ----------
    row
        Id in the selection.
    first_bin
        Global bin that the row begins with.
    factor, context
        Place among the distinct ones of the split.
    codes
        Labels as ``labels.Truth.codes`` gives them.
    weight
        Of the row.
    """
    width = -(-(28 + codes.shape[1]) // 8) * 8
    fields = {"row": "i8", "first_bin": "i8", "factor": "i4", "context": "i4", "weight": "f4"}
    formats: list[Any] = [*fields.values(), ("i1", codes.shape[1:])]
    offsets = [0, 8, 16, 20, 24, 28]
    dtype = np.dtype({"names": [*fields, "codes"], "formats": formats, "offsets": offsets, "itemsize": width})
    table = np.zeros(len(row), dtype=dtype)
    columns = {"row": row, "first_bin": first_bin, "factor": factor, "context": context, "weight": weight}
    for name, column in (columns | {"codes": codes}).items():
        table[name] = column
    return table


class Leg:
    """The columns of some batches, one batch after the other.

    Parameters
    ----------
    table
        Of the split, see `row_table`.
    batches
        Places of each batch's rows in the split.
    n_factors, n_contexts
        Distinct ones in the split.
    """

    def __init__(
        self,
        table: Shaped[np.ndarray, " r"],
        batches: Sequence[Int64[np.ndarray, " b"]],
        *,
        n_factors: int,
        n_contexts: int,
    ) -> None:
        sizes = [len(places) for places in batches]
        ends = list(accumulate(sizes))
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        """Where each batch lies in the columns."""
        self.places = batches[0] if len(batches) == 1 else np.concatenate(batches)
        mine = table.take(self.places)
        self.rows, self.first_bin, self.weights = (mine[name].copy() for name in ("row", "first_bin", "weight"))
        self.labels = as_labels(mine["codes"])
        self.factors, self.factor_index = each_once(mine["factor"], sizes, n_factors)
        self.contexts, self.context_index = each_once(mine["context"], sizes, n_contexts)


def batches_per_leg(batch_size: int, n_distinct: int) -> int:
    """Return how many batches to look up together: enough that it costs little, few enough that it stays small."""
    return max(1, min(_ROWS_PER_LEG // batch_size, _CELLS_PER_LEG // n_distinct))


def each_once(
    numbers: Integer[np.ndarray, " r"], sizes: Sequence[int], limit: int
) -> tuple[list[Int64[np.ndarray, " k"]], Int64[np.ndarray, " r"]]:
    """Return the distinct numbers of each batch, ascending, and which of its batch's each one is.

    Parameters
    ----------
    numbers
        Small ones, 0 to `limit` - 1, batch after batch.
    sizes
        Of the batches.

    Examples
    --------
    >>> found, index = each_once(np.array([4, 1, 4, 0]), [3, 1], 6)
    >>> [distinct.tolist() for distinct in found], index.tolist()
    ([[1, 4], [0]], [1, 0, 1, 0])
    """
    keys = numbers + np.repeat(np.arange(len(sizes)) * limit, sizes)
    present = np.zeros(len(sizes) * limit, dtype=bool)
    present[keys] = True
    found = np.flatnonzero(present)
    batch, distinct = np.divmod(found, limit)
    begins = np.searchsorted(batch, np.arange(len(sizes) + 1))
    rank = np.empty(len(present), dtype=np.int64)
    rank[found] = np.arange(len(found)) - begins[batch]
    return [distinct[begin:end] for begin, end in pairwise(begins.tolist())], rank[keys]


class Buffers:
    """Arrays of one length, given again once nobody holds them or a view of them.

    A new array of some megabytes is new pages of memory, and asking the system for those takes a fifth of the time that
    filling them does.
    """

    def __init__(self, make: Callable[[int], Shaped[np.ndarray, "r ..."]], n_rows: int) -> None:
        self._make, self.n_rows = make, n_rows
        self._owned = [make(n_rows)]
        self._next = 0
        self._unused = sys.getrefcount(self._owned[0])
        self._may_count = getattr(sys, "_is_gil_enabled", lambda: True)()  # else references are counted elsewhere too

    def get(self, n_rows: int) -> Shaped[np.ndarray, "r ..."]:
        """Return `n_rows` rows that are nobody else's; what they hold is undefined."""
        for _ in range(len(self._owned)) if self._may_count else ():
            self._next = (self._next + 1) % len(self._owned)
            if sys.getrefcount(self._owned[self._next]) == self._unused:
                return self._owned[self._next][:n_rows]
        fresh = self._make(self.n_rows)
        if len(self._owned) < _MOST_BUFFERS:
            self._owned.append(fresh)
        return fresh[:n_rows]

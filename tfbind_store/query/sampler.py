"""In which order a loader visits the rows of a selection: seeded, exactly once per epoch, near in memory.

Rows of one window lie together on disk. The distinct windows are shuffled and cut into blocks; the rows of a block are
shuffled among themselves; blocks follow each other. Every draw is a hash (``draws``), so the order depends on the seed,
the epoch and the rows alone. Nothing here reads embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from tfbind_store.errors import ConfigError
from tfbind_store.query import draws

_SORTED_AT_ONCE = 64
_KEYS_AT_ONCE = 1 << 14


class RowWindows(NamedTuple):
    """The windows of some rows, found once for all epochs over them."""

    distinct: Integer[np.ndarray, " k"]
    """Ascending."""
    which: Int64[np.ndarray, " rows"]
    """Which of them each row is of."""

    @staticmethod
    def of(windows: Integer[np.ndarray, " rows"]) -> RowWindows:
        """Return what is to be known of the window of each row; fast where they ascend, as a selection's rows do."""
        if (windows[1:] < windows[:-1]).any():
            found, which = np.unique(windows, return_inverse=True)
            return RowWindows(found, which.astype(np.int64))
        begins = np.ones(len(windows), dtype=bool)
        begins[1:] = windows[1:] != windows[:-1]
        return RowWindows(windows[begins], np.cumsum(begins) - 1)


def epoch_order(windows: RowWindows, *, block_windows: int, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    """Return the places of the rows in the order in which an epoch visits them: a permutation.

    Parameters
    ----------
    windows
        Of the rows.
    block_windows
        Windows whose rows are mixed; 1 reads window after window, more mixes better and touches more memory at once.
    seed, epoch
        Another epoch is another order.

    Examples
    --------
    >>> sorted(epoch_order(RowWindows.of(np.array([4, 4, 9])), block_windows=1, seed=0, epoch=0).tolist())
    [0, 1, 2]
    """
    if block_windows < 1:
        raise ConfigError(f"block_windows is {block_windows}, must be at least 1", where="loader")
    distinct, which = windows
    window_draw = draws.draw(seed, "window order", epoch, distinct.astype(np.int64))
    rank = np.empty(len(distinct), dtype=np.uint64)
    rank[np.lexsort((distinct, window_draw))] = np.arange(len(distinct), dtype=np.uint64)
    block = rank // np.uint64(block_windows)
    # one number per row, sorted as it is (ten times faster than sorting places by it): the block, as much of the draw
    # as there is room for, the row. Equal draws leave rows in their order.
    row_bits, block_bits = (np.uint64(int(n).bit_length()) for n in (len(which), len(distinct) // block_windows + 1))
    block <<= np.uint64(64) - block_bits
    order = np.empty(len(which), dtype=np.uint64)
    for begin in range(0, len(which), _KEYS_AT_ONCE):
        row = np.arange(begin, min(begin + _KEYS_AT_ONCE, len(which)), dtype=np.uint64)
        key = draws.draw(seed, "row order", epoch, row.view(np.int64))
        key >>= block_bits + row_bits
        key <<= row_bits
        key |= row
        np.bitwise_or(key, block[which[begin : begin + len(row)]], out=order[begin : begin + len(row)])
    order.sort()
    order &= (np.uint64(1) << row_bits) - np.uint64(1)
    return order.view(np.int64)


def balanced_rows(groups: Integer[np.ndarray, " rows"], *, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    """Return which rows an epoch visits if every group shall come equally often: as many as there are rows.

    Rows of large groups are left out and those of small groups repeat. Each group goes through its own rows in turn,
    from one epoch on to the next, so that over time all rows of a group come equally often.

    Examples
    --------
    >>> rows = balanced_rows(np.array([0, 0, 0, 1]), seed=0, epoch=0)
    >>> [int((rows < 3).sum()), int((rows == 3).sum())]
    [2, 2]
    """
    rows = np.arange(len(groups), dtype=np.int64)
    distinct, which = np.unique(groups, return_inverse=True)
    order = np.lexsort((rows, draws.draw(seed, "balanced order", rows), which))
    sizes = np.bincount(which, minlength=len(distinct))
    ends = np.cumsum(sizes)
    quotas = np.full(len(distinct), len(rows) // max(1, len(distinct)))
    quotas[: len(rows) - int(quotas.sum())] += 1
    taken = [
        order[end - size + (epoch * quota + np.arange(quota)) % size]
        for end, size, quota in zip(ends.tolist(), sizes.tolist(), quotas.tolist(), strict=True)
    ]
    return np.concatenate(taken) if taken else rows


def batches_of(
    order: Int64[np.ndarray, " rows"], *, batch_size: int, first_row: int = 0, part: int = 0, n_parts: int = 1
) -> Iterator[tuple[int, Int64[np.ndarray, " b"]]]:
    """Cut an order into batches and yield (how many rows of the order lie before its end, rows).

    The rows of a batch ascend: which rows meet is what the order decides, and ascending rows are read in one sweep. The
    last batch may be shorter.

    Parameters
    ----------
    first_row
        Rows of the order that a stopped run has seen; one part alone may go on with batches of another size.
    part, n_parts
        Yield only the batches whose number leaves `part` when divided by `n_parts`: workers share an epoch without
        overlap, and together see every row once.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, must be at least 1", where="loader")
    if not 0 <= part < n_parts:
        raise ConfigError(f"part {part} is not one of {n_parts} parts", where="loader")
    base = first_row if n_parts == 1 else 0
    n_seen = -(-first_row // batch_size) if n_parts > 1 else 0
    n_batches = -(-(len(order) - base) // batch_size)
    numbers = range(n_seen + (part - n_seen) % n_parts, n_batches, n_parts)
    whole = len(order[base:]) // batch_size
    table = order[base : base + whole * batch_size].reshape(whole, batch_size)
    for at in range(0, len(numbers), _SORTED_AT_ONCE):
        some = numbers[at : at + _SORTED_AT_ONCE]
        rows = np.sort(table[some.start : some.stop : some.step], axis=1)
        for number, row in zip(some, rows, strict=False):
            yield base + (number + 1) * batch_size, row
        if len(rows) < len(some):
            yield len(order), np.sort(order[base + whole * batch_size :])

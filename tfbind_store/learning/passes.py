"""Batches out of passes over the data, one pass after the other, from any place: what a stopped run needs to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Place(NamedTuple):
    """Where a run stands in its passes."""

    number: int = 0
    """Of the pass."""
    first: int = 0
    """The pass's first item that no batch has held."""


def endless(one_pass: Callable[[int], Sequence[T]], size: int, begin: Place) -> Iterator[tuple[Place, list[T]]]:
    """Yield (where the next batch begins, batch of `size`) without end; a batch may go on into the next pass.

    Parameters
    ----------
    one_pass
        Returns the items of a pass by its number: the same in every process.

    Examples
    --------
    >>> batches = endless(lambda number: [10 * number + i for i in range(3)], 2, Place())
    >>> [next(batches)[1] for _ in range(3)]
    [[0, 1], [2, 10], [11, 12]]
    """
    number, first = begin
    batch: list[T] = []
    while True:
        items = one_pass(number)
        while first < len(items):
            taken = list(items[first : first + size - len(batch)])
            batch, first = batch + taken, first + len(taken)
            if len(batch) == size:
                yield Place(number, first), batch
                batch = []
        number, first = number + 1, 0

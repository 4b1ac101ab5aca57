"""Folds of cross-validation: which fold a chromosome, a factor or a biotype belongs to.

A fold is opened by making everything that belongs to it validation (``splits.combine``), so that one selection, and one
set of embeddings, serve all folds. Units are kept whole: kin factors share a fold, treatments of a cell line do. Units
go largest first into the fold that is emptiest, so that folds are of like size and the same on every machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from tfbind_store.errors import SelectionError
from tfbind_store.query import draws

NO_FOLD = -1


def spread(sizes: Mapping[str, int], n_folds: int, *, seed: int, purpose: str) -> dict[str, int]:
    """Return the fold of every unit.

    Parameters
    ----------
    sizes
        How much each unit weighs: bp, peaks.
    seed
        Orders units of one size.

    Raises
    ------
    SelectionError
        If there are fewer units than folds.

    Examples
    --------
    >>> spread({"a": 5, "b": 3, "c": 2}, 2, seed=0, purpose="x")
    {'a': 0, 'b': 1, 'c': 1}
    """
    if len(sizes) < n_folds:
        what = f"{n_folds} folds of {len(sizes)} {purpose}"
        raise SelectionError(what, where="split.folds", fix="ask for fewer folds, or fold by something else")
    ordered = sorted(draws.name_order(seed, f"folds of {purpose}", list(sizes)), key=lambda name: -sizes[name])
    filled = [(0, fold) for fold in range(n_folds)]
    found = {}
    for name in ordered:
        weight, fold = heapq.heappop(filled)
        found[name] = fold
        # a unit without size still takes room, else all of them would meet in one fold
        heapq.heappush(filled, (weight + max(sizes[name], 1), fold))
    return found

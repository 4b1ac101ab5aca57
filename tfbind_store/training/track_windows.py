"""Which windows of a store train tracks and which validate: by chromosome, by loci that say so, or by both.

A window is trained on where it touches training loci and none that validate; one that touches both is in neither, and
counted. Nothing is said here about what is embedded or measured.
"""

# w windows

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.store.folder import Store

_log = logging.getLogger(__name__)
Windows = Int64[np.ndarray, " w"]


class WindowSplit(NamedTuple):
    """Numbers of windows, ascending."""

    train: Windows
    valid: Windows
    n_in_neither: int = 0
    """That touch training and validation loci."""

    def only(self, known: np.ndarray) -> WindowSplit:
        """Leave out windows that are not `known`, a truth per window of the store."""
        return self._replace(train=self.train[known[self.train]], valid=self.valid[known[self.valid]])


def split_windows(
    store: Store,
    *,
    train_chroms: Collection[str] = (),
    valid_chroms: Collection[str] = (),
    loci: str | None = None,
    has_split: bool = True,
) -> WindowSplit:
    """Split the windows of a store.

    Parameters
    ----------
    train_chroms, valid_chroms
        As the genome calls them. No training chromosomes: all that do not validate. With loci that say train and valid,
        no validation chromosomes: all.
    loci
        A set of imported loci, outside of which no window is taken.
    has_split
        The loci say ``train`` or ``valid``; else chromosomes decide.

    Raises
    ------
    ConfigError
        If a chromosome both trains and validates, and no loci tell them apart.
    SelectionError
        If no locus trains.
    """
    by_loci = loci is not None and has_split
    both = sorted(set(train_chroms) & set(valid_chroms))
    if both and not by_loci:
        fix = "take it from one of them, or give loci that say train and valid"
        raise ConfigError(f"chromosome {both[0]} both trains and validates", where="chromosomes", fix=fix)
    on_train, on_valid = _on(store, train_chroms), _on(store, valid_chroms)
    train = on_train if train_chroms else np.setdiff1d(_every(store), [] if by_loci else on_valid)
    valid = on_valid if valid_chroms or not by_loci else _every(store)
    if loci is None:
        return WindowSplit(train, valid)
    if not has_split:
        touched = _touched(store, loci, None)
        return WindowSplit(np.intersect1d(train, touched), np.intersect1d(valid, touched))
    for_train, for_valid = _touched(store, loci, "train"), _touched(store, loci, "valid")
    if not len(for_train):
        fix = "import it: tfbind import loci, with train or valid in its fourth column"
        raise SelectionError(f"no training loci in the set {loci!r}", where=str(store.path), fix=fix)
    shared = np.intersect1d(for_train, for_valid)
    if len(shared):
        _log.warning("%s: %d windows touch training and validation loci and are in neither", store.path, len(shared))
    train, valid = (
        np.setdiff1d(np.intersect1d(own, part), shared) for own, part in ((train, for_train), (valid, for_valid))
    )
    return WindowSplit(train, valid, len(shared))


def _every(store: Store) -> Windows:
    return np.arange(store.tiling.n_windows, dtype=np.int64)


def _on(store: Store, chroms: Collection[str]) -> Windows:
    numbers = [store.tiling.chrom_index[chrom] for chrom in chroms]
    return np.flatnonzero(np.isin(store.tiling.window_chrom(_every(store)), numbers))


def _touched(store: Store, loci: str, split: str | None) -> Windows:
    sql = """
        SELECT DISTINCT c.first_window + unnest(range(l.start_bp // $stride, (l.end_bp - 1) // $stride + 1)) AS w
        FROM data.loci l JOIN data.chromosomes c USING (chrom_id)
        WHERE l.set_name = $name AND ($split IS NULL OR l.split = $split) ORDER BY w
    """
    params = {"stride": store.grid.stride_bp, "name": loci, "split": split}
    with store.reader() as catalog:
        return np.asarray(catalog.columns(sql, params)["w"], dtype=np.int64)

"""Run a trained head over any bins of a genome, block by block.

Proteins are read and encoded once; each block of bins then meets all pairs in matrix products. Scores are logits:
higher means more likely bound; ranks within a pair mean something, between pairs only as far as the loss taught it.
"""

# k bins · p pairs of factor and biotype

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from tfbind_store.errors import CheckpointError, MissingWindow
from tfbind_store.feeding.bins import BinReader
from tfbind_store.feeding.feed import PairSource
from tfbind_store.heads import CheckpointHeader, Head, load_checkpoint
from tfbind_store.heads.checkpoint import read_header
from tfbind_store.query.loader import Arrays
from tfbind_store.scoring.signals import Signals
from tfbind_store.store.folder import Store

HEAD_FILE = "head.safetensors"
BLOCK_BINS = 4096


class ScoreBlock(NamedTuple):
    """Scores of some bins."""

    global_bins: Int64[np.ndarray, " k"]
    scores: Float32[np.ndarray, "k p"]


class LoadedRun(NamedTuple):
    """A trained head and what it reads in this store."""

    name: str
    head: Head
    header: CheckpointHeader
    arrays: Arrays
    source: PairSource


def load_run(store: Store, run_name: str, *, device: torch.device | None = None) -> LoadedRun:
    """Open the head of a run of this store.

    Raises
    ------
    CheckpointError
        If there is none, or it was trained on other embeddings than the store holds now.
    """
    path = store.run_dir(run_name) / HEAD_FILE
    said = read_header(path).arrays
    if set(said) != set(Arrays._fields):
        what = f"the head names arrays of {', '.join(sorted(said)) or 'nothing'}, not of {', '.join(Arrays._fields)}"
        raise CheckpointError(what, where=str(path))
    arrays = Arrays(**{kind: array["name"] for kind, array in said.items()})
    expected = {kind: store.array(name).spec.fingerprint for kind, name in arrays._asdict().items()}
    head, header = load_checkpoint(path, expected_arrays=expected)
    source = PairSource(store, arrays, device)
    source.signals = signals_of(store, header, where=run_name)
    return LoadedRun(run_name, head.to(source.device), header, arrays, source)


def signals_of(store: Store, header: CheckpointHeader, *, where: str) -> Signals | None:
    """Return the signals that a head reads; None where it reads none.

    Raises
    ------
    CheckpointError
        If the store's are of other files' kind, or binned otherwise, than those it was trained on.
    """
    if not header.signals:
        return None
    name = header.signals["name"]
    if store.array(name).spec.fingerprint != header.signals["fingerprint"]:
        fix = "import signals as before, or train the head again"
        raise CheckpointError(f"{name} was binned otherwise than when the head was trained", where=where, fix=fix)
    return Signals(store, name)


def score_bins(
    head: Head,
    source: PairSource,
    factor_ids: Int64[np.ndarray, " p"],
    biotype_ids: Int64[np.ndarray, " p"],
    bins: Int64[np.ndarray, " n"],
    *,
    block_bins: int = BLOCK_BINS,
) -> Iterator[ScoreBlock]:
    """Yield the scores of bins, in their order, with pair i = factor i in biotype i, and its signal where one is read.

    Raises
    ------
    MissingWindow
        If a bin's window is not embedded.
    """
    was_training = head.training
    head.eval()
    pairs = source.encode(head, factor_ids, biotype_ids)
    read = BinReader(source.store.array(source.arrays.windows), source.device)
    try:
        for at in range(0, len(bins), block_bins):
            part = bins[at : at + block_bins]
            signal = source.signal(biotype_ids, part) if head.signal is not None else None
            with torch.inference_mode():
                yield ScoreBlock(part, head.score_pairs(read(part), pairs, signal=signal).float().cpu().numpy())
    finally:
        head.train(was_training)


def scorable_bins(store: Store, windows_array: str, chroms: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Return the bins of chromosomes whose windows are embedded, in genome order; windows that are all N are left out.

    Raises
    ------
    MissingWindow
        If windows with bases are not embedded, counted.
    """
    array = store.array(windows_array)
    bins = [store.tiling.global_bins(store.tiling.chrom_index[chrom]) for chrom in chroms]
    every = np.concatenate(bins) if bins else np.empty(0, dtype=np.int64)
    windows = np.unique(every // store.grid.n_bins)
    is_ok = array.is_ok(windows)
    with store.reader() as catalog:
        all_n = catalog.columns("SELECT window_id FROM data.windows WHERE gc_fraction IS NULL")["window_id"]
    missing = np.setdiff1d(windows[~is_ok], all_n)
    if len(missing):
        raise MissingWindow(
            f"{len(missing):,} of {len(windows):,} windows are not embedded (first: {int(missing[0])})",
            where=windows_array,
            fix=f"embed them: tfbind embed {store.path} windows",
        )
    return np.asarray(every[array.is_ok(every // store.grid.n_bins)])


def score_genome(
    store: Store,
    run_name: str,
    factor_ids: Sequence[int],
    biotype_id: int,
    *,
    chroms: Sequence[str] | None = None,
    device: torch.device | None = None,
) -> Iterator[ScoreBlock]:
    """Yield the scores of every embedded bin of some chromosomes (default all) for factors in one biotype."""
    run = load_run(store, run_name, device=device)
    bins = scorable_bins(store, run.arrays.windows, chroms or store.tiling.chroms)
    factors = np.asarray(factor_ids, dtype=np.int64)
    yield from score_bins(run.head, run.source, factors, np.full(len(factors), biotype_id), bins)

"""Windows with the labels of many experiments, for a trunk that is run anew: training windows and validation windows.

Training reads the selection's training experiments on its training chromosomes. Windows begin where the store's do,
moved by a few bases and turned round as the config says; their labels go with them. Validation reads the store's own
windows as they are, and the same cells (chromosome x experiment) as training a head does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from tfbind_store.feeding.feed import Experiments
from tfbind_store.finetuning.config import FinetuneConfig
from tfbind_store.pretraining.feed import Stretch, TrackFeed
from tfbind_store.query import rows
from tfbind_store.query.loader import Arrays
from tfbind_store.query.selection import Selection
from tfbind_store.store.folder import Store
from tfbind_store.training.material import Validation, gather_material


class WindowBatch(NamedTuple):
    """Some windows against some experiments."""

    codes: UInt8[np.ndarray, "b bp"]
    labels: Float32[np.ndarray, "b n p"]
    pairs: Experiments
    bins: Int64[np.ndarray, "b n"]
    """The store's bin that holds the middle of each bin, for what is stored beside the DNA; past a chromosome's end,
    where nothing is labelled, its last one."""


class FinetuneFeed:
    """Draws windows and experiments; pass and step decide what comes, whoever asks."""

    def __init__(self, store: Store, selection: Selection, config: FinetuneConfig) -> None:
        with store.reader() as catalog:
            evidence = rows.gather(store, catalog)
        table, trained = evidence.experiments, set(selection.trained_on["experiments"])
        named = np.array([name in trained for name in table["experiment"].tolist()], dtype=bool)
        every = Experiments(*(table[name].astype(np.int64) for name in Experiments._fields))
        self.config = config
        self.experiments = every.take(np.flatnonzero(named & table["has_protein"].astype(bool)))
        grid = store.grid
        self.tracks = TrackFeed(
            store.genome,
            evidence,
            selection.config.choices().rule,
            self.experiments.experiment_id,
            tuple(store.tiling.chrom_index[chrom] for chrom in selection.trained_on["chromosomes"]),
            grid.stride_bp,
            config.reverse_complement,
            random_offset=False,
            context_bp=(grid.window_bp - grid.stride_bp) // 2,
            shift_bp=config.shift_bp,
        )

    def one_pass(self, number: int) -> list[Stretch]:
        """Return pass `number` over the training windows that hold a bin with a label."""
        return [s for s in self.tracks.one_pass(np.random.default_rng([self.config.seed, number])) if self._counts(s)]

    def batch(self, stretches: list[Stretch], step: int) -> WindowBatch:
        """Read windows, with the labels of the experiments that step `step` draws."""
        rng = np.random.default_rng([self.config.seed, 1, step])
        n_experiments = len(self.experiments.experiment_id)
        chosen = np.sort(rng.choice(n_experiments, min(self.config.pairs_per_step, n_experiments), replace=False))
        batch = self.tracks.batch(stretches)
        bins = np.stack([self._bins(stretch) for stretch in stretches])
        return WindowBatch(batch.codes, batch.labels[..., chosen], self.experiments.take(chosen), bins)

    def _bins(self, stretch: Stretch) -> Int64[np.ndarray, " n"]:
        own, bin_bp = self.tracks.evidence.tiling.global_bins(stretch.chrom), self.tracks.bin_bp
        local = (stretch.start + np.arange(self.tracks.n_bins) * bin_bp + bin_bp // 2) // bin_bp
        found = np.asarray(own[np.clip(local, 0, len(own) - 1)], dtype=np.int64)
        return found[::-1].copy() if stretch.is_reverse else found

    def _counts(self, stretch: Stretch) -> bool:
        evidence = self.tracks.evidence
        own = evidence.tiling.global_bins(stretch.chrom)
        first = max(0, stretch.start // self.tracks.bin_bp)
        return bool(evidence.scorable[own[first : first + self.tracks.n_bins + 1]].any())


class ValidationWindows(NamedTuple):
    """The store's windows that validate, and what is known of their bins."""

    windows: Int64[np.ndarray, " w"]
    valid: Validation
    """`bins` are those of the windows that may be scored, in order."""

    def codes(self, store: Store, size: int) -> Iterator[tuple[UInt8[np.ndarray, "b bp"], Int64[np.ndarray, " k"]]]:
        """Yield the sequences of `size` windows at a time, and the places of their scored bins among all bins read."""
        n_bins = store.grid.n_bins
        for at in range(0, len(self.windows), size):
            part = self.windows[at : at + size]
            loci = [store.tiling.read(int(window)) for window in part]
            codes = np.stack([np.asarray(store.genome.codes(locus.chrom, locus.start, locus.end)) for locus in loci])
            bins = self.valid.bins[np.isin(self.valid.bins // n_bins, part)]
            yield codes, np.searchsorted(part, bins // n_bins) * n_bins + bins % n_bins


def validation_windows(
    store: Store, selection: Selection, arrays: Arrays, config: FinetuneConfig
) -> ValidationWindows | None:
    """Return at most `max_valid_windows` windows, evenly spread over those that hold validation cells."""
    every = store.tiling.n_windows * store.grid.n_bins
    material = gather_material(store, selection, arrays, device=torch.device("cpu"), max_valid_bins=every)
    valid = material.valid
    if valid is None or not len(valid.bins):
        return None
    windows = np.unique(valid.bins // store.grid.n_bins)
    if len(windows) > config.max_valid_windows:
        windows = windows[np.linspace(0, len(windows) - 1, config.max_valid_windows).astype(np.int64)]
    kept = np.isin(valid.bins // store.grid.n_bins, windows)
    return ValidationWindows(windows, Validation(valid.experiments, valid.bins[kept], valid.labels[kept]))

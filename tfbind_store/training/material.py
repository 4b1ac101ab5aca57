"""What a selection gives to training and to validation: experiments, bins, labels, and the arrays to read them from.

Training gets the selection's training experiments on its training chromosomes. Validation gets the cells (chromosome x
experiment) that hold validation rows, every bin of them, so that its scores mean the same from look to look.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from tfbind_store.errors import TrainingError
from tfbind_store.feeding.feed import Experiments, PairSource, labels_of, permuted
from tfbind_store.heads import Head, LossConfig, cell_losses
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.query import rows
from tfbind_store.query.labels import Truth
from tfbind_store.query.loader import Arrays
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import score_bins
from tfbind_store.store.folder import Store

N_PARTS = 4
"""Parts that a place may be in: none, train, valid, test."""
_log = logging.getLogger(__name__)


class Validation(NamedTuple):
    """Bins and experiments of the validation part; labels of other cells are NaN."""

    experiments: Experiments
    bins: Int64[np.ndarray, " k"]
    labels: Float32[np.ndarray, "k p"]


class Material(NamedTuple):
    """What a selection gives to training and validation."""

    store: Store
    selection: Selection
    arrays: Arrays
    source: PairSource
    truth: Truth
    training: Experiments
    train_bins: Int64[np.ndarray, " n"]
    """Embedded bins that may be drawn."""
    valid: Validation | None


def gather_material(
    store: Store,
    selection: Selection,
    arrays: Arrays,
    *,
    device: torch.device,
    max_valid_bins: int,
    permute_seed: int | None = None,
) -> Material:
    """Read what a selection says may be trained on and what validates.

    Parameters
    ----------
    max_valid_bins
        Validation bins are thinned out evenly to this number.
    permute_seed
        Not None puts every peak at a random place of its chromosome, for training and validation alike: the control.
    """
    with store.reader() as catalog:
        evidence = rows.gather(store, catalog)
    if permute_seed is not None:
        evidence = evidence._replace(peaks=permuted(evidence.peaks, store.tiling.lengths_bp, seed=permute_seed))
    truth = evidence.truth(selection.config.choices().rule)
    table = evidence.experiments
    every = Experiments(*(table[name].astype(np.int64) for name in Experiments._fields))
    trained = set(selection.trained_on["experiments"])
    named = np.array([name in trained for name in table["experiment"].tolist()], dtype=bool)
    readable = table["has_protein"].astype(bool)
    embedded = store.array(arrays.windows)
    chroms = [store.tiling.chrom_index[chrom] for chrom in selection.trained_on["chromosomes"]]
    bins = selection.bins("train")
    bins = bins[truth.scorable[bins] & np.isin(truth.bin_chrom[bins // store.grid.n_bins], chroms)]
    is_ok = embedded.is_ok(bins // store.grid.n_bins)
    _warn_of_absent(store, arrays.windows, bins[~is_ok] // store.grid.n_bins)
    bins = bins[is_ok]
    source = PairSource(store, arrays, device)
    valid = _validation(source, selection, truth, every.take(np.flatnonzero(readable)), max_valid_bins)
    return Material(store, selection, arrays, source, truth, every.take(np.flatnonzero(named & readable)), bins, valid)


def _warn_of_absent(store: Store, name: str, windows: Int64[np.ndarray, " n"]) -> None:
    """Say how many windows cannot be trained on because nobody embedded them, or because their shard is gone."""
    absent = np.unique(windows)
    if len(absent):
        _log.warning(
            "%s: %s windows of the training chromosomes are not embedded (first: %d) and left out; "
            "tfbind embed %s windows computes them",
            name, f"{len(absent):,}", absent[0], store.path,
        )  # fmt: skip


def _validation(
    source: PairSource, selection: Selection, truth: Truth, every: Experiments, max_valid_bins: int
) -> Validation | None:
    """Return the cells (what a chromosome has of one part of the places, x experiment) that hold validation rows."""
    store = source.store
    table = selection.columns("valid", names=("window", "bin", "experiment"))
    if not table.n:
        return None
    parts = selection.place_parts()

    def places(bins: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.asarray(store.tiling.window_chrom(bins // store.grid.n_bins) * N_PARTS + parts[bins] + 1)

    where = places(table["window"].astype(np.int64) * store.grid.n_bins + table["bin"])
    cells = np.unique(np.stack([where, table["experiment"].astype(np.int64)]), axis=1)
    cells = cells[:, np.isin(cells[1], every.experiment_id)]
    experiments = every.take(np.searchsorted(every.experiment_id, np.unique(cells[1])))
    chroms = np.unique(cells[0] // N_PARTS).tolist()
    bins = np.concatenate([store.tiling.global_bins(number) for number in chroms])
    bins = bins[np.isin(places(bins), cells[0])]
    is_ok = store.array(source.arrays.windows).is_ok(bins // store.grid.n_bins)
    bins = bins[is_ok & truth.scorable[bins]]
    if len(bins) > max_valid_bins:
        bins = bins[np.linspace(0, len(bins) - 1, max_valid_bins).astype(np.int64)]
    labels = labels_of(truth, experiments, bins)
    allowed = np.zeros((len(store.tiling.chroms) * N_PARTS, len(experiments.experiment_id)), dtype=bool)
    allowed[cells[0], np.searchsorted(experiments.experiment_id, cells[1])] = True
    labels[~allowed[places(bins)]] = np.nan
    return Validation(experiments, bins, labels)


def validate(head: Head, material: Material, loss: LossConfig) -> dict[str, float]:
    """Return loss and median scores over all validation cells; empty where there are none."""
    valid = material.valid
    if valid is None or not len(valid.bins):
        return {}
    pairs = valid.experiments
    blocks = score_bins(head, material.source, pairs.factor_id, pairs.biotype_id, valid.bins)
    return judge(valid, np.concatenate([block.scores for block in blocks]), loss)


def judge(valid: Validation, scores: Float32[np.ndarray, "k p"], loss: LossConfig) -> dict[str, float]:
    """Return the mean loss, and the medians over experiments of how well `scores` rank their bound bins.

    Raises
    ------
    TrainingError
        If a score is no finite number: the head has come apart.
    """
    if not np.isfinite(scores).all():
        what = f"{int((~np.isfinite(scores)).sum()):,} of {scores.size:,} validation scores are no finite number"
        raise TrainingError(what, where="validation")
    cells = cell_losses(loss, torch.from_numpy(scores), torch.from_numpy(valid.labels))
    n_labelled = int((~np.isnan(valid.labels)).sum())
    per_pair = [score_binary(valid.labels[:, place], scores[:, place]) for place in range(scores.shape[1])]
    found = [pair for pair in per_pair if pair.n_positive]
    medians = {
        f"valid_{name}": float(np.nanmedian([getattr(pair, name) for pair in found])) if found else float("nan")
        for name in ("auroc", "auprc")
    }
    return {"valid_loss": float(cells.double().sum()) / max(1, n_labelled), **medians}

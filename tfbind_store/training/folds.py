"""Cross-validation: one head per fold of a selection, all on the same embeddings; mean and spread over the folds.

A fold is the selection opened with one of its folds as validation (``cv@2``); nothing is embedded again. Folds that are
finished are read, not trained again, so that a stopped cross-validation goes on with the same call. On request a last
head is trained on the selection as a whole: that is the one to predict with, the folds say how good it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfbind_store.errors import SelectionError
from tfbind_store.heads import read_header
from tfbind_store.learning.processes import Processes, joined, own_device
from tfbind_store.precompute.weights import pick_device
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import HEAD_FILE
from tfbind_store.scoring.gate import has_gate
from tfbind_store.store.folder import Store
from tfbind_store.training.config import TrainConfig
from tfbind_store.training.signal_training import train_declared_gate, validate_gated
from tfbind_store.training.train import is_finished, train_head

_log = logging.getLogger(__name__)


class FoldRun(NamedTuple):
    """One fold."""

    selection: str
    run: str
    metrics: dict[str, float]
    """Validation at the weights that were kept."""
    was_done: bool
    """Whether it was finished before this call."""


class FoldsResult(NamedTuple):
    """What cross-validation came to."""

    folds: list[FoldRun]
    mean: dict[str, float]
    spread: dict[str, float]
    """Standard deviation over folds, with n - 1."""
    final: Path | None
    """Folder of the head that was trained on everything."""
    rank: int = 0
    """Of this process among those of a launcher; the first one knows the scores."""


def fold_names(store: Store, selection_name: str) -> list[str]:
    """Return the names under which the folds of a selection are opened.

    Raises
    ------
    SelectionError
        If it has none.
    """
    selection = Selection.open(store, selection_name)
    n_folds = int(selection.info.get("folds", {}).get("n", 0))
    if n_folds < 2:
        fix = f"make one: tfbind select {store.path} NAME --folds 5"
        raise SelectionError("the selection has no folds", where=f"selection {selection_name}", fix=fix)
    return [f"{selection_name}@{fold}" for fold in range(n_folds)]


def cross_validate(
    store: Store,
    folds: Sequence[str],
    config: TrainConfig,
    run_name: str = "run",
    *,
    whole: str | None = None,
    overwrite: bool = False,
) -> FoldsResult:
    """Train a head on each fold, and if asked for one on everything.

    Parameters
    ----------
    folds
        Names of selections: `fold_names`.
    run_name
        Fold i is run ``<run_name>-fold<i>``.
    whole
        Name of the selection for the final fit, which is run ``<run_name>``; None trains none.
    overwrite
        Train again what is finished.
    """
    # processes join once: a launcher's store serves no second group
    with joined(own_device(pick_device(config.device))) as processes:

        def one(selection_name: str, name: str) -> FoldRun:
            return _one(store, selection_name, config, name, processes, overwrite=overwrite)

        done = [one(name, f"{run_name}-fold{i}") for i, name in enumerate(folds)]
        final = None if whole is None else store.run_dir(one(whole, run_name).run)
        rank = processes.rank
    names = [name for name in done[0].metrics if name.startswith("valid_")]
    values = {name: np.array([fold.metrics.get(name, math.nan) for fold in done]) for name in names}
    return FoldsResult(
        done,
        {name: float(np.mean(found)) for name, found in values.items()},
        {name: float(np.std(found, ddof=1)) if len(found) > 1 else math.nan for name, found in values.items()},
        final,
        rank,
    )


def _one(
    store: Store, selection_name: str, config: TrainConfig, run_name: str, processes: Processes, *, overwrite: bool
) -> FoldRun:
    is_done = not overwrite and is_finished(store, selection_name, config, run_name)
    processes.wait()  # all have looked before anybody trains
    if is_done:
        _log.info("%s: finished before", run_name)
        found = read_header(store.run_dir(run_name) / HEAD_FILE).metrics
        metrics = {name: math.nan if value is None else float(value) for name, value in found.items()}
    else:
        metrics = train_head(store, selection_name, config, run_name, overwrite=overwrite).metrics
    gated = _gated(store, run_name) if processes.is_first else {}
    processes.wait()
    return FoldRun(selection_name, run_name, metrics | gated, is_done)


def _gated(store: Store, run_name: str) -> dict[str, float]:
    """Return validation with the gate that signals of the selection need, trained if it is not there; empty if none."""
    if not has_gate(store, run_name) and train_declared_gate(store, run_name) is None:
        return {}
    return validate_gated(store, run_name)

"""Why seen factors are hard on unseen chromosomes: peaks, hot spots, and how exactly a peak must be placed.

Scores against the number of training peaks; against the share of a factor's peaks in *hot spots*, bins that at least a
tenth of the training experiments bind; the same scores judged on wider bins (the largest score and label of 2, 4 and 8
neighbours), which forgives a peak that lies just beyond a bin's edge; and with knowledge that no model may have, the
number of other experiments that were measured to bind the bin, which says what knowing the active promoters is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tfbind_store.evaluation.evaluate import label_column
from tfbind_store.evaluation.holdouts import read_world
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import load_run, score_bins
from tfbind_store.store.folder import Store

HOT_SHARE = 0.1
ENOUGH = 20
WIDTHS = (1, 2, 4, 8)


def explain(store: Store, run_name: str) -> dict[str, Any]:
    """Return what goes along with a seen factor's AUPRC; `text` says it in lines."""
    run = load_run(store, run_name)
    selection = Selection.open(store, str(run.header.selection["name"]))
    world = read_world(store, selection, run.header)
    bins, train = selection.bins("test"), selection.bins("train")
    bins = bins[world.truth.scorable[bins] & store.array(run.arrays.windows).is_ok(bins // store.grid.n_bins)]
    ids = world.experiments.experiment_id
    labels = np.stack([label_column(world.truth, int(one), bins) for one in ids[world.training]], axis=1)
    chosen = np.flatnonzero(np.nansum(labels, axis=0) >= ENOUGH)
    pairs = world.experiments.take(world.training[chosen])
    blocks = score_bins(run.head, run.source, pairs.factor_id, pairs.biotype_id, bins)
    scores = np.concatenate([block.scores for block in blocks])
    others = np.nansum(labels, axis=1)
    hot = others >= HOT_SHARE * labels.shape[1]
    labels = labels[:, chosen]
    auprc = _auprc(labels, scores)
    n_train = np.array([np.isin(world.truth.positives(int(one)), train).sum() for one in pairs.experiment_id])
    in_hot = np.array([hot[column == 1].mean() for column in labels.T])
    by_width = {str(width): float(np.median(_auprc(*_joined(labels, scores, width)))) for width in WIDTHS}
    known = np.log1p(others[:, None] - np.nan_to_num(labels))
    with_others = float(np.median(_auprc(labels, scores + known.astype(np.float32))))
    found = {
        "n": len(chosen),
        "hot_bins": float(hot.mean()),
        "with_peaks": float(spearmanr(n_train, auprc).statistic),
        "with_hot": float(spearmanr(in_hot, auprc).statistic),
        "thirds_by_peaks": _thirds(n_train, auprc),
        "thirds_by_hot": _thirds(in_hot, auprc),
        "by_width": by_width,
        "with_others_known": with_others,
    }
    names = world.table["factor"][world.training[chosen]]
    order = np.argsort(auprc)
    ends = {
        which: [(str(names[at]), round(float(auprc[at]), 3)) for at in some]
        for which, some in (("lowest", order[:8]), ("highest", order[-8:]))
    }
    return {**found, **ends, "text": _text({**found, **ends})}


def _auprc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.array([score_binary(labels[:, at], scores[:, at]).auprc for at in range(labels.shape[1])])


def _joined(labels: np.ndarray, scores: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest of each `width` neighbours; bins stand in genome order."""
    n = len(labels) // width * width
    wide = np.nan_to_num(labels[:n]).reshape(-1, width, labels.shape[1]).max(1)
    return wide.astype(np.float32), scores[:n].reshape(-1, width, scores.shape[1]).max(1)


def _thirds(values: np.ndarray, auprc: np.ndarray) -> list[tuple[float, float]]:
    """Return the median of each third of the factors by `values`, and their median AUPRC."""
    parts = np.array_split(np.argsort(values, kind="stable"), 3)
    return [(float(np.median(values[part])), float(np.median(auprc[part]))) for part in parts]


def _text(found: dict[str, Any]) -> list[str]:
    widths = ", ".join(f"{128 * int(width)} bp: {auprc:.3f}" for width, auprc in found["by_width"].items())
    return [
        f"{found['n']} seen experiments on unseen chromosomes; hot spots are {found['hot_bins']:.1%} of the bins",
        f"AUPRC and training peaks: Spearman {found['with_peaks']:.2f}; thirds {_said(found['thirds_by_peaks'])}",
        f"AUPRC and share of peaks in hot spots: {found['with_hot']:.2f}; thirds {_said(found['thirds_by_hot'])}",
        f"the same scores on wider bins: {widths}",
        f"if it were known how many others bind each bin: {found['with_others_known']:.3f}",
        f"lowest: {found['lowest']}",
        f"highest: {found['highest']}",
    ]


def _said(thirds: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{value:.3g}: {auprc:.3f}" for value, auprc in thirds)

"""Score a run on every labelled bin that it has not seen, by kind of hold-out, beside what needs no measurement there.

Shared by ``yeast.py`` and ``human.py``. It is `tfbind evaluate` without intervals, curves, motif scans and oracle: the
same bins, the same labels, in a few seconds. The result is plain rows; `medians` sums them up, `show` prints them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfbind_store.evaluation.evaluate import choose_groups, label_column, read_world
from tfbind_store.evaluation.holdouts import bins_of
from tfbind_store.evaluation.pair_scores import predict_group
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import load_run, scorable_bins
from tfbind_store.store.folder import Store

ENOUGH = 20
"""Bound bins among the scored ones, below which a factor enters no median."""
SCORERS = ("model", "training_mean", "nearest")
Row = dict[str, Any]


def score_run(store: Store, run_name: str) -> list[Row]:
    """Return one row for each experiment and kind of hold-out."""
    run = load_run(store, run_name)
    selection = Selection.open(store, str(run.header.selection["name"]))
    world = read_world(store, selection, run.header)
    in_families = set(selection.info["held_out"]["factor"]["test"]) - set(selection.info["held_out"]["factor"]["asked"])
    in_families |= {name.partition("=")[2] for name in selection.info["held_out"]["factor"]["asked"] if "=" in name}
    rows = []
    for group in choose_groups(store, selection, world):
        embedded = scorable_bins(store, run.arrays.windows, group.chroms)
        wanted = bins_of(store, world, group, whole=False)
        bins = embedded[np.isin(embedded, wanted, assume_unique=True)]
        for block in predict_group(run, None, world, group.places, bins, max_bytes=2**31):
            for row, place in enumerate(block.places.tolist()):
                labels = label_column(world.truth, int(world.experiments.experiment_id[place]), bins)
                factor = str(world.table["factor"][place])
                kind = "unseen_family" if factor in in_families else "unseen_factor"
                found: Row = {
                    "holdout": group.holdout.replace("unseen_family", "unseen_factor").replace("unseen_factor", kind),
                    "experiment": str(world.table["experiment"][place]),
                    "factor": factor,
                    "similarity": float(block.similarity[row]),
                }
                for scorer in SCORERS:
                    scores = getattr(block, scorer)[row]
                    if not np.isnan(scores[0]):
                        of = score_binary(labels, scores)
                        found |= {"n_positive": of.n_positive, "prevalence": of.prevalence}
                        found |= {f"{scorer}_auroc": of.auroc, f"{scorer}_auprc": of.auprc}
                rows.append(found)
    return rows


def medians(rows: Iterable[Row], *, enough: int = ENOUGH) -> dict[str, Row]:
    """Return by kind of hold-out the medians over experiments with enough bound bins, and how many these are."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("n_positive", 0) >= enough:
            by_kind.setdefault(row["holdout"], []).append(row)
    return {kind: _median(group) for kind, group in sorted(by_kind.items())}


def _median(group: Sequence[Row]) -> Row:
    names = ["prevalence", *(f"{scorer}_{what}" for scorer in SCORERS for what in ("auroc", "auprc"))]
    found: Row = {"n": len(group)}
    for name in names:
        values = [row[name] for row in group if name in row]
        if values:
            found[name] = statistics.median(values)
    rivals = [max(row.get(f"{s}_auprc", 0.0) for s in SCORERS[1:]) for row in group]
    wins = [row["model_auprc"] > rival for row, rival in zip(group, rivals, strict=True)]
    return found | {"wins": sum(wins) / len(wins)}


def over_seeds(runs: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """Return the mean over seeds of each median, with the spread of the model's AUPRC."""
    found: dict[str, Row] = {}
    for kind in runs[0]:
        each = [run[kind] for run in runs]
        mean = {name: statistics.mean(one[name] for one in each) for name in each[0]}
        auprc = [one["model_auprc"] for one in each]
        found[kind] = {**mean, "spread": statistics.stdev(auprc) if len(auprc) > 1 else 0.0, "seeds": len(each)}
    return found


def show(title: str, table: Mapping[str, Mapping[str, Row]]) -> None:
    """Print a table: a line for each name and kind of hold-out."""
    print(f"\n{title}")
    head = ("AUROC", "AUPRC", "+-", "/prev.", "mean", "nearest", "ahead")
    print(f"{'':22}{'held out':34}{'n':>5}" + "".join(f"{name:>9}" for name in head))
    for name, by_kind in table.items():
        for kind, row in by_kind.items():
            numbers = (
                f"{row['model_auroc']:9.3f}{row['model_auprc']:9.3f}{row.get('spread', 0.0):9.3f}"
                f"{row['model_auprc'] / row['prevalence']:9.1f}{row.get('training_mean_auprc', float('nan')):9.3f}"
                f"{row.get('nearest_auprc', float('nan')):9.3f}{row['wins']:9.2f}"
            )
            print(f"{name:22}{kind:34}{row['n']:5.0f}{numbers}")

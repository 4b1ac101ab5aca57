"""The table of the yeast run: medians over factors with enough peaks, per kind of hold-out, and some factors by name.

    python benchmarks/yeast.py OUT_DIR            # the folder that examples/yeast.sh wrote

Reads ``scores.parquet`` of the runs ``adapter`` and ``control`` and the peak counts of the catalog. A factor counts if
its experiments have `--min-peaks` peaks in all; a median is over experiments of such factors. The motif scan is
compared on the factors that have a matrix. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfbind_store import Store
from tfbind_store.catalog.database import Catalog

NAMED = ("RAP1", "REB1", "MCM1", "HSF1", "ABF1", "CBF1")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--min-peaks", type=int, default=100)
    args = parser.parse_args()
    store = Store.open(args.out_dir / "yeast.store")
    with store.reader() as catalog:
        counts = dict(catalog.rows("SELECT factor, count(*) FROM peaks GROUP BY factor"))
    enough = {factor for factor, n in counts.items() if n >= args.min_peaks}
    scores = {run: _rows(store.run_dir(run) / "scores.parquet", enough) for run in ("adapter", "control")}
    table = [line for run, rows in scores.items() for line in _medians(run, rows)]
    print(f"{'run':9}{'held out':36}{'scored by':18}{'n':>5}{'AUROC':>8}{'AUPRC':>8}{'prevalence':>12}")
    for line in table:
        print(
            f"{line['run']:9}{line['holdout']:36}{line['scorer']:18}{line['n']:>5}"
            f"{line['auroc']:>8.3f}{line['auprc']:>8.3f}{line['prevalence']:>12.4f}"
        )
    named = _named(scores["adapter"])
    for factor, by_scorer in named.items():
        found = ", ".join(f"{scorer} {auroc:.3f} / {auprc:.3f}" for scorer, (auroc, auprc) in by_scorer.items())
        print(f"{factor}: {found}")
    print(json.dumps({"benchmark": "yeast", "min_peaks": args.min_peaks, "medians": table, "factors": named}))


def _rows(path: Path, enough: set[str]) -> list[dict[str, Any]]:
    columns = Catalog.read_parquet(path)
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in columns.rows()]
    return [row for row in rows if row["factor"] in enough and row["n_positive"] > 0]


def _medians(run: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with_motif = {row["experiment"] for row in rows if row["scorer"] == "motif"}
    lines = []
    for holdout in sorted({row["holdout"] for row in rows}):
        group = [row for row in rows if row["holdout"] == holdout]
        for scorer in sorted({row["scorer"] for row in group}):
            lines.append(_median(run, holdout, scorer, [row for row in group if row["scorer"] == scorer]))
        same = [row for row in group if row["scorer"] == "model" and row["experiment"] in with_motif]
        if same:
            lines.append(_median(run, holdout, "model, with motif", same))
    return lines


def _median(run: str, holdout: str, scorer: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    medians = {name: float(np.median([row[name] for row in rows])) for name in ("auroc", "auprc", "prevalence")}
    return {"run": run, "holdout": holdout, "scorer": scorer, "n": len(rows), **medians}


def _named(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["factor"] in NAMED and row["holdout"] == "unseen_chromosome" and row["scorer"] in ("model", "motif"):
            found.setdefault(row["factor"], {})[row["scorer"]] = (float(row["auroc"]), float(row["auprc"]))
    return found


if __name__ == "__main__":
    main()

"""What an evaluation writes: rows of scores as Parquet, CSV and JSON, and what the report draws from.

Every file is whole or not there. What an earlier evaluation left and this one has not is removed.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfbind_store.catalog.columns import Columns
from tfbind_store.catalog.database import Catalog
from tfbind_store.durable import publish
from tfbind_store.metrics import summary
from tfbind_store.metrics.curves import MeanCurves
from tfbind_store.metrics.reliability import EDGES, Reliability

SCORES_FILE, SCORES_CSV, SCORES_JSON = "scores.parquet", "scores.csv", "scores.json"
CHROMS_FILE, CURVES_FILE, RELIABILITY_FILE, LOCI_FILE = (
    "chromosomes.parquet",
    "curves.parquet",
    "reliability.parquet",
    "loci.parquet",
)
EVALUATION_FILE = "evaluation.json"
Row = dict[str, Any]


@dataclass
class ScoreBook:
    """Collects what is scored."""

    rows: list[Row] = field(default_factory=list)
    """Of ``scores.parquet``: one per experiment, kind of hold-out and scorer."""
    chroms: list[Row] = field(default_factory=list)
    """The same for each chromosome, where there are several."""
    curves: MeanCurves = field(default_factory=MeanCurves)
    loci: list[Row] = field(default_factory=list)
    _reliability: dict[tuple[str, str], Reliability] = field(default_factory=dict)

    def add_reliability(self, holdout: str, kind: str, found: Reliability) -> None:
        """Add one experiment's probabilities."""
        before = self._reliability.get((holdout, kind))
        self._reliability[holdout, kind] = found if before is None else before.plus(found)

    def reliability_rows(self) -> list[Row]:
        """Return the rows of ``reliability.parquet``: bins of probability that hold anything."""
        return [
            {
                "holdout": holdout,
                "kind": kind,
                "low": float(EDGES[place]),
                "high": float(EDGES[place + 1]),
                "n": int(found.n[place]),
                "predicted": float(found.predicted[place] / found.n[place]),
                "observed": float(found.n_bound[place] / found.n[place]),
            }
            for (holdout, kind), found in self._reliability.items()
            for place in np.flatnonzero(found.n).tolist()
        ]

    def columns(self) -> Columns:
        """Return the scores as columns."""
        return as_columns(self.rows)

    def write(self, folder: Path, said: Mapping[str, Any]) -> Path:
        """Write all files into a run's folder and return that of the scores; `said` goes into ``evaluation.json``."""
        drawn = self.curves.columns()
        tables = {
            CHROMS_FILE: as_columns(self.chroms),
            CURVES_FILE: Columns({name: np.array(values) for name, values in drawn.items()}),
            RELIABILITY_FILE: as_columns(self.reliability_rows()),
            LOCI_FILE: as_columns(self.loci),
        }
        for name, table in tables.items():
            (folder / name).unlink(missing_ok=True)
            if len(table) and table.n:
                Catalog.write_parquet(folder / name, table)
        cases = summary.cases(str(self.rows[0]["run"]), self.rows)
        evaluation = {
            **said,
            "headlines": [line._asdict() for line in summary.headlines(cases)],
            "verdicts": summary.verdicts(cases),
            "by": {
                "biotype": summary.breakdown(self.rows, "biotype"),
                "factor": summary.breakdown(self.rows, "factor"),
                "chrom": summary.breakdown(self.chroms, "chrom"),
            },
        }
        publish(folder / EVALUATION_FILE, [_json(evaluation, indent=1)])
        publish(folder / SCORES_JSON, [_json(self.rows)])
        publish(folder / SCORES_CSV, [_csv(self.rows)])
        Catalog.write_parquet(folder / SCORES_FILE, self.columns())
        return folder / SCORES_FILE


def as_columns(rows: Sequence[Row]) -> Columns:
    """Return rows with the same keys as columns."""
    return Columns({name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {})


def _json(value: Any, *, indent: int | None = None) -> bytes:
    """Return strict JSON: what is no number is null."""
    return (json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _csv(rows: Sequence[Row]) -> bytes:
    """Return rows as CSV; what is no number is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in row.values())
    return out.getvalue().encode()

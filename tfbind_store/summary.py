"""What a run's scores come to: factor by factor, and as medians beside their baselines.

``evaluate`` scores; this only puts its rows side by side. A model is compared with the best *admissible* baseline (made
from nothing but what the model was allowed to see); the oracle, measured binding of other factors, stands apart
and is never counted among the baselines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MODEL, ORACLE, PREVALENCE = "model", "oracle", "prevalence"
LEAST_POSITIVES = 20
"""Factors with fewer positive bins are listed but enter no median: their AUPRC is mostly luck."""
_BOOTSTRAPS = 1000

Row = dict[str, Any]
"""One row of ``scores.parquet``."""
CaseKey = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One experiment, scored by everything that could score it."""

    run: str
    factor: str
    biotype: str
    experiment: str
    holdout: str
    n_positive: int
    prevalence: float
    model: Row
    baselines: Mapping[str, Row]
    oracle: Row | None

    @property
    def best_baseline(self) -> tuple[str, Row] | None:
        """The admissible baseline with the highest AUPRC."""
        finite = [(name, row) for name, row in self.baselines.items() if np.isfinite(row["auprc"])]
        return max(finite, key=lambda item: item[1]["auprc"], default=None)

    @property
    def gain(self) -> float:
        """AUPRC of the model minus that of the best baseline; NaN without one."""
        best = self.best_baseline
        return float(self.model["auprc"] - best[1]["auprc"]) if best else float("nan")


class Headline(NamedTuple):
    """One scorer over all counted factors of one kind of hold-out: medians."""

    run: str
    holdout: str
    scorer: str
    kind: str
    n_factors: int
    auroc: float
    auprc: float
    low: float
    high: float
    prevalence: float
    lift: float
    recall_10: float
    note: str


def cases(run: str, scores: Iterable[Row]) -> list[Case]:
    """Return the run's scored experiments; rows of one experiment by several scorers come together."""
    grouped: dict[CaseKey, dict[str, Row]] = {}
    for row in scores:
        key = (row["factor"], row["biotype"], row["experiment"], row["holdout"])
        grouped.setdefault(key, {})[row["scorer"]] = row
    return [
        Case(
            run=run,
            factor=factor,
            biotype=biotype,
            experiment=experiment,
            holdout=holdout,
            n_positive=int(scorers[MODEL]["n_positive"]),
            prevalence=float(scorers[MODEL]["prevalence"]),
            model=scorers[MODEL],
            baselines={name: row for name, row in scorers.items() if name not in (MODEL, ORACLE)},
            oracle=scorers.get(ORACLE),
        )
        for (factor, biotype, experiment, holdout), scorers in sorted(grouped.items())
        if MODEL in scorers
    ]


def headlines(cases: Sequence[Case]) -> list[Headline]:
    """Return the medians over factors, per kind of hold-out and scorer: model, baselines, then the oracle.

    A scorer that exists for some factors only (a motif scan) is compared on those: its line says how many, and what
    the model reaches on the same ones.
    """
    found: list[Headline] = []
    counted = [case for case in cases if case.n_positive >= LEAST_POSITIVES]
    for holdout in sorted({case.holdout for case in counted}, key=seen_first):
        group = [case for case in counted if case.holdout == holdout]
        names = sorted({name for case in group for name in case.baselines})
        found.append(_headline(group[0].run, holdout, MODEL, MODEL, [case.model for case in group], ""))
        for name in names:
            pairs = [(case.baselines[name], case.model) for case in group if name in case.baselines]
            note = f"model on these: {median(m['auprc'] for _, m in pairs):.3f}" if len(pairs) < len(group) else ""
            found.append(_headline(group[0].run, holdout, name, "baseline", [row for row, _ in pairs], note))
        oracles = [case.oracle for case in group if case.oracle]
        if oracles:
            found.append(
                _headline(group[0].run, holdout, ORACLE, ORACLE, oracles, "not a baseline: sees the answers nearby")
            )
    return found


def _headline(run: str, holdout: str, scorer: str, kind: str, rows: list[Row], note: str) -> Headline:
    low, high = _interval([row["auprc"] for row in rows])
    return Headline(
        run=run,
        holdout=holdout,
        scorer=scorer,
        kind=kind,
        n_factors=len(rows),
        auroc=median(row["auroc"] for row in rows),
        auprc=median(row["auprc"] for row in rows),
        low=low,
        high=high,
        prevalence=median(row["prevalence"] for row in rows),
        lift=median(row["auprc_over_prevalence"] for row in rows),
        recall_10=median(row["recall_at_fdr_10"] for row in rows),
        note=note,
    )


def verdicts(cases: Sequence[Case]) -> list[str]:
    """Return one sentence per kind of hold-out: model minus best baseline, and how often it wins."""
    sentences = []
    for holdout in sorted({case.holdout for case in cases}, key=seen_first):
        group = [c for c in cases if c.holdout == holdout and c.n_positive >= LEAST_POSITIVES]
        gains = [case.gain for case in group if np.isfinite(case.gain)]
        if not group:
            continue
        sentence = (
            f"{holdout.replace('_', ' ')}: median AUROC {median(c.model['auroc'] for c in group):.3f}, "
            f"median AUPRC {median(c.model['auprc'] for c in group):.3f} "
            f"at prevalence {median(c.prevalence for c in group):.2g} over {len(group)} factors"
        )
        if gains:
            won = sum(gain > 0 for gain in gains)
            sentence += (
                f"; AUPRC minus each factor's best baseline {median(gains):+.3f}, model ahead in {won} of {len(gains)}"
            )
        sentences.append(sentence + ".")
    return sentences


def breakdown(scores: Sequence[Row], key: str) -> list[Row]:
    """Return the model's medians for every value of `key` (factor, biotype, chrom) and kind of hold-out.

    Experiments with fewer bound bins than `LEAST_POSITIVES` are counted, not scored.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in scores:
        if row["scorer"] == MODEL:
            groups.setdefault((row["holdout"], str(row[key])), []).append(row)
    found = []
    for (holdout, value), rows in sorted(groups.items(), key=lambda item: (seen_first(item[0][0]), item[0][1])):
        counted = [row for row in rows if row["n_positive"] >= LEAST_POSITIVES]
        medians = {name: median(row[name] for row in counted) for name in ("auroc", "auprc", "prevalence")}
        found.append(
            {"holdout": holdout, key: value, "n_experiments": len(rows), "n_counted": len(counted), **medians}
        )
    return found


def seen_first(holdout: str) -> tuple[int, str]:
    """Sort key of the kinds of hold-out: the less was held out, the earlier."""
    return (0 if holdout == "seen" else holdout.count("+") + 1), holdout


def spaced(name: str) -> str:
    """Return a name as people read it."""
    return name.replace("_", " ").replace("+", " + ")


def median(values: Iterable[float]) -> float:
    """Return the median of the finite values, NaN if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else float("nan")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median over factors, always with the same draws."""
    finite = np.asarray([value for value in values if np.isfinite(value)], dtype=np.float64)
    if len(finite) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(0).integers(len(finite), size=(_BOOTSTRAPS, len(finite)))
    low, high = np.quantile(np.median(finite[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)

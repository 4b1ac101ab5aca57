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
_CLEARLY = 0.975
"""Share of resamples from which on one score is clearly above another."""

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
    def ahead(self) -> float:
        """Share of the resamples of the genome in which the model beats the best baseline; NaN where not measured."""
        best = self.best_baseline
        return float(best[1].get("model_ahead", float("nan"))) if best else float("nan")

    @property
    def gain(self) -> float:
        """AUPRC of the model minus that of the best baseline; NaN without one."""
        best = self.best_baseline
        return float(self.model["auprc"] - best[1]["auprc"]) if best else float("nan")


class Headline(NamedTuple):
    """One scorer over all counted experiments of one kind of hold-out: medians."""

    run: str
    holdout: str
    scorer: str
    kind: str
    n_experiments: int
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
    """Return the medians over experiments, per kind of hold-out and scorer: model, baselines, then the oracle.

    A scorer that exists for some experiments only (a motif scan) is compared on those: its line says how many, and what
    the model reaches on the same ones.
    """
    found: list[Headline] = []
    counted = [case for case in cases if case.n_positive >= LEAST_POSITIVES]
    for holdout in sorted({case.holdout for case in counted}, key=seen_first):
        group = [case for case in counted if case.holdout == holdout]
        names = _best_first(group)
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


def _best_first(group: Sequence[Case]) -> list[str]:
    """Return the names of the baselines by median AUPRC, the highest first."""
    names = sorted({name for case in group for name in case.baselines})
    reached = {name: median(c.baselines[name]["auprc"] for c in group if name in c.baselines) for name in names}
    return sorted(names, key=lambda name: -reached[name] if np.isfinite(reached[name]) else np.inf)


def _headline(run: str, holdout: str, scorer: str, kind: str, rows: list[Row], note: str) -> Headline:
    low, high = _interval([row["auprc"] for row in rows])
    return Headline(
        run=run,
        holdout=holdout,
        scorer=scorer,
        kind=kind,
        n_experiments=len(rows),
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
            f"{spaced(holdout)}: median AUROC {median(c.model['auroc'] for c in group):.3f}, "
            f"median AUPRC {median(c.model['auprc'] for c in group):.3f} "
            f"at prevalence {median(c.prevalence for c in group):.2g} over {_counted(group)}"
        )
        if gains:
            won = sum(gain > 0 for gain in gains)
            sentence += (
                f"; AUPRC minus each factor's best baseline {median(gains):+.3f}, model ahead in {won} of {len(gains)}"
            )
            by_factor = [[c.gain for c in group if c.factor == name] for name in sorted({c.factor for c in group})]
            of_factors = [np.nanmedian(own) for own in by_factor if np.isfinite(own).any()]
            if len(of_factors) < len(gains):
                ahead = sum(gain > 0 for gain in of_factors)
                sentence += f", by the median of each factor's in {ahead} of {len(of_factors)} factors"
            sentence += _clearly(group)
        sentences.append(sentence + ".")
    return sentences


class Comparison(NamedTuple):
    """One run beside the first, on the experiments that both were scored on."""

    run: str
    other: str
    holdout: str
    n: int
    auprc: float
    """Median of the first run."""
    other_auprc: float
    difference: float
    """Median of the other run's AUPRC minus the first's, experiment by experiment."""
    low: float
    high: float
    ahead: int
    """Experiments in which the other run is higher."""


def _counted(group: Sequence[Case]) -> str:
    n_factors = len({case.factor for case in group})
    return f"{n_factors} factors" if n_factors == len(group) else f"{len(group)} experiments of {n_factors} factors"


def _clearly(group: Sequence[Case]) -> str:
    """Say in how many experiments nearly all resamples agree about who is ahead."""
    shares = [case.ahead for case in group if np.isfinite(case.ahead)]
    if not shares:
        return ""
    ahead, behind = sum(share >= _CLEARLY for share in shares), sum(share <= 1 - _CLEARLY for share in shares)
    return f" (in {ahead} clearly; clearly behind in {behind})"


def compare(runs: Sequence[Sequence[Case]]) -> list[Comparison]:
    """Return every further run beside the first, per kind of hold-out; only experiments that both have count."""
    found: list[Comparison] = []
    if not runs:
        return found
    first = {(c.experiment, c.holdout): c for c in runs[0] if c.n_positive >= LEAST_POSITIVES}
    for other in runs[1:]:
        pairs = [(first[key], c) for c in other if (key := (c.experiment, c.holdout)) in first]
        for holdout in sorted({mine.holdout for mine, _ in pairs}, key=seen_first):
            group = [(mine, theirs) for mine, theirs in pairs if mine.holdout == holdout]
            gains = [theirs.model["auprc"] - mine.model["auprc"] for mine, theirs in group]
            found.append(
                Comparison(
                    group[0][0].run,
                    group[0][1].run,
                    holdout,
                    len(group),
                    median(mine.model["auprc"] for mine, _ in group),
                    median(theirs.model["auprc"] for _, theirs in group),
                    median(gains),
                    *_interval(gains),
                    sum(gain > 0 for gain in gains),
                )
            )
    return found


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
        found.append({"holdout": holdout, key: value, "n_experiments": len(rows), "n_counted": len(counted), **medians})
    return found


def seen_first(holdout: str) -> tuple[int, str]:
    """Sort key of the kinds of hold-out: the less was held out, the earlier."""
    return (0 if holdout == "seen" else holdout.count("+") + 1), holdout


def spaced(name: str) -> str:
    """Return a name as people read it."""
    return name.replace("_", " ").replace("+", " + ").replace("gc content", "GC content")


def median(values: Iterable[float]) -> float:
    """Return the median of the finite values, NaN if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else float("nan")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median over experiments, always with the same draws."""
    finite = np.asarray([value for value in values if np.isfinite(value)], dtype=np.float64)
    if len(finite) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(0).integers(len(finite), size=(_BOOTSTRAPS, len(finite)))
    low, high = np.quantile(np.median(finite[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)

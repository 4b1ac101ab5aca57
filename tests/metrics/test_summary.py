"""Scores side by side: literal rows in, medians and sentences out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfbind_store.metrics.summary import cases, headlines, median, verdicts


def row(scorer: str, factor: str, auprc: float, *, holdout: str = "seen", n_positive: int = 100) -> dict[str, object]:
    return {
        "run": "r",
        "scorer": scorer,
        "factor": factor,
        "biotype": "BY4741",
        "experiment": f"E.{factor}.BY4741",
        "holdout": holdout,
        "n_positive": n_positive,
        "prevalence": 0.01,
        "auroc": 0.5 + auprc / 2,
        "auprc": auprc,
        "auprc_over_prevalence": auprc / 0.01,
        "recall_at_fdr_10": auprc / 4,
    }


ROWS = [
    row("model", "REB1", 0.4),
    row("nearest", "REB1", 0.1),
    row("motif_scan", "REB1", 0.3),
    row("oracle", "REB1", 0.9),
    row("model", "RAP1", 0.2),
    row("nearest", "RAP1", 0.25),
    row("model", "ABF1", 0.6),
    row("nearest", "ABF1", 0.5),
    row("model", "RARE", 1.0, n_positive=3),
    row("nearest", "RARE", 0.0, n_positive=3),
    row("model", "SUM1", 0.1, holdout="unseen_factor"),
    row("nearest", "SUM1", float("nan"), holdout="unseen_factor"),
]


class TestCases:
    def test_the_best_baseline_is_the_one_with_the_highest_auprc(self) -> None:
        reb1 = next(case for case in cases("r", ROWS) if case.factor == "REB1")
        assert reb1.best_baseline is not None
        assert reb1.best_baseline[0] == "motif_scan"
        assert math.isclose(reb1.gain, 0.1)

    def test_the_oracle_is_no_baseline(self) -> None:
        reb1 = next(case for case in cases("r", ROWS) if case.factor == "REB1")
        assert "oracle" not in reb1.baselines
        assert reb1.oracle is not None

    def test_a_baseline_without_a_score_gives_no_gain(self) -> None:
        sum1 = next(case for case in cases("r", ROWS) if case.factor == "SUM1")
        assert sum1.best_baseline is None
        assert math.isnan(sum1.gain)

    def test_a_factor_without_a_model_score_is_no_case(self) -> None:
        assert cases("r", [row("nearest", "REB1", 0.1)]) == []


class TestHeadlines:
    def test_medians_leave_out_factors_with_few_positives(self) -> None:
        first = headlines(cases("r", ROWS))[0]
        assert (first.scorer, first.holdout, first.n_experiments, first.auprc) == ("model", "seen", 3, 0.4)

    def test_order_is_model_baselines_oracle_and_seen_first(self) -> None:
        order = [(h.holdout, h.scorer) for h in headlines(cases("r", ROWS))]
        assert order == [
            ("seen", "model"),
            ("seen", "motif_scan"),
            ("seen", "nearest"),
            ("seen", "oracle"),
            ("unseen_factor", "model"),
            ("unseen_factor", "nearest"),
        ]

    def test_a_scorer_of_some_factors_says_what_the_model_reaches_on_those(self) -> None:
        motif = next(h for h in headlines(cases("r", ROWS)) if h.scorer == "motif_scan")
        assert (motif.n_experiments, motif.note) == (1, "model on these: 0.400")

    def test_the_interval_holds_the_median_and_repeats(self) -> None:
        one, two = (headlines(cases("r", ROWS))[0] for _ in range(2))
        assert one.low <= one.auprc <= one.high
        assert one == two


def test_the_verdict_tells_experiments_from_factors() -> None:
    seen = [case for case in cases("r", ROWS) if case.holdout == "seen"]
    one, *_ = verdicts([dataclasses.replace(case, factor="REB1") for case in seen])
    assert "over 3 experiments of 1 factors; " in one
    assert "model ahead in 2 of 3, by the median of each factor's in 1 of 1 factors" in one


def test_the_verdict_counts_wins() -> None:
    seen, unseen = verdicts(cases("r", ROWS))
    assert seen == (
        "seen: median AUROC 0.700, median AUPRC 0.400 at prevalence 0.01 over 3 factors; "
        "AUPRC minus each factor's best baseline +0.100, model ahead in 2 of 3."
    )
    assert unseen == "unseen factor: median AUROC 0.550, median AUPRC 0.100 at prevalence 0.01 over 1 factors."


def test_the_median_of_nothing_is_nan() -> None:
    assert math.isnan(median([float("nan"), np.inf]))

"""Measured binding, composition and accessibility as scores, on hand-made genomes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planted import Planted, planted  # noqa: F401
from tests.query.world import World
from tfbind_store.evaluation.measured import Bound, GcCurve, LabelTracks, accessibility, gc_share, open_signals
from tfbind_store.feeding.feed import Experiments
from tfbind_store.loci import Grid
from tfbind_store.query.labels import load_truth

EXPERIMENTS = Experiments(np.arange(16), np.tile(np.arange(8), 2), np.repeat([0, 1], 8))
GENES = {factor: frozenset({str(factor)}) for factor in range(8)}
WEA, OGA, IN_B = 0, 6, 8


def bound(made: Planted, places: list[int] | None = None, genes: dict[int, frozenset[str]] = GENES) -> Bound:
    chosen = np.arange(16) if places is None else np.array(places)
    return Bound(load_truth(made.store), EXPERIMENTS, chosen, genes)


def site(made: Planted, family: str) -> int:
    return made.sites["chr4"][family][0] // 32


class TestBound:
    def test_counts_other_factors_of_the_biotype(self, planted: Planted) -> None:  # noqa: F811
        bins = planted.store.tiling.global_bins(3)
        # WEB and WEC in cellA, not WEA itself, not cellB
        assert bound(planted).by_others(WEA, bins)[site(planted, "WE")] == 2
        assert bound(planted).by_others(WEA, bins)[site(planted, "OL")] == 3

    def test_what_shares_a_gene_is_not_another(self, planted: Planted) -> None:  # noqa: F811
        bins = planted.store.tiling.global_bins(3)
        genes = {**GENES, 1: frozenset({"0", "1"})}
        assert bound(planted, genes=genes).by_others(WEA, bins)[site(planted, "WE")] == 1

    def test_other_biotypes_count_where_the_own_has_nobody(self, planted: Planted) -> None:  # noqa: F811
        bins = planted.store.tiling.global_bins(3)
        only_b = bound(planted, [IN_B + 1, IN_B + 2, IN_B + WEA])
        assert only_b.by_others(WEA, bins)[site(planted, "WE")] == 2
        assert bound(planted, [WEA]).by_others(WEA, bins) is None

    def test_of_a_known_factor_its_other_biotypes_count(self, planted: Planted) -> None:  # noqa: F811
        """OGA binds in cellA only; asked about it in cellB, training knows where it binds in cellA."""
        bins = planted.store.tiling.global_bins(3)
        known = bound(planted, [WEA, 1, OGA]).in_training(IN_B + OGA, bins)
        assert known is not None
        assert np.flatnonzero(known).tolist() == sorted(start // 32 for start in planted.sites["chr4"]["OG"])

    def test_of_an_unknown_factor_the_others_count_and_never_itself(self, planted: Planted) -> None:  # noqa: F811
        bins = planted.store.tiling.global_bins(3)
        known = bound(planted, [WEA, 1, OGA]).in_training(3, bins)
        assert known is not None
        assert known[site(planted, "WE")] == 2
        assert known[site(planted, "OL")] == 0
        assert bound(planted, [OGA]).in_training(OGA, bins) is None


class TestComposition:
    def test_share_counts_bases_only_and_stops_at_the_chromosome(self, tmp_path) -> None:
        grid = Grid(window_bp=8, n_bins=2, bin_bp=4)
        store = World(tmp_path, {"a": "GGAANNGTNNNN", "b": "CCCCC"}, grid).write()
        share = gc_share(store)
        np.testing.assert_array_equal(share, [0.5, 0.5, np.nan, np.nan, 1.0, 1.0])

    def test_score_is_the_share_bound_at_such_composition(self) -> None:
        rng = np.random.default_rng(0)
        gc = rng.random(50_000).astype(np.float32)
        in_the_middle = (np.abs(gc - 0.5) < 0.1) & (rng.random(50_000) < 0.2)
        curve = GcCurve(gc, in_the_middle.astype(np.float32))
        low, middle, high, none = curve(np.array([0.1, 0.5, 0.9, np.nan], dtype=np.float32))
        assert middle == pytest.approx(0.2, abs=0.02)
        assert max(low, high) < 0.01
        assert none == 0

    def test_composition_that_was_never_seen_has_the_average(self) -> None:
        curve = GcCurve(np.full(1000, 0.4, np.float32), np.ones(1000, np.float32))
        assert curve(np.array([0.9], np.float32))[0] == pytest.approx(1.0)


def test_a_store_without_tracks_has_neither_accessibility_nor_tracks(planted: Planted) -> None:  # noqa: F811
    bins = np.arange(10)
    assert open_signals(planted.store) == []
    assert accessibility([], 0, bins) is None
    assert LabelTracks(planted.store).at(EXPERIMENTS, 0, bins) is None

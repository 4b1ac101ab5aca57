"""Correlations of predicted with measured tracks: ties, missing numbers, and blocks against the whole."""

from __future__ import annotations

import numpy as np
import pytest

from tfbind_store.metrics.tracks import TrackJudge, pearson, score_tracks, spearman


class TestScores:
    def test_ties_have_their_mean_rank(self) -> None:
        x, y = np.array([1.0, 2, 2, 3]), np.array([10.0, 20, 30, 40])
        assert spearman(x, y) == pytest.approx(pearson(np.array([1, 2.5, 2.5, 4]), np.array([1.0, 2, 3, 4])))

    def test_missing_values_are_left_out(self) -> None:
        rng = np.random.default_rng(0)
        measured = rng.random((50, 2))
        predicted = measured.copy()
        predicted[:10] = 99
        measured[:10] = np.nan
        scores = score_tracks(predicted, measured)
        np.testing.assert_allclose(scores.pearson_over_bins, 1)
        assert scores.pearson_over_tracks == pytest.approx(1)
        assert scores.n_values == 80

    def test_what_does_not_vary_has_no_correlation(self) -> None:
        scores = score_tracks(np.ones((5, 1)), np.arange(5.0)[:, None])
        assert np.isnan(scores.pearson_over_bins[0])
        assert np.isnan(scores.pearson_over_tracks)

    def test_equal_numbers_do_not_vary_whatever_their_mean_rounds_to(self) -> None:
        constant = np.full(7, 0.1)
        assert (constant - constant.mean()).any()  # or this would test nothing
        assert np.isnan(pearson(constant, np.arange(7.0)))
        assert np.isnan(pearson(np.arange(7.0), constant))
        assert np.isnan(pearson(constant, constant))


class TestTrackJudge:
    @pytest.fixture
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        measured = rng.gamma(1.0, 5.0, (700, 3)) + np.array([0.0, 1e4, 0.0])
        predicted = measured + rng.normal(size=(700, 3)) * np.array([1.0, 5.0, 50.0])
        measured[:90, 0] = np.nan
        return predicted, measured

    def judged(self, sides: tuple[np.ndarray, np.ndarray], size: int, **options: int) -> TrackJudge:
        judge = TrackJudge(len(sides[0]), sides[0].shape[1], **options)
        for at in range(0, len(sides[0]), size):
            judge.add(*(side[at : at + size] for side in sides))
        return judge

    @pytest.mark.parametrize("size", [7, 700])
    def test_blocks_have_the_scores_of_the_whole(self, sides: tuple[np.ndarray, np.ndarray], size: int) -> None:
        found, wanted = self.judged(sides, size).scores(), score_tracks(*sides)
        np.testing.assert_allclose(found.pearson_over_bins, wanted.pearson_over_bins, rtol=1e-9)
        np.testing.assert_allclose(found.spearman_over_bins, wanted.spearman_over_bins, atol=1e-4)
        assert found.pearson_over_tracks == pytest.approx(wanted.pearson_over_tracks, abs=1e-4)
        assert found.n_values == wanted.n_values == 2_010

    def test_of_many_bins_an_even_sample_is_kept(self, sides: tuple[np.ndarray, np.ndarray]) -> None:
        judge = self.judged(sides, 9, max_cells=300)
        found, sample = judge.scores(), score_tracks(*(side[::7] for side in sides))
        assert sum(len(x) for x, _ in judge._kept) == 100
        np.testing.assert_allclose(found.spearman_over_bins, sample.spearman_over_bins, atol=1e-3)  # kept in float32
        np.testing.assert_allclose(found.pearson_over_bins, score_tracks(*sides).pearson_over_bins, rtol=1e-9)

    def test_a_track_that_does_not_vary_has_no_correlation(self) -> None:
        judge = TrackJudge(60, 2)
        rng = np.random.default_rng(0)
        for _ in range(3):
            judge.add(rng.random((20, 2)), np.stack([np.full(20, 0.1), rng.random(20)], axis=1))
        assert np.isnan(judge.scores().pearson_over_bins).tolist() == [True, False]

    def test_nothing_at_all_is_no_score(self) -> None:
        scores = TrackJudge(0, 2).scores()
        assert np.isnan(scores.pearson_over_bins).all()
        assert scores.n_values == 0

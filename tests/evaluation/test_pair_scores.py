"""Scores in blocks against scores at once, and against plain means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import Planted, make_planted
from tfbind_store.evaluation import pair_scores
from tfbind_store.evaluation.holdouts import World, choose_groups, read_world
from tfbind_store.evaluation.pair_scores import Predicted, predict_group
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import LoadedRun, load_run, score_genome
from tfbind_store.training.train import TrainConfig, train_head

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    torch.set_num_threads(1)
    made = make_planted(tmp_path_factory.mktemp("planted"))
    config = TrainConfig(steps=3, options=OPTIONS, bins_per_step=32, pairs_per_step=4, device="cpu")
    train_head(made.store, made.selection, config, "few")
    return made


@pytest.fixture(scope="module")
def world(planted: Planted) -> tuple[LoadedRun, World, np.ndarray, np.ndarray]:
    run, selection = load_run(planted.store, "few"), Selection.open(planted.store, planted.selection)
    found = read_world(planted.store, selection, run.header)
    groups = choose_groups(planted.store, selection, found)
    return run, found, groups[0].places, planted.store.tiling.global_bins(3)


def together(blocks: list[Predicted]) -> Predicted:
    return Predicted(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def test_blocks_hold_what_the_memory_allows_and_change_nothing(world) -> None:
    run, found, places, bins = world
    whole = list(predict_group(run, None, found, places, bins, max_bytes=2**30))
    one_by_one = list(predict_group(run, None, found, places, bins, max_bytes=1))
    assert (len(whole), len(one_by_one)) == (1, len(places))
    some = list(predict_group(run, None, found, places, bins, max_bytes=4 * len(bins) * 15))
    assert 1 < len(some) < len(places)
    assert max(len(block.places) for block in some) < 15
    for blocks in (one_by_one, some):
        got, expected = together(blocks), together(whole)
        order, wanted = np.argsort(got.places), np.argsort(expected.places)  # blocks come biotype by biotype
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one[order], other[wanted], rtol=1e-4, atol=1e-5)


def test_scores_at_work_stay_within_the_memory_allowed(world, monkeypatch) -> None:
    run, found, places, bins = world
    rows = []
    score = pair_scores._Scorer.score
    monkeypatch.setattr(pair_scores._Scorer, "score", lambda self, pairs: rows.append(len(pairs)) or score(self, pairs))
    list(predict_group(run, None, found, places, bins, max_bytes=4 * len(bins) * 15))
    assert len(rows) > 2
    assert max(rows) + 3 * 1 <= 15


def test_rows_are_the_heads_own_scores_and_the_mean_leaves_the_factor_out(planted, world) -> None:
    run, found, places, bins = world
    block = together(list(predict_group(run, None, found, places, bins, max_bytes=2**30)))
    row = int(np.flatnonzero(places == 8 + 1)[0])  # WEB in cellB
    trained = [factor for factor in range(8) if factor != 3]
    genome = next(score_genome(planted.store, "few", trained, 1, chroms=["chr4"])).scores
    np.testing.assert_allclose(block.model[row], genome[:, 1], atol=1e-5)
    others = [at for at, factor in enumerate(trained) if factor != 1]
    np.testing.assert_allclose(block.training_mean[row], genome[:, others].mean(axis=1), atol=1e-5)
    near = trained.index(int(block.nearest_factor[row]))
    np.testing.assert_allclose(block.nearest[row], genome[:, near], atol=1e-5)
    assert 0 < block.similarity[row] < 1

import dataclasses

import numpy as np
import pytest
import torch

from tests.planted import make_planted
from tfbind_store.errors import CheckpointError, MissingWindow
from tfbind_store.heads import load_checkpoint, save_checkpoint
from tfbind_store.scoring.bins import load_run, scorable_bins, score_bins, score_genome
from tfbind_store.training.train import TrainConfig, train_head

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    made = make_planted(tmp_path_factory.mktemp("planted"))
    config = TrainConfig(steps=3, options=OPTIONS, bins_per_step=32, pairs_per_step=4, device="cpu")
    train_head(made.store, made.selection, config, "few")
    return made


def test_genome_scores_equal_the_heads_own(planted):
    run = load_run(planted.store, "few")
    blocks = list(score_genome(planted.store, "few", [0, 4], 1, chroms=["chr3", "chr1"]))
    bins = np.concatenate([block.global_bins for block in blocks])
    scores = np.concatenate([block.scores for block in blocks])
    tiling = planted.store.tiling
    assert bins.tolist() == [*tiling.global_bins(2).tolist(), *tiling.global_bins(0).tolist()]
    batch = run.source.inputs(np.array([4]), np.array([1]))
    dna = planted.store.array("embeddings/windows").gather_bins(bins[5:6], 1)
    with torch.inference_mode():
        alone = run.head(batch._replace(dna=torch.from_numpy(np.array(dna))))
    assert scores[5, 1] == pytest.approx(alone.item(), abs=1e-5)


def test_blocks_change_nothing(planted):
    run, bins = load_run(planted.store, "few"), planted.store.tiling.global_bins(1)
    pairs = np.array([0, 1, 2]), np.array([0, 0, 1])
    whole = [block.scores for block in score_bins(run.head, run.source, *pairs, bins)]
    small = [block.scores for block in score_bins(run.head, run.source, *pairs, bins, block_bins=7)]
    np.testing.assert_allclose(np.concatenate(small), np.concatenate(whole), rtol=1e-5, atol=1e-6)


def test_training_mode_is_given_back(planted):
    run = load_run(planted.store, "few")
    run.head.train()
    list(score_bins(run.head, run.source, np.array([0]), np.array([0]), np.array([0])))
    assert run.head.training


def test_windows_that_are_not_embedded_are_counted(planted, monkeypatch):
    array = planted.store.array("embeddings/windows")
    lost = array.is_ok
    monkeypatch.setattr(type(array), "is_ok", lambda self, windows: lost(windows) & (np.asarray(windows) != 2))
    with pytest.raises(MissingWindow, match=r"1 of 24 windows are not embedded \(first: 2\)"):
        scorable_bins(planted.store, "embeddings/windows", ["chr1"])


def test_run_of_other_embeddings_is_refused(planted):
    head, header = load_checkpoint(planted.store.run_dir("few") / "head.safetensors")
    arrays = {**header.arrays, "proteins": {**header.arrays["proteins"], "fingerprint": "0" * 64}}
    other = planted.store.run_dir("other")
    other.mkdir()
    save_checkpoint(other / "head.safetensors", head, dataclasses.replace(header, arrays=arrays))
    with pytest.raises(CheckpointError, match="head was trained on proteins 000000000000"):
        load_run(planted.store, "other")
    save_checkpoint(other / "head.safetensors", head, dataclasses.replace(header, arrays={}))
    with pytest.raises(CheckpointError, match="names arrays of nothing, not of windows, proteins, contexts"):
        load_run(planted.store, "other")


def test_absent_run_is_refused(planted):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_run(planted.store, "nothing")

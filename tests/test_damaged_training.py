"""A flipped bit of an embedding stops training and evaluation when first reads are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.planted import planted  # noqa: F401
from tfbind_store.errors import DamagedShard
from tfbind_store.evaluation.evaluate import EvaluateConfig, evaluate_run
from tfbind_store.store.folder import Store
from tfbind_store.training.train import TrainConfig, train_head

QUICK = {"steps": 3, "validate_every": 3, "device": "cpu"}


@pytest.fixture
def damaged(planted, tmp_path) -> Path:  # noqa: F811
    """A copy of the store in which one window of a training chromosome and one of a test chromosome are damaged."""
    shutil.copytree(planted.store.path, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    layout = store.array("embeddings/windows").layout
    for window in (1, int(store.tiling.first_window[3]) + 1):
        shard, place = divmod(window, layout.windows_per_shard)
        with layout.shard_path(shard).open("r+b") as file:
            file.seek(place * layout.window_bytes + 8)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return store.path


@pytest.mark.parametrize("pairing", ["dense", "rows"])
def test_training_stops_at_a_damaged_window(damaged, planted, pairing):  # noqa: F811
    config = TrainConfig(pairing=pairing, **QUICK)
    assert train_head(Store.open(damaged), planted.selection, config, "careless").steps == 3
    with pytest.raises(DamagedShard, match="window 1"):
        train_head(Store.open(damaged, verify="first-touch"), planted.selection, config, "careful")


def test_evaluation_stops_at_a_damaged_window(damaged, planted):  # noqa: F811
    store = Store.open(damaged)
    train_head(store, planted.selection, TrainConfig(**QUICK), "run")
    evaluate_run(store, "run", EvaluateConfig(with_oracle=False))
    with pytest.raises(DamagedShard):
        evaluate_run(Store.open(damaged, verify="first-touch"), "run", EvaluateConfig(with_oracle=False))

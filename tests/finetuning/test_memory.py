import itertools

import pytest
import torch

from tfbind_store.finetuning.config import FinetuneConfig
from tfbind_store.finetuning.memory import finetune_memory
from tfbind_store.finetuning.modes import set_trunk_mode
from tfbind_store.loci import Grid
from tfbind_store.precompute.enformer import random_trunk
from tfbind_store.pretraining.forward import live_features

GRID = Grid(window_bp=2048, n_bins=32, bin_bp=32)
ARCHITECTURE = {
    "dim": 24, "depth": 3, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def trunk():
    return random_trunk(ARCHITECTURE, seed=0).model


@pytest.fixture(scope="module")
def found(trunk):
    rows = finetune_memory(trunk, torch.nn.Linear(48, 1), GRID, FinetuneConfig(mode="last:2", windows_per_step=3))
    return {row.mode: row for row in rows}


def test_every_mode_is_stated(found):
    assert list(found) == ["head", "layernorm", "last:1", "last:2", "all"]
    assert [row.tensors for row in found.values()][:2] == [0, 12]
    assert found["head"].kept_bytes == found["head"].checkpointed_bytes == 0


def test_more_that_trains_needs_more(found):
    order = [found[mode] for mode in ("head", "last:1", "last:2", "all")]
    for less, more in itertools.pairwise(order):
        assert less.kept_bytes < more.kept_bytes
        assert less.optimizer_bytes < more.optimizer_bytes
        assert less.weights_bytes == more.weights_bytes
    assert found["all"].checkpointed_bytes < found["all"].kept_bytes * 0.6  # the stem, the largest block, is half of it


@pytest.mark.parametrize("mode", ["layernorm", "last:1", "all"])
def test_kept_bytes_are_those_that_a_real_step_keeps(trunk, found, mode):
    set_trunk_mode(trunk, mode)
    own = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    sequence = torch.eye(4)[torch.randint(0, 4, (3, GRID.window_bp))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        live_features(trunk, sequence, n_bins=GRID.n_bins)
    assert found[mode].kept_bytes == pytest.approx(sum(storages.values()), rel=0.05)
    assert found[mode].parameters == sum(p.numel() for p in trunk.parameters() if p.requires_grad)


def test_both_strands_keep_twice_as_much(trunk, found):
    both = finetune_memory(trunk, torch.nn.Linear(48, 1), GRID, FinetuneConfig(windows_per_step=3), strands=2)
    assert both[-1].kept_bytes == 2 * found["all"].kept_bytes

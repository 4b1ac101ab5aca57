"""Every head finds a planted signal, and nothing where there is none."""

import pytest
import torch

from tests.planted import planted  # noqa: F401
from tfbind_store.heads import HEADS
from tfbind_store.training.train import TrainConfig, train_head

SMALL = {
    "adapter": {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3},
    "bilinear": {"rank": 16, "n_queries": 3, "token_dim": 16},
    "filip": {"latent_heads": 8, "latent_dim": 8, "attention_heads": 2, "attention_dim": 8},
    "linear": {},
    "two_tower": {"width": 16, "n_queries": 3, "latents": 4, "latent_dim": 4},
}
QUICK = {"bins_per_step": 64, "pairs_per_step": 6, "batch_rows": 32, "device": "cpu", "lr": 3e-3}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_no_head_is_left_out():
    assert set(SMALL) == set(HEADS)


@pytest.mark.parametrize("pairing", ["dense", "rows"])
@pytest.mark.parametrize("head", SMALL)
def test_a_planted_signal_is_found(planted, head, pairing):  # noqa: F811
    config = TrainConfig(head=head, options=SMALL[head], steps=100, validate_every=50, pairing=pairing, **QUICK)
    found = train_head(planted.store, planted.selection, config, f"{head}-{pairing}").metrics
    assert found["valid_auroc"] >= 0.95
    assert found["valid_auprc"] >= 0.8


@pytest.mark.parametrize("head", SMALL)
def test_nothing_is_found_where_peaks_lie_at_random(planted, head):  # noqa: F811
    config = TrainConfig(head=head, options=SMALL[head], steps=100, validate_every=100, permute_labels=True, **QUICK)
    assert train_head(planted.store, planted.selection, config, f"{head}-control").metrics["valid_auroc"] <= 0.55

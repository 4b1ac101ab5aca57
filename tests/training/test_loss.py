import pytest
import torch

from tests.head_contract import GEOMETRY, make_batch
from tfbind_store.feeding.feed import DenseBatch
from tfbind_store.heads import LossConfig, make_head
from tfbind_store.training import loss as train_loss
from tfbind_store.training.batches import pieces
from tfbind_store.training.loss import HeadLoss, labelled_weight

OPTIONS = {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3, "dropout": 0.2}


@pytest.fixture
def head():
    torch.manual_seed(0)
    return make_head("adapter", GEOMETRY, OPTIONS).train()


def dense_batch(n_bins=200):
    generator = torch.Generator().manual_seed(1)
    pairs = make_batch(n_rows=6)
    labels = torch.randint(0, 2, (n_bins, 6), generator=generator).float()
    labels[::7, 2] = torch.nan
    dna = torch.randn(n_bins, GEOMETRY.dna_dim, generator=generator)
    return DenseBatch(dna, pairs, labels, torch.arange(n_bins).numpy(), torch.arange(6).numpy())


def gradients(head, batch, *, checkpointing):
    """Return loss, gradients, and the bytes that the forward pass kept for the way back."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    head.zero_grad()
    torch.manual_seed(3)
    loss = HeadLoss(head, LossConfig(), checkpointing=checkpointing)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(batch).sum()
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in head.named_parameters()}, kept


@pytest.mark.parametrize("batch", [dense_batch(), make_batch(n_rows=40)], ids=["dense", "rows"])
def test_checkpointing_gives_the_same_gradient_and_keeps_less(head, monkeypatch, batch):
    # one block: then dropout draws the same numbers with and without
    monkeypatch.setattr(train_loss, "CELLS_AT_ONCE", 10**6)
    plain, expected, much = gradients(head, batch, checkpointing=False)
    again, found, little = gradients(head, batch, checkpointing=True)
    assert again == pytest.approx(plain, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert little < much / 3


@pytest.mark.parametrize("batch", [dense_batch(), make_batch(n_rows=40)], ids=["dense", "rows"])
def test_blocks_change_nothing(head, monkeypatch, batch):
    head.eval()  # without dropout
    whole, expected, _ = gradients(head, batch, checkpointing=False)
    monkeypatch.setattr(train_loss, "CELLS_AT_ONCE", 50)
    blocks, found, _ = gradients(head, batch, checkpointing=True)
    assert blocks == pytest.approx(whole, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("batch", [dense_batch(7), make_batch(n_rows=7)], ids=["dense", "rows"])
def test_pieces_hold_each_row_once_and_are_never_empty(head, batch):
    head.eval()
    loss = HeadLoss(head, LossConfig())
    for n in (1, 2, 7, 20):
        parts = pieces(batch, n)
        assert len(parts) == min(n, 7)
        assert sum(len(part.labels) for part in parts) == 7
        assert sum(labelled_weight(part).item() for part in parts) == labelled_weight(batch).item()
        torch.testing.assert_close(sum(loss(part).sum() for part in parts), loss(batch).sum())


def test_rows_without_weight_count_nothing(head):
    batch = make_batch(n_rows=4)
    batch = batch._replace(weights=torch.tensor([1.0, 0.0, 2.0, 0.0]))
    cells = HeadLoss(head, LossConfig())(batch)
    assert (cells[[1, 3]] == 0).all()
    assert labelled_weight(batch).item() == 3 * batch.labels.shape[1]

import math

import pytest
import torch

from tfbind_store.errors import ConfigError
from tfbind_store.heads import LossConfig, batch_loss, cell_losses

NAN = float("nan")


def test_bce_of_a_logit_of_zero_is_log_two():
    losses = cell_losses(LossConfig(), torch.zeros(3), torch.tensor([0.0, 1.0, NAN]))
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2), 0.0])


def test_focal_fades_what_is_right():
    logits, labels = torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0])
    share = torch.sigmoid(logits)
    expected = -((1 - share) ** 2) * share.log()
    torch.testing.assert_close(cell_losses(LossConfig(kind="focal"), logits, labels), expected)


def test_focal_with_gamma_zero_is_bce():
    logits, labels = torch.randn(8), torch.tensor([0.0, 1.0] * 4)
    focal = cell_losses(LossConfig(kind="focal", gamma=0.0), logits, labels)
    torch.testing.assert_close(focal, cell_losses(LossConfig(), logits, labels))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_slope_where_nothing_is_missed(gamma):
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    cell_losses(LossConfig(kind="focal", gamma=gamma), logits, torch.tensor([1.0, 0.0])).sum().backward()
    assert logits.grad.isfinite().all()


def test_mse_is_of_the_bare_logit():
    losses = cell_losses(LossConfig(kind="mse"), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]))
    assert losses.tolist() == [0.0, 9.0]


def test_positive_weight_and_smoothing():
    losses = cell_losses(LossConfig(kind="mse", positive_weight=3.0), torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert losses.tolist() == [3.0, 0.0]
    smooth = cell_losses(LossConfig(kind="mse", label_smoothing=0.2), torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert smooth.tolist() == pytest.approx([0.81, 0.01])


def test_mean_is_over_labelled_bins_and_weights():
    logits = torch.tensor([[1.0, 5.0], [2.0, 0.0]])
    labels = torch.tensor([[0.0, NAN], [0.0, 0.0]])
    loss = batch_loss(LossConfig(kind="mse"), logits, labels, torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx((1 * 1 + 2 * (4 + 0)) / (1 + 2 + 2))


@pytest.mark.parametrize("kind", ["bce", "focal", "mse"])
def test_nan_labels_have_no_gradient(kind):
    logits = torch.tensor([[300.0, -1.0]], requires_grad=True)
    batch_loss(LossConfig(kind=kind), logits, torch.tensor([[NAN, 0.0]]), torch.ones(1)).backward()
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] != 0


def test_no_label_at_all_gives_zero_and_a_zero_gradient():
    logits = torch.ones(1, 2, requires_grad=True)
    loss = batch_loss(LossConfig(), logits, torch.full((1, 2), NAN), torch.ones(1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [[0.0, 0.0]]


def test_values_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="label_smoothing"):
        LossConfig(label_smoothing=1.0)

import math

import pytest
import torch

from tfbind_store.heads.read_values import ReadValueLoss


def test_features_by_hand():
    loss = ReadValueLoss(4, fourier_dims=4)
    got = loss.features(torch.tensor([100.0]))[0]
    angles = [2.0, 2.0 / math.sqrt(20_000)]
    expected = [1.0, 100 / 8000, math.log(100), *map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("unknown", [0.0, torch.nan])
def test_an_unknown_number_of_peaks_has_no_features(unknown):
    # the reference took the logarithm of 1e-20
    features = ReadValueLoss(4, fourier_dims=4).features(torch.tensor([unknown, 5.0]))
    assert features[0].eq(0).all()
    assert features[1, 0] == 1


def test_the_target_is_log1p_of_the_score_and_missing_scores_do_not_count():
    torch.manual_seed(0)
    loss, mixed, peaks = ReadValueLoss(4, fourier_dims=4), torch.randn(3, 5, 4), torch.tensor([10.0, 0.0, 3.0])
    got = loss(mixed, peaks, torch.tensor([900.0, torch.nan, 0.0]))
    said = loss.net(torch.cat([loss.norm(mixed.mean(1)), loss.features(peaks)], -1)).squeeze(-1)
    target = torch.tensor([math.log(901), 0.0])
    expected = torch.nn.functional.smooth_l1_loss(said[[0, 2]], target)
    torch.testing.assert_close(got, expected)


def test_without_any_score_it_is_zero_with_a_gradient_of_zero():
    loss, mixed = ReadValueLoss(4), torch.randn(2, 3, 4, requires_grad=True)
    got = loss(mixed, torch.ones(2), torch.full((2,), torch.nan))
    got.backward()
    assert got.item() == 0
    assert mixed.grad.eq(0).all()


def test_scores_of_hundreds_do_not_drown_the_other_loss():
    torch.manual_seed(0)
    auxiliary = ReadValueLoss(32)(
        torch.randn(64, 8, 32), torch.full((64,), 5000.0), torch.randint(1, 1000, (64,)).float()
    )
    assert auxiliary.item() * 0.05 < math.log(2)

"""Correlations do not depend on scale, and what rounding leaves of a constant is no variation."""

from __future__ import annotations

import pytest
import torch

from tfbind_store.heads.track_losses import mean_loss, mean_pearson


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e4])
def test_pearson_knows_no_scale(size: float, factor: float) -> None:
    target = torch.rand(2, 896, generator=torch.Generator().manual_seed(0)) * size
    assert mean_pearson(target * factor, target).item() == pytest.approx(1, abs=1e-4)
    assert mean_loss("pearson", target * factor, target).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 33.3, 100.1, 1e6])
def test_a_constant_target_has_no_correlation(value: float) -> None:
    rates = torch.rand(1, 896, generator=torch.Generator().manual_seed(0))
    assert mean_pearson(rates, torch.full((1, 896), value)).isnan()


@pytest.mark.parametrize("value", [0.0, 0.1, 100.1])
def test_constant_rates_have_a_small_gradient(value: float) -> None:
    rates = torch.full((1, 896), value, requires_grad=True)
    target = torch.rand(1, 896, generator=torch.Generator().manual_seed(0))
    mean_loss("pearson", rates, target).backward()
    assert rates.grad is not None
    assert rates.grad.isfinite().all()

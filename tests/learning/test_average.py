import pytest
import torch
from torch import nn

from tfbind_store.learning.average import Average


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    return model


def moved(model, value):
    with torch.no_grad():
        model[0].weight.fill_(value)
    model[1].num_batches_tracked.fill_(int(value))


def test_average_follows_the_formula(model):
    average = Average(model, 0.5)
    moved(model, 4.0)
    average.update(1)  # keeps 2 / 11 of the old
    assert average.tensors["0.weight"].item() == pytest.approx(4 * 9 / 11)
    moved(model, 8.0)
    average.update(1000)  # keeps 0.5
    assert average.tensors["0.weight"].item() == pytest.approx((4 * 9 / 11 + 8) / 2)
    assert average.tensors["1.num_batches_tracked"].item() == 8


def test_applied_gives_the_own_weights_back(model):
    average = Average(model, 0.5)
    moved(model, 4.0)

    def failing():
        with average.applied():
            assert model[0].weight.item() == 0.0
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        failing()
    assert model[0].weight.item() == 4.0


def test_decay_0_is_no_average(model):
    average = Average(model, 0.0)
    moved(model, 4.0)
    average.update(1)
    with average.applied():
        assert model[0].weight.item() == 4.0
    assert average.tensors == {}


def test_restored_average_is_the_saved_one(model):
    average, other = Average(model, 0.5), Average(model, 0.5)
    moved(model, 4.0)
    average.update(1)
    other.restore(average.tensors)
    assert other.tensors["0.weight"].item() == average.tensors["0.weight"].item()

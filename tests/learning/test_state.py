import pytest
import torch
from torch import nn

from tfbind_store.errors import CheckpointError
from tfbind_store.learning.optimiser import adamw, trainable
from tfbind_store.learning.state import optimizer_tensors, put_back, read_state, restore_optimizer, write_state


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = adamw(model, trainable(model), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    return model.state_dict()


def test_another_process_goes_on_to_the_same_weights(tmp_path):
    model, optimizer = trained(0)
    named = trainable(model)
    groups = {"weights": model.state_dict(), "optimizer": optimizer_tensors(optimizer, named)}
    write_state(tmp_path / "s", {"step": 3}, groups)
    other, others_optimizer = trained(1)
    counters, groups = read_state(tmp_path / "s")
    put_back(tmp_path / "s", other, groups["weights"])
    restore_optimizer(tmp_path / "s", others_optimizer, trainable(other), groups["optimizer"])
    assert counters == {"step": 3}
    one, two = step(model, optimizer), step(other, others_optimizer)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_optimizer_state_is_found_by_name_not_by_order(tmp_path):
    model, optimizer = trained(0)
    saved = optimizer_tensors(optimizer, trainable(model))
    other, others_optimizer = trained(1)
    restore_optimizer(tmp_path, others_optimizer, list(reversed(trainable(other))), saved)
    for name, parameter in trainable(other):
        assert torch.equal(others_optimizer.state[parameter]["exp_avg"], saved[f"{name}/exp_avg"])


@pytest.mark.parametrize("damage", [lambda raw: raw[:-10], lambda raw: b"", lambda raw: b"x" * 100])
def test_a_damaged_file_is_refused(tmp_path, damage):
    write_state(tmp_path / "s", {}, {"weights": {"w": torch.ones(3)}})
    (tmp_path / "s").write_bytes(damage((tmp_path / "s").read_bytes()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "s")


def test_state_of_another_model_is_refused(tmp_path):
    model, optimizer = trained(0)
    with pytest.raises(CheckpointError, match="weights of another model: 1"):
        put_back(tmp_path, nn.Sequential(nn.Linear(3, 4)), model.state_dict())
    saved = optimizer_tensors(optimizer, trainable(model))
    with pytest.raises(CheckpointError, match="unknown parameters: 1"):
        restore_optimizer(tmp_path, optimizer, trainable(model)[:2], saved)

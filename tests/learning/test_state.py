from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from tfbind_store.errors import CheckpointError
from tfbind_store.learning.optimiser import adamw, trainable
from tfbind_store.learning.state import (
    optimizer_tensors,
    put_back,
    read_counters,
    read_state,
    require_step,
    restore_optimizer,
    write_state,
)


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


def test_an_optimizer_that_is_absent_or_of_other_shapes_is_refused(tmp_path):
    model, optimizer = trained(0)
    named = trainable(model)
    restore_optimizer(tmp_path, optimizer, named, {})  # before the first step there is none
    with pytest.raises(CheckpointError, match="optimizer's state is absent"):
        restore_optimizer(tmp_path, optimizer, named, {}, step=3)
    saved = optimizer_tensors(optimizer, named)
    saved["0.weight/exp_avg"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match=r"0\.weight/exp_avg is \[2, 2\], not \[4, 3\]"):
        restore_optimizer(tmp_path, optimizer, named, saved, step=3)


@dataclass
class Counters:
    step: int = 0
    losses: list[float] = field(default_factory=list)


@pytest.mark.parametrize("odd", [{"step": "3"}, {"losses": {}}, {"losses": [float("nan")]}, {"steps": 3}])
def test_counters_of_another_kind_are_refused(tmp_path, odd):
    assert read_counters(tmp_path, Counters, {"step": 3, "losses": [1]}) == Counters(3, [1.0])
    with pytest.raises(CheckpointError, match="state of the run cannot be read"):
        read_counters(tmp_path, Counters, odd)


def test_a_step_outside_the_run_is_refused(tmp_path):
    require_step(tmp_path, 20, 20)
    for step in (-1, 21):
        with pytest.raises(CheckpointError, match=f"it stands at step {step} of 20"):
            require_step(tmp_path, step, 20)

import pytest
import torch
from torch import nn

from tfbind_store.errors import ConfigError
from tfbind_store.learning.optimiser import adamw, clip, decayed_names, set_rate, trainable


class Everything(nn.Module):
    """One of each kind of parameter, the traps included: bare parameters with two axes and more."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.conv = nn.Conv1d(2, 2, 3)
        self.norm = nn.LayerNorm(2)
        self.embedding = nn.Embedding(4, 2)
        self.null = nn.Parameter(torch.zeros(2, 3))
        self.attention_bias = nn.Parameter(torch.zeros(1, 2, 1, 3))


def names_of(model, optimizer):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        (group["scale"], group["weight_decay"]): [by_id[id(p)] for p in group["params"]]
        for group in optimizer.param_groups
    }


def test_only_weights_of_linear_layers_and_convolutions_decay():
    model = Everything()
    groups = names_of(model, adamw(model, trainable(model), lr=1.0, weight_decay=0.1))
    assert groups == {
        (1.0, 0.1): ["conv.weight", "linear.weight"],
        (1.0, 0.0): [
            "attention_bias", "conv.bias", "embedding.weight", "linear.bias", "norm.bias", "norm.weight", "null",
        ],
    }  # fmt: skip


def test_groups_have_their_own_rate_by_name():
    model = Everything()
    scales = {"*": 0.5, "linear.*": 0.1}
    optimizer = adamw(model, trainable(model), lr=1.0, weight_decay=0.1, lr_scale=scales)
    groups = names_of(model, optimizer)
    assert groups[0.1, 0.1] == ["linear.weight"]
    assert groups[0.1, 0.0] == ["linear.bias"]
    assert groups[0.5, 0.1] == ["conv.weight"]
    set_rate(optimizer, 4.0)
    assert {(group["scale"], group["lr"]) for group in optimizer.param_groups} == {(0.5, 2.0), (0.1, 0.4)}


@pytest.mark.parametrize("scales", [{"linaer.*": 0.1}, {"linear.*": "slow"}, {"linear.*": -1}])
def test_a_pattern_that_fits_nothing_is_refused(scales):
    model = Everything()
    with pytest.raises(ConfigError, match="lr_scale"):
        adamw(model, trainable(model), lr=1.0, weight_decay=0.1, lr_scale=scales)


def test_frozen_parameters_are_in_no_group():
    model = Everything()
    model.linear.requires_grad_(False)
    assert "linear.weight" not in [name for name, _ in trainable(model)]


def test_decay_finds_modules_under_any_of_their_names():
    model = nn.ModuleDict({"one": nn.Linear(2, 2)})
    model["two"] = model["one"]
    assert decayed_names(model) == {"one.weight", "two.weight"}


def test_clip_shortens_to_the_norm_and_says_what_it_was():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip([parameter], 0) == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0]
    assert clip([parameter], 1.0) == 5.0
    assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-5)

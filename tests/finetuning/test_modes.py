import copy
import itertools

import pytest
import torch
from torch import nn

from tfbind_store.errors import ConfigError
from tfbind_store.finetuning.modes import free_layernorms, set_protein_mode, set_running, set_trunk_mode
from tfbind_store.precompute.enformer import random_trunk
from tfbind_store.precompute.esm import random_esm2
from tfbind_store.precompute.trunk_files import trunk_tensors
from tfbind_store.pretraining.forward import live_features

DEPTH = 3
ARCHITECTURE = {
    "dim": 24, "depth": DEPTH, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4,
}  # fmt: skip
LAYERNORMS = [
    f"transformer.{block}.{part}.fn.0.{kind}"
    for block in range(DEPTH)
    for part in (0, 1)
    for kind in ("bias", "weight")
]


@pytest.fixture
def trunk():
    return random_trunk({**ARCHITECTURE, "output_heads": {"human": 3}}, seed=0).model


def expected(trunk, mode):
    """The names that a mode trains, said in another way than the code's."""
    names = [name for name in trunk_tensors(trunk) if not name.startswith("_heads.")]
    names = [name for name in names if name in dict(trunk.named_parameters())]
    batchnorms = {
        f"{place}.{kind}"
        for place, m in trunk.named_modules()
        if type(m) is nn.BatchNorm1d
        for kind in ("weight", "bias")
    }
    names = [name for name in names if name not in batchnorms]
    if mode == "head":
        return []
    if mode == "layernorm":
        return LAYERNORMS
    if mode.startswith("last:"):
        first = DEPTH - int(mode[5:])
        return sorted(name for name in names if name.startswith("transformer.") and int(name.split(".")[1]) >= first)
    return sorted(names)


MODES = ["head", "layernorm", "last:1", "last:2", "all"]


@pytest.mark.parametrize(("before", "mode"), list(itertools.product(["none", *MODES], MODES)))
def test_any_mode_after_any_other_trains_what_it_says(trunk, before, mode):
    if before != "none":
        set_trunk_mode(trunk, before, dropout=0.3)
    names = set_trunk_mode(trunk, mode)
    assert names == expected(trunk, mode)
    assert sorted(name for name, p in trunk.named_parameters() if p.requires_grad) == names


def moved(trunk, mode):
    """Return the names of the tensors, buffers too, that optimizer steps changed."""
    torch.manual_seed(0)
    set_trunk_mode(trunk, mode)
    before = copy.deepcopy(trunk.state_dict())
    named = [p for p in trunk.parameters() if p.requires_grad]
    sequence = torch.eye(4)[torch.randint(0, 4, (2, 256))]
    if not named:
        assert not live_features(trunk, sequence, n_bins=None).requires_grad
        return []
    optimizer = torch.optim.SGD(named, lr=10.0)
    for _ in range(2):
        optimizer.zero_grad()
        set_running(trunk, dropout=0.0)
        features = live_features(trunk, sequence, n_bins=None, checkpointing=True)
        (features * torch.randn(features.shape)).sum().backward()
        optimizer.step()
    after = trunk_tensors(trunk)
    return sorted(name for name, tensor in after.items() if not torch.equal(tensor, before[name]))


def test_exactly_the_layernorms_change(trunk):
    assert moved(trunk, "layernorm") == LAYERNORMS
    assert len(LAYERNORMS) == 4 * DEPTH


@pytest.mark.parametrize("mode", ["head", "last:1", "all"])
def test_exactly_the_named_tensors_change(trunk, mode):
    assert moved(trunk, mode) == expected(trunk, mode)


@pytest.mark.parametrize("mode", MODES)
def test_batchnorms_stay_in_evaluation_whatever_the_mode(trunk, mode):
    trunk.train()
    set_trunk_mode(trunk, mode, dropout=0.2)
    norms = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad or m.bias.requires_grad for m in norms)


def test_dropout_is_what_is_asked_for_and_else_off(trunk):
    dropouts = [m for m in trunk.modules() if isinstance(m, nn.Dropout)]
    inside = [m for m in trunk.transformer.modules() if isinstance(m, nn.Dropout)]
    trunk.train()
    set_trunk_mode(trunk, "all")
    assert not any(m.training for m in dropouts)
    set_trunk_mode(trunk, "all", dropout=0.25)
    assert all(m.training and m.p == 0.25 for m in inside)
    set_trunk_mode(trunk, "all")
    assert not any(m.training for m in dropouts)


@pytest.mark.parametrize("mode", ["layernorms", "last:0", "last:", "last:N", "last:4", ""])
def test_other_modes_are_refused(trunk, mode):
    with pytest.raises(ConfigError):
        set_trunk_mode(trunk, mode)


def test_a_layernorm_under_two_names_trains_once():
    model = nn.ModuleDict({"block": nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))})
    model["again"] = model["block"]
    model.requires_grad_(False)
    assert free_layernorms(model) == ["block.0.bias", "block.0.weight"]


def test_layernorms_of_the_protein_encoder_are_all_of_them():
    model, _ = random_esm2(2, 8, 2, seed=0)
    names = set_protein_mode(model, "layernorm")
    assert len(names) == 2 * (2 * 2) + 2
    assert all("layer_norm" in name for name in names)
    assert set_protein_mode(model, "none") == []


class TestCheckpointing:
    def test_gives_the_same_gradient_and_keeps_less(self, trunk):
        set_trunk_mode(trunk, "all")
        sequence = torch.eye(4)[torch.randint(0, 4, (2, 512), generator=torch.Generator().manual_seed(0))]
        found = {}
        for checkpointing in (False, True):
            kept = []
            trunk.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: (kept.append(t.nbytes), t)[1], lambda t: t
            ):
                features = live_features(trunk, sequence, n_bins=8, checkpointing=checkpointing)
            features.square().sum().backward()
            grads = {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}
            found[checkpointing] = features.detach(), grads, sum(kept)
        torch.testing.assert_close(found[True][0], found[False][0])
        assert found[True][1].keys() == found[False][1].keys()
        for name, gradient in found[False][1].items():
            torch.testing.assert_close(found[True][1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)
        assert found[True][2] < found[False][2] / 5
        assert "stem.0.weight" in found[True][1]

    def test_centre_bins_are_those_of_the_embedder(self, trunk):
        sequence = torch.eye(4)[torch.randint(0, 4, (1, 512))]
        with torch.no_grad():
            every = live_features(trunk, sequence, n_bins=None)
            centre = live_features(trunk, sequence, n_bins=6)
        torch.testing.assert_close(centre, every[:, 5:11])

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.head_contract import GEOMETRY, HeadContract, make_batch, shaken_head
from tfbind_store.errors import ConfigError
from tfbind_store.heads import Geometry, make_head

SMALL = {"width": 8, "n_queries": 3, "filip_heads": 4, "filip_dim": 4, "tower_dim": 6, "attention_heads": 2}


class TestAdapter(HeadContract):
    name = "adapter"
    options = SMALL


class TestAdapterWithEverything(HeadContract):
    name = "adapter"
    options = SMALL | {"joint_depth": 2, "hypergrid": True}


class TestAdapterFilipOnly(HeadContract):
    name = "adapter"
    options = SMALL | {"tower_dim": 0, "film": False}


class TestAdapterTowerOnly(HeadContract):
    name = "adapter"
    options = SMALL | {"filip_heads": 0}


def test_intermediates_lead_to_the_logits():
    head, batch = shaken_head("adapter", SMALL | {"joint_depth": 1, "hypergrid": True, "tower_dim": 0}), make_batch()
    found = head.intermediates(batch)
    bias, _, weights, _ = head.encode(batch)
    expected = head.logit_bias + bias.unsqueeze(1) + (found.interactions * weights.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(found.logits, expected)
    torch.testing.assert_close(found.token_residues.sum(-1), torch.ones(6, 3))
    assert found.token_residues.masked_select(~batch.mask[batch.factor_index].unsqueeze(1)).eq(0).all()
    (attention,) = found.attention
    assert attention.shape == (6, 2, 4, 3)
    torch.testing.assert_close(attention.sum(-1), torch.ones(6, 2, 4))
    assert found.strongest.shape == (6, 4, 4)
    assert set(found.strongest.unique().tolist()) <= {-1, 0, 1, 2}
    assert found.gate.shape == (6, 4, 4)


def test_intermediates_without_filip_are_the_weights_of_the_residues():
    head, batch = shaken_head("adapter", SMALL | {"filip_heads": 0}), make_batch()
    found = head.intermediates(batch)
    assert found.interactions is None
    assert found.attention == ()
    assert found.token_residues.shape == (6, 3, 7)


@pytest.mark.parametrize(
    ("odd", "fix"),
    [
        ({"width": 9}, "attention_heads"),
        ({"filip_heads": 0, "tower_dim": 0}, "above 0"),
        ({"temperature": 0.001}, "temperature of at least 0.02"),
        ({"n_queries": 0}, "n_queries"),
        ({"summary_dim": 0}, "summary_dim"),
        ({"width": 0}, "at least 1"),
        ({"width": -4}, "at least 1"),
        ({"attention_heads": 0}, "at least 1"),
        ({"filip_dim": 0}, "at least 1"),
        ({"filip_heads": -1}, "at least 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(odd, fix):
    with pytest.raises(ConfigError, match=fix):
        make_head("adapter", GEOMETRY, SMALL | odd)


def test_default_is_light_at_the_size_of_enformer_and_esm():
    head = make_head("adapter", Geometry(dna_dim=3072, protein_dim=1280, context_dim=768))
    assert sum(parameter.numel() for parameter in head.parameters()) <= 3_000_000


def flops(name, options=None):
    """Of scoring one full window with one factor of 512 residues, counted operator by operator."""
    geometry = Geometry(dna_dim=3072, protein_dim=1280, context_dim=768)
    one = torch.zeros(1, dtype=torch.long)
    with torch.device("meta"):
        head = make_head(name, geometry, options).eval()
        batch = make_batch()._replace(
            dna=torch.empty(1, 896, 3072),
            protein=torch.empty(1, 512, 1280),
            mask=torch.empty(1, 512, dtype=torch.bool),
            subunit=torch.empty(1, 512, dtype=torch.int16),
            context=torch.empty(1, 768),
            factor_index=one.to("meta"),
            context_index=one.to("meta"),
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            pairs = tuple(tensor.unsqueeze(1) for tensor in head.encode(batch))
            head.interact(head.encode_dna(batch.dna), pairs)
    return counter.get_total_flops()


def test_default_costs_a_fiftieth_of_the_full_head():
    full = flops("filip")
    assert full > 100e9
    assert flops("adapter") <= full / 50

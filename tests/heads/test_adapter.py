import pytest

from tests.head_contract import GEOMETRY, HeadContract
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


@pytest.mark.parametrize(
    ("odd", "fix"),
    [
        ({"width": 9}, "attention_heads"),
        ({"filip_heads": 0, "tower_dim": 0}, "above 0"),
        ({"temperature": 0.001}, "temperature of at least 0.02"),
        ({"n_queries": 0}, "n_queries"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(odd, fix):
    with pytest.raises(ConfigError, match=fix):
        make_head("adapter", GEOMETRY, SMALL | odd)


def test_default_is_light_at_the_size_of_enformer_and_esm():
    head = make_head("adapter", Geometry(dna_dim=3072, protein_dim=1280, context_dim=768))
    assert sum(parameter.numel() for parameter in head.parameters()) < 3_000_000

import pytest
import torch

from tests.planted import planted  # noqa: F401
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.feed import DenseFeed, choose_arrays
from tfbind_store.heads import Geometry, make_head
from tfbind_store.learning.processes import Processes
from tfbind_store.query.selection import Selection
from tfbind_store.training.batches import DenseSource, RowSource
from tfbind_store.training.config import TrainConfig
from tfbind_store.training.material import gather_material
from tfbind_store.training.starting import batch_source, new_head, signals_read, strengths_read, taken_head

SMALL = {"width": 16, "filip_heads": 4, "filip_dim": 4}


@pytest.fixture(scope="module")
def material(planted):  # noqa: F811
    store, selection = planted.store, Selection.open(planted.store, planted.selection)
    return gather_material(store, selection, choose_arrays(store), device=torch.device("cpu"), max_valid_bins=10)


@pytest.fixture(scope="module")
def feed(material):
    return DenseFeed(material.source, material.truth, material.training, material.train_bins, 8, 4, 0.5, 0)


def stored(material):
    return Geometry(*(material.store.array(name).shape[-1] for name in material.arrays))


def test_a_new_head_is_scaled_by_training_bins_and_drawn_by_the_generator(material, feed):
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        heads.append(new_head(material, TrainConfig(options=SMALL), feed, None).state_dict())
    assert all(torch.equal(heads[0][name], tensor) for name, tensor in heads[1].items())
    unscaled = make_head(
        "adapter", Geometry(*(material.store.array(name).shape[-1] for name in material.arrays)), SMALL
    )
    named = [name for name, tensor in unscaled.state_dict().items() if "scal" in name and tensor.numel() > 1]
    assert named
    assert any(not torch.equal(unscaled.state_dict()[name], heads[0][name]) for name in named)


def test_an_unknown_option_names_the_nearest(material, feed):
    with pytest.raises(ConfigError, match="width"):
        new_head(material, TrainConfig(options={"widht": 16}), feed, None)


def test_a_head_of_other_widths_is_refused(material):
    with pytest.raises(ConfigError, match="stored are"):
        taken_head(material, make_head("linear", Geometry(3, 4, 5), {}))


def test_read_values_need_rows(material):
    geometry = stored(material)
    reads, does_not = (
        make_head("filip", geometry, {"read_values": n, "latent_heads": 2, "latent_dim": 4}) for n in (1, 0)
    )
    assert strengths_read(does_not, material, TrainConfig()) is None
    with pytest.raises(ConfigError, match="read values are of rows"):
        strengths_read(reads, material, TrainConfig())


def test_batches_are_of_the_pairing(material, feed):
    sources = [batch_source(material, TrainConfig(pairing=kind), feed, Processes(), None) for kind in ("dense", "rows")]
    assert [type(source) for source in sources] == [DenseSource, RowSource]


def test_the_other_strand_must_be_stored(material, feed):
    with pytest.raises(ConfigError, match="no other strand") as raised:
        batch_source(material, TrainConfig(pairing="rows", both_strands=True), feed, Processes(), None)
    assert "--set strand=reverse" in str(raised.value.fix)


def test_a_selection_without_signals_reads_none(material):
    assert signals_read(material, TrainConfig(), None) is None

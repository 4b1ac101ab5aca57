import time

import numpy as np
import pytest
import torch

from tests.planted import DIM, FACTORS, planted  # noqa: F401
from tfbind_store.errors import SelectionError, StoreMissing
from tfbind_store.feeding import feed
from tfbind_store.feeding.feed import (
    DenseFeed,
    Experiments,
    PairSource,
    choose_arrays,
    labels_of,
    permuted,
    prefetch,
    to_torch,
)
from tfbind_store.query.labels import Intervals, load_truth
from tfbind_store.query.loader import Loader
from tfbind_store.query.selection import Selection
from tfbind_store.training.material import gather_material

CPU = torch.device("cpu")


@pytest.fixture
def material(planted):  # noqa: F811
    store = planted.store
    selection = Selection.open(store, planted.selection)
    return gather_material(store, selection, choose_arrays(store), device=CPU, max_valid_bins=50_000)


def dense(material, **changes):
    settings = {"bins_per_step": 64, "pairs_per_step": 5, "bound_share": 0.5, "seed": 0} | changes
    return DenseFeed(material.source, material.truth, material.training, material.train_bins, **settings)


class TestChooseArrays:
    def test_takes_the_only_array_of_each_kind(self, planted):  # noqa: F811
        assert choose_arrays(planted.store) == ("embeddings/windows", "proteins/composition", "contexts/hashed")

    def test_short_and_long_names_mean_the_same(self, planted):  # noqa: F811
        for name in ("windows", "embeddings/windows"):
            assert choose_arrays(planted.store, windows=name).windows == "embeddings/windows"

    def test_absent_name_gives_the_nearest(self, planted):  # noqa: F811
        with pytest.raises(StoreMissing, match=r"no array 'window'") as caught:
            choose_arrays(planted.store, windows="window")
        assert caught.value.fix == "did you mean embeddings/windows?"


class TestPrefetch:
    def test_keeps_order(self):
        assert list(prefetch(range(100), depth=3)) == list(range(100))

    def test_passes_errors_on(self):
        def failing():
            yield 1
            raise ValueError("bad shard")

        items = prefetch(failing())
        assert next(items) == 1
        with pytest.raises(ValueError, match="bad shard"):
            next(items)

    def test_stops_reading_when_nobody_listens(self):
        read = []

        def endless():
            while True:
                read.append(len(read))
                yield read[-1]

        items = prefetch(endless(), depth=2)
        next(items)
        items.close()
        seen = len(read)
        time.sleep(0.05)
        assert len(read) == seen < 10


def test_torch_batch_equals_numpy_batch(planted):  # noqa: F811
    loader = Loader(planted.store, planted.selection, "train", arrays=choose_arrays(planted.store), batch_size=8)
    batch = next(iter(loader))
    tensors = to_torch(batch, CPU)
    assert tensors.signal is None
    for name in ("dna", "protein", "mask", "factor_index", "labels", "weights", "rows"):
        np.testing.assert_array_equal(getattr(tensors, name).numpy(), getattr(batch, name))


class TestMaterial:
    def test_training_sees_neither_held_out_factors_nor_other_chromosomes(self, planted, material):  # noqa: F811
        assert FACTORS.index("OLA") not in material.training.factor_id
        assert len(material.training.factor_id) == 2 * (len(FACTORS) - 1)
        windows = np.unique(material.train_bins // planted.store.grid.n_bins)
        assert np.unique(planted.store.tiling.window_chrom(windows)).tolist() == [0, 1]

    def test_validation_cells_are_those_of_validation_rows(self, planted, material):  # noqa: F811
        windows = np.unique(material.valid.bins // planted.store.grid.n_bins)
        assert np.unique(planted.store.tiling.window_chrom(windows)).tolist() == [2]
        assert FACTORS.index("OLA") not in material.valid.experiments.factor_id
        assert np.isin(material.valid.labels, [0, 1]).all()

    def test_validation_bins_are_thinned_out(self, planted):  # noqa: F811
        selection = Selection.open(planted.store, planted.selection)
        few = gather_material(planted.store, selection, choose_arrays(planted.store), device=CPU, max_valid_bins=10)
        assert len(few.valid.bins) == 10


class TestDenseFeed:
    def test_labels_are_those_of_the_truth(self, planted, material):  # noqa: F811
        batch = dense(material).batch(3)
        assert batch.dna.shape == (64, DIM)
        assert batch.labels.shape == (64, 5)
        # an embedding says which motif begins in its bin: channel 0 WE, 1 OL, 2 OG
        factors = np.unique(dense(material).experiments.factor_id)
        for pair in range(5):
            factor = FACTORS[_factor_of(material, batch, pair)]
            if factor != "OGA":
                channel = ["WE", "OL", "OG"].index(factor[:2])
                assert torch.equal(batch.labels[:, pair], batch.dna[:, channel].float())
        assert len(factors) == len(FACTORS) - 1

    def test_batch_depends_on_its_number_alone(self, material):
        one, two = dense(material), dense(material)
        two.batch(0)
        assert torch.equal(one.batch(7).dna, two.batch(7).dna)
        assert torch.equal(one.batch(7).labels, two.batch(7).labels)
        assert not torch.equal(one.batch(7).dna, one.batch(8).dna)

    def test_bound_share_is_kept(self, material):
        for share, low, high in ((0.75, 0.74, 1.0), (0.0, 0.0, 0.4)):
            batch = dense(material, bins_per_step=400, bound_share=share).batch(0)
            assert low < batch.dna[:, :3].sum(1).bool().float().mean() < high

    def test_prevalence_is_that_of_batches(self, material):
        feed = dense(material, bins_per_step=600, pairs_per_step=100)
        measured = np.mean([feed.batch(number).labels.mean().item() for number in range(5)])
        assert feed.prevalence == pytest.approx(measured, rel=0.1)

    def test_embeddings_that_do_not_fit_in_memory_are_read_from_disk(self, material, monkeypatch):
        expected = dense(material).batch(1)
        monkeypatch.setattr("tfbind_store.feeding.feed.RESIDENT_BYTES", 0)
        got = dense(material).batch(1)
        assert torch.equal(got.dna, expected.dna)
        assert torch.equal(got.labels, expected.labels)

    def test_scaling_standardises(self, material):
        scaling = dense(material).scaling()
        assert scaling.dna_mean[0].item() == pytest.approx(dense(material)._resident[:, 0].mean(), abs=1e-3)
        assert scaling.protein_std.shape == (material.source.inputs(np.array([0]), np.array([0])).protein.shape[-1],)

    def test_nothing_to_train_on_is_refused(self, material):
        nobody = Experiments(*(np.empty(0, np.int64),) * 3)
        with pytest.raises(SelectionError, match="no experiments"):
            DenseFeed(material.source, material.truth, nobody, material.train_bins, 4, 4, 0.5, 0)


def _factor_of(material, batch, pair):
    """Which factor a pair of the batch is: compared by protein, as the batch carries no names."""
    index = batch.pairs.factor_index[pair]
    protein = batch.pairs.protein[index][batch.pairs.mask[index]]
    for factor in range(len(FACTORS)):
        own = material.source.inputs(np.array([factor]), np.array([0]))
        if torch.equal(own.protein[0], protein):
            return factor
    raise AssertionError("a protein of no factor")


def test_pairs_share_proteins_and_contexts(planted):  # noqa: F811
    source = PairSource(planted.store, choose_arrays(planted.store))
    batch = source.inputs(np.array([3, 1, 3]), np.array([1, 1, 0]))
    assert batch.factor_index.tolist() == [1, 0, 1]
    assert batch.context_index.tolist() == [1, 1, 0]
    assert batch.protein.shape[0] == batch.context.shape[0] == 2


def test_labels_of_experiments_are_nan_where_unknown(planted):  # noqa: F811
    truth = load_truth(planted.store)
    last = int(planted.store.tiling.global_bins(0)[-1])
    experiments = Experiments(np.array([0, 1]), np.array([0, 1]), np.array([0, 0]))
    labels = labels_of(truth, experiments, np.array([0, last + 1]))
    assert np.isnan(labels).tolist() == [[False, False], [True, True]]


def test_permuted_peaks_keep_experiment_chromosome_and_length():
    peaks = Intervals(*map(np.array, ([0, 0, 1], [0, 1, 1], [10, 20, 30], [15, 25, 31], [12, 22, 30])))
    moved = permuted(peaks, [1000, 2000], seed=0)
    assert moved.experiment_id.tolist() == [0, 0, 1]
    assert moved.chrom_id.tolist() == [0, 1, 1]
    assert (moved.end_bp - moved.start_bp).tolist() == [5, 5, 1]
    assert (moved.summit_bp != peaks.summit_bp).all()
    assert (moved.summit_bp < np.array([1000, 2000, 2000])).all()
    assert permuted(peaks, [1000, 2000], seed=0).summit_bp.tolist() == moved.summit_bp.tolist()


class TestOnTheDevice:
    """What an accelerator keeps gives the batches that the host gives; here the CPU stands in for it."""

    @pytest.mark.parametrize("rooms", [(10**9, 10**9), (0, 10**9)])
    def test_batches_are_the_same(self, material, monkeypatch, rooms):
        expected = dense(material).batch(3)
        found = iter(rooms)
        monkeypatch.setattr(feed, "room_on", lambda device: next(found))
        kept = dense(material)
        batch = kept.batch(3)
        assert (kept._dna_on_device is None) == (rooms[0] == 0)
        assert kept._codes_on_device is not None
        assert torch.equal(batch.dna, expected.dna)
        torch.testing.assert_close(batch.labels, expected.labels, rtol=0, atol=0, equal_nan=True)

    def test_processes_share_a_batch(self, material):
        whole = dense(material).batch(5)
        parts = [dense(material).batch(5, part=part, n_parts=3) for part in range(3)]
        assert sorted(np.concatenate([part.bins for part in parts]).tolist()) == sorted(whole.bins.tolist())
        for place, part in enumerate(parts):
            assert torch.equal(part.dna, whole.dna[place::3])
            assert part.experiments.tolist() == whole.experiments.tolist()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_gpu_keeps_all_of_a_small_selection(self, planted):  # noqa: F811
        store = planted.store
        selection = Selection.open(store, planted.selection)
        arrays, device = choose_arrays(store), torch.device("cuda")
        found = gather_material(store, selection, arrays, device=device, max_valid_bins=100)
        kept = dense(found)
        assert kept._dna_on_device is not None
        assert kept.batch(0).dna.device.type == "cuda"

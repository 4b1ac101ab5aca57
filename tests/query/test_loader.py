"""The loader: every row once, in a seeded order, from where it stopped, in any process."""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.query.world import busy_world
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import CheckpointError, MissingWindow, SelectionError, StoreError, TfbindError
from tfbind_store.loci import Locus
from tfbind_store.precompute.embedder import make_sequence_embedder, make_text_embedder, make_window_embedder
from tfbind_store.precompute.run import embed_contexts, embed_factors, embed_windows
from tfbind_store.query.loader import CHECKED_AT_ONCE, Arrays, Loader
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.query.strands import other_strand

ARRAYS = Arrays("embeddings/windows", "proteins/composition", "contexts/hashed")
TOY = make_window_embedder("toy", {"bin_bp": 16})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = busy_world(tmp_path_factory.mktemp("busy")).write()
    embed_windows(store, TOY)
    embed_factors(store, make_sequence_embedder("composition"))
    embed_contexts(store, make_text_embedder("hashed"))
    make_selection(store, "s", SelectionConfig(n_bins=4, split=SplitConfig(test_chroms=("chr2",)), margin_bp=16))
    return store


@pytest.fixture(scope="module")
def selection(store):
    return Selection.open(store, "s")


def loader_of(store, selection, split="train", **options):
    return Loader(store, selection, split, arrays=ARRAYS, **options)


def equal(first, second) -> bool:
    return all(
        (a is None and b is None) or np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(first, second, strict=True)
    )


class TestOrder:
    @settings(max_examples=6, deadline=None)
    @given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 4), st.integers(0, 5))
    def test_every_row_once_per_epoch_for_any_batch_block_and_parts(
        self, store, selection, batch_size, block_windows, n_parts, seed
    ):
        options = {"batch_size": batch_size, "block_windows": block_windows, "seed": seed, "n_parts": n_parts}
        seen = []
        for part in range(n_parts):
            loader = loader_of(store, selection, part=part, **options)
            batches = list(loader)
            assert len(batches) == len(loader)
            seen += [row for batch in batches for row in batch.rows.tolist()]
        assert sorted(seen) == selection.columns("train", names=("row",))["row"].tolist()

    def test_epochs_differ_and_seeds_repeat(self, store, selection):
        loader = loader_of(store, selection, batch_size=16)
        epochs = [[row for batch in loader for row in batch.rows.tolist()] for _ in range(2)]
        assert epochs[0] != epochs[1]
        again = loader_of(store, selection, batch_size=16)
        assert [row for batch in again for row in batch.rows.tolist()] == epochs[0]

    def test_validation_reads_in_file_order(self, store, selection):
        rows = [row for batch in loader_of(store, selection, "test", shuffle=False) for row in batch.rows.tolist()]
        assert rows == selection.columns("test", names=("row",))["row"].tolist()


class TestResume:
    @pytest.mark.parametrize("stop_after", [0, 1, 3, 8])
    def test_it_goes_on_at_the_exact_batch(self, store, selection, stop_after):
        options = {"batch_size": 16, "seed": 3, "block_windows": 4}
        whole_loader = loader_of(store, selection, **options)
        whole = [batch for _ in range(2) for batch in whole_loader]
        first = loader_of(store, selection, **options)
        reading = iter(first)
        begun = [next(reading) for _ in range(stop_after)]
        second = loader_of(store, selection, **options)
        second.resume(first.state())
        rest = [*second, *second]
        assert len(begun) + len(rest) == len(whole)
        assert all(equal(a, b) for a, b in zip([*begun, *rest], whole, strict=True))

    @pytest.mark.parametrize("stop_after", [1, 7])
    def test_it_goes_on_at_the_exact_row_with_batches_of_another_size(self, store, selection, stop_after):
        first = loader_of(store, selection, batch_size=11, seed=3)
        order = first.table["row"][first.order(0)].tolist()
        reading = iter(first)
        begun = [row for _ in range(stop_after) for row in next(reading).rows.tolist()]
        second = loader_of(store, selection, batch_size=16, seed=3)
        second.resume(first.state())
        assert set(begun) == set(order[: 11 * stop_after])
        rest = [batch.rows.tolist() for batch in second]
        ahead = order[11 * stop_after :]
        assert [set(batch) for batch in rest] == [set(ahead[n : n + 16]) for n in range(0, len(ahead), 16)]

    def test_parts_go_on_with_batches_of_their_size_only(self, store, selection):
        options = {"part": 1, "n_parts": 2, "seed": 3}
        first = loader_of(store, selection, batch_size=16, **options)
        whole = [batch.rows.tolist() for batch in loader_of(store, selection, batch_size=16, **options)]
        reading = iter(first)
        begun = [next(reading).rows.tolist() for _ in range(2)]
        second = loader_of(store, selection, batch_size=16, **options)
        second.resume(first.state())
        assert begun + [batch.rows.tolist() for batch in second] == whole
        with pytest.raises(CheckpointError, match="batch_size"):
            loader_of(store, selection, batch_size=8, **options).resume(first.state())

    @pytest.mark.parametrize("change", [{"seed": 1}, {"block_windows": 2}, {"shuffle": False}])
    def test_other_settings_are_refused_by_name(self, store, selection, change):
        state = loader_of(store, selection, batch_size=16).state()
        with pytest.raises(CheckpointError, match=next(iter(change))):
            loader_of(store, selection, **{"batch_size": 16, **change}).resume(state)


class TestBatch:
    def test_shapes_and_dtypes(self, store, selection):
        batch = next(iter(loader_of(store, selection, batch_size=32)))
        f, length, e = batch.protein.shape
        assert batch.dna.shape == (32, 4, 8)
        assert batch.dna.dtype == np.float16
        assert (batch.mask.shape, batch.subunit.shape) == ((f, length), (f, length))
        assert e == make_sequence_embedder("composition").spec().dim
        assert batch.factor_index.shape == batch.context_index.shape == batch.weights.shape == batch.rows.shape == (32,)
        assert batch.labels.shape == (32, 4)
        assert batch.labels.dtype == batch.weights.dtype == batch.context.dtype == np.float32
        assert batch.factor_index.dtype == batch.context_index.dtype == batch.rows.dtype == np.int64
        assert batch.signal is None

    def test_factors_and_contexts_come_once(self, store, selection):
        batch = next(iter(loader_of(store, selection, batch_size=64)))
        assert sorted(set(batch.factor_index.tolist())) == list(range(len(batch.protein)))
        assert sorted(set(batch.context_index.tolist())) == list(range(len(batch.context)))

    def test_a_batch_is_a_copy(self, store, selection):
        loader = loader_of(store, selection)
        places = np.arange(5)
        before = loader.read(places).dna.copy()
        loader.read(places).dna[:] = 0
        assert np.array_equal(loader.read(places).dna, before)

    def test_batches_that_are_kept_stay_what_they_were(self, store, selection):
        loader = loader_of(store, selection, batch_size=5)
        kept = [batch for _, batch in loader.epoch(0)]
        assert len(kept) > 2 * CHECKED_AT_ONCE
        places = [places for _, places in loader.batches(0)]
        assert all(equal(batch, loader.read(some)) for batch, some in zip(kept, places, strict=True))

    def test_epochs_side_by_side_do_not_share_what_they_read_into(self, store, selection):
        loader = loader_of(store, selection, batch_size=20)
        list(loader.epoch(0))
        expected = [[batch.dna.copy() for _, batch in loader.epoch(epoch)] for epoch in (1, 2)]
        for number, ((_, one), (_, other)) in enumerate(zip(loader.epoch(1), loader.epoch(2), strict=True)):
            assert not np.shares_memory(one.dna, other.dna)
            assert np.array_equal(one.dna, expected[0][number], equal_nan=True)
            assert np.array_equal(other.dna, expected[1][number], equal_nan=True)

    def test_a_batch_size_beyond_the_split_takes_no_memory_for_it(self, store, selection):
        (batch,) = loader_of(store, selection, batch_size=10**12)
        assert len(batch.rows) == selection.columns("train", names=("row",)).n

    def test_turns_and_shares_are_parts_of_the_same_batches(self, store, selection):
        loader = loader_of(store, selection, batch_size=10)
        whole = list(loader.epoch(3, first_row=20))
        turns = [list(loader.epoch(3, first_row=20, turn=(turn, 3))) for turn in range(3)]
        for number, (seen, batch) in enumerate(whole):
            again, other = turns[number % 3][number // 3]
            assert seen == again
            assert equal(batch, other)
        shares = [[batch for _, batch in loader.epoch(3, first_row=20, share=(part, 4))] for part in range(4)]
        for number, (_, batch) in enumerate(whole):
            mine = [share[number] for share in shares]
            rows = [row for one in mine for row, weight in zip(one.rows, one.weights, strict=True) if weight]
            assert sorted(rows) == sorted(batch.rows)


class Backward:
    """The toy with its numbers turned round, as another strand gives other numbers for the same bins."""

    geometry = TOY.geometry

    def spec(self, genome_digest, grid):
        spec = TOY.spec(genome_digest, grid)
        return replace(spec, identity={**spec.identity, "strand": "reverse"})

    def embed(self, windows, codes, tiling):
        for found in TOY.embed(windows, codes, tiling):
            yield found if found.values is None else found._replace(values=-1 - found.values)


@pytest.fixture(scope="module")
def both(store):
    return embed_windows(store, Backward(), name="backward").array


class TestStrands:
    def test_the_other_strand_is_found_by_what_was_embedded(self, store, both):
        assert other_strand(store, "embeddings/windows") == both
        assert other_strand(store, both) == "embeddings/windows"

    def test_rows_come_from_either_by_seed_and_epoch(self, store, selection, both):
        loader = loader_of(store, selection, reverse=both, seed=1)
        places = np.arange(60)
        chosen = loader.strands(places, 0)
        assert 15 < chosen.sum() < 45
        assert not np.array_equal(chosen, loader.strands(places, 1))
        assert np.array_equal(chosen, loader_of(store, selection, reverse=both, seed=1).strands(places, 0))
        first = loader.table["first_bin"][places]
        forward, backward = (store.array(name).gather_bins(first, 4) for name in ("embeddings/windows", both))
        assert not np.array_equal(forward, backward, equal_nan=True)
        expected = np.where(chosen[:, None, None], backward, forward)
        assert np.array_equal(loader.read(places, epoch=0).dna, expected, equal_nan=True)
        resident = loader_of(store, selection, reverse=both, seed=1, resident=True)
        assert np.array_equal(resident.read(places, epoch=0).dna, expected, equal_nan=True)

    def test_an_array_without_the_windows_is_refused(self, store, selection):
        with pytest.raises(TfbindError):
            loader_of(store, selection, reverse="embeddings/none")


def test_in_memory_the_batches_are_the_same(store, selection):
    options = {"batch_size": 16, "seed": 5}
    mapped, resident = loader_of(store, selection, **options), loader_of(store, selection, resident=True, **options)
    assert all(equal(a, b) for a, b in zip(mapped, resident, strict=True))
    held = resident.in_memory("embeddings/windows")
    assert len(held.values) == len(np.unique(held.bins)) <= resident.n_rows * 4
    assert (
        "_residents" not in vars(pickle.loads(pickle.dumps(resident)))
        or not pickle.loads(pickle.dumps(resident))._residents
    )


class TestRefusals:
    def test_an_empty_split(self, store, selection):
        with pytest.raises(SelectionError, match="split valid has no rows"):
            loader_of(store, selection, "valid")

    def test_windows_that_are_not_embedded_are_counted(self, tmp_path):
        store = busy_world(tmp_path).write()
        embed_windows(store, TOY, loci=[Locus("chr1", 0, 500)])
        embed_factors(store, make_sequence_embedder("composition"))
        embed_contexts(store, make_text_embedder("hashed"))
        make_selection(store, "s", SelectionConfig())
        with pytest.raises(MissingWindow, match=r"[\d,]+ of [\d,]+ rows need \d+ windows that are not embedded"):
            loader_of(store, "s")

    def test_factors_or_contexts_that_are_not_embedded(self, tmp_path):
        store = busy_world(tmp_path).write()
        embed_windows(store, TOY)
        make_selection(store, "s", SelectionConfig())
        with pytest.raises(TfbindError):
            loader_of(store, "s")
        embed_contexts(store, make_text_embedder("hashed"))
        with pytest.raises((StoreError, TfbindError)):
            loader_of(store, "s")


def _read_part(loader, queue):
    opened = []
    for name in ("read", "__init__"):  # nobody opens a catalog here, by whatever door
        if hasattr(Catalog, name):
            setattr(Catalog, name, lambda *_, **__: opened.append(1) or pytest.fail("a worker opened DuckDB"))
    queue.put([(batch.rows.tolist(), float(np.nansum(batch.dna.astype(np.float64)))) for batch in loader])
    queue.put(bool(opened))


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    @pytest.mark.parametrize("n_parts", [2, pytest.param(4, marks=pytest.mark.slow)])
    def test_workers_read_what_one_process_reads(self, store, selection, method, n_parts):
        options = {"batch_size": 16, "seed": 2}
        serial = [
            (batch.rows.tolist(), float(np.nansum(batch.dna.astype(np.float64))))
            for batch in loader_of(store, selection, **options)
        ]
        context = multiprocessing.get_context(method)
        workers = []
        for part in range(n_parts):
            queue = context.Queue()
            loader = loader_of(store, selection, part=part, n_parts=n_parts, **options)
            worker = context.Process(target=_read_part, args=(loader, queue))
            worker.start()
            workers.append((worker, queue))
        found = [queue.get(timeout=30) for _, queue in workers]
        for worker, queue in workers:
            assert queue.get(timeout=30) is False
            worker.join(timeout=30)
            assert worker.exitcode == 0
        for part, batches in enumerate(found):
            assert batches == serial[part::n_parts]

    def test_a_pickled_loader_reads_the_same(self, store, selection):
        loader = loader_of(store, selection, seed=4)
        again = pickle.loads(pickle.dumps(loader))
        assert all(equal(a, b) for a, b in zip(loader, again, strict=True))

    def test_it_holds_no_connection(self, store, selection):
        loader = loader_of(store, selection)
        held = [type(value).__module__ for value in vars(loader).values()]
        assert not any("duckdb" in name or "catalog" in name for name in held)

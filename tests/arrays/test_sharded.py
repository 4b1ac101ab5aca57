"""Arrays: round trips, what is missing, what is damaged, zero copies, other readers."""

import errno
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.crash_disk import (
    ALL_N,
    DIM,
    N_BINS,
    NOT_ASKED,
    OK,
    all_ok,
    open_small,
    rows_of,
    small_array,
    small_spec,
)
from tfbind_store.arrays.layouts import LABEL, read_layout
from tfbind_store.arrays.receipts import Receipt, receipt_path
from tfbind_store.arrays.sharded import ShardedArray, create_array, publish_shard
from tfbind_store.arrays.spaces import Space
from tfbind_store.errors import (
    DamagedShard,
    FormatVersionError,
    LocusError,
    MissingWindow,
    StoreError,
    StoreExists,
    StoreMissing,
)


@pytest.fixture
def layout(tmp_path):
    """20 windows in shards of 8, 8 and 4, all published."""
    made = small_array(tmp_path)
    for shard_id in range(3):
        publish_shard(made, shard_id, rows_of(made, shard_id), all_ok(made, shard_id))
    return made


@pytest.fixture
def everything(layout):
    return np.concatenate([rows_of(layout, shard_id) for shard_id in range(3)])


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


class TestReading:
    def test_every_row_and_every_run_of_rows_is_what_was_written(self, layout, everything):
        array = open_small(layout)
        assert array.completeness() == (20, 0, 0, 0, 20)
        assert array.completeness().is_done
        for row in range(20):
            np.testing.assert_array_equal(array.row(row), everything[row])
        for first, count in [(0, 20), (7, 2), (3, 14), (19, 1), (5, 0)]:
            np.testing.assert_array_equal(array.rows(first, count), everything[first : first + count])

    def test_gather_takes_bins_of_windows_in_the_order_asked(self, layout, everything):
        windows, bins = np.array([19, 0, 7, 8, 7]), np.array([0, 6, 3, 2, 3])
        got = open_small(layout).gather(windows, bins)
        np.testing.assert_array_equal(got, everything[windows, bins][:, None])
        assert got.flags.writeable

    def test_gather_bins_goes_on_across_windows_and_shards(self, layout, everything):
        first = np.array([0, 5, 8 * N_BINS - 2, 16 * N_BINS - 1, 19 * N_BINS + 2])
        flat = everything.reshape(-1, DIM)
        expected = np.stack([flat[f : f + 5] for f in first])
        np.testing.assert_array_equal(open_small(layout).gather_bins(first, 5), expected)

    def test_gather_refuses_to_leave_its_window(self, layout):
        with pytest.raises(LocusError, match="3 bins from bin 5 do not lie in a window of 7"):
            open_small(layout).gather(np.array([0]), np.array([5]), 3)

    @given(st.data())
    @settings(max_examples=30, deadline=None)
    def test_any_gather_is_what_numpy_would_take(self, tmp_path_factory, data):
        folder = tmp_path_factory.getbasetemp() / "shared-array"
        made = small_array(folder) if not folder.exists() else read_layout(folder / "w.zarr", folder / "receipts")
        made = read_layout(made.path, made.receipts_dir, name="embeddings/windows")
        for shard_id in range(3):
            publish_shard(made, shard_id, rows_of(made, shard_id), all_ok(made, shard_id))
        flat = np.concatenate([rows_of(made, shard_id) for shard_id in range(3)]).reshape(-1, DIM)
        n_bins = data.draw(st.integers(1, 20))
        first = np.array(data.draw(st.lists(st.integers(0, 20 * N_BINS - n_bins), max_size=60)), dtype=np.int64)
        verify = data.draw(st.sampled_from(["index", "first-touch"]))
        expected = [flat[f : f + n_bins] for f in first]
        got = open_small(made, verify=verify).gather_bins(first, n_bins)
        assert got.shape == (len(first), n_bins, DIM)
        for one, right in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, right)

    def test_texts_and_residues_lie_in_arrays_of_two_axes(self, tmp_path):
        spec = small_spec(kind="proteins", dtype="float32", dim=5)
        create_array(tmp_path / "p.zarr", spec, shape=(200, 5), shard=(128, 5), chunk=(64, 5))
        made = read_layout(tmp_path / "p.zarr", tmp_path / "r", name="proteins/x")
        assert [made.windows_in(shard_id) for shard_id in range(2)] == [2, 2]
        residues = np.arange(1000, dtype=np.float32).reshape(200, 5)
        publish_shard(made, 0, residues[:128], [OK, NOT_ASKED])
        publish_shard(made, 1, residues[128:], [OK, OK])
        array = open_small(made, verify="first-touch")
        np.testing.assert_array_equal(array.rows(3, 60), residues[3:63])
        np.testing.assert_array_equal(array.rows(190, 10), residues[190:])
        with pytest.raises(MissingWindow):
            array.rows(60, 10)


class TestMissing:
    def test_what_nobody_embedded_raises_and_is_never_filled_in(self, tmp_path):
        layout = small_array(tmp_path)
        publish_shard(layout, 1, rows_of(layout, 1), [OK, ALL_N, NOT_ASKED] + [OK] * 5)
        array = open_small(layout)
        assert array.completeness() == (6, 1, 0, 13, 20)
        for row, says in [
            (0, "not been embedded"),
            (9, "only N"),
            (10, "not been embedded"),
            (19, "not been embedded"),
        ]:
            with pytest.raises(MissingWindow, match=says):
                array.row(row)
            with pytest.raises(MissingWindow, match=f"window {row} "):
                array.gather(np.array([8, row]), np.array([0, 0]))
        for row in (-1, 20):
            with pytest.raises(MissingWindow, match="not one of the array's 20"):
                array.row(row)
        with pytest.raises(MissingWindow):  # the run begins in an ok window and ends in an absent one
            array.gather_bins(np.array([8 * N_BINS + 5]), 4)

    def test_who_needs_rows_that_hold_only_n_is_not_told_to_embed_them(self, tmp_path):
        layout = small_array(tmp_path)
        publish_shard(layout, 1, rows_of(layout, 1), [OK, ALL_N, NOT_ASKED] + [OK] * 5)
        array = open_small(layout)
        only_n, some = array.without(np.array([8, 9, 9]), "2 of 3 bins"), array.without(np.array([9, 10]), "both bins")
        assert only_n.what == "2 of 3 bins hold only N: there is nothing to embed"
        assert only_n.fix == "choose loci with bases in their windows"
        assert some.what == "both bins are not embedded"
        assert "run the command that embedded" in some.fix

    @pytest.mark.parametrize("gone", ["shard", "receipt"])
    def test_a_deleted_file_is_missing_windows(self, layout, gone):
        (layout.shard_path(1) if gone == "shard" else receipt_path(layout.receipts_dir, 1)).unlink()
        array = open_small(layout)
        assert array.completeness().n_ok == 12
        with pytest.raises(MissingWindow, match=r"(?s)window 8 .*run the command that embedded"):
            array.row(8)
        array.row(7)

    def test_zeros_that_were_computed_are_zeros(self, tmp_path):
        layout = small_array(tmp_path)
        zeros = np.zeros((8, *layout.row_shape), dtype=np.float16)
        publish_shard(layout, 0, zeros, all_ok(layout, 0))
        array = open_small(layout, verify="first-touch")
        assert array.completeness().n_ok == 8
        np.testing.assert_array_equal(array.rows(0, 8), zeros)


class TestDamage:
    def make_symlink(self, path):
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))

    def make_directory(self, path):
        path.unlink()
        path.mkdir()

    @pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "NUL", "symlink", "directory", "fifo"])
    def test_what_is_no_whole_shard_is_refused_at_open_with_its_path(self, layout, damage):
        path = layout.shard_path(1)
        size = path.stat().st_size
        {
            "truncated": lambda: os.truncate(path, size - 1),
            "empty": lambda: path.write_bytes(b""),
            "longer": lambda: os.truncate(path, size + 1),
            "NUL": lambda: path.write_bytes(bytes(size)),
            "symlink": lambda: self.make_symlink(path),
            "directory": lambda: self.make_directory(path),
            "fifo": lambda: (path.unlink(), os.mkfifo(path)),
        }[damage]()
        with pytest.raises(DamagedShard, match=r"c\.1\.0\.0"):
            open_small(layout)
        rest = open_small(layout, on_damage="exclude")
        assert list(rest.damaged) == [1]
        assert rest.completeness().n_ok == 12
        with pytest.raises(MissingWindow, match="cannot be served"):
            rest.row(8)

    def test_zeros_under_an_intact_index_are_found_by_their_hash(self, layout):
        path = layout.shard_path(1)
        data = path.read_bytes()
        path.write_bytes(bytes(layout.body_bytes(1)) + data[layout.body_bytes(1) :])
        array = open_small(layout, verify="first-touch")
        array.row(0)
        with pytest.raises(DamagedShard, match="window 8 does not hash"):
            array.row(8)
        with pytest.raises(DamagedShard, match="window 9 does not hash"):
            array.gather(np.array([3, 9]), np.array([0, 0]))
        with pytest.raises(DamagedShard):
            array.rows(6, 4)

    def test_200_of_200_flipped_bits_are_found_and_named(self, layout):
        rng = np.random.default_rng(0)
        for _ in range(200):
            shard_id = int(rng.integers(3))
            bit = int(rng.integers(layout.body_bytes(shard_id) * 8))
            window = shard_id * 8 + bit // 8 // layout.window_bytes
            flip(layout.shard_path(shard_id), bit)
            with pytest.raises(DamagedShard, match=rf"(?s)window {window} does not hash.*c\.{shard_id}\.0\.0"):
                open_small(layout, verify="first-touch").row(window)
            flip(layout.shard_path(shard_id), bit)

    def test_a_flipped_bit_in_the_index_is_refused_at_open(self, layout):
        begin = layout.body_bytes(0) + LABEL.size
        for bit in range(begin * 8, layout.size_bytes(0) * 8, 37):
            flip(layout.shard_path(0), bit)
            with pytest.raises(DamagedShard, match="index"):
                open_small(layout)
            flip(layout.shard_path(0), bit)

    def test_a_flipped_bit_in_the_label_has_every_window_checked(self, layout, everything):
        flip(layout.shard_path(0), (layout.body_bytes(0) + 50) * 8)
        np.testing.assert_array_equal(open_small(layout).rows(0, 8), everything[:8])
        flip(layout.shard_path(0), 5)
        with pytest.raises(DamagedShard, match="window 0"):
            open_small(layout).row(0)

    def test_any_flipped_bit_in_a_receipt_is_refused_or_changes_nothing(self, layout, everything):
        path = receipt_path(layout.receipts_dir, 0)
        good = Receipt.from_json(path.read_bytes(), where="x")
        rng = np.random.default_rng(1)
        for bit in rng.integers(path.stat().st_size * 8, size=150).tolist():
            flip(path, bit)
            try:
                assert Receipt.from_json(path.read_bytes(), where="x") == good  # white space
            except DamagedShard:
                with pytest.raises(DamagedShard, match=r"000000\.json"):
                    open_small(layout)
            flip(path, bit)
        np.testing.assert_array_equal(open_small(layout).row(0), everything[0])

    def test_a_shard_copied_over_another_is_noticed_at_open_and_refused_at_reading(self, layout):
        shutil.copy(layout.shard_path(0), layout.shard_path(1))
        array = open_small(layout)
        with pytest.raises(DamagedShard, match="window 8 does not hash"):
            array.row(8)

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff", b'{"check": 1}', b"[" * 200_000])
    def test_an_odd_receipt_is_refused(self, layout, content):
        receipt_path(layout.receipts_dir, 2).write_bytes(content)
        with pytest.raises(DamagedShard, match=r"000002\.json"):
            open_small(layout)
        assert open_small(layout, on_damage="exclude").completeness().n_ok == 16

    def test_a_receipt_in_the_wrong_place_is_refused(self, layout):
        shutil.copy(receipt_path(layout.receipts_dir, 0), receipt_path(layout.receipts_dir, 1))
        with pytest.raises(DamagedShard, match="shard_id is 0, expected 1"):
            open_small(layout)

    def test_receipts_of_another_fingerprint_are_refused(self, layout, tmp_path):
        other = small_array(tmp_path / "other", spec=small_spec(numerics_version=2))
        shutil.copytree(layout.receipts_dir, other.receipts_dir)
        with pytest.raises(DamagedShard, match="fingerprint"):
            open_small(other)


class TestMetadata:
    def edit(self, layout, change):
        path = layout.path / "zarr.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    @pytest.mark.parametrize(
        "change",
        [
            lambda v: v.update(shape=[10**12, N_BINS, DIM]),
            lambda v: v.update(shape=[20, N_BINS, DIM + 1]),
            lambda v: v.update(shape=[20, N_BINS]),
            lambda v: v.update(shape=[-1, N_BINS, DIM]),
            lambda v: v.update(shape=[True, N_BINS, DIM]),
            lambda v: v.update(data_type="float64"),
            lambda v: v.update(fill_value=0.0),
            lambda v: v.update(zarr_format=2),
            lambda v: v["codecs"].append({"name": "zstd", "configuration": {"level": 1, "checksum": False}}),
            lambda v: v["codecs"][0]["configuration"]["codecs"].append({"name": "zstd", "configuration": {}}),
            lambda v: v["codecs"][0]["configuration"].update(index_location="start"),
            lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[5, N_BINS, DIM]),
            lambda v: v["chunk_grid"]["configuration"].update(chunk_shape=[2**60, N_BINS, DIM]),
            lambda v: v["chunk_key_encoding"].update(configuration={"separator": "/"}),
            lambda v: v["attributes"]["tfbind_store"]["spec"].update(numerics_version=7),
            lambda v: v["attributes"]["tfbind_store"].update(spec="x"),
            lambda v: v["attributes"].clear(),
            lambda v: v.pop("codecs"),
            lambda v: v["attributes"].update(more="x" * 2_000_000),
        ],
    )
    def test_metadata_that_we_would_not_have_written_are_refused(self, layout, change):
        self.edit(layout, change)
        with pytest.raises(DamagedShard, match=r"zarr\.json|receipt does not fit the array's shape"):
            open_small(layout)

    def test_deep_json_is_refused(self, layout):
        (layout.path / "zarr.json").write_bytes(b"[" * 500_000)
        with pytest.raises(DamagedShard):
            open_small(layout)

    def test_another_format_is_refused_by_its_number(self, layout):
        self.edit(layout, lambda v: v["attributes"]["tfbind_store"].update(format=2))
        with pytest.raises(FormatVersionError, match="array format 2, this version reads 1"):
            open_small(layout)

    def test_an_absent_array_is_missing_and_one_that_is_there_is_not_made_again(self, layout, tmp_path):
        with pytest.raises(StoreMissing):
            ShardedArray.open(tmp_path / "none.zarr", tmp_path)
        with pytest.raises(StoreExists):
            small_array(tmp_path)


class TestZeroCopy:
    def test_a_row_is_a_read_only_view_of_the_mapped_file(self, layout):
        row = open_small(layout).row(3)
        assert not row.flags.writeable
        assert not row.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            row[0, 0] = 1

    def test_viewing_takes_almost_no_memory_of_its_own(self, tmp_path):
        spec = small_spec(dim=1024)
        row = (64, 1024)
        create_array(tmp_path / "w.zarr", spec, shape=(320, *row), shard=(32, *row), chunk=(1, *row))
        made = read_layout(tmp_path / "w.zarr", tmp_path / "r", name="embeddings/windows")
        data = np.ones((32, *row), dtype=np.float16)
        for shard_id in range(10):
            publish_shard(made, shard_id, data, all_ok(made, shard_id))
        array = open_small(made)
        before, total = anonymous_kib(), np.zeros(row, dtype=np.float32)
        for window in range(320):
            total += array.row(window)
        grown = 1024 * (anonymous_kib() - before)
        assert total[0, 0] == 320
        assert grown < 0.05 * 320 * made.window_bytes

    def test_an_in_place_operation_on_a_tensor_leaves_the_file_alone(self, layout):
        torch = pytest.importorskip("torch")
        before = layout.shard_path(0).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the array is read-only
            tensor = torch.from_numpy(open_small(layout).row(0))
        tensor.add_(1)
        assert layout.shard_path(0).read_bytes() == before

    def test_an_open_array_still_reads_after_a_fork(self, layout, everything):
        array = open_small(layout)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(array.row(12), everything[12]) else 1)
        assert os.waitpid(child, 0)[1] == 0

    def test_hints_change_nothing(self, layout, everything):
        array = open_small(layout)
        array.will_need([0, 7, 19])
        np.testing.assert_array_equal(array.row(19), everything[19])

    @pytest.mark.parametrize("most", [1, 2])
    def test_where_the_system_gives_few_addresses_the_same_is_read(self, layout, everything, most, monkeypatch):
        def refusing(space, of, first_shard, n_shards, *, given=Space.__init__):
            if n_shards > most:
                raise OSError(errno.ENOMEM, "no addresses")
            given(space, of, first_shard, n_shards)

        monkeypatch.setattr(Space, "__init__", refusing)
        array, flat = open_small(layout), everything.reshape(-1, DIM)
        first = np.array([0, 5, 19 * N_BINS, 8 * N_BINS - 2, 16 * N_BINS - 1, 3])
        expected = np.stack([flat[f : f + 5] for f in first])
        np.testing.assert_array_equal(array.gather_bins(first, 5), expected)
        runs = array.runs(first, 5)
        np.testing.assert_array_equal(runs.read(slice(2, 5)), expected[2:5])
        into = np.empty((2, 5, DIM), dtype=np.float16)
        assert runs.read(slice(0, 2), into) is into
        np.testing.assert_array_equal(into, expected[:2])
        np.testing.assert_array_equal(array.row(12), everything[12])

    def test_no_address_at_all_is_an_error_that_says_what_to_raise(self, layout, monkeypatch):
        def refusing(*_):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        monkeypatch.setattr(Space, "__init__", refusing)
        with pytest.raises(StoreError, match="cannot be mapped: Cannot allocate memory") as caught:
            open_small(layout).row(0)
        assert "ulimit -v" in caught.value.fix

    def test_no_file_stays_open(self, layout):
        array = open_small(layout)
        before = len(os.listdir("/proc/self/fd"))
        array.gather_bins(np.arange(0, 20 * N_BINS, N_BINS))
        assert len(os.listdir("/proc/self/fd")) == before

    def test_what_is_let_go_is_read_again_and_views_of_it_stay(self, layout, everything):
        array = open_small(layout)
        kept, runs = array.row(9), array.runs(np.array([3, 70]))
        array.let_go()
        np.testing.assert_array_equal(kept, everything[9])
        np.testing.assert_array_equal(runs.read()[:, 0], everything.reshape(-1, DIM)[[3, 70]])
        np.testing.assert_array_equal(array.row(9), everything[9])

    def test_threads_that_map_at_once_read_what_was_written(self, layout, everything):
        flat = everything.reshape(-1, DIM)
        places = np.random.default_rng(0).integers(0, len(flat), (64, 40))
        array = open_small(layout, verify="first-touch")

        def read(some):
            found = array.gather_bins(some)[:, 0]
            array.let_go()
            return np.array_equal(found, flat[some])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, places))

    def test_more_shards_than_may_be_mapped_at_once(self, layout, everything):
        array = open_small(layout)
        array._maps._max_maps = 1
        kept = array.row(0)
        for row in (8, 16, 0, 8):
            np.testing.assert_array_equal(array.row(row), everything[row])
        np.testing.assert_array_equal(kept, everything[0])
        every = np.arange(20 * N_BINS)
        np.testing.assert_array_equal(array.gather_bins(every)[:, 0], everything.reshape(-1, DIM))


def anonymous_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


class TestOtherReaders:
    def test_zarr_reads_the_same(self, layout, everything):
        import zarr

        array = zarr.open_array(layout.path, mode="r")
        assert array.metadata.zarr_format == 3
        np.testing.assert_array_equal(array[:], everything)
        np.testing.assert_array_equal(array[17:, 2], everything[17:, 2])

    def test_tensorstore_reads_the_same(self, layout, everything):
        tensorstore = pytest.importorskip("tensorstore")
        where = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(layout.path)}}
        array = tensorstore.open(where, open=True).result()
        np.testing.assert_array_equal(array.read().result(), everything)

    def test_windows_that_are_not_ok_are_nan_to_them(self, tmp_path):
        import zarr

        made = small_array(tmp_path)
        publish_shard(made, 0, rows_of(made, 0), [NOT_ASKED] + [OK] * 7)
        array = zarr.open_array(made.path, mode="r")
        assert np.isnan(array[0]).all()
        assert np.isnan(array[12]).all()
        np.testing.assert_array_equal(array[1:8], rows_of(made, 0)[1:])

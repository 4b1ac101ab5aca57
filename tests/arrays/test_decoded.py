"""Arrays that are not stored as they are read: the same methods, the same refusals, the same care for their bytes."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import zarr

from tests.precompute.small import GRID, N_WINDOWS, Watched, make_store
from tfbind_store.arrays import int8
from tfbind_store.arrays.decoded import DecodedArray
from tfbind_store.arrays.layouts import ATTRIBUTE, read_layout
from tfbind_store.arrays.receipts import WindowState
from tfbind_store.arrays.sharded import publish_shard
from tfbind_store.errors import DamagedShard, LocusError, MissingWindow
from tfbind_store.keeping.repair import repair_store
from tfbind_store.keeping.verify import Kind, verify_store
from tfbind_store.loci import Locus
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute.run import embed_windows
from tfbind_store.precompute.window_options import WindowOptions, with_options
from tfbind_store.spec import fingerprint_of
from tfbind_store.store.folder import Store

NAME = "embeddings/small"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
        store = make_store(folder)
        embed_windows(store, Watched())
        embed_windows(store, with_options(Watched(), WindowOptions(int8=True)), name="small")
    return folder / "store"


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """The toy twice, as float16 and as int8, in shards of 4; windows 6 and 7 are all N."""
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    return Store.open(shutil.copytree(made, tmp_path / "store"))


def test_reads_as_the_float16_array_does_within_half_a_step(store):
    small, full = store.array(NAME), store.array("embeddings/windows")
    assert isinstance(small, DecodedArray)
    assert small.shape == full.shape == (N_WINDOWS, GRID.n_bins, 8)
    assert small.layout.shape == (N_WINDOWS, GRID.n_bins + int8.SCALE_ROWS, 8)
    for window in (0, 5, 11):
        expected = full.row(window).astype(np.float64)
        found = small.row(window)
        assert found.dtype == np.float16
        assert np.abs(found - expected).max(axis=0) == pytest.approx(0, abs=np.ptp(expected, axis=0).max() / 254 + 1)
    assert small.receipts().keys() == full.receipts().keys()


def test_every_way_to_read_gives_the_same_numbers(store):
    array = store.array(NAME)
    rows = {window: array.row(window) for window in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11)}
    flat = np.concatenate([rows.get(window, np.zeros_like(rows[0])) for window in range(N_WINDOWS)])
    first = np.array([0, 3, 14, 15, 17, 32, 47, 2, 3])  # across windows, and across the edge of a shard
    lengths = [1, 2, 5]
    for n_bins in lengths:
        starts = first[first + n_bins <= len(flat)]
        starts = starts[[not {6, 7} & set(range(s // 4, (s + n_bins - 1) // 4 + 1)) for s in starts.tolist()]]
        expected = np.stack([flat[s : s + n_bins] for s in starts])
        np.testing.assert_array_equal(array.gather_bins(starts, n_bins), expected)
    np.testing.assert_array_equal(array.gather(np.array([5, 0]), np.array([3, 1]))[:, 0], [rows[5][3], rows[0][1]])
    np.testing.assert_array_equal(array.rows(3, 2), [rows[3], rows[4]])
    assert array.rows(3, 0).shape == (0, GRID.n_bins, 8)
    assert array.gather_bins(np.array([], dtype=np.int64)).shape == (0, 1, 8)


def test_refuses_what_any_array_refuses(store):
    array = store.array(NAME)
    with pytest.raises(LocusError, match="2 bins from bin 3 do not lie in a window of 4"):
        array.gather(np.array([0]), np.array([3]), 2)
    with pytest.raises(MissingWindow, match="only N"):
        array.row(6)
    with pytest.raises(MissingWindow, match="only N"):
        array.gather_bins(np.array([6 * 4]))
    with pytest.raises(MissingWindow, match="only N"):
        array.gather_bins(np.array([5 * 4 + 3]), 2)
    with pytest.raises(MissingWindow, match="row 12 is not one of"):
        array.row(12)


def test_other_readers_see_levels_and_scales(store):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = zarr.open_array(store.array_path(NAME), mode="r")
        rows = np.asarray(stored[2])
        nothing = np.asarray(stored[6])
    assert rows.dtype == np.int8
    np.testing.assert_array_equal(int8.decode(rows[:-4], int8.scales_of(rows)), store.array(NAME).row(2))
    assert (nothing == int8.NOTHING).all()


def test_windows_that_come_later_leave_the_others_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
    store = make_store(tmp_path)
    embedder = with_options(Watched(), WindowOptions(int8=True))
    embed_windows(store, embedder, name="small", loci=[Locus("a", 0, 600)])
    before = {window: store.array(NAME).row(window).tobytes() for window in (0, 1)}
    assert not store.array(NAME).is_ok(np.array([2]))[0]
    assert verify_store(store, deep=True).is_clean
    embed_windows(store, embedder, name="small")
    assert {window: store.array(NAME).row(window).tobytes() for window in (0, 1)} == before
    assert store.array(NAME).completeness().is_done


@pytest.mark.parametrize("place", ["a level", "a scale"])
def test_a_flipped_bit_is_found_and_repaired_without_the_other_windows(store, place):
    layout = store.array(NAME).layout
    content = bytearray(layout.shard_path(0).read_bytes())
    content[layout.window_bytes + (3 if place == "a level" else layout.window_bytes - 5)] ^= 2
    layout.shard_path(0).write_bytes(content)
    with pytest.raises(DamagedShard, match="window 1 does not hash"):
        store.array(NAME, verify="first-touch").gather_bins(np.array([4]))
    report = verify_store(store, deep=True)
    assert [(p.kind, p.array, p.shard, p.window) for p in report.problems] == [(Kind.window, NAME, 0, 1)]
    assert [m[2:] for m in repair_store(store, report).shards] == [(3, 1)]
    embed_windows(store, with_options(Watched(), WindowOptions(int8=True)), name="small")
    assert verify_store(store, deep=True).is_clean


def test_numbers_in_a_window_that_nobody_embedded_are_found(store):
    layout = store.array(NAME).layout
    content = bytearray(layout.shard_path(1).read_bytes())
    content[2 * layout.window_bytes + 1] = 7  # window 6 is all N
    layout.shard_path(1).write_bytes(content)
    (problem,) = verify_store(store, deep=True).problems
    assert problem.what == "window 6 is all_n but holds numbers"


@pytest.mark.parametrize(("middle", "step"), [(np.nan, 1), (0, -1), (0, np.inf)])
def test_scales_that_are_none_are_refused_and_never_turned_into_numbers(store, middle, step):
    array = store.array(NAME)
    layout = read_layout(array.layout.path, array.layout.receipts_dir, name=NAME)
    for file in (*layout.path.glob("c.2*"), *layout.receipts_dir.glob("000002.json")):
        file.unlink()
    data = np.zeros((4, *layout.row_shape), dtype=np.int8)
    data[:, -4:] = np.concatenate([np.full(8, middle), np.full(8, step)]).astype("<f2").view(np.int8).reshape(4, 8)
    publish_shard(layout, 2, data, [WindowState.ok] * 4)
    hostile = store.array(NAME)
    for read in (lambda: hostile.row(8), lambda: hostile.gather_bins(np.array([33]))):
        with pytest.raises(DamagedShard, match="the scales of a window are no scales"):
            read()


def edited(store, change):
    """Return the small array's metadata after `change`, with a fingerprint that fits."""
    path = store.array_path(NAME) / "zarr.json"
    metadata = json.loads(path.read_text())
    attributes = metadata["attributes"][ATTRIBUTE]
    change(metadata, attributes["spec"])
    attributes["fingerprint"] = fingerprint_of(attributes["spec"])
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "change",
    [
        lambda metadata, spec: spec["identity"].pop("on_reading"),
        lambda metadata, spec: spec["identity"].update(on_reading={"unknown": 1}),
        lambda metadata, spec: spec["identity"].update(on_reading={"int8": {"scale_rows": 400}}),
        lambda metadata, spec: spec.update(dtype="float16"),
        lambda metadata, spec: spec.update(dtype="int16"),
        lambda metadata, spec: (spec.update(dtype="object"), metadata.update(data_type="object")),
        lambda metadata, spec: spec.update(kind="proteins"),
        lambda metadata, spec: metadata.update(fill_value=0),
        lambda metadata, spec: metadata.update(shape=[12, 4, 8]),
        lambda metadata, spec: metadata.update(data_type="uint8"),
    ],
)
def test_metadata_that_contradict_themselves_are_refused_before_anything_is_read(store, change):
    edited(store, change)
    with pytest.raises(DamagedShard, match="metadata are not ours"):
        store.array(NAME)
    assert [p.kind for p in verify_store(store).problems] == [Kind.array]
    assert store.array("embeddings/windows").completeness().is_done

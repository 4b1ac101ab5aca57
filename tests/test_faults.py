"""Faults of the machine: full and read-only disks, odd umasks, hostile metadata; and one shard of full shape."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import small_array
from tests.precompute.small import N_WINDOWS, Watched, make_store
from tfbind_store.arrays.layouts import read_layout
from tfbind_store.arrays.sharded import ShardedArray, WindowState, create_array, publish_shard
from tfbind_store.errors import DamagedShard, NoSpace, StoreError, StoreReadOnly
from tfbind_store.ingest import import_loci
from tfbind_store.keeping.verify import verify_shard, verify_store
from tfbind_store.precompute import run as run_module
from tfbind_store.precompute import upkeep
from tfbind_store.precompute.embedder import WindowEmbedding
from tfbind_store.precompute.run import embed_windows
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import Store

NAME = "embeddings/windows"
DIM = 4096


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 30 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Wide(Watched):
    """The toy, repeated to 4096 columns: 128 KiB for a shard of four windows."""

    def spec(self, genome_digest, grid):
        return replace(super().spec(genome_digest, grid), dim=DIM)

    def embed(self, windows, codes, tiling):
        for result in super().embed(windows, codes, tiling):
            yield WindowEmbedding(result.window, np.tile(result.values, (1, DIM // result.values.shape[1])))


def fill_disk(folder: Path, *, leave: int) -> Path:
    filler = folder / "filler"
    with filler.open("wb") as file:
        size = max(shutil.disk_usage(folder).free - leave, 0)
        file.write(b"x" * size)
    return filler


class TestFullDisk:
    def test_what_does_not_fit_is_refused_before_the_start(self, small_disk):
        store = make_store(small_disk)
        with pytest.raises(NoSpace, match=r"needs [\d,]+ bytes, the disk has [\d,]+"):
            embed_windows(store, Wide())
        assert store.array_names() == []

    def test_a_disk_that_fills_up_on_the_way_stops_the_run_and_the_next_one_completes(self, small_disk, monkeypatch):
        monkeypatch.setattr(run_module, "WINDOWS_PER_SHARD", 4)
        monkeypatch.setattr(upkeep, "free_bytes", lambda path: 10**12)  # somebody else fills it after the check
        store = make_store(small_disk)
        filler = fill_disk(small_disk, leave=330_000)
        with pytest.raises(NoSpace, match=r"need [\d,]+ bytes, have [\d,]+"):
            embed_windows(store, Wide())
        array = store.array(NAME, verify="first-touch")
        n_ok = sum(array.state(w) is WindowState.ok for w in range(N_WINDOWS))
        assert 0 < n_ok < 10
        for window in range(N_WINDOWS):
            if array.state(window) is WindowState.ok:
                assert array.row(window).shape == (4, DIM)
        assert not list(store.path.rglob("*.tmp"))
        filler.unlink()
        assert embed_windows(store, Wide()).is_complete
        assert verify_store(store, deep=True).problems == ()
        with store.reader() as catalog:
            assert catalog.one("SELECT count(*) FROM data.shards")[0] == len(store.array(NAME).receipts()) == 3

    def test_an_import_on_a_full_disk_leaves_the_catalog_as_it_was(self, small_disk, tmp_path):
        store = make_store(small_disk)
        (tmp_path / "loci.bed").write_text("".join(f"a\t{n % 4000}\t{n % 4000 + 9}\tn{n}\n" for n in range(200_000)))
        filler = fill_disk(small_disk, leave=600_000)
        with pytest.raises(StoreError):
            import_loci(store, tmp_path / "loci.bed", "many")
        with store.reader() as catalog:
            assert catalog.one("SELECT count(*) FROM loci")[0] == 0
        filler.unlink()
        (tmp_path / "few.bed").write_text("a\t1\t9\n")
        import_loci(store, tmp_path / "few.bed", "few")
        with store.reader() as catalog:
            assert catalog.one("SELECT count(*) FROM loci")[0] == 1


class TestPlacesThatRefuse:
    def test_a_read_only_disk_can_be_read_and_says_so_when_written(self, small_disk, monkeypatch, tmp_path):
        monkeypatch.setattr(upkeep, "free_bytes", lambda path: 10**12)
        store = make_store(small_disk)
        embed_windows(store, Watched())
        (tmp_path / "few.bed").write_text("a\t1\t9\n")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        opened = Store.open(store.path)
        assert opened.array(NAME, verify="first-touch").row(0).shape == (4, 8)
        assert verify_store(opened, deep=True).problems == ()
        with pytest.raises(StoreReadOnly):
            import_loci(opened, tmp_path / "few.bed", "few")
        with pytest.raises(StoreReadOnly):
            embed_windows(opened, Watched(), name="other")

    def test_files_follow_the_umask(self, tmp_path):
        before = os.umask(0o077)
        try:
            store = make_store(tmp_path)
            embed_windows(store, Watched())
        finally:
            os.umask(before)
        modes = {path.stat().st_mode & 0o077 for path in store.path.rglob("*") if not path.is_symlink()}
        assert modes == {0}


class TestHostileMetadata:
    @pytest.mark.parametrize(
        "change",
        [
            {"shape": [10**12, 7, 16]},
            {"attributes": {"tfbind_store": {"format": 1}, "junk": "x" * 100_000_000}},
            {"codecs": [{"name": "zstd", "configuration": {"level": 0}}]},
        ],
        ids=["shape of 1e12", "100 MB of attributes", "zstd"],
    )
    def test_is_refused_before_memory_is_taken(self, tmp_path, change):
        import resource

        layout = small_array(tmp_path)
        path = layout.path / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DamagedShard, match="not ours"):
            read_layout(layout.path, layout.receipts_dir)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.slow
def test_a_shard_of_full_shape_is_written_read_checked_and_read_by_others(tmp_path):
    """Two shards of 32 windows of 896 bins of 3072 numbers: 352 MB."""
    import tensorstore
    import zarr

    if shutil.disk_usage(tmp_path).free < 2**30:
        pytest.skip("needs 1 GiB of disk")
    row = (896, 3072)
    spec = EmbeddingSpec(kind="windows", embedder="toy", dim=3072)
    path, receipts = tmp_path / "w.zarr", tmp_path / "receipts"
    create_array(path, spec, shape=(40, *row), shard=(32, *row), chunk=(1, *row))
    layout = read_layout(path, receipts, name=NAME)
    rng = np.random.default_rng(0)
    for shard_id in range(2):
        n = layout.rows_in(shard_id)
        data = rng.integers(-1000, 1000, size=(n, *row), dtype=np.int16).astype(np.float16)
        publish_shard(layout, shard_id, data, [WindowState.ok] * n)
    array = ShardedArray.open(path, receipts, name=NAME, verify="first-touch")
    assert layout.window_bytes == 1344 * 4096
    np.testing.assert_array_equal(array.row(39), data[7])
    assert [verify_shard(layout, receipt, deep=True) for receipt in array.receipts().values()] == [[], []]
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[39], data[7])
    config = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    np.testing.assert_array_equal(tensorstore.open(config, read=True).result()[39].read().result(), data[7])
    with contextlib.closing(open(layout.shard_path(0), "r+b")) as file:
        file.seek(17 * layout.window_bytes + 12345)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    (problem,) = verify_shard(layout, array.receipts()[0], deep=True)
    assert (problem.shard, problem.window) == (0, 17)

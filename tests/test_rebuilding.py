"""The catalog can be made again: from recorded inputs, from a snapshot, and it is the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.precompute.small import make_store
from tfbind_store.arrays.receipts import Receipt, WindowState, receipt_path
from tfbind_store.arrays.sharded import publish_shard
from tfbind_store.errors import CatalogError
from tfbind_store.ingest import (
    import_biotypes,
    import_blacklist,
    import_experiments,
    import_loci,
    import_peaks,
    import_proteins,
)
from tfbind_store.ingest.rebuilding import rebuild_catalog
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.run import embed_factors, embed_windows
from tfbind_store.precompute.toy import ToyEmbedder
from tfbind_store.store.folder import Store
from tfbind_store.store.stock import IMPORTS_KEY


def fingerprint(store) -> dict[str, tuple]:
    """Return of each table its rows, as a number that does not depend on their order."""
    with store.reader() as catalog:
        tables = catalog.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'data'")
        return {
            table: catalog.one(f'SELECT count(*), bit_xor(hash(t)) FROM data."{table}" AS t') for (table,) in tables
        }


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    store = make_store(folder)
    (folder / "peaks.bed").write_text("".join(f"1\t{p}\t{p + 20}\tE1.REB1.Y\t5\n" for p in range(100, 2500, 90)))
    (folder / "p.fa").write_text(">x gene=REB1\nMKVLAAGIVG\n>y gene=RAP1\nMSTNPK\n")
    (folder / "names.tsv").write_text("REB1\tGRF2\n")
    (folder / "cells.tsv").write_text("biotype\tdescription\nY\thaploid\n")
    (folder / "more.tsv").write_text("experiment\tlab\nE1.REB1.Y\tours\n")
    (folder / "few.bed").write_text("a\t100\t300\tone\n")
    import_peaks(store, folder / "peaks.bed", aliases={"1": "a"}, labelled_chroms="all")
    import_proteins(store, str(folder / "p.fa"), synonyms=[folder / "names.tsv"])
    import_biotypes(store, folder / "cells.tsv", template="{biotype}, {description}")
    import_experiments(store, folder / "more.tsv")
    import_loci(store, folder / "few.bed", "few", split="test")
    import_blacklist(store, folder / "few.bed", name="bad", drop={"bad_line"})
    import_peaks(store, folder / "peaks.bed", aliases={"1": "a"}, labelled_chroms="all")  # changes nothing
    embed_windows(store, ToyEmbedder())
    embed_factors(store, CompositionEmbedder())
    return folder


@pytest.fixture
def folder(filled, tmp_path) -> Path:
    """A copy whose recorded inputs are still those of `filled`."""
    shutil.copytree(filled / "store", tmp_path / "store")
    return tmp_path


def open_store(folder) -> Store:
    return Store.open(folder / "store")


class TestInputs:
    def test_the_whole_catalog_gone_comes_back_row_for_row(self, folder):
        before = fingerprint(open_store(folder))
        imports = (folder / "store" / "catalog" / "imports.json").read_bytes()
        shutil.rmtree(folder / "store" / "catalog")
        (folder / "store" / "catalog").mkdir()
        (folder / "store" / "catalog" / "imports.json").write_bytes(imports)
        report = rebuild_catalog(open_store(folder))
        assert (report.origin, report.n_imports, report.n_shards) == ("inputs", 6, 2)
        assert fingerprint(open_store(folder)) == before
        assert not list((folder / "store").glob(".rebuild*"))

    def test_a_changed_input_is_named_and_a_snapshot_is_taken_instead(self, folder, filled):
        store = open_store(folder)
        before = fingerprint(store)
        text = (filled / "few.bed").read_text()
        try:
            (filled / "few.bed").write_text(text + "a\t900\t950\ttwo\n")
            with pytest.raises(CatalogError, match=r"few\.bed has changed"):
                rebuild_catalog(store, origin="inputs")
            report = rebuild_catalog(store)
        finally:
            (filled / "few.bed").write_text(text)
        assert (report.origin, len(report.notes)) == ("snapshot", 1)
        assert fingerprint(store) == before

    def test_an_import_that_failed_is_not_on_record(self, folder, tmp_path):
        store = open_store(folder)
        (tmp_path / "odd.bed").write_text("nowhere\t1\t2\n")
        with pytest.raises(ValueError, match="does not have"):
            import_loci(store, tmp_path / "odd.bed", "odd")
        assert len(store.snapshots.recorded_imports()) == 6

    def test_what_a_snapshot_knows_and_the_record_does_not_is_never_lost(self, folder, tmp_path):
        store = open_store(folder)
        with store.writer() as catalog:  # as a version that kept no record left it
            catalog.execute("DELETE FROM data.meta WHERE key = ?", [IMPORTS_KEY])
        (store.path / "catalog" / "imports.json").unlink()
        (tmp_path / "late.bed").write_text("a\t400\t500\tlate\n")
        import_loci(store, tmp_path / "late.bed", "late")
        before = fingerprint(store)
        report = rebuild_catalog(store)
        assert report.origin == "snapshot"
        assert any("peaks.bed was imported and is not on record" in note for note in report.notes)
        assert fingerprint(store) == before


class TestSnapshots:
    def test_a_damaged_newest_snapshot_gives_way_to_the_one_before(self, folder):
        store = open_store(folder)
        before = fingerprint(store)
        with store.writer():
            pass
        newest = store.snapshots.newest()
        newest.write_bytes(newest.read_bytes()[:20_000])
        with pytest.raises(CatalogError, match="rebuild-catalog"):
            store.reader()
        report = rebuild_catalog(store, origin="snapshot")
        assert "not whole" in report.notes[0]
        assert fingerprint(store) == before
        assert any(Path(report.aside).iterdir())

    def test_nothing_at_all_left_is_said(self, folder):
        store = open_store(folder)
        shutil.rmtree(store.path / "catalog")
        with pytest.raises(CatalogError, match="no snapshot is whole"):
            rebuild_catalog(store)
        assert rebuild_catalog(store, origin="genome").n_shards == 2
        with store.reader() as catalog:
            assert catalog.one("SELECT count(*) FROM windows")[0] == 12


@pytest.mark.slow
def test_damaged_working_files_and_logs_never_cost_a_row(folder):
    """Rows 20: logs and working files cut and flipped at random; the next writer, or a rebuild, has every row."""
    store = open_store(folder)
    before, rng = fingerprint(store), np.random.default_rng(4)
    working, log = store.snapshots.working, store.snapshots.working.with_name("catalog.duckdb.wal")
    whole = working.read_bytes()
    for turn in range(120):
        if turn % 3 == 0:
            log.write_bytes(rng.bytes(int(rng.integers(1, 4000))))
        elif turn % 3 == 1:
            log.write_bytes(b"")
            working.write_bytes(whole[: int(rng.integers(len(whole)))])
        else:
            working.unlink()
        if turn % 2:
            rebuild_catalog(store)
        else:
            with store.writer():
                pass
        assert fingerprint(store) == before


def test_a_snapshot_that_nobody_saw_does_not_count(folder, tmp_path):
    store = open_store(folder)
    before = fingerprint(store)
    current, imports = store.path / "catalog" / "snapshots" / "CURRENT", store.path / "catalog" / "imports.json"
    seen = current.read_bytes(), imports.read_bytes()
    (tmp_path / "two.bed").write_text("a\t5\t20\tE2.RAP1.Y\t5\n")
    import_peaks(store, tmp_path / "two.bed")
    assert fingerprint(store) != before
    current.write_bytes(seen[0])  # as if killed between the snapshot and CURRENT
    imports.write_bytes(seen[1])
    assert fingerprint(store) == before
    rebuild_catalog(store)
    assert fingerprint(store) == before


@pytest.mark.slow
def test_40_kills_during_an_import_leave_all_or_nothing(folder, tmp_path):
    store, rng = open_store(folder), np.random.default_rng(5)
    before = fingerprint(store)
    shutil.copytree(store.path, tmp_path / "clean")
    rows = "".join(f"a\t{p % 4000}\t{p % 4000 + 20}\tE2.RAP1.Y\t5\n" for p in range(40_000))
    (tmp_path / "big.bed").write_text(rows)
    script = "import sys; from tfbind_store.store.folder import Store; from tfbind_store.ingest import import_peaks;"
    script += "print('.', flush=True); import_peaks(Store.open(sys.argv[1]), sys.argv[2])"
    for _ in range(40):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(store.path), str(tmp_path / "big.bed")], stdout=-1, stderr=-3
        ) as child:
            child.stdout.readline()
            time.sleep(float(rng.random()) * 0.4)
            child.kill()
        after = fingerprint(store)
        if after != before:
            assert after["experiments"][0] == before["experiments"][0] + 1
            assert after["peaks"][0] > before["peaks"][0]
        rebuild_catalog(store)
        assert fingerprint(store) == after
        if after != before:
            shutil.rmtree(store.path)
            shutil.copytree(tmp_path / "clean", store.path)


def test_844_receipts_are_indexed_within_ten_seconds(tmp_path):
    store = make_store(tmp_path)
    spec = ToyEmbedder().spec(store.meta.genome, store.grid)
    spec = replace(spec, kind="proteins", grid=None, genome=None)
    array = store.create_array("proteins/many", spec, (844 * 64 * 32, spec.dim), 64 * 32)
    layout = array.layout
    data = np.zeros((layout.shard_rows, spec.dim), dtype=np.float16)
    first = publish_shard(layout, 0, data, [WindowState.ok] * 32)
    content = layout.shard_path(0).read_bytes()
    for shard_id in range(1, 844):
        layout.shard_path(shard_id).write_bytes(content)
        receipt: Receipt = replace(first, shard_id=shard_id)
        receipt_path(layout.receipts_dir, shard_id).write_bytes(receipt.to_json())
    shutil.rmtree(store.path / "catalog")
    started = time.monotonic()
    report = rebuild_catalog(store, origin="genome")
    assert report.n_shards == 844
    assert time.monotonic() - started < 10

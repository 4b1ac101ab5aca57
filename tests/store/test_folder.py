"""The store: making, opening, refusing, writing beside readers, finding arrays by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.crash_disk import NOT_ASKED, OK
from tfbind_store.arrays.receipts import receipt_path
from tfbind_store.arrays.sharded import publish_shard
from tfbind_store.errors import (
    CatalogError,
    FormatVersionError,
    GenomeError,
    MissingWindow,
    NameParseError,
    SpecError,
    StoreBusy,
    StoreError,
    StoreExists,
    StoreMissing,
    TfbindError,
)
from tfbind_store.loci import Grid
from tfbind_store.spec import EmbeddingSpec
from tfbind_store.store.folder import FactorProteins, Store

ROOT = Path(__file__).resolve().parents[2]
GRID = Grid(window_bp=32, n_bins=4, bin_bp=4)
FASTA = ">chr1\n" + "ACGT" * 10 + "nnAA\n>chr2\n" + "N" * 16 + "\n>chr3\nGGC\n"


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(FASTA)
    return path


@pytest.fixture
def store(tmp_path, fasta):
    return Store.create(tmp_path / "a.store", fasta=fasta, grid=GRID)


def window_spec(store, **changes):
    grid = {"window_bp": 32, "n_bins": 4, "bin_bp": 4}
    fields = {"kind": "windows", "embedder": "toy", "dim": 3, "grid": grid, "genome": store.meta.genome}
    return EmbeddingSpec(**{**fields, **changes})


def embed_all(store, name="embeddings/windows"):
    array = store.create_array(name, window_spec(store), (store.tiling.n_windows, 4, 3), 2)
    for shard_id in range(array.n_shards):
        rows = array.layout.rows_in(shard_id)
        publish_shard(array, shard_id, np.full((rows, 4, 3), shard_id, dtype=np.float16), [OK] * rows)
    return store.array(name)


class TestCreate:
    def test_a_new_store_knows_its_genome_grid_windows_and_aliases(self, store):
        again = Store.open(store.path)
        assert again.meta == store.meta
        assert again.tiling.n_windows == 3 + 1 + 1
        assert again.meta.aliases["1"] == "chr1"
        with again.reader() as catalog:
            assert catalog.rows("FROM windows ORDER BY window_id") == [
                (0, "chr1", 0, 16, 0.0, 0.5),
                (1, "chr1", 16, 32, 0.0, 0.5),
                (2, "chr1", 32, 44, pytest.approx(2 / 12), pytest.approx(0.4)),
                (3, "chr2", 0, 16, 1.0, None),
                (4, "chr3", 0, 3, 0.0, 1.0),
            ]
            assert catalog.one("SELECT chrom_id FROM data.chromosome_aliases WHERE alias = '3'") == (2,)

    def test_the_fasta_is_not_needed_afterwards(self, store, fasta):
        fasta.unlink()
        assert Store.open(store.path).genome.codes("chr1", -1, 5).tolist() == [5, 0, 1, 2, 3, 0]

    def test_what_fails_leaves_nothing_behind(self, tmp_path):
        (tmp_path / "bad.fa").write_text("no fasta")
        with pytest.raises(GenomeError):
            Store.create(tmp_path / "b.store", fasta=tmp_path / "bad.fa", grid=GRID)
        assert [entry.name for entry in tmp_path.iterdir()] == ["bad.fa"]

    def test_nothing_is_overwritten(self, store, fasta):
        before = sorted(store.path.rglob("*"))
        for path in (store.path, fasta):
            with pytest.raises(StoreExists):
                Store.create(path, fasta=fasta, grid=GRID)
        assert sorted(store.path.rglob("*")) == before

    def test_an_empty_folder_may_become_a_store(self, tmp_path, fasta):
        (tmp_path / "empty").mkdir()
        assert Store.create(tmp_path / "empty", fasta=fasta, grid=GRID).tiling.n_windows == 5

    def test_aliases_that_point_nowhere_or_at_two_are_refused(self, tmp_path, fasta):
        with pytest.raises(NameParseError, match="'chr9', which is not there"):
            Store.create(tmp_path / "b", fasta=fasta, grid=GRID, aliases={"nine": "chr9"})
        with pytest.raises(NameParseError, match="itself a chromosome"):
            Store.create(tmp_path / "b", fasta=fasta, grid=GRID, aliases={"chr1": "chr2"})


class TestOpen:
    def test_no_store_is_missing(self, tmp_path, fasta):
        for path in (tmp_path, tmp_path / "none", fasta):
            with pytest.raises(StoreMissing, match="there is no store"):
                Store.open(path)

    def test_another_format_version_is_refused_by_its_number(self, store):
        from tfbind_store.durable import sealed_json, unsealed_json

        file = store.path / "store.json"
        value = unsealed_json(file.read_bytes())
        file.write_bytes(sealed_json({**value, "format_version": 99}))
        with pytest.raises(FormatVersionError, match="format version 99, this tfbind_store reads 1"):
            Store.open(store.path)

    def test_any_changed_byte_of_store_json_is_refused(self, store):
        file = store.path / "store.json"
        good = file.read_bytes()
        for place in range(0, len(good), 29):
            file.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
            if good[place : place + 1].isspace():
                continue
            with pytest.raises(StoreError, match=r"store\.json"):
                Store.open(store.path)

    @pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000])
    def test_odd_files_are_refused(self, store, content):
        (store.path / "store.json").write_bytes(content)
        with pytest.raises(StoreError, match="damaged"):
            Store.open(store.path)

    def test_a_cut_genome_is_refused(self, store):
        os.truncate(store.path / "genome" / "codes.u8", 10)
        with pytest.raises(TfbindError, match="10 bytes, expected 63"):
            Store.open(store.path)

    def test_a_catalog_of_another_genome_is_refused(self, store, tmp_path, fasta):
        fasta.write_text(FASTA.replace("GGC", "GGA"))
        other = Store.create(tmp_path / "other", fasta=fasta, grid=GRID)
        shutil.rmtree(store.path / "catalog")
        shutil.copytree(other.path / "catalog", store.path / "catalog")
        with pytest.raises(CatalogError, match=f"of genome {other.meta.genome[:12]}, the store of"):
            store.reader()


class TestWriter:
    def names(self, store):
        with store.reader() as catalog:
            return [name for (name,) in catalog.rows("SELECT name FROM data.exclusions ORDER BY name")]

    def add(self, catalog, name):
        row = {"name": [name], "chrom_id": [0], "start_bp": [0], "end_bp": [1], "source_id": [0]}
        catalog.insert("data.exclusions", row)

    def test_readers_see_a_writer_s_work_when_it_is_done(self, store):
        with store.writer() as catalog:
            self.add(catalog, "a")
            assert self.names(store) == []
        assert self.names(store) == ["a"]

    def test_an_open_reader_keeps_its_snapshot(self, store):
        with store.reader() as old:
            for name in "abcdef":
                with store.writer() as catalog:
                    self.add(catalog, name)
            assert old.one("SELECT count(*) FROM data.exclusions") == (0,)
        assert self.names(store) == list("abcdef")

    def test_three_snapshots_are_kept(self, store):
        for name in "abcde":
            with store.writer() as catalog:
                self.add(catalog, name)
        assert sorted(os.listdir(store.path / "catalog" / "snapshots")) == ["4", "5", "6", "CURRENT"]
        assert store.snapshot == 6

    def test_a_writer_that_raised_is_no_alarm_for_the_next_one(self, store, caplog):
        def fail():
            with store.writer() as catalog:
                catalog.execute("INSERT INTO data.meta VALUES ('key', 'half')")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with store.writer() as catalog:
            assert catalog.one("SELECT value FROM data.meta WHERE key = 'key'") is None
        assert caplog.records == []

    def test_a_writer_that_raises_leaves_no_trace(self, store):
        def fail():
            with store.writer() as catalog:
                self.add(catalog, "lost")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        with store.writer() as catalog:
            self.add(catalog, "kept")
        assert self.names(store) == ["kept"]

    @pytest.mark.parametrize("moment", ["in a transaction", "after a commit", "before the snapshot"])
    def test_a_killed_writer_leaves_no_trace_and_no_lock(self, store, moment):
        die = "import os; os.kill(os.getpid(), 9)"
        script = f"""
from tfbind_store.store.folder import Store
from tfbind_store.catalog.snapshots import Snapshots
store = Store.open({str(store.path)!r})
def die(*_):
    {die}
if {moment!r} == "before the snapshot":
    Snapshots.publish = die
row = {{"name": ["lost"], "chrom_id": [0], "start_bp": [0], "end_bp": [1], "source_id": [0]}}
with store.writer() as catalog:
    if {moment!r} == "in a transaction":
        catalog.execute("BEGIN")
    catalog.insert("data.exclusions", row)
    if {moment!r} != "before the snapshot":
        die()
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
        assert done.returncode == -9, done.stderr
        assert self.names(store) == []
        with store.writer() as catalog:
            self.add(catalog, "kept")
        assert self.names(store) == ["kept"]

    def test_a_damaged_log_or_working_file_is_never_replayed(self, store):
        with store.writer() as catalog:
            self.add(catalog, "a")
        working = store.path / "catalog" / "catalog.duckdb"
        working.with_name("catalog.duckdb.wal").write_bytes(os.urandom(5000))
        with store.writer() as catalog:
            self.add(catalog, "b")
        working.unlink()
        with store.writer() as catalog:
            self.add(catalog, "c")
        assert self.names(store) == ["a", "b", "c"]

    def test_without_a_snapshot_readers_wait_for_the_next_one(self, store):
        with store.writer(snapshot=False) as catalog:
            self.add(catalog, "a")
        assert self.names(store) == []
        with store.writer() as catalog:
            self.add(catalog, "b")
        assert self.names(store) == ["a", "b"]

    def test_a_second_writer_is_told_who_writes(self, store):
        script = f"from tfbind_store.store.folder import Store\nwith Store.open({str(store.path)!r}).writer(): pass"
        with store.writer(), store.reader():
            done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
            assert f"PID {os.getpid()}" in done.stderr.decode()
            message = f"PID {os.getpid()} on .* is writing to this store"
            with pytest.raises(StoreBusy, match=message) as caught, store.writer():
                pass
            assert caught.value.exit_status == 75
        with store.writer(wait_seconds=5):
            pass

    def test_a_damaged_snapshot_or_current_is_refused(self, store):
        current = store.path / "catalog" / "snapshots" / "CURRENT"
        os.truncate(store.path / "catalog" / "snapshots" / "1" / "catalog.duckdb", 5000)
        with pytest.raises(CatalogError, match="5,000 bytes, expected"):
            store.reader()
        current.write_text("7")
        with pytest.raises(CatalogError, match="CURRENT is damaged"):
            store.reader()
        current.unlink()
        with pytest.raises(CatalogError, match="no snapshot"):
            store.reader()


class TestArrays:
    def test_an_array_is_listed_by_what_its_receipts_say(self, store):
        embed_all(store)
        publish_shard(store.array("embeddings/windows"), 0, np.zeros((2, 4, 3), np.float16), [OK, OK])
        (info,) = store.arrays()
        assert (info.name, info.shape, info.completeness) == ("embeddings/windows", (5, 4, 3), (5, 0, 0, 0, 5))
        assert info.size_bytes == sum(path.stat().st_size for path in store.path.glob("embeddings/windows.zarr/c.*"))
        receipt_path(store.array("embeddings/windows").layout.receipts_dir, 1).unlink()
        assert store.arrays()[0].completeness == (3, 0, 0, 2, 5)

    def test_the_index_of_shards_is_made_from_receipts_and_is_the_same_each_time(self, store):
        def index():
            with store.reader() as catalog:
                return catalog.rows("FROM data.shards ORDER BY ALL"), catalog.rows("FROM data.arrays")

        embed_all(store)
        with store.writer():
            pass
        first = index()
        assert [row[:4] for row in first[0]] == [("embeddings/windows", k, 1, rows) for k, rows in enumerate([2, 2, 1])]
        with store.writer() as catalog:
            catalog.execute("DELETE FROM data.shards")
        assert index() == first
        receipt_path(store.array("embeddings/windows").layout.receipts_dir, 1).unlink()
        with store.writer():
            pass
        assert [row[1] for row in index()[0]] == [0, 2]

    def test_another_spec_under_the_same_name_is_refused_by_its_field_with_nothing_written(self, store):
        embed_all(store)
        before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
        for changes, says in [
            ({"identity": {"weights": "b"}}, "identity.weights = None, this run asks for 'b'"),
            ({"dim": 4}, "dim = 3, this run asks for 4"),
            ({"dtype": "float32"}, "dtype = 'float16', this run asks for 'float32'"),
            ({"numerics_version": 2}, "numerics_version = 1, this run asks for 2"),
        ]:
            spec = window_spec(store, **changes)
            with pytest.raises(SpecError, match=says):
                store.create_array("embeddings/windows", spec, (5, 4, spec.dim), 2)
        assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before

    def test_an_array_of_another_genome_or_grid_is_refused(self, store):
        for changes, says in [
            ({"genome": "0" * 64}, "made with genome 000000000000, the store holds"),
            ({"grid": {"window_bp": 64, "n_bins": 4, "bin_bp": 4}}, "made with grid"),
        ]:
            with pytest.raises(SpecError, match=says):
                store.create_array("embeddings/windows", window_spec(store, **changes), (5, 4, 3), 2)

    def test_an_array_moved_to_another_kind_or_store_is_refused(self, store, tmp_path, fasta):
        embed_all(store)
        shutil.copytree(store.path / "embeddings", store.path / "proteins")
        with pytest.raises(SpecError, match="an array of windows under the name 'proteins/windows'"):
            store.array("proteins/windows")
        fasta.write_text(FASTA.replace("GGC", "GGA"))
        other = Store.create(tmp_path / "other", fasta=fasta, grid=GRID)
        shutil.copytree(store.path / "embeddings", other.path / "embeddings")
        with pytest.raises(SpecError, match="made with genome"):
            other.array("embeddings/windows")

    def test_an_absent_array_is_missing(self, store):
        with pytest.raises(StoreMissing, match="there is no such array"):
            store.array("embeddings/none")

    def test_a_grown_array_keeps_its_rows(self, store):
        spec = EmbeddingSpec(kind="contexts", embedder="hashed", dim=3, dtype="float32")
        array = store.create_array("contexts/hashed", spec, (3, 3), 4)
        assert array.shape == (4, 3)
        publish_shard(array, 0, np.ones((4, 3), np.float32), [OK, OK, OK, NOT_ASKED])
        grown = store.grow_array("contexts/hashed", 5)
        assert grown.shape == (8, 3)
        publish_shard(grown, 1, np.full((4, 3), 2, np.float32), [OK] * 4)
        again = store.array("contexts/hashed", verify="first-touch")
        assert [float(again.row(row)[0]) for row in (0, 2, 4, 7)] == [1, 1, 2, 2]
        with pytest.raises(MissingWindow):
            again.row(3)

    @pytest.mark.parametrize(
        "name", ["../x", "/abs", "a//b", "a\0b", ".", "..", "x" * 300, "-x", "\u202ex", "", "a b", "embeddings"]
    )
    def test_names_that_would_leave_the_store_are_refused(self, store, name):
        for make in (
            lambda: store.selection_dir(name),
            lambda: store.run_dir(name),
            lambda: store.array_path(f"embeddings/{name}"),
            lambda: store.array_path(name),
            lambda: store.array_name_for("windows", name),
        ):
            if name == "embeddings" and make is not None:
                continue
            with pytest.raises(TfbindError):
                make()

    @given(name=st.text(max_size=80))
    def test_whatever_the_name_the_path_lies_in_the_store(self, name):
        store = Store.__new__(Store)
        store.path = Path("/stores/a")
        for make in (store.selection_dir, store.run_dir, store.array_path, lambda n: store.array_path(f"proteins/{n}")):
            try:
                path = make(name)
            except TfbindError:
                continue
            assert path.resolve().is_relative_to("/stores/a")
            assert path.parent.parent == store.path


class TestDescriptions:
    def test_selections_and_runs_are_indexed_by_the_next_writer(self, store):
        folder = store.selection_dir("first")
        folder.mkdir(parents=True)
        (folder / "selection.json").write_text(json.dumps({"rows": 3}))
        run = store.run_dir("r1")
        run.mkdir(parents=True)
        header = json.dumps({"__metadata__": {"head": "linear"}}).encode()
        (run / "head.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        store.run_dir("unfinished").mkdir()
        with store.writer():
            pass
        assert (store.selections(), store.runs()) == (["first"], ["r1", "unfinished"])
        with store.reader() as catalog:
            assert catalog.rows("FROM data.selections") == [("first", '{"rows": 3}')]
            assert catalog.rows("FROM data.runs") == [("r1", '{"head": "linear"}')]


class TestProteinsAndContexts:
    @pytest.fixture
    def filled(self, store):
        with store.writer() as catalog:
            catalog.insert(
                "data.proteins",
                {
                    "protein_id": [0, 1, 2],
                    "symbol": ["A", "B", "C"],
                    "sequence": ["MA", "MB", "MC"],
                    "sha256": ["sa", "sb", "sc"],
                    "length_aa": [2, 70, 5],
                    "chosen_by": ["only"] * 3,
                    "source_id": [0] * 3,
                },
            )
            factors = {"factor_id": [0, 1, 2], "factor": ["A", "B-A", "C"], "genes": [["A"], ["B", "A"], ["C"]]}
            catalog.insert("data.factors", {**factors, "has_protein": [True, True, True]})
            subunits = {"factor_id": [0, 1, 1, 2, 3], "position": [0, 0, 1, 0, 0], "gene": ["A", "B", "A", "C", "D"]}
            catalog.insert("data.factor_subunits", {**subunits, "protein_id": [0, 1, 0, 2, None]})
            catalog.insert(
                "data.factors", {"factor_id": [3], "factor": ["D"], "genes": [["D"]], "has_protein": [False]}
            )
            biotypes = {"biotype_id": [0, 1], "biotype": ["x", "y"], "base_biotype": ["x", "y"], "metadata": ["{}"] * 2}
            catalog.insert("data.biotypes", biotypes)
            texts = {"context_id": [0, 1], "biotype_id": [0, 1], "text": ["cell x", "cell y"], "template": ["t"] * 2}
            catalog.insert("data.contexts", texts)
        return store

    def test_a_factor_is_its_subunits_one_after_the_other(self, filled):
        spec = EmbeddingSpec(kind="proteins", embedder="composition", dim=2)
        array = filled.create_array("proteins/composition", spec, (72, 2), 64)
        assert array.shape == (128, 2)
        data = np.zeros((128, 2), dtype=np.float16)
        data[:72, 0] = np.arange(72)
        rows = [
            {"sha256": "sa", "first_row": 0, "n_rows": 2, "truncated": False},
            {"sha256": "sb", "first_row": 2, "n_rows": 70, "truncated": True},
        ]
        publish_shard(array, 0, data[:64], [OK], provenance={"rows": rows})
        publish_shard(array, 1, data[64:], [OK])
        with filled.writer():
            pass
        proteins = FactorProteins(filled, "proteins/composition")
        assert [proteins.has(factor_id) for factor_id in range(4)] == [True, True, False, False]
        protein, mask, subunit = proteins.get(np.array([1, 0]))
        assert (protein.shape, protein.dtype) == ((2, 72, 2), np.float16)
        np.testing.assert_array_equal(protein[0, :, 0], [*range(2, 72), 0, 1])
        np.testing.assert_array_equal(protein[1, :3, 0], [0, 1, 0])
        assert mask.sum(axis=1).tolist() == [72, 2]
        assert subunit[0].tolist() == [0] * 70 + [1] * 2
        assert subunit[1].tolist() == [0] * 2 + [-1] * 70
        with pytest.raises(StoreError, match="the protein of C, factor 'C', has not been embedded"):
            proteins.get(np.array([2]))
        with pytest.raises(StoreError, match="D of factor 'D' has no sequence"):
            proteins.get(np.array([3]))
        with pytest.raises(StoreError, match="no factor has the id 9"):
            proteins.get(np.array([9]))

    def test_contexts_come_in_the_order_asked(self, filled):
        from hashlib import sha256

        spec = EmbeddingSpec(kind="contexts", embedder="hashed", dim=2, dtype="float32")
        array = filled.create_array("contexts/hashed", spec, (1, 2), 4)
        row = {"sha256": sha256(b"cell y").hexdigest(), "row_index": 2, "truncated": False}
        data = np.arange(8, dtype=np.float32).reshape(4, 2)
        publish_shard(array, 0, data, [OK] * 4, provenance={"rows": [row]})
        with filled.writer():
            pass
        np.testing.assert_array_equal(filled.contexts("contexts/hashed", np.array([1, 1])), [[4, 5], [4, 5]])
        with pytest.raises(StoreError, match="the context of biotype 'x' has not been embedded"):
            filled.contexts("contexts/hashed", np.array([0]))

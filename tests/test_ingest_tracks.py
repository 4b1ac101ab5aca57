"""Tracks in a store: rows and receipts, what is refused, what goes on, peaks as tracks, the catalog made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tracks.test_binning import write_bigwig
from tfbind_store.errors import InputFileError, SpecError, StrictError
from tfbind_store.ingest import (
    import_blacklist,
    import_peak_tracks,
    import_peaks,
    import_proteins,
    import_signals,
    import_tracks,
)
from tfbind_store.ingest import sources as sources_module
from tfbind_store.ingest import tracks as tracks_module
from tfbind_store.ingest.rebuilding import rebuild_catalog
from tfbind_store.keeping.verify import verify_store
from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store

GRID = Grid(window_bp=64, n_bins=4, bin_bp=8)
LENGTHS = {"I": 77, "II": 32}
PEAKS = (
    "chrI\t9\t20\tE1.REB1.Y\t7\t.\nchrI\t70\t76\tE1.REB1.Y\t9\t.\nchrI\t30\t34\tE2.REB1.Y\t5\t.\n"
    "chrII\t0\t2\tE2.REB1.Y\t5\t.\nchrI\t2\t5\tE3.ABF1.Z\t4\t.\n"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "g.fa").write_text(f">chrI\n{'ACGTA' * 15}AC\n>chrII\n{'ACGT' * 8}\n")
    return Store.create(tmp_path / "store", fasta=tmp_path / "g.fa", grid=GRID)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bw"
    path.mkdir()
    write_bigwig(path / "SRX1.bw", LENGTHS, [("I", 0, 8, 2.0), ("II", 8, 32, 1.0)])
    write_bigwig(path / "SRX2.bw", {"I": 77}, [("I", 64, 77, 5.0)])
    write_bigwig(path / "SRX3.bw", {"I": 99}, [("I", 0, 8, 2.0)])
    return path


def atlas(folder: Path, *tracks: str) -> Path:
    path = folder / "list.tab"
    rows = {
        "SRX1": "SRX1\tsacCer3\tTFs and others\tReb1\tYeast\tBY4741\tx\ty\tz\n",
        "SRX2": "SRX2\tsacCer3\tATAC-Seq\tATAC-Seq\tYeast\tW303\n",
        "SRX3": "SRX3\tsacCer3\tATAC-Seq\tATAC-Seq\tYeast\tBY4742\n",
        "SRX9": "SRX9\tsacCer3\tATAC-Seq\tATAC-Seq\tYeast\tBY4742\n",
    }
    path.write_text("".join(rows[track] for track in tracks))
    return path


def catalog_rows(store: Store) -> list[tuple[object, ...]]:
    with store.reader() as catalog:
        sql = "SELECT track, role, row_index, factor, biotype, n_bins FROM tracks ORDER BY array_name, row_index"
        return catalog.rows(sql)


def test_tracks_lie_in_an_array_with_receipts(store: Store, folder: Path) -> None:
    report = import_tracks(store, folder, annotation=atlas(folder, "SRX1", "SRX2", "SRX9"), statistic="sum")
    assert (report.rows_read, report.rows_kept, report.dropped) == (3, 2, {"no_file": 1})
    assert any("SRX3.bw" in note for note in report.notes)
    array = store.array("tracks/tracks")
    assert array.shape == (2, 4, 4)
    assert array.row(0)[0, 0] == 16
    assert np.isnan(array.row(0)[0, 1])
    assert np.isnan(array.row(1)[3]).all()
    assert catalog_rows(store) == [("SRX1", "label", 0, "Reb1", "BY4741", 4), ("SRX2", "label", 1, None, "W303", 2)]
    assert not verify_store(store, deep=True).problems


def test_the_same_import_again_changes_nothing_and_later_tracks_come_beside(store: Store, folder: Path) -> None:
    import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    before, snapshot = store.array("tracks/tracks").receipts()[0], store.snapshot
    again = import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    assert "1 tracks were there before" in again.notes
    assert store.snapshot == snapshot
    import_tracks(store, folder, annotation=atlas(folder, "SRX2", "SRX1"), workers=2)
    array = store.array("tracks/tracks")
    assert array.receipts()[0] == before
    assert [row[0] for row in catalog_rows(store)] == ["SRX1", "SRX2"]


def test_a_stopped_import_goes_on_with_what_was_published(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    table = atlas(folder, "SRX1")
    with monkeypatch.context() as patch:
        patch.setattr("tfbind_store.ingest.tracks.write_entries", die)
        with pytest.raises(KeyboardInterrupt):
            import_tracks(store, folder, annotation=table)
    made = store.array("tracks/tracks").receipts()[0]
    report = import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    assert report.rows_kept == 1
    assert store.array("tracks/tracks").receipts()[0] == made
    assert catalog_rows(store)[0][5] == 4


def test_files_that_are_there_already_are_not_read_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return whole_hash(path)

    whole_hash = tracks_module._hash
    monkeypatch.setattr(tracks_module, "_hash", noted)
    hashed = sources_module._digest
    monkeypatch.setattr(sources_module, "_digest", lambda path: (read.append(path.name), hashed(path))[1])
    import_tracks(store, folder, annotation=atlas(folder, "SRX1").rename(folder / "first.tab"))
    assert sorted(set(read)) == ["SRX1.bw", "first.tab"]  # and never the folder
    read.clear()
    report = import_tracks(store, folder, annotation=atlas(folder, "SRX1", "SRX2"))
    assert sorted(set(read)) == ["SRX2.bw", "list.tab"]
    assert report.rows_kept == 2
    read.clear()
    os.utime(folder / "SRX1.bw", ns=(1, 1))  # touched: its bytes are looked at, and are the same
    import_tracks(store, folder, annotation=atlas(folder, "SRX1", "SRX2"))
    assert "SRX1.bw" in read
    # a folder that has grown is no reason not to make the catalog again
    write_bigwig(folder / "SRX7.bw", LENGTHS, [("I", 0, 8, 2.0)])
    rows = catalog_rows(store)
    assert rebuild_catalog(store).origin == "inputs"
    assert catalog_rows(store) == rows


def test_another_assembly_is_refused_before_anything_is_written_or_dropped_by_name(store: Store, folder: Path) -> None:
    with pytest.raises(InputFileError, match="99 bp in the bigWig and 77 bp"):
        import_tracks(store, folder, annotation=atlas(folder, "SRX1", "SRX3"))
    assert not store.array_names()
    report = import_tracks(store, folder, annotation=atlas(folder, "SRX1", "SRX3"), drop=["bad_file"])
    assert report.dropped == {"bad_file": 1}
    assert report.rows_kept == 1


def test_strict_refuses_a_row_without_its_file(store: Store, folder: Path) -> None:
    with pytest.raises(StrictError, match="1 no file"):
        import_tracks(store, folder, annotation=atlas(folder, "SRX1", "SRX9"), strict=True)
    assert not store.array_names()


def test_a_stored_track_is_never_changed(store: Store, folder: Path) -> None:
    import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    with pytest.raises(SpecError, match="statistic"):
        import_tracks(store, folder, annotation=atlas(folder, "SRX1"), statistic="max")
    (folder / "SRX1.bw").unlink()
    write_bigwig(folder / "SRX1.bw", LENGTHS, [("I", 0, 8, 3.0)])
    with pytest.raises(InputFileError, match="made from another file"):
        import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    assert store.array("tracks/tracks").row(0)[0, 0] == 2


def test_a_track_of_two_assemblies_wants_a_choice(store: Store, folder: Path) -> None:
    table = atlas(folder, "SRX1")
    table.write_text(table.read_text() + table.read_text().replace("sacCer3", "sacCer2"))
    with pytest.raises(InputFileError, match="rows of sacCer3 and sacCer2"):
        import_tracks(store, folder, annotation=table)
    report = import_tracks(store, folder, annotation=table, assembly="sacCer3")
    assert report.dropped == {"other_assembly": 1}


def test_signals_need_a_biotype_and_gaps_are_zero(store: Store, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "signals.tsv"
    table.write_text("track\tbiotype\nSRX1\tBY4741\nSRX2\t\n")
    report = import_signals(store, folder, annotation=table)
    assert report.dropped == {"no_biotype": 1}
    assert store.array("signals/signals").row(0)[0].tolist() == [2, 0, 0, 0]
    assert catalog_rows(store) == [("SRX1", "signal", 0, None, "BY4741", 14)]


def test_a_tracks_factor_follows_proteins_that_come_later(store: Store, folder: Path, tmp_path: Path) -> None:
    import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    (tmp_path / "p.fa").write_text(">Y1 gene=REB1\nMKV\n")
    import_proteins(store, tmp_path / "p.fa")
    with store.reader() as catalog:
        assert catalog.rows("SELECT factor, has_protein FROM tracks JOIN factors USING (factor)") == [("REB1", True)]


class TestPeaksAsTracks:
    @pytest.fixture
    def with_peaks(self, store: Store, tmp_path: Path) -> Store:
        (tmp_path / "p.bed").write_text(PEAKS)
        import_peaks(store, tmp_path / "p.bed")
        return store

    def test_one_track_for_each_experiment_holds_its_summits(self, with_peaks: Store) -> None:
        import_peak_tracks(with_peaks)
        array = with_peaks.array("tracks/peaks")
        with with_peaks.reader() as catalog:
            row = dict(catalog.rows("SELECT track, row_index FROM tracks"))
        track = array.row(row["E1.REB1.Y"]).reshape(-1)
        assert np.flatnonzero(track == 1).tolist() == [1, 9]  # midpoints 14 and 73
        assert (track[:10] >= 0).all()
        assert np.isnan(track[10:12]).all()  # past the end of chrI

    def test_the_union_of_a_factor_in_a_biotype_equals_the_experiments_together(self, with_peaks: Store) -> None:
        import_peak_tracks(with_peaks, name="one", number="covered")
        import_peak_tracks(with_peaks, name="both", by="factor_biotype", number="covered")
        with with_peaks.reader() as catalog:
            row = dict(catalog.rows("SELECT track, row_index FROM tracks"))
        one, both = with_peaks.array("tracks/one"), with_peaks.array("tracks/both")
        together = np.fmax(one.row(row["E1.REB1.Y"]), one.row(row["E2.REB1.Y"]))
        np.testing.assert_array_equal(both.row(row["REB1.Y"]), together)
        assert one.row(row["E1.REB1.Y"]).reshape(-1)[:4].tolist() == [0, 7 / 8, 4 / 8, 0]  # bases 9-19

    def test_what_is_not_known_is_nan(self, with_peaks: Store, tmp_path: Path) -> None:
        (tmp_path / "black.bed").write_text("chrI\t15\t17\n")
        import_blacklist(with_peaks, tmp_path / "black.bed")
        import_peak_tracks(with_peaks, factor="ABF1")
        track = with_peaks.array("tracks/peaks").row(0).reshape(-1)
        assert np.flatnonzero(np.isnan(track[:10])).tolist() == [1, 2]

    def test_other_peaks_later_do_not_change_a_track(self, with_peaks: Store, tmp_path: Path) -> None:
        import_peak_tracks(with_peaks)
        (tmp_path / "q.bed").write_text("chrI\t50\t60\tE1.REB1.Y\t7\t.\n")
        import_peaks(with_peaks, tmp_path / "q.bed")
        with pytest.raises(InputFileError, match="made from other peaks"):
            import_peak_tracks(with_peaks)


def test_a_catalog_made_again_knows_the_tracks_and_bins_none_of_them(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.bed").write_text(PEAKS)
    import_peaks(store, tmp_path / "p.bed")
    import_tracks(store, folder, annotation=atlas(folder, "SRX1"))
    import_peak_tracks(store)
    before = catalog_rows(store)

    def never(*args: object) -> None:
        raise AssertionError("binned again")

    monkeypatch.setattr("tfbind_store.ingest.tracks.bin_bigwig", never)
    assert rebuild_catalog(store).origin == "inputs"
    assert catalog_rows(store) == before


@pytest.mark.real_data
def test_the_real_bigwigs_of_yeast_come_in(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "yeast_sacCer3"
    store = Store.create(tmp_path / "s", fasta=folder / "sacCer3.nuclear.fa.gz", grid=Grid(window_bp=16_384, n_bins=96))
    shutil.copytree(folder / "bigwig", tmp_path / "bw")
    rows = "MNase\t\tBY4741\nPolII\tRPO21\tBY4741\nScc1\tSCC1\tBY4741\n"
    (tmp_path / "t.tsv").write_text(f"track\tfactor\tbiotype\n{rows}")
    report = import_tracks(store, tmp_path / "bw", annotation=tmp_path / "t.tsv")
    assert report.rows_kept == 3
    assert "39 chromosomes of the genome are not in 3 of 3 files" in report.notes
    assert {row[5] for row in catalog_rows(store)} == {25_729}

"""Tests of the imports: what lands in the catalog, what is refused with which words, and what nothing may change."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfbind_store.errors import (
    ConfigError,
    InputFileError,
    NameParseError,
    PeakFileError,
    ProteinError,
    StrictError,
    TfbindError,
)
from tfbind_store.ingest import (
    ImportReport,
    import_biotypes,
    import_blacklist,
    import_experiments,
    import_loci,
    import_peaks,
    import_proteins,
)
from tfbind_store.loci import Grid
from tfbind_store.store.folder import Store

# windows of 32 kept bp in 4 bins of 8: chr1 has windows 0-2, chr2 3-4, chr3 5; bases 8-15 and 18 of chr2 are N
GRID = Grid(window_bp=64, n_bins=4, bin_bp=8)
CHR2 = "A" * 8 + "N" * 8 + "ACNC" + "G" * 20
FASTA = f">chr1\n{'ACGT' * 20}\n>chr2\n{CHR2}\n>chr3\n{'T' * 20}\n"
A, B = "GSE1.SOX2.H1", "GSE2.CTCF.K-562_dox"
PEAKS = f"chr1\t10\t20\t{A}\t7\t.\nchr1\t70\t80\t{A}\t8\t.\nchr2\t16\t20\t{B}\t9\t.\n"
PROTEINS = ">sp|P1|SOX2_HUMAN x OX=9606 GN=SOX2\nMKV\n>sp|P2|CTCF_HUMAN x OX=9606 GN=CTCF\nMKW\n"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    (folder / "g.fa").write_text(FASTA)
    return Store.create(folder / "store", fasta=folder / "g.fa", grid=GRID).path


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Store:
    return Store.open(shutil.copytree(empty_store, tmp_path / "store"))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str | bytes, name: str = "p.bed") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode() if isinstance(text, str) else text
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    with store.reader() as catalog:
        return catalog.rows(sql)


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tables that imports write."""
    tables = (
        "sources source_chromosomes proteins synonyms factors factor_subunits biotypes contexts experiments"
        " experiment_sources peaks relaxed_peaks exclusions loci chromosome_aliases"
    )
    with store.reader() as catalog:
        return {table: catalog.rows(f"SELECT * FROM data.{table} ORDER BY ALL") for table in tables.split()}


class TestPeaks:
    def test_rows_land_in_their_window_and_bin(self, store: Store, file: Callable[..., Path]) -> None:
        report = import_peaks(store, file(PEAKS))
        assert report[2:5] == (3, 3, {})
        columns = 'chrom, start, "end", experiment, score, summit, window_id, bin'
        assert rows(store, f"SELECT {columns} FROM peaks ORDER BY 1, 2") == [
            ("chr1", 10, 20, A, 7.0, 15, 0, 1),
            ("chr1", 70, 80, A, 8.0, 75, 2, 1),
            ("chr2", 16, 20, B, 9.0, 18, 3, 2),
        ]  # fmt: skip
        columns = "experiment, factor, biotype, base_biotype, treatment, n_peaks"
        assert rows(store, f"SELECT {columns} FROM experiments ORDER BY 1") == [
            (A, "SOX2", "H1", "H1", None, 2),
            (B, "CTCF", "K-562_dox", "K-562", "dox", 1),
        ]
        assert rows(store, "SELECT biotype, context FROM biotypes ORDER BY 1") == [
            ("H1", "cell type: H1"),
            ("K-562_dox", "cell type: K-562 | treatment: dox"),
        ]

    @pytest.mark.parametrize(
        ("line", "summit"),
        [
            ("chr1\t10\t20\tN", 15),
            ("chr1\t10\t21\tN\t5", 15),
            ("chr1\t10\t20\tN\t5\t.\t2.5\t-1\t-1\t3", 13),
            ("chr1\t10\t20\tN\t5\t.\t2.5\t-1\t-1\t-1", 15),
            ("chr1\t10\t20\tN\t5\t.\t2.5\t-1\t-1\t10", 15),
            ("chr1\t10\t20\tN\t5\t.\t12\t13\t0,0,255", 12),
            ("chr1\t10\t20\tN\t5\t.\t10\t20\t0,0,255", 15),
            ("chr1\t10\t20\tN\t5\t.\t2.5\t-1\t-1", 15),
        ],
    )
    def test_summits(self, store: Store, file: Callable[..., Path], line: str, summit: int) -> None:
        import_peaks(store, file(line.replace("N", A, 1) + "\n"))
        assert rows(store, "SELECT summit FROM peaks") == [(summit,)]

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (PEAKS.replace("\n", "\r\n"), "p.bed"),
            (PEAKS, "p.bed.gz"),
            (f"track name=x\nbrowser y\n#z\n{PEAKS}\n", "p.bed"),
            (PEAKS.replace("chr", ""), "p.bed"),
            (PEAKS.replace("\t", " "), "p.bed"),
            (PEAKS[:-1], "p.bed"),
            (PEAKS.replace("9\t.\n", "9\t.\textra\n"), "p.bed"),
        ],
        ids=["crlf", "gz", "headers", "no-chr", "blanks", "no-newline", "ragged"],
    )
    def test_the_same_peaks_in_other_clothes(
        self, store: Store, file: Callable[..., Path], text: str, name: str
    ) -> None:
        import_peaks(store, file(text, name))
        assert rows(store, "SELECT chrom, start, experiment FROM peaks ORDER BY ALL") == [
            ("chr1", 10, A), ("chr1", 70, A), ("chr2", 16, B)
        ]  # fmt: skip

    def test_chromosomes_without_a_row_are_unlabelled(self, store: Store, file: Callable[..., Path]) -> None:
        report = import_peaks(store, file(PEAKS))
        assert rows(store, "SELECT chrom_id FROM data.source_chromosomes ORDER BY 1") == [(0,), (1,)]
        assert "1 chromosomes have no row and are unlabelled: chr3" in report.notes
        assert len(rows(store, "SELECT * FROM data.experiment_sources")) == 2

    @pytest.mark.parametrize(("wanted", "ids"), [("all", [0, 1, 2]), (["chr3", "1"], [0, 2]), ([], [])])
    def test_labelled_chroms_override(
        self, store: Store, file: Callable[..., Path], wanted: str | list[str], ids: list[int]
    ) -> None:
        import_peaks(store, file(PEAKS), labelled_chroms=wanted)
        assert rows(store, "SELECT chrom_id FROM data.source_chromosomes ORDER BY 1") == [(i,) for i in ids]

    def test_summits_in_n_are_dropped_and_counted(self, store: Store, file: Callable[..., Path]) -> None:
        text = f"{PEAKS}chr2\t8\t12\t{A}\t1\t.\nchr2\t0\t30\t{A}\t1\t.\n"
        report = import_peaks(store, file(text))
        assert report[2:5] == (5, 3, {"summit_in_n": 2})
        # they bind what they cover outside N, but nobody sees which bin
        assert rows(store, "SELECT start_bp, end_bp FROM data.relaxed_peaks ORDER BY 1") == [(0, 30), (8, 12)]
        with pytest.raises(StrictError, match="2 summit in n"):
            import_peaks(store, file(text + "#\n"), strict=True)

    def test_the_same_file_again_changes_nothing(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file(PEAKS))
        before, number = everything(store), store.snapshot
        report = import_peaks(store, file(PEAKS, "other.bed"))
        assert report.notes == ["the same file was imported before: nothing changed"]
        assert (everything(store), store.snapshot) == (before, number)

    def test_repeats_within_and_between_files(self, store: Store, file: Callable[..., Path]) -> None:
        assert import_peaks(store, file(PEAKS + PEAKS), strict=True).dropped == {"duplicate": 3}
        report = import_peaks(store, file(f"{PEAKS}chr3\t1\t5\t{A}\t1\t.\n"))
        assert (report.rows_kept, report.dropped) == (1, {"already_stored": 3})
        assert rows(store, "SELECT count(*), count(DISTINCT source_id) FROM data.peaks") == [(4, 2)]
        order = rows(store, "SELECT experiment_id, window_id, bin FROM data.peaks")
        assert order == sorted(order)

    def test_two_summits_in_one_interval_are_two_peaks(self, store: Store, file: Callable[..., Path]) -> None:
        line = f"chr1\t10\t20\t{A}\t5\t.\t2.5\t-1\t-1\t"
        assert import_peaks(store, file(f"{line}3\n{line}7\n")).rows_kept == 2

    def test_names_with_commas_quotes_and_dots_survive(self, store: Store, file: Callable[..., Path]) -> None:
        names = ["G.ARG5,6.BY4741", "G.IMP2'.BY4741", 'G.X"Y.U2.OS_a b', "G.Ä;--.K"]
        import_peaks(store, file("".join(f"chr1\t{i}\t{i + 5}\t{name}\n" for i, name in enumerate(names))))
        assert {name for (name,) in rows(store, "SELECT experiment FROM peaks")} == set(names)
        assert rows(store, "SELECT factor FROM peaks WHERE biotype = 'U2.OS_a b'") == [('X"Y',)]

    def test_template_for_column_four(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file("1 10 20 CTCF\n"), experiment_template="GSE9.{name}.GM12878")
        assert rows(store, "SELECT experiment FROM peaks") == [("GSE9.CTCF.GM12878",)]

    def test_one_file_of_one_experiment(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file("chr1\t10\t20\n"), experiment_template=A)
        assert rows(store, "SELECT experiment FROM peaks") == [(A,)]

    def test_relaxed_peaks_around_n_are_kept(self, store: Store, file: Callable[..., Path]) -> None:
        assert import_peaks(store, file(f"chr2\t0\t30\t{A}\n"), relaxed=True, strict=True).rows_kept == 1

    def test_relaxed_peaks_say_nothing_about_labels(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file(PEAKS))
        import_peaks(store, file(PEAKS.replace("GSE2", "GSE3")), relaxed=True)
        assert rows(store, "SELECT count(*) FROM data.relaxed_peaks") == [(3,)]
        assert rows(store, "SELECT count(*) FROM data.peaks") == [(3,)]
        labelled = "SELECT experiment FROM data.experiments JOIN data.experiment_sources USING (experiment_id)"
        assert sorted(rows(store, labelled)) == [(A,), (B,)]

    def test_aliases_are_recorded(self, store: Store, file: Callable[..., Path]) -> None:
        with pytest.raises(PeakFileError, match="NC_1"):
            import_peaks(store, file(PEAKS.replace("chr1", "NC_1")))
        table = file("NC_1\tchr1\n", "aliases.tsv")
        assert import_peaks(store, file(PEAKS.replace("chr1", "NC_1")), aliases=table).rows_kept == 3
        assert rows(store, "SELECT chrom_id FROM data.chromosome_aliases WHERE alias = 'NC_1'") == [(0,)]
        with pytest.raises(InputFileError, match="name of another chromosome"):
            import_peaks(store, file(PEAKS + "#"), aliases={"NC_1": "chr2"})


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "what", "cause"),
        [
            ("chr1\t9\t9\t{A}", "end 9 <= start 9 (1 bad line of 3 rows)", "bad_line"),
            ("chr1\t9\tx\t{A}", "end 'x' is not a whole number of bp (1 bad line of 3 rows)", "bad_line"),
            ("chr1\t9\t10", "3 columns, expected at least 4 (1 bad line of 3 rows)", "bad_line"),
            ("chr1\t70\t81\t{A}", "chr1:70-81 ends past the chromosome's 80 bp (1 beyond end of 3 rows)", "beyond_end"),
            ("chr1\t900\t990\t{A}", "chr1:900-990 ends past the chromosome's 80 bp", "beyond_end"),
            ("chrX\t1\t2\t{A}", "does not have: chrX (1 unknown chromosome of 3 rows)", "unknown_chromosome"),
            ("CHR_1\t1\t2\t{A}", "does not have: CHR_1", "unknown_chromosome"),
            ("chr1\t1\t2\tSOX2", "experiment name 'SOX2' is not ACCESSION.FACTOR.BIOTYPE", "bad_name"),
        ],
    )
    def test_one_bad_row_names_file_line_and_count_and_leaves_the_store_as_it_was(
        self, store: Store, file: Callable[..., Path], line: str, what: str, cause: str
    ) -> None:
        good = f"chr1\t10\t20\t{A}\n"
        path = file(f"# x\n{good}\n{line.format(A=A)}\n{good.replace('20', '21')}")
        before = everything(store)
        with pytest.raises((PeakFileError, NameParseError)) as caught:
            import_peaks(store, path)
        assert what in caught.value.what
        assert caught.value.where == f"{path}:4"
        assert f"--drop {cause}" in caught.value.fix
        assert everything(store) == before
        with pytest.raises(StrictError):
            import_peaks(store, path, drop=[cause], strict=True)
        assert everything(store) == before
        assert import_peaks(store, path, drop=[cause])[2:5] == (3, 2, {cause: 1})

    def test_a_broken_row_of_a_narrowpeak_does_not_make_it_a_bed(self, store: Store, file: Callable[..., Path]) -> None:
        text = f"chr1\t10\t20\t{A}\t5\t.\t2.5\t-1\t-1\t3\n" * 30
        path = file(text + f"chr1\t10\t20\t{A}\n")
        with pytest.raises(PeakFileError, match="4 columns, expected at least 10") as caught:
            import_peaks(store, path)
        assert caught.value.where == f"{path}:31"

    def test_peaks_named_one_by_one(self, store: Store, file: Callable[..., Path]) -> None:
        text = "".join(f"chr1\t10\t20\tpeak_{i}\n" for i in range(1500))
        with pytest.raises(NameParseError, match=r"'peak_0' is not .*\(1,000 such names or more\)") as caught:
            import_peaks(store, file(text))
        assert "--name-from" in caught.value.fix

    def test_another_assembly_is_refused_with_all_counts(self, store: Store, file: Callable[..., Path]) -> None:
        text = f"chrX\t1\t2\t{A}\nchr1\t500\t600\t{A}\nchr1\t501\t600\t{A}\n"
        with pytest.raises(PeakFileError, match="2 beyond end, 1 unknown chromosome of 3 rows"):
            import_peaks(store, file(text))

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            ("", "no peaks"),
            ("# only a comment\n", "no peaks"),
            ("chr1\t1\n", "2 columns, bed has at least 3"),
            (b"\0\1\2", "NUL"),
        ],
    )
    def test_files_that_hold_no_peaks(
        self, store: Store, file: Callable[..., Path], data: str | bytes, what: str
    ) -> None:
        with pytest.raises(PeakFileError, match=what):
            import_peaks(store, file(data))

    def test_truncated_gz(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "p.bed.gz"
        path.write_bytes(gzip.compress(PEAKS.encode() * 99)[:-20])
        before = everything(store)
        with pytest.raises(PeakFileError, match="truncated"):
            import_peaks(store, path)
        assert everything(store) == before

    def test_odd_arguments(self, store: Store, file: Callable[..., Path], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such cause"):
            import_peaks(store, file(PEAKS), drop=["everything"])
        with pytest.raises(PeakFileError, match="no such format"):
            import_peaks(store, file(PEAKS), format="bigbed")
        with pytest.raises(PeakFileError, match="no such file"):
            import_peaks(store, tmp_path / "none.bed")
        with pytest.raises(InputFileError, match="does not have: chr9"):
            import_peaks(store, file(PEAKS), labelled_chroms=["chr9"])

    def test_a_failed_import_can_be_followed_by_a_good_one(self, store: Store, file: Callable[..., Path]) -> None:
        for _ in range(2):
            with pytest.raises(TfbindError):
                import_peaks(store, file("chr1\t9\t9\tx\n"))
        assert import_peaks(store, file(PEAKS)).rows_kept == 3


class TestFolders:
    def folder(self, file: Callable[..., Path]) -> Path:
        file("chr1\t10\t20\n", "all/11_SOX2_x.bed")
        file("chr2\t1\t4\n", "all/22_CTCF_x.bed.gz")
        file("", "all/33_MYC_x.bed")
        file("x", "all/readme.md")
        return file("", "all/.hidden.bed").parent

    def test_template_makes_names_and_an_empty_file_makes_an_unlabelled_experiment(
        self, store: Store, file: Callable[..., Path]
    ) -> None:
        report = import_peaks(store, self.folder(file), experiment_template="GSE-{accession}.{factor}.K562")
        assert report[2:5] == (2, 2, {})
        assert "1 files are empty, their experiments have no labels: 33_MYC_x.bed" in report.notes
        found = rows(store, "SELECT experiment, n_peaks FROM experiments ORDER BY 1")
        assert found == [("GSE-11.SOX2.K562", 1), ("GSE-22.CTCF.K562", 1), ("GSE-33.MYC.K562", 0)]
        labels = """SELECT experiment, chrom_id FROM data.experiments JOIN data.experiment_sources USING (experiment_id)
            JOIN data.source_chromosomes USING (source_id) ORDER BY 1"""
        assert rows(store, labels) == [("GSE-11.SOX2.K562", 0), ("GSE-22.CTCF.K562", 1)]

    def test_union_labels_every_file_with_the_chromosomes_of_all(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, self.folder(file), experiment_template="G-{1}.{2}.K562", labelled_chroms="union")
        assert rows(store, "SELECT source_id, chrom_id FROM data.source_chromosomes ORDER BY ALL") == [
            (source, chrom) for source in (0, 1, 2) for chrom in (0, 1)
        ]

    def test_table_names_files_and_becomes_metadata(self, store: Store, file: Callable[..., Path]) -> None:
        table = file(
            "Sample ID\tTarget\tcell line\tlab\n11\tSox2\tH1\tours\n22\tCTCF\tH1\tNA\n33\tMYC\tH1\tx\n",
            "keys.tsv",
        )
        import_peaks(store, self.folder(file), experiments_tsv=table, strict=True)
        assert rows(store, "SELECT experiment, metadata FROM experiments ORDER BY 1") == [
            ("11.Sox2.H1", '{"lab": "ours"}'),
            ("22.CTCF.H1", "{}"),
            ("33.MYC.H1", '{"lab": "x"}'),
        ]

    def test_table_with_columns_named_otherwise(self, store: Store, file: Callable[..., Path]) -> None:
        table = file("#key\tgsm\tprotein\n11\tGSM1\tSOX2\n22\tGSM2\tCTCF\n33\tGSM3\tMYC\n", "keys.tsv")
        columns = {"file": "key", "accession": "gsm", "factor": "protein"}
        import_peaks(store, self.folder(file), experiments_tsv=table, columns=columns, biotype="K562")
        assert rows(store, "SELECT experiment FROM experiments ORDER BY 1") == [
            ("GSM1.SOX2.K562",), ("GSM2.CTCF.K562",), ("GSM3.MYC.K562",)
        ]  # fmt: skip

    def test_files_named_as_experiments(self, store: Store, file: Callable[..., Path]) -> None:
        path = file("chr1\t10\t20\n", "named/GSE1.SOX2.U2.OS_x.bed")
        import_peaks(store, path.parent)
        assert rows(store, "SELECT experiment, biotype FROM experiments") == [("GSE1.SOX2.U2.OS_x", "U2.OS_x")]

    def test_a_file_more_is_all_that_a_second_import_reads(self, store: Store, file: Callable[..., Path]) -> None:
        folder = self.folder(file)
        import_peaks(store, folder, experiment_template="G.{2}.K562")
        file("chr3\t1\t5\n", "all/44_MAX_x.bed")
        report = import_peaks(store, folder, experiment_template="G.{2}.K562")
        assert report.notes[0] == "3 of 4 files were imported before: nothing changed"
        assert rows(store, "SELECT count(*) FROM data.sources") == [(4,)]

    def test_files_that_name_no_experiment_are_all_listed(self, store: Store, file: Callable[..., Path]) -> None:
        with pytest.raises(PeakFileError, match=r"3 of 3 files .*: 11_SOX2_x.bed, 22_CTCF_x.bed.gz, 33_MYC_x.bed"):
            import_peaks(store, self.folder(file))
        table = file("file\taccession\tfactor\tbiotype\n11_SOX2_x.bed\tG\tSOX2\tH1\n", "some.tsv")
        with pytest.raises(PeakFileError, match="2 of 3 files") as caught:
            import_peaks(store, self.folder(file), experiments_tsv=table)
        assert caught.value.fix.startswith("1 of them have a row in some.tsv; name them")
        with pytest.raises(PeakFileError, match=r"has no field \{9\}"):
            import_peaks(store, self.folder(file), experiment_template="G.{9}.K562")

    def test_empty_folder(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        with pytest.raises(PeakFileError, match="no peak files"):
            import_peaks(store, tmp_path / "none")


class TestProteins:
    FACTORS = ("PAX3-FOXO1_K4ac", "SMAD2-3", "SMAD2-SMAD3", "NKX3-1", "AOR1", "SWC5", "CTDSER2")
    FASTA = "".join(f">{s} gene={s}\nMKV\n" for s in ("PAX3", "FOXO1", "SMAD2", "SMAD3", "NKX3-1", "SWC5"))
    SQL = "SELECT experiment, factor, modification, has_protein FROM experiments ORDER BY 1"

    def peaks(self, file: Callable[..., Path]) -> Path:
        return file("".join(f"chr1\t{i}\t{i + 5}\tG.{name}.A\n" for i, name in enumerate(self.FACTORS)), "n.bed")

    def proteins(self, file: Callable[..., Path]) -> tuple[Path, list[Path]]:
        return file(self.FASTA, "p.fa"), [file("AOR1\tSWC5\n", "s.tsv")]

    def test_peaks_and_proteins_may_come_in_either_order(
        self, store: Store, file: Callable[..., Path], tmp_path: Path, empty_store: Path
    ) -> None:
        other = Store.open(shutil.copytree(empty_store, tmp_path / "other"))
        fasta, synonyms = self.proteins(file)
        import_peaks(store, self.peaks(file))
        import_proteins(store, fasta, synonyms=synonyms)
        import_proteins(other, fasta, synonyms=synonyms)
        import_peaks(other, self.peaks(file))
        assert rows(store, self.SQL) == rows(other, self.SQL) == [
            ("G.AOR1.A", "SWC5", None, True),
            ("G.CTDSER2.A", "CTDSER2", None, False),
            ("G.NKX3-1.A", "NKX3-1", None, True),
            ("G.PAX3-FOXO1_K4ac.A", "PAX3-FOXO1", "K4ac", True),
            ("G.SMAD2-3.A", "SMAD2-SMAD3", None, True),
            ("G.SMAD2-SMAD3.A", "SMAD2-SMAD3", None, True),
            ("G.SWC5.A", "SWC5", None, True),
        ]  # fmt: skip
        subunits = "SELECT factor, position, gene, symbol FROM data.factors JOIN data.factor_subunits USING (factor_id)"
        subunits += " LEFT JOIN data.proteins USING (protein_id) ORDER BY 1, 2"
        assert rows(store, subunits) == rows(other, subunits)
        assert ("PAX3-FOXO1", 1, "FOXO1", "FOXO1") in rows(store, subunits)
        assert ("CTDSER2", 0, "CTDSER2", None) in rows(store, subunits)

    def test_factors_keep_their_ids_when_proteins_come(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, self.peaks(file))
        before = dict(rows(store, "SELECT experiment, factor_id FROM data.experiments"))
        fasta, synonyms = self.proteins(file)
        import_proteins(store, fasta, synonyms=synonyms)
        after = dict(rows(store, "SELECT experiment, factor_id FROM data.experiments"))
        moved = {name for name in before if before[name] != after[name]}
        assert moved == {"G.SMAD2-SMAD3.A", "G.SWC5.A"}
        assert rows(store, "SELECT count(*) FROM data.factors") == [(5,)]

    def test_missing_proteins_are_told_with_near_misses(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file(f"chr1\t1\t5\t{A}\nchr1\t1\t5\tG.CTDSER2.H1\nchr1\t1\t5\tG.NKX3.1-X.H1\n"))
        report = import_proteins(store, file(f"{PROTEINS}>x gene=NKX3-1\nMKL\n", "p.fa"))
        assert report.notes == ["2 of 3 factors have no protein: CTDSER2, NKX3 (close: NKX3-1)"]

    def test_again_other_and_replaced(self, store: Store, file: Callable[..., Path]) -> None:
        import_proteins(store, file(PROTEINS, "p.fa"))
        before = everything(store)
        assert "nothing changed" in import_proteins(store, file(PROTEINS, "q.fa")).notes[0]
        assert everything(store) == before
        report = import_proteins(store, file(">sp|P9|SOX2_HUMAN x OX=9606 GN=SOX2\nMKVA\n", "r.fa"))
        assert report.notes == ["1 genes got another protein than before: SOX2"]
        assert rows(store, "SELECT symbol, accession, length_aa FROM proteins ORDER BY 1") == [
            ("CTCF", "P2", 3), ("SOX2", "P9", 4)
        ]  # fmt: skip

    def test_choice_is_recorded_and_no_loss_for_strict(self, store: Store, file: Callable[..., Path]) -> None:
        text = PROTEINS + ">tr|Q1|SOX2_HUMAN x OX=9606 GN=SOX2\nMKVVVV\n"
        report = import_proteins(store, file(text, "p.fa"), strict=True)
        assert report[2:5] == (3, 2, {"another_entry_of_the_gene": 1})
        assert rows(store, "SELECT symbol, chosen_by FROM data.proteins ORDER BY 1") == [
            ("CTCF", "only entry"), ("SOX2", "reviewed")
        ]  # fmt: skip

    def test_bad_sequences(self, store: Store, file: Callable[..., Path]) -> None:
        path = file(f"{PROTEINS}>x gene=BAD\nMK7\n", "p.fa")
        before = everything(store)
        with pytest.raises(ProteinError, match="BAD: letter '7' at residue 3") as caught:
            import_proteins(store, path)
        assert caught.value.where == f"{path}:5"
        with pytest.raises(StrictError):
            import_proteins(store, path, drop=["bad_sequence"], strict=True)
        assert everything(store) == before
        assert import_proteins(store, path, drop=["bad_sequence"]).dropped == {"bad_sequence": 1}

    def test_truncated_gz_and_absent_file(self, store: Store, tmp_path: Path) -> None:
        path = tmp_path / "p.fa.gz"
        path.write_bytes(gzip.compress(PROTEINS.encode())[:-9])
        with pytest.raises(ProteinError, match="truncated"):
            import_proteins(store, path)
        with pytest.raises(ProteinError, match="no such file"):
            import_proteins(store, tmp_path / "none.fa")


class TestExperiments:
    def test_table_by_whole_name_and_by_parts(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file(PEAKS))
        table = file(f"experiment\tpeaks_nr\tassembly\tlab\n{A}\t1234\thg38\tx\nG.NO.NE\t5\t\t\n", "e.tsv")
        report = import_experiments(store, table)
        assert report[2:5] == (2, 1, {"no_such_experiment": 1})
        table = file("tf,cell,rep\nCTCF,K-562,1\nCTCF,K-562,2\n", "parts.csv")
        assert import_experiments(store, table).rows_kept == 2
        assert rows(store, "SELECT experiment, peaks_nr, assembly, metadata FROM experiments ORDER BY 1") == [
            (A, 1234, "hg38", '{"lab": "x"}'),
            (B, None, None, '{"rep": "1; 2"}'),
        ]
        with pytest.raises(StrictError, match="1 no such experiment"):
            import_experiments(store, file(f"experiment\n{A}\nG.NO.NE\n", "f.tsv"), strict=True)

    def test_a_table_that_fits_nothing_is_refused_with_what_it_has_and_what_is_here(
        self, store: Store, file: Callable[..., Path]
    ) -> None:
        import_peaks(store, file(PEAKS))
        with pytest.raises(InputFileError, match=r"none of the 2 rows .*: G.NO.NE, G.NO.ON") as caught:
            import_experiments(store, file("experiment\nG.NO.NE\nG.NO.ON\n", "f.tsv"))
        assert A in caught.value.fix
        assert "--column" in caught.value.fix

    def test_rows_that_fitted_nothing_are_tried_again_when_peaks_have_come(
        self, store: Store, file: Callable[..., Path]
    ) -> None:
        first, second = PEAKS.splitlines(keepends=True)[0], "chr1\t50\t60\tGSE9.MYC.H1\n"
        import_peaks(store, file(first, "first.bed"))
        table = file(f"experiment\tlab\n{A}\tx\nGSE9.MYC.H1\ty\n", "e.tsv")
        assert import_experiments(store, table).dropped == {"no_such_experiment": 1}
        assert "nothing changed" in import_experiments(store, table).notes[0]
        import_peaks(store, file(second, "second.bed"))
        assert import_experiments(store, table).dropped == {}
        assert rows(store, "SELECT metadata FROM experiments WHERE factor = 'MYC'") == [('{"lab": "y"}',)]
        assert "nothing changed" in import_experiments(store, table).notes[0]

    def test_declared_experiments_are_labelled_where_their_source_looked(
        self, store: Store, file: Callable[..., Path]
    ) -> None:
        import_peaks(store, file(PEAKS))
        report = import_experiments(store, file("experiment\tsource\nGSE1.MYC.H1\tp.bed\n", "e.tsv"))
        assert report.notes == ["1 experiments without peaks were added"]
        assert rows(store, "SELECT n_peaks FROM experiments WHERE factor = 'MYC'") == [(0,)]
        labels = """SELECT chrom_id FROM data.experiments JOIN data.experiment_sources USING (experiment_id)
            JOIN data.source_chromosomes USING (source_id) WHERE accession = 'GSE1' AND experiment LIKE '%MYC%'"""
        assert sorted(rows(store, labels)) == [(0,), (1,)]
        with pytest.raises(InputFileError, match="no peak file 'q"):
            import_experiments(store, file("experiment\nGSE1.MAX.H1\n", "f.tsv"), source="q.bed")

    def test_remap_json(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file(PEAKS))
        datasets = [{"dataset_name": A, "peaks_NR": 77}, {"dataset_name": "G.NO.NE", "peaks_NR": 1}]
        value = {"experiments": [{"accession": "GSE1", "details": {"datasets": datasets}}, {"accession": "x"}]}
        report = import_experiments(store, file(json.dumps(value), "experiments.json.gz"))
        assert report[2:5] == (2, 1, {"no_such_experiment": 1})
        assert rows(store, f"SELECT peaks_nr FROM experiments WHERE experiment = '{A}'") == [(77,)]

    @pytest.mark.parametrize(
        ("text", "name", "what"),
        [
            ("{", "e.json", "not ReMap's"),
            ('{"experiments": [{"details": {"datasets": [{}]}}]}', "e.json", "not ReMap's"),
            ("lab\tx\n1\t2\n", "e.tsv", "no column names the experiments"),
            ("experiment\tpeaks_nr\nG.A.B\tmany\n", "e.tsv", "peaks_nr 'many'"),
        ],
    )
    def test_refusals(self, store: Store, file: Callable[..., Path], text: str, name: str, what: str) -> None:
        with pytest.raises(InputFileError, match=what):
            import_experiments(store, file(text, name))


class TestBiotypes:
    def test_contexts_before_and_after_the_peaks(self, store: Store, file: Callable[..., Path]) -> None:
        table = file("biotype\torgan\nH1\tembryo\nK-562\tblood\nA549\tlung\n", "b.tsv")
        report = import_biotypes(store, table)
        assert report[2:5] == (3, 3, {})
        import_peaks(store, file(PEAKS))
        assert rows(store, "SELECT biotype, context FROM biotypes ORDER BY 1") == [
            ("A549", "cell type: A549 | organ: lung"),
            ("H1", "cell type: H1 | organ: embryo"),
            ("K-562", "cell type: K-562 | organ: blood"),
            ("K-562_dox", "cell type: K-562 | treatment: dox | organ: blood"),
        ]
        import_biotypes(store, table, template="{biotype}: {organ}")
        assert ("K-562_dox: blood",) in rows(store, "SELECT context FROM biotypes")
        assert rows(store, "SELECT count(*) FROM data.contexts WHERE context_id = biotype_id") == [(4,)]

    def test_bare_biotypes_are_told(self, store: Store, file: Callable[..., Path]) -> None:
        import_peaks(store, file(PEAKS))
        report = import_biotypes(store, file("biotype\torgan\nH1\tx\n", "b.tsv"))
        assert report.notes == ["1 biotypes have no metadata: K-562_dox"]

    def test_refusals_leave_the_store(self, store: Store, file: Callable[..., Path]) -> None:
        before = everything(store)
        with pytest.raises(ConfigError, match="asks for column 'organs'"):
            import_biotypes(store, file("biotype\torgan\nH1\tx\n", "b.tsv"), template="{organs}")
        with pytest.raises(InputFileError, match="lines 2 and 3"):
            import_biotypes(store, file("biotype\torgan\nH1\tx\nH1\ty\n", "b.tsv"))
        assert everything(store) == before


class TestLoci:
    def test_blacklist(self, store: Store, file: Callable[..., Path]) -> None:
        path = file("1\t0\t8\treason\nchrUn\t1\t2\nchr3\t5\t20\n", "black.bed")
        with pytest.raises(PeakFileError, match="chrUn"):
            import_blacklist(store, path)
        with pytest.raises(StrictError):
            import_blacklist(store, path, drop=["unknown_chromosome"], strict=True)
        report = import_blacklist(store, path, drop=["unknown_chromosome"])
        assert report[2:5] == (3, 2, {"unknown_chromosome": 1})
        assert rows(store, "SELECT * FROM blacklist ORDER BY 1") == [("chr1", 0, 8, "black"), ("chr3", 5, 20, "black")]
        assert "nothing changed" in import_blacklist(store, path, drop=["unknown_chromosome"]).notes[0]

    def test_loci_with_names_and_splits(self, store: Store, file: Callable[..., Path]) -> None:
        import_loci(store, file("chr1\t0\t8\tp1\ttest\nchr1\t8\t16\tp2\t7\nchr2\t0\t4\tvalid\n", "l.bed"), "set")
        import_loci(store, file("chr3\t0\t4\n", "m.bed"), "set", split="train")
        assert rows(store, "SELECT chrom, start, name, split FROM loci ORDER BY 1, 2") == [
            ("chr1", 0, "p1", "test"), ("chr1", 8, "p2", None), ("chr2", 0, "valid", "valid"),
            ("chr3", 0, None, "train"),
        ]  # fmt: skip
        with pytest.raises(PeakFileError, match="split 'x'"):
            import_loci(store, file("chr3\t0\t4\n", "m.bed"), "set", split="x")
        with pytest.raises(PeakFileError, match="no loci"):
            import_loci(store, file("", "n.bed"), "set")


@pytest.mark.real_data
class TestRealData:
    def test_yeast(self, data_dir: Path, tmp_path: Path) -> None:
        yeast = data_dir / "yeast_sacCer3"
        grid = Grid(window_bp=16_384, n_bins=96, bin_bp=128)
        store = Store.create(tmp_path / "store", fasta=yeast / "sacCer3.nuclear.fa.gz", grid=grid)
        report = import_peaks(store, yeast / "peaks.remap.bed.gz", strict=True)
        assert report[2:5] == (139_465, 139_465, {})
        assert "2 chromosomes have no row and are unlabelled: chrVII, chrXV" in report.notes
        report = import_proteins(
            store, yeast / "sacCer3.proteins.fa.gz", synonyms=[yeast / "SGD_features_170331.tab.gz"], strict=True
        )
        assert report.notes == ["3 of 350 factors have no protein: CTDSER2, CTDSER5, CTDSER7"]
        report = self.folder(store, yeast)
        assert (report.rows_read, report.rows_kept) == (5645, 5645)
        assert report.notes[0].startswith("3 files are empty")
        with pytest.raises(PeakFileError, match="chrM, chr2-micron"):
            import_blacklist(store, yeast / "ChExMix_Peak_Filter_List_190612.bed")
        with pytest.raises(PeakFileError, match="48,466 unknown chromosome of 48,466 rows"):
            import_peaks(store, data_dir / "human_hg19_chr22" / "peaks.conservative.narrowPeak.gz")
        window, bin_index = rows(store, "SELECT window_id, bin FROM peaks WHERE chrom = 'chrI' AND start = 1382")[0]
        assert (window, bin_index) == (0, 10)

    def folder(self, store: Store, yeast: Path) -> ImportReport:
        return import_peaks(
            store,
            yeast / "peaks_per_experiment",
            experiments_tsv=yeast / "sample-key.tab",
            columns={"file": "Sample ID", "factor": "Yeast Target Common Name"},
            biotype="BY4741",
            experiment_template="Rossi.{1}.BY4741",
        )

    def test_human(self, data_dir: Path, tmp_path: Path) -> None:
        human = data_dir / "human_hg19_chr22"
        store = Store.create(tmp_path / "store", fasta=human / "hg19.chr22.part16-22Mb.fa.gz")
        conservative = human / "peaks.conservative.narrowPeak.gz"
        with pytest.raises(PeakFileError, match="ends past the chromosome's 22,000,000 bp"):
            import_peaks(store, conservative)
        report = import_peaks(store, conservative, drop=["beyond_end"])
        assert report.rows_kept + sum(report.dropped.values()) == 48_466
        relaxed = import_peaks(store, human / "peaks.relaxed.narrowPeak.gz", relaxed=True, drop=["beyond_end"])
        assert relaxed.rows_kept > report.rows_kept
        import_proteins(store, human / "lambert_human_TF_proteins.uniprot.fa.gz")
        without = rows(store, "SELECT factor FROM factors WHERE NOT has_protein ORDER BY 1")
        assert without == [("EP300",), ("TAF1",)]
        assert import_blacklist(store, human / "hg19.DAC_blacklist.chr22.bed").rows_kept == 2
        import_biotypes(store, human / "cell_types.tsv")
        report = import_experiments(store, human / "experiments.tsv")
        assert report.rows_kept > 0
        found = rows(store, "SELECT peaks_nr FROM experiments WHERE factor = 'CTCF' AND biotype = 'A549'")
        assert found == [(39_576,)]

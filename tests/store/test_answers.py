"""What a query found, as files and as other libraries' tables; and the views that queries are about."""

import io
import json
import shutil

import numpy as np
import pybedtools
import pytest

from tfbind_store.catalog.database import Catalog
from tfbind_store.catalog.strangers import Table
from tfbind_store.errors import SqlError
from tfbind_store.ingest import import_peaks
from tfbind_store.loci import Grid
from tfbind_store.store import answers
from tfbind_store.store.answers import Answer
from tfbind_store.store.folder import Store

A, B = "GSE1.SOX2.H1", "GSE2.CTCF.U2.OS_dox"
PEAKS = (
    f"chr1\t10\t20\t{A}\t7\t.\t12\t13\t0,0,255\nchr1\t70\t80\t{A}\t8.5\t.\t75\t76\t0,0,255\n"
    f"chr2\t5\t30\t{B}\t1234567\t.\t9\t10\t0,0,255\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    (folder / "g.fa").write_text(f">chr1\n{'ACGT' * 20}\n>chr2\n{'ACGT' * 9}A\n")
    (folder / "p.bed").write_text(PEAKS)
    store = Store.create(folder / "store", fasta=folder / "g.fa", grid=Grid(window_bp=64, n_bins=4, bin_bp=8))
    import_peaks(store, folder / "p.bed")
    return store


class TestViews:
    def test_every_column_of_every_view_has_a_line_of_prose(self, made):
        with made.reader() as catalog:
            described = catalog.described()
            shown = dict(
                catalog.rows("SELECT view_name, 1 FROM duckdb_views() WHERE schema_name = 'main' AND internal = false")
            )
        assert {row[0] for row in described} == shown.keys()
        assert {"peaks", "experiments", "factors", "biotypes", "windows", "loci", "bins"} <= shown.keys()
        for view, holds, column, kind, means in described:
            assert holds.endswith("."), view
            assert means.endswith("."), f"{view}.{column}"
            assert kind

    def test_bins_tile_every_chromosome_and_end_with_it(self, made):
        found = made.sql(
            'SELECT chrom, count(*) AS n, min(start) AS first, max("end") AS last, sum("end" - start) AS bp'
            " FROM bins GROUP BY chrom ORDER BY chrom"
        )
        assert found.rows == [("chr1", 10, 0, 80, 80), ("chr2", 5, 0, 37, 37)]

    def test_a_peak_lies_in_the_bin_that_it_names(self, made):
        found = made.sql(
            "SELECT count(*) FROM peaks JOIN bins USING (window_id, bin, chrom)"
            ' WHERE summit >= bins.start AND summit < bins."end"'
        )
        assert found.rows == [(3,)]

    def test_an_experiment_counts_its_own_peaks_and_none_are_lost(self, made):
        rows = made.sql("SELECT experiment, n_peaks, base_biotype, treatment FROM experiments ORDER BY 1").rows
        assert rows == [(A, 2, "H1", None), (B, 1, "U2.OS", "dox")]


class TestAnswer:
    def test_parameters_are_bound_and_never_read_as_sql(self, made):
        sql = "SELECT count(*) FROM peaks WHERE factor = $f"
        assert made.sql(sql, {"f": "SOX2"}).rows == [(2,)]
        assert made.sql(sql, {"f": "SOX2' OR 'x' = 'x"}).rows == [(0,)]

    def test_values_keep_their_kinds(self, made):
        found = made.sql(
            "SELECT 1, 2.5::DECIMAL(9,2), 'a', NULL, [1, NULL], {'k': 1}, DATE '2020-01-02', 'nan'::FLOAT,"
            " (1::HUGEINT << 100), true, now() IS NULL"
        ).rows[0]
        assert found[:7] == (1, 2.5, "a", None, [1, None], {"k": 1}, "2020-01-02")
        assert np.isnan(found[7])
        assert found[8:] == (1 << 100, True, False)

    def test_moments_come_as_text(self, made):
        assert made.sql("SELECT TIMESTAMPTZ '2020-01-02 03:04:05+00'").rows[0][0].startswith("2020-01-02 03:04:05")

    def test_columns_are_numbers_where_they_can_be(self):
        table = Table(
            ["i", "f", "s", "b", "big"], ["?"] * 5, [(1, None, "x", True, 1 << 80), (2, 3, None, False, 1)], False
        )
        found = Answer(table).arrays()
        assert found["i"].dtype == np.int64
        assert np.isnan(found["f"][0])
        assert found["s"].tolist() == ["x", None]
        assert found["b"].dtype == np.bool_
        assert found["big"].tolist() == [1 << 80, 1]

    def test_pandas(self, made):
        pandas = pytest.importorskip("pandas")
        frame = made.sql("SELECT chrom, start, score FROM peaks ORDER BY ALL").to_pandas()
        assert isinstance(frame, pandas.DataFrame)
        assert frame["start"].tolist() == [10, 70, 5]

    def test_arrow(self, made):
        pytest.importorskip("pyarrow")
        assert made.sql("SELECT chrom, start FROM peaks ORDER BY ALL").to_arrow().num_rows == 3

    def test_bedtool_agrees_with_the_peaks(self, made):
        tool = made.sql("SELECT * FROM peaks ORDER BY chrom, start").to_bedtool()
        assert isinstance(tool, pybedtools.BedTool)
        assert [(i.chrom, i.start, i.end, i.name, i.score) for i in tool] == [
            ("chr1", 10, 20, A, "7"), ("chr1", 70, 80, A, "8.5"), ("chr2", 5, 30, B, "1234567"),
        ]  # fmt: skip
        if shutil.which("bedtools"):
            other = pybedtools.BedTool("chr1 15 16\n", from_string=True)
            assert tool.intersect(other, u=True).count() == 1


class TestFiles:
    def test_a_bed_that_was_written_can_be_imported_again(self, made, tmp_path):
        path = made.sql("SELECT * FROM peaks ORDER BY chrom, start").to_file(tmp_path / "again.bed")
        again = Store.create(tmp_path / "again", fasta=_fasta(tmp_path), grid=made.grid)
        assert import_peaks(again, path).rows_kept == 3
        sql = 'SELECT chrom, start, "end", experiment, score FROM peaks ORDER BY ALL'
        assert again.sql(sql).rows == made.sql(sql).rows

    def test_parquet_keeps_types_and_odd_names(self, made, tmp_path):
        sql = """SELECT start AS "a ""b", score, experiment, [bin, NULL] AS list, {'k': 1} AS s, NULL AS nothing
            FROM peaks ORDER BY chrom, start"""
        path = made.sql(sql).to_file(tmp_path / "p.parquet")
        found = Catalog.read_parquet(path)
        assert list(found) == ['a "b', "score", "experiment", "list", "s", "nothing"]
        assert found['a "b'].dtype == np.int64
        assert found["score"].dtype == np.float32
        assert [json.loads(text) for text in found["s"]] == [{"k": 1}] * 3
        assert [entry.name for entry in tmp_path.iterdir()] == ["p.parquet"]

    def test_csv_and_json(self, made, tmp_path):
        answer = made.sql("SELECT experiment, [1] AS l, 'nan'::FLOAT AS x, NULL AS n FROM peaks ORDER BY ALL LIMIT 1")
        assert answer.to_file(tmp_path / "a.csv").read_text() == f"experiment,l,x,n\n{A},[1],nan,\n"
        value = json.loads(answer.to_file(tmp_path / "a.json").read_text())
        assert value == [{"experiment": A, "l": [1], "x": None, "n": None}]
        text = io.StringIO()
        answers.write_json(text, ["a"], [])
        assert json.loads(text.getvalue()) == []

    def test_a_place_that_is_no_number_of_bases_is_written_whole(self):
        assert list(answers.bed_lines(["chrom", "start", "end"], [("c", 1e7, 2e7)])) == ["c\t10000000\t20000000\n"]

    def test_a_tab_in_a_name_makes_no_column(self):
        assert list(answers.bed_lines(["CHROM", "start_bp", "end", "name"], [("c", 1, 2, "a\tb\nc")])) == [
            "c\t1\t2\ta b c\t.\t.\n"
        ]

    @pytest.mark.parametrize(
        ("columns", "rows", "what"),
        [(["chrom", "start"], [], "there is no end"), (["chrom", "start", "end"], [(None, 1, 2)], "without a place")],
    )
    def test_what_has_no_place_is_no_bed_and_leaves_no_file(self, tmp_path, columns, rows, what):
        with pytest.raises(SqlError, match=what):
            answers.write_file(tmp_path / "x.bed", None, columns, [], [rows])
        assert list(tmp_path.iterdir()) == []

    def test_a_format_that_nobody_writes(self, tmp_path):
        with pytest.raises(SqlError, match="no such format: 'xls'"):
            answers.write_file(tmp_path / "x.xls", None, [], [], [])


def _fasta(folder):
    (folder / "g.fa").write_text(f">chr1\n{'ACGT' * 20}\n>chr2\n{'ACGT' * 9}A\n")
    return folder / "g.fa"

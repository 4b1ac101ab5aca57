"""The catalog: what goes in comes out, and what strangers may not do."""

import gzip
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import duckdb
import numpy as np
import pytest

from tfbind_store.catalog import database as catalog_module
from tfbind_store.catalog import strangers
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import CatalogError, InputFileError, NoSpace, SqlError, SqlTimeout, StoreReadOnly
from tfbind_store.migrations import newest_schema


@pytest.fixture
def path(tmp_path):
    """A catalog with three factors and a chromosome."""
    with Catalog.open_writer(tmp_path / "catalog.duckdb") as catalog:
        catalog.insert(
            "data.factors",
            {
                "factor_id": np.arange(3),
                "factor": ["SOX2", "ARG5,6", "IMP2'"],
                "genes": [["SOX2"], ["ARG5,6"], ["IMP2'", "X"]],
                "has_protein": np.array([True, False, True]),
                "family": [None, "a", None],
            },
        )
        catalog.insert(
            "data.chromosomes",
            {"chrom_id": [0], "chrom": ["chr1"], "length_bp": [10], "md5": ["x"], "n_bp": [0], "first_window": [0]},
        )
    return tmp_path / "catalog.duckdb"


@pytest.fixture
def reader(path):
    with Catalog.open_snapshot(path) as catalog:
        yield catalog


class TestReading:
    def test_columns_keep_their_order_and_types(self, reader):
        found = reader.columns("SELECT factor, factor_id, has_protein FROM data.factors ORDER BY factor_id")
        assert list(found) == ["factor", "factor_id", "has_protein"]
        assert found["factor"].tolist() == ["SOX2", "ARG5,6", "IMP2'"]
        assert (found["factor_id"].dtype, found["has_protein"].dtype) == (np.int32, np.bool_)
        assert found.n == 3
        assert found.rows()[2] == ("IMP2'", 2, True)

    def test_null_is_nan_among_numbers_and_none_among_the_rest(self, reader):
        found = reader.columns(
            "SELECT * FROM (VALUES (1, 1.5::FLOAT, 'a', true), (NULL, NULL, NULL, NULL)) t(i, f, s, b)"
        )
        assert np.isnan(found["i"][1])
        assert np.isnan(found["f"][1])
        assert (found["s"][1], found["b"][1]) == (None, None)

    def test_parameters_may_be_numpy_scalars_and_names(self, reader):
        sql = "SELECT factor FROM data.factors WHERE factor_id = ?"
        assert reader.one(sql, [np.int64(1)]) == ("ARG5,6",)
        assert reader.rows("SELECT factor FROM factors WHERE factor = $f", {"f": "IMP2'"}) == [("IMP2'",)]
        assert reader.one(sql, [99]) is None

    def test_two_readers_and_a_stranger_read_one_file_in_one_process(self, path, reader):
        with Catalog.open_snapshot(path) as other:
            assert other.untrusted("SELECT count(*) FROM factors").rows == reader.rows("SELECT count(*) FROM factors")

    def test_a_reader_cannot_write(self, reader):
        with pytest.raises(CatalogError, match="read-only"):
            reader.execute("INSERT INTO data.meta VALUES ('a', 'b')")

    @pytest.mark.parametrize("content", [b"", b"not a database", bytes(300_000)])
    def test_what_is_no_catalog_is_refused_with_its_path(self, tmp_path, content):
        path = tmp_path / "x.duckdb"
        path.write_bytes(content)
        with pytest.raises(CatalogError, match=r"x\.duckdb"):
            Catalog.open_snapshot(path)

    def test_an_absent_catalog_is_refused_and_not_made(self, tmp_path):
        with pytest.raises(CatalogError, match="no catalog"):
            Catalog.open_snapshot(tmp_path / "none.duckdb")
        assert list(tmp_path.iterdir()) == []

    def test_a_newer_schema_is_refused(self, path):
        with Catalog.open_writer(path) as catalog:
            catalog.execute("UPDATE data.meta SET value = '999' WHERE key = 'schema_version'")
        for opening in (Catalog.open_snapshot, Catalog.open_writer):
            with pytest.raises(CatalogError, match=f"schema 999, this version (reads|writes) {newest_schema()}"):
                opening(path)


@pytest.mark.parametrize("opened", ["reader", "writer"])
def test_no_progress_is_drawn_where_duckdb_takes_itself_for_a_notebook(path, opened):
    """Under ``python -c``, with output that others read as JSON."""
    open_it = "open_snapshot" if opened == "reader" else "open_writer"
    code = (
        "import sys; from pathlib import Path; from tfbind_store.catalog.database import Catalog;"
        f"catalog = Catalog.{open_it}(Path(sys.argv[1]));"
        "print(catalog.one(\"SELECT current_setting('enable_progress_bar')\"))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "(False,)\n"


class TestWriting:
    def test_a_transaction_that_raises_leaves_nothing(self, path):
        with Catalog.open_writer(path) as catalog:
            with pytest.raises(CatalogError), catalog.transaction():  # noqa: PT012
                catalog.insert("data.meta", {"key": ["a"], "value": ["b"]})
                catalog.execute("SELECT error('our mistake')")
            assert catalog.one("SELECT count(*) FROM data.meta WHERE key = 'a'") == (0,)

    def test_rows_with_the_same_key_are_refused_or_replaced(self, path):
        with Catalog.open_writer(path) as catalog:
            catalog.insert("data.meta", {"key": ["a"], "value": ["1"]})
            with pytest.raises(CatalogError, match=r"(?i)duplicate key"):
                catalog.insert("data.meta", {"key": ["a"], "value": ["2"]})
            catalog.insert("data.meta", {"key": ["a"], "value": ["2"]}, replace=True)
            assert catalog.one("SELECT value FROM data.meta WHERE key = 'a'") == ("2",)

    def test_nothing_inserted_is_no_error(self, path):
        with Catalog.open_writer(path) as catalog:
            assert catalog.insert("data.meta", {"key": [], "value": []}) == 0

    def test_many_nones_before_the_first_value(self, path):
        with Catalog.open_writer(path) as catalog:
            catalog.execute("CREATE TEMP TABLE t (n INTEGER, s VARCHAR)")
            catalog.insert("t", {"n": [None] * 5000 + [7], "s": [None] * 5000 + ["x"]})
            assert catalog.rows("SELECT * FROM t WHERE n IS NOT NULL") == [(7, "x")]

    def test_no_log_is_left_beside_a_closed_file(self, path):
        assert [entry.name for entry in path.parent.iterdir()] == ["catalog.duckdb"]


class TestReadDelimited:
    columns: ClassVar = {"chrom": "VARCHAR", "start": "BIGINT", "end_bp": "BIGINT", "name": "VARCHAR"}

    def read(self, catalog_path, file, **options):
        with Catalog.open_writer(catalog_path) as catalog:
            catalog.read_delimited(file, self.columns, "incoming", **options)
            return catalog.rows("SELECT * FROM incoming ORDER BY line")

    text = 'track name="x"\n#c\nchr1\t1\t5\ta"b,c\'\n\nchr1\tx\t9\nchr2\t3\t9\tq\textra\n'
    expected: ClassVar = [
        (3, 4, "chr1", 1, 5, "a\"b,c'"),
        (5, 3, "chr1", None, 9, None),
        (6, 5, "chr2", 3, 9, "q"),
    ]

    @pytest.mark.parametrize("ending", ["\n", "\r\n"])
    def test_lines_are_numbered_and_odd_fields_are_null(self, path, tmp_path, ending):
        file = tmp_path / "p.bed"
        file.write_bytes(self.text.replace("\n", ending).encode())
        assert self.read(path, file) == self.expected

    def test_gzip_is_known_by_its_content(self, path, tmp_path):
        file = tmp_path / "p.bed"
        file.write_bytes(gzip.compress(self.text.encode()))
        assert self.read(path, file) == self.expected

    def test_lines_may_be_skipped_and_other_delimiters_used(self, path, tmp_path):
        file = tmp_path / "p.csv"
        file.write_text("chrom,start,end,name\nchr1,1,2,a\n")
        assert self.read(path, file, skip_lines=1, delimiter=",") == [(2, 4, "chr1", 1, 2, "a")]

    def test_an_empty_file_has_no_rows(self, path, tmp_path):
        (tmp_path / "p.bed").write_bytes(b"")
        assert self.read(path, tmp_path / "p.bed") == []

    def test_a_truncated_gzip_or_text_that_is_not_utf8_is_refused_with_its_path(self, path, tmp_path):
        file = tmp_path / "p.bed"
        whole = gzip.compress(os.urandom(200_000).hex().encode())
        for content in (whole[: len(whole) // 2], b"chr1\t1\t2\tna\xefme\n"):
            file.write_bytes(content)
            with pytest.raises(InputFileError, match=r"p\.bed"):
                self.read(path, file)
        with pytest.raises(InputFileError, match="No such file"):
            self.read(path, tmp_path / "none.bed")


class TestParquet:
    def test_columns_come_back_as_they_were(self, tmp_path):
        file = tmp_path / "it's.parquet"
        columns = {"label": [[1, 0], [-1]], "n": np.arange(2, dtype=np.int16), "name": ["a'", None]}
        Catalog.write_parquet(file, columns)
        back = Catalog.read_parquet(file)
        assert [row.tolist() for row in back["label"]] == [[1, 0], [-1]]
        assert back["n"].dtype == np.int16
        assert back["name"].tolist() == ["a'", None]
        assert list(Catalog.read_parquet(file, ["n"])) == ["n"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["it's.parquet"]

    def test_a_query_that_fails_leaves_no_file(self, reader, tmp_path):
        with pytest.raises(CatalogError):
            reader.to_parquet("SELECT error('x')", tmp_path / "out.parquet")
        assert not any("out.parquet" in entry.name for entry in tmp_path.iterdir())

    def test_a_query_with_parameters(self, reader, tmp_path):
        reader.to_parquet("SELECT factor FROM factors WHERE factor = $f", tmp_path / "o.parquet", {"f": "SOX2"})
        assert Catalog.read_parquet(tmp_path / "o.parquet")["factor"].tolist() == ["SOX2"]


ATTACKS = {
    "stacked statements": "SELECT 1; DELETE FROM data.factors",
    "stacked after a comment": "SELECT 1 -- x\n; DROP TABLE data.factors",
    "copy out": "COPY (SELECT 1) TO '{out}'",
    "copy in": "COPY data.meta FROM '{secret}'",
    "read_text": "SELECT * FROM read_text('{secret}')",
    "read_blob": "SELECT * FROM read_blob('{secret}')",
    "read_csv": "SELECT * FROM read_csv('{secret}', header=false)",
    "replacement scan": "SELECT * FROM '{secret}'",
    "glob": "SELECT * FROM glob('{folder}/*')",
    "attach": "ATTACH '{out}'",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "set": "SET enable_external_access = true",
    "reset": "RESET enable_external_access",
    "pragma": "PRAGMA enable_profiling = 'json'",
    "call": "CALL pragma_version()",
    "delete": "DELETE FROM data.factors",
    "insert in a WITH": "WITH x AS (INSERT INTO data.meta VALUES ('a', 'b') RETURNING 1) SELECT * FROM x",
    "export": "EXPORT DATABASE '{out}'",
    "create": "CREATE TABLE main.t AS SELECT 1",
    "python variable": "SELECT * FROM stranger",
    "getenv": "SELECT getenv('PATH')",
    "query()": "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "explain analyze": "EXPLAIN ANALYZE SELECT 1",
    "nothing": "",
    "only a comment": "-- x",
    "a NUL": "SELECT 1\x00; DROP TABLE data.factors",
    "right-to-left": "SELECT '\u202e' FROM factors; SELECT 1",
    "explain in front": "EXPLAIN SELECT 1",
    "the process's own environment": "SELECT * FROM read_text('/proc/self/environ')",
    "another database's tables": "SELECT * FROM read_duckdb('{secret}', table_name='t')",
    "a file in the cloud": "SELECT * FROM 's3://bucket/x.parquet'",
    "a file on the net": "SELECT * FROM read_csv('https://example.com/x.csv')",
    "metadata of a file": "SELECT * FROM parquet_metadata('{secret}')",
    "guessing at a file": "SELECT * FROM sniff_csv('{secret}')",
    "listing extensions": "SELECT * FROM duckdb_extensions()",
    "enable logging to a file": "CALL enable_logging(storage_path := '{out}')",
    "prepare": "PREPARE p AS SELECT 1",
    "a view of its own": "CREATE TEMP VIEW v AS SELECT * FROM '{secret}'",
    "a macro of its own": "CREATE TEMP MACRO m() AS 1",
    "use": "USE memory",
    "detach": "DETACH catalog",
    "begin": "BEGIN",
    "vacuum": "VACUUM",
    "import database": "IMPORT DATABASE '{folder}'",
    "update": "UPDATE data.meta SET value = 'x'",
    "full-width semicolon and a real one": "SELECT 1\uff1b; DROP TABLE data.meta",
    "a very long query": "SELECT * FROM factors WHERE factor_id IN ({numbers})",
}
FRAGMENTS = [
    "1=1; DELETE FROM data.factors",
    "1=1) UNION SELECT value FROM data.meta WHERE (1=1",
    "1=1) ORDER BY (1",
    "1=1) LIMIT (0",
    "1=1) GROUP BY ALL HAVING (1=1",
    "1=1) --",
    "1=1 /*",
    "factor IN (SELECT content FROM read_text('{secret}'))",
    "EXISTS (FROM '{secret}')",
    ")",
    "",
]


def watch_memory(monkeypatch):
    """Return a list that fills with the resident memory of the processes that strangers get."""
    peaks, real = [0], strangers.subprocess.Popen

    def popen(*args, **kwargs):
        process = real(*args, **kwargs)

        def look():
            while process.poll() is None:
                try:
                    text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
                except OSError:
                    return
                peaks.extend(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))
                time.sleep(0.01)

        threading.Thread(target=look, daemon=True).start()
        return process

    monkeypatch.setattr(strangers.subprocess, "Popen", popen)
    return peaks


class TestStrangers:
    def fill(self, text, tmp_path):
        secret = tmp_path / "secret.csv"
        secret.write_text("top,secret\n")
        numbers = ",".join(map(str, range(200_000))) if "{numbers}" in text else ""
        for name, value in {"secret": secret, "out": tmp_path / "out", "folder": tmp_path, "numbers": numbers}.items():
            text = text.replace("{" + name + "}", str(value))
        return text

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_attacks_are_refused_and_change_nothing(self, path, tmp_path, attack):
        stranger = {"x": np.arange(3)}
        sql = self.fill(ATTACKS[attack], tmp_path)
        before, files = path.read_bytes(), sorted(tmp_path.iterdir())
        with Catalog.open_snapshot(path) as reader, pytest.raises(SqlError):
            reader.untrusted(sql)
        assert stranger["x"].tolist() == [0, 1, 2]
        assert path.read_bytes() == before
        assert sorted(tmp_path.iterdir()) == files

    @pytest.mark.parametrize("fragment", FRAGMENTS)
    def test_a_condition_cannot_end_the_query_or_read_a_file(self, path, tmp_path, fragment):
        with Catalog.open_snapshot(path) as reader, pytest.raises(SqlError):
            reader.untrusted_where("factors", self.fill(fragment, tmp_path), columns=("factor",))

    def test_honest_conditions_pass(self, reader):
        def ask(fragment, params=None):
            return reader.untrusted_where("factors", fragment, params, columns=("factor",))["factor"].tolist()

        assert ask("factor = $f", {"f": "IMP2'"}) == ["IMP2'"]
        assert ask("has_protein -- those with a sequence") == ["IMP2'", "SOX2"]
        assert ask("factor IN (SELECT factor FROM factors WHERE family = 'a') OR (factor = 'SOX2')") == [
            "ARG5,6",
            "SOX2",
        ]
        assert ask("list_contains(genes, ?)", ["X"]) == ["IMP2'"]
        assert ask("factor IN (SELECT age FROM (SELECT 'SOX2' AS age))") == ["SOX2"]
        assert ask("hash(factor) % 2 + hash(factor || 'x') % 1 >= 0") == ["ARG5,6", "IMP2'", "SOX2"]

    @pytest.mark.parametrize(
        "fragment",
        [
            "random() > 0.5", "RANDOM() > 0.5", "uuid() > 'a'", "now() > TIMESTAMP '2020-01-01'",
            "current_date > DATE '2020-01-01'", "Current_Timestamp IS NOT NULL", "today() > DATE '2020-01-01'",
            "age(TIMESTAMP '2020-01-01') > INTERVAL 1 DAY", "factor IN (SELECT factor FROM factors USING SAMPLE 1)",
            "factor IN (SELECT factor FROM factors TABLESAMPLE 50%)",
            "factor IN (WITH t AS (SELECT factor, random() AS r FROM factors) SELECT factor FROM t WHERE r > 0.5)",
        ],
    )  # fmt: skip
    def test_a_condition_that_cannot_be_repeated_is_refused(self, reader, fragment):
        with pytest.raises(SqlError, match=r"cannot be repeated\n.*\n  fix:   leave it out; --sample"):
            reader.untrusted_where("factors", fragment, columns=("factor",))

    def test_honest_queries_pass_with_names_types_and_a_cut(self, reader):
        found = reader.untrusted("FROM factors SELECT factor, factor_id: 1 ORDER BY ALL", max_rows=2)
        assert (found.columns, found.types) == (["factor", "factor_id"], ["VARCHAR", "INTEGER"])
        assert (found.rows, found.is_cut) == ([("ARG5,6", 1), ("IMP2'", 1)], True)
        assert reader.untrusted("WITH a AS (SELECT $n AS n) SELECT n FROM a", {"n": 3}).rows == [(3,)]
        assert not reader.untrusted("DESCRIBE factors").is_cut
        twice = reader.untrusted("SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a")
        assert (twice.columns, twice.rows) == (["a", "a_2", "a_1", "a_3"], [(1, 2, 3, 4)])

    @pytest.mark.parametrize(
        "bomb",
        [
            "SELECT count(*) FROM range(1000000) a, range(1000000) b, range(999) c WHERE a.range + b.range < c.range",
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        ],
    )
    def test_a_bomb_is_stopped_within_a_second_of_its_time(self, reader, bomb):
        begin = time.monotonic()
        with pytest.raises(SqlError):
            reader.untrusted(bomb, seconds=0.5, memory="300MB")
        assert time.monotonic() - begin < 1.5 + 1  # one more for a busy machine

    def test_a_slow_query_says_that_its_time_was_up(self, reader):
        with pytest.raises(SqlTimeout, match=r"longer than 0\.2 s"):
            reader.untrusted(
                "SELECT count(*) FROM range(10000000) a, range(1000000) b WHERE a.range < b.range", seconds=0.2
            )

    @pytest.mark.parametrize(
        "hog",
        [
            "SELECT repeat('x', 400000000) FROM range(50)",
            "SELECT repeat('x', 1000000) FROM range(100000)",
            "SELECT length(repeat('x', 1000000000)) FROM range(2048)",
            "SELECT lpad('x', 2000000000, 'y')",
        ],
    )
    def test_what_duckdb_neither_counts_nor_interrupts_ends_with_its_process(self, reader, hog, monkeypatch):
        peaks = watch_memory(monkeypatch)
        begin = time.monotonic()
        with pytest.raises(SqlError):
            reader.untrusted(hog, seconds=1.5, memory="300MB")
        assert time.monotonic() - begin < 1.5 + 10  # it ends within a second; a busy machine may take longer to say so
        assert max(peaks) < 300e6 + 1.2 * 2**30

    def test_an_answer_that_is_too_large_to_hold_is_refused(self, reader, monkeypatch):
        monkeypatch.setattr(strangers, "MAX_ANSWER_BYTES", 1000)
        with pytest.raises(SqlError, match="takes more than"):
            reader.untrusted("SELECT repeat('x', 100) FROM range(50)")

    def test_the_process_can_open_no_file_even_if_duckdb_would(self, reader, tmp_path, monkeypatch):
        text = strangers.PROGRAM.read_text(encoding="utf-8")
        setting = '        ("enable_external_access", False),\n'
        assert setting in text
        careless = text.replace(setting, "")
        (tmp_path / "careless.py").write_text(careless, encoding="utf-8")
        monkeypatch.setattr(strangers, "PROGRAM", tmp_path / "careless.py")
        (tmp_path / "secret.csv").write_text("top,secret\n")
        with pytest.raises(SqlError, match="Too many open files"):
            reader.untrusted(f"SELECT * FROM read_text('{tmp_path}/secret.csv')")

    def test_nothing_of_the_environment_reaches_the_process(self, reader, monkeypatch):
        monkeypatch.setenv("SECRET_TOKEN", "hush")
        seen = []
        real = strangers.subprocess.Popen

        def popen(*args, **kwargs):
            seen.append(kwargs["env"])
            return real(*args, **kwargs)

        monkeypatch.setattr(strangers.subprocess, "Popen", popen)
        reader.untrusted("SELECT 1")
        assert len(seen) == 1
        assert "SECRET_TOKEN" not in seen[0]

    def test_memory_is_limited_and_nothing_spills_to_disk(self, reader, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        files = sorted(tmp_path.iterdir())
        with pytest.raises(SqlError, match=r"(?i)memory"):
            reader.untrusted("SELECT list(range) FROM range(100000000)", memory="50MB")
        assert sorted(tmp_path.iterdir()) == files


class TestErrorsSayWhatToDo:
    @pytest.mark.parametrize("params", [{}, {"f": "A", "g": "B"}])
    def test_a_parameter_too_few_or_too_many(self, reader, params):
        with pytest.raises(SqlError) as caught:
            reader.untrusted("SELECT * FROM peaks WHERE factor = $f", params)
        assert "-p NAME=VALUE" in caught.value.fix

    @pytest.mark.parametrize(("query", "params"), [("SELECT '\udcff'", {}), ("SELECT $f", {"f": "\udcff"})])
    def test_what_is_no_unicode_is_refused_as_such(self, reader, query, params):
        with pytest.raises(SqlError, match="surrogates not allowed"):
            reader.untrusted(query, params)

    def test_a_damaged_parquet_file_is_one_line_and_named(self, tmp_path):
        path = tmp_path / "scores.parquet"
        path.write_bytes(b"garbage")
        with pytest.raises(CatalogError) as caught:
            Catalog.read_parquet(path)
        assert "\n" not in caught.value.what
        assert (caught.value.where, caught.value.fix) == (str(path), "run the command again that wrote scores.parquet")

    @pytest.mark.parametrize(
        ("system", "error"), [("Read-only file system", StoreReadOnly), ("No space left on device", NoSpace)]
    )
    def test_a_place_that_takes_nothing_is_named_as_such(self, tmp_path, system, error):
        with pytest.raises(error) as caught, catalog_module._catalog_errors(tmp_path):
            raise duckdb.IOException(f'Cannot open file "x.parquet": {system}')
        assert caught.value.where == str(tmp_path)
